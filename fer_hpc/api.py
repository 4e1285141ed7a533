"""The suite as a library: the commands as functions, with strings as paths.

Mistakes are UserErrors with the messages of the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_hpc import config as configs
from fer_hpc.cli.verbs import is_finished
from fer_hpc.config import TrainConfig, UserError, unknown_name_error
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.config.deploy import PredictConfig
from fer_hpc.config.plugins import plugin_mistakes
from fer_hpc.run.folder import read_run_config, read_status
from fer_hpc.run.output import outlive_reader

PathLike = str | Path


def preset(name: str, **fields: Any) -> TrainConfig:
    """The configuration of preset `name`; `fields` (data and run at least) replace its values."""
    return configs.preset(name, **_known(TrainConfig, fields))


def train(config: TrainConfig | str | None = None, **fields: Any) -> dict[str, Any]:
    """Train a classifier, or continue the one in the run folder; gives the run's status.

    `train("cnn_improved", data="shards", run="runs/a", epochs=3)` starts from a preset,
    `train(model="mine", data=..., run=...)` from the defaults. `fields` replace those of a given
    TrainConfig. The status has `state` ("finished", or "interrupted" after a signal), `why`,
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
    known = _known(TrainConfig, fields)
    wanted = TrainConfig(**known) if config is None else configs.preset(config, **known)
    if is_finished(wanted):
        return read_status(wanted.run)

    from fer_hpc.parallel.world import World
    from fer_hpc.training.loop import train as run_training

    with outlive_reader():
        return run_training(wanted, World.detect())


def evaluate(run: PathLike, split: str = "val", **fields: Any) -> dict[str, Any]:
    """Score a run's best weights on a split; gives the scores that eval-SPLIT.json holds.

    `fields` are the flags of `fer-hpc evaluate`: data, tta, by, robust, gallery, plugin, device,
    and for a GAN's run judge, identity_judge and pairs. A test split counts every call.
    """
    config = EvaluateConfig(**_known(EvaluateConfig, {"run": run, "split": split, **fields}))

    from fer_hpc.parallel.world import World

    if read_run_config(config.run).get("kind") == "GAN":
        from fer_hpc.gan.evaluate import evaluate_gan

        return evaluate_gan(config)
    from fer_hpc.evaluation.score import evaluate as score

    with plugin_mistakes():
        return score(config, World.detect())


def predict(
    run: PathLike, photos: PathLike | Sequence[PathLike], **fields: Any
) -> list[dict[str, Any]]:
    """The faces in photos and their expressions; a dictionary for each photo, in order.

    `run` is a run folder or an exported .onnx file (then without torch), `photos` files, folders or
    patterns. A photo has `photo`, `width`, `height`, `problem` (why it has no faces, else ""),
    `failed` (it could not be read) and `faces`: each with `class`, `probability`, `probabilities`
    by class name, and `box` and `cut` in pixels. `fields` are the flags of `fer-hpc predict`; with
    `out` its files are written.
    """
    several = (photos,) if isinstance(photos, PathLike) else tuple(photos)
    config = PredictConfig(**_known(PredictConfig, {"run": run, "photos": several, **fields}))

    from fer_hpc.deploy.predict import predict as look_at

    with plugin_mistakes():
        return look_at(config).photos


def _known(config_class: type[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields`, all of which the configuration has; one plugin may stand without a list."""
    names = [field.name for field in dataclasses.fields(config_class)]
    for name in fields:
        if name not in names:
            raise unknown_name_error("field", name, names)
    plugin = fields.get("plugin")
    return {**fields, **({"plugin": [plugin]} if isinstance(plugin, PathLike) else {})}
