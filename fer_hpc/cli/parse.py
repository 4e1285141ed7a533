"""From a command's arguments to its configuration; the only user of tyro."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from fer_hpc.config import PRESETS, GanConfig, TrainConfig, UserError, unknown_name_error
from fer_hpc.config.commands import (
    CancelConfig,
    DoctorConfig,
    EvaluateConfig,
    LogsConfig,
    PreprocessConfig,
    ReportConfig,
    StatusConfig,
    SweepConfig,
    TransferConfig,
)

Config = TypeVar("Config")
POSITIONAL = (
    TransferConfig,
    DoctorConfig,
    EvaluateConfig,
    ReportConfig,
    StatusConfig,
    LogsConfig,
    CancelConfig,
)


def configure(verb: str, args: list[str]) -> Any:
    """The configuration that a command's arguments mean."""
    if verb in ("train", "sheet"):
        name, rest = take_preset(args)
        if any(arg.partition("=")[0] == "--from-sweep" for arg in rest):
            return _winner(name, rest, verb)
        if name is None and not {"-h", "--help"} & set(rest):
            known = ", ".join(PRESETS)
            how = f"python -m fer_hpc.{verb} PRESET --data DIR --run RUN"
            raise UserError(
                f"which preset? {how} (presets: {known}), or --from-sweep DIR for a sweep's winner"
            )
        return parse(TrainConfig, f"{verb} {name or 'PRESET'}", rest, PRESETS.get(name or "", {}))
    if verb == "trial":
        from fer_hpc.sweep.grid import trial_of_array

        return trial_of_array(Path(args[0]), Path(args[1]))
    if verb == "tune":
        own, rest = split_args(SweepConfig, args)
        return _sweep(parse(SweepConfig, "tune", own), rest)
    plain = {
        "train_gan": GanConfig,
        "preprocess": PreprocessConfig,
        "evaluate": EvaluateConfig,
        "report": ReportConfig,
    }
    if verb not in plain:
        raise unknown_name_error("verb", verb, ["train", "sheet", "tune", *plain])
    return parse(plain[verb], verb, args)


def _winner(name: str | None, args: list[str], verb: str) -> TrainConfig:
    """The configuration that was best in a sweep, with further flags on top; the sweep's --data unless another is given."""
    i = next(i for i, arg in enumerate(args) if arg.partition("=")[0] == "--from-sweep")
    folder = args[i].partition("=")[2] or "".join(args[i + 1 : i + 2])
    rest = args[:i] + args[i + (1 if "=" in args[i] else 2) :]
    if name is not None:
        raise UserError(
            f"{name} with --from-sweep: the sweep says which preset; leave one of them out"
        )
    from fer_hpc.sweep.tables import best_of

    best = best_of(Path(folder))
    defaults = {"data": Path(best["data"])} | {
        k: v for k, v in best["science"].items() if k != "init_hash"
    }
    return parse(TrainConfig, f"{verb} --from-sweep {folder}", rest, defaults)


def _sweep(sweep: SweepConfig, args: list[str]) -> tuple[SweepConfig, str, TrainConfig]:
    """The sweep, its preset's name, and what its trials share."""
    name, rest = take_preset(args)
    for given in (arg.partition("=")[0] for arg in rest):
        if given in ("--batch-size", "--lr", "--seed"):
            raise UserError(
                f"{given} is what a sweep varies; give {given}s with one or more values"
            )
        if given in ("--run", "--from-sweep"):
            raise UserError(
                f"{given} belongs to train; a sweep makes a run folder for each trial under --out"
            )
    name = name or "cnn_improved"
    shared = ["--data", str(sweep.data), "--run", str(sweep.out / "trials")]
    base = parse(TrainConfig, f"tune {name}", [*shared, *rest], {"threads": 1, **PRESETS[name]})
    if not base.threads:
        raise UserError(
            "--threads 0: a sweep's trials share the cores; say how many each process gets, as --threads 1"
        )
    return sweep, name, base


def split_args(config_class: type[Any], args: list[str]) -> tuple[list[str], list[str]]:
    """The flags of `config_class`, with their values, and everything else."""
    switches = {f.name: f.type == "bool" for f in dataclasses.fields(config_class)}
    several = {f.name: f.type.startswith("tuple") for f in dataclasses.fields(config_class)}
    own: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(args):
        name = args[i].partition("=")[0].removeprefix("--").replace("-", "_")
        mine = args[i].startswith("--") and name.removeprefix("no_") in switches
        values = 0
        if mine and not switches[name.removeprefix("no_")] and "=" not in args[i]:
            values = 1
            while (
                several[name]
                and args[i + 1 + values : i + 2 + values]
                and not args[i + 1 + values].startswith("-")
                and args[i + 1 + values] not in PRESETS
            ):
                values += 1
        (own if mine else rest).extend(args[i : i + 1 + values])
        i += 1 + values
    return own, rest


def parse(
    config_class: type[Config],
    command: str,
    args: list[str],
    defaults: dict[str, Any] | None = None,
) -> Config:
    """The dataclass filled from the command line; flags, types and help come from its fields and their comments.

    `defaults` replaces the fields' own. The RUN of evaluate and the RUNS of report are positional.
    """
    import tyro

    args = _without_commas(config_class, args)
    kwargs: dict[str, Any] = {}
    if defaults:  # checked once it is filled; the fields without any default stay required
        base = object.__new__(config_class)
        for f in dataclasses.fields(config_class):  # type: ignore[arg-type]
            fallback = tyro.MISSING if f.default is dataclasses.MISSING else f.default
            object.__setattr__(base, f.name, defaults.get(f.name, fallback))
        kwargs["default"] = base
    about = config_class.__doc__ or ""
    if config_class is TrainConfig:
        about += f" Presets: {', '.join(PRESETS)}."
    return tyro.cli(
        config_class,
        prog=f"fer-hpc {command}",
        description=about,
        args=args,
        config=(tyro.conf.PositionalRequiredArgs,) if config_class in POSITIONAL else (),
        **kwargs,
    )


def _without_commas(config_class: type[Any], args: list[str]) -> list[str]:
    """`--lrs 0.01,0.001` as `--lrs 0.01 0.001`, for the flags that take several values."""
    several = {
        f.name
        for f in dataclasses.fields(config_class)
        if f.type.startswith("tuple") and "Path" not in f.type
    }
    apart: list[str] = []
    flag = ""
    for arg in args:
        if arg.startswith("--"):
            flag = arg.partition("=")[0].removeprefix("--").replace("-", "_")
        if flag in several and "," in arg:
            apart += [
                part for part in arg.replace("=", ",", int(arg.startswith("--"))).split(",") if part
            ]
        else:
            apart.append(arg)
    return apart


def take_preset(args: list[str]) -> tuple[str | None, list[str]]:
    """Take the positional PRESET out of `args`: it decides the defaults of everything else."""
    switches = {f.name for f in dataclasses.fields(TrainConfig) if f.type == "bool"} | {"h", "help"}
    i = 0
    while i < len(args):
        if not args[i].startswith("-"):
            if args[i] not in PRESETS:
                raise unknown_name_error("preset", args[i], list(PRESETS))
            return args[i], args[:i] + args[i + 1 :]
        name = args[i].lstrip("-").replace("-", "_").removeprefix("no_")
        i += 1 if "=" in args[i] or name in switches else 2
    return None, args
