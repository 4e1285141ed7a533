"""The suite as a library: the commands as functions, with strings as paths and checked values.

Mistakes are UserErrors with the messages of the command line.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar

from fer_hpc import config as configs
from fer_hpc.config import TrainConfig, UserError, flag_name, unknown_name_error
from fer_hpc.config.commands import EvaluateConfig

Config = TypeVar("Config", bound=Any)
PathLike = str | Path


def preset(name: str, **fields: Any) -> TrainConfig:
    """The configuration of preset `name`; `fields` (data and run at least) replace its values."""
    return configs.preset(name, **_checked(TrainConfig, fields))


def train(config: TrainConfig | str | None = None, **fields: Any) -> dict[str, Any]:
    """Train a classifier, or continue the one in the run folder; gives the run's status.

    `train("cnn_improved", data="shards", run="runs/a", epochs=3)` starts from a preset,
    `train(model="mine", data=…, run=…)` from the defaults, and a TrainConfig is taken as it is but
    for `fields`. The status has `state` ("finished", or "interrupted" after a signal), `why`,
    `images_seen` and `best`, the scores of the best epoch. Of several ranks, each calls it.
    """
    if isinstance(config, TrainConfig):
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)} | fields
        config = None
    for name in ("data", "run"):
        if name not in fields:
            raise UserError(
                f"{name} is missing: give the folder of shards as data, a run folder as run"
            )
    checked = _checked(TrainConfig, fields)
    resolved = TrainConfig(**checked) if config is None else configs.preset(config, **checked)

    from fer_hpc.parallel.world import World
    from fer_hpc.training.loop import train as run_training

    return run_training(resolved, World.detect())


def evaluate(run: PathLike, split: str = "val", **fields: Any) -> dict[str, Any]:
    """Score a run's best weights on a split; gives the scores that eval-SPLIT.json holds.

    `fields` are the flags of `fer-hpc evaluate`: data, tta, plugin, device, and for a GAN's run
    judge and pairs.
    """
    config = EvaluateConfig(**_checked(EvaluateConfig, {"run": run, "split": split, **fields}))

    from fer_hpc.parallel.world import World
    from fer_hpc.run.folder import read_run_config

    if read_run_config(config.run).get("kind") == "GAN":
        from fer_hpc.gan.evaluate import evaluate_gan

        return evaluate_gan(config)
    from fer_hpc.evaluation.score import evaluate as score

    return score(config, World.detect())


def _checked(config_class: type[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` as the types of a configuration; a UserError names what is unknown or of no use."""
    hints = typing.get_type_hints(config_class)
    for name in fields:
        if name not in hints:
            raise unknown_name_error("field", name, list(hints))
    return {name: _value(name, hints[name], value) for name, value in fields.items()}


def _value(name: str, hint: Any, value: Any) -> Any:
    """A value as the type that a field wants: text becomes a path, a list a tuple."""
    options, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is Literal:
        if value not in options:
            raise unknown_name_error(flag_name(name), str(value), list(map(str, options)))
        return value
    if origin is tuple:
        several = value if isinstance(value, list | tuple) else [value]
        return tuple(_value(name, options[0], each) for each in several)
    accepted = options or (hint,)
    if value is None and NoneType in accepted:
        return None
    if Path in accepted and isinstance(value, PathLike):
        return Path(value)
    if float in accepted and type(value) is int:
        return float(value)
    if type(value) in accepted:
        return value
    wanted = " or ".join(t.__name__ for t in accepted if t is not NoneType)
    raise UserError(f"{flag_name(name)} {value!r}: wanted a value of type {wanted}")
