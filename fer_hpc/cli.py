"""`fer-hpc VERB ...`, the same commands as `python -m fer_hpc.<module> ...`.

Arguments are checked here, before torch, h5py or matplotlib is loaded, so that help and mistakes answer at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from fer_hpc import __version__, rundir
from fer_hpc.config import (
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_TAKEN_OVER,
    EXIT_USER_ERROR,
    PRESETS,
    DoctorConfig,
    EvaluateConfig,
    PreprocessConfig,
    ReportConfig,
    SyntheticConfig,
    TrainConfig,
    UserError,
    continued,
    unknown,
)  # fmt: skip

Config = TypeVar("Config")


def synthetic(args: list[str]) -> int:
    """drawn faces in AffectNet's layout, to try everything out"""
    config = parse(SyntheticConfig, "synthetic", args)
    from fer_hpc.data.synthetic import write_affectnet

    print(write_affectnet(config))
    return EXIT_FINISHED


def preprocess(args: list[str]) -> int:
    """faces -> HDF5 shards"""
    config = parse(PreprocessConfig, "preprocess", args)
    from fer_hpc.preprocess import preprocess

    preprocess(config)
    return EXIT_FINISHED


def train(args: list[str]) -> int:
    """PRESET and shards -> a trained classifier in a run folder"""
    name, rest = take_preset(args)
    if name is None and not {"-h", "--help"} & set(rest):
        raise UserError(f"which preset? python -m fer_hpc.train PRESET --data DIR --run RUN (presets: {', '.join(PRESETS)})")
    config = parse(TrainConfig, f"train {name or 'PRESET'}", rest, PRESETS.get(name or "", {}))
    if not (config.data / "manifest.json").exists():
        from fer_hpc.data.shards import read_manifest

        read_manifest(config.data)  # says what is wrong before torch is loaded
    if _is_finished(config):
        print(f"{config.run}: finished, nothing to do (python -m fer_hpc.evaluate {config.run} scores it)")
        return EXIT_FINISHED
    from fer_hpc.distributed import PeerLost, World
    from fer_hpc.session import Superseded
    from fer_hpc.train import train as run

    world = World.detect()
    try:
        status = run(config, world)
    except Superseded as why:
        return _leave(world.size, EXIT_TAKEN_OVER, f"fer-hpc train: {why}")
    except PeerLost as why:
        return _leave(world.size, EXIT_RUN_AGAIN, f"fer-hpc train: {why}; the same command goes on from the last checkpoint")
    except UserError as error:  # rank 0 says it for all
        return _leave(world.size, EXIT_USER_ERROR, "" if world.rank else f"fer-hpc train: error: {error}")
    if world.rank:
        return EXIT_FINISHED if status["state"] == "finished" else EXIT_RUN_AGAIN
    if status["state"] != "finished":
        print(f"{config.run}: {status['why']} at {status['images_seen']:,} images, saved; the same command goes on from there")
        return EXIT_RUN_AGAIN
    best = status["best"]
    scores = f"val accuracy {best['val_accuracy']:.4f}, loss {best['val_loss']:.4f}"
    print(f"{config.run}: finished; best epoch {best['epoch']}: {scores}")
    return EXIT_FINISHED


def _leave(ranks: int, code: int, why: str) -> int:
    """End with `code`; of several ranks at once: torch's orderly exit waits for, or trips over, ranks that are gone."""
    if why:
        print(why, file=sys.stderr, flush=True)
    if ranks > 1:
        sys.stdout.flush()
        os._exit(code)
    return code


def sheet(args: list[str]) -> int:
    """train's arguments -> RUN/sheet.png: the first images as the network will see them"""
    name, rest = take_preset(args)
    config = parse(TrainConfig, f"sheet {name or 'PRESET'}", rest, PRESETS.get(name or "", {}))
    from fer_hpc.sheet import sheet

    print(f"sheet: {sheet(config)}")
    return EXIT_FINISHED


def doctor(args: list[str]) -> int:
    """a folder of shards -> what is wrong with it: damage, duplicates, leaks"""
    config = parse(DoctorConfig, "doctor", args)
    from fer_hpc.doctor import doctor

    return doctor(config)


def _is_finished(config: TrainConfig) -> bool:
    """Whether the run folder already holds the end of exactly this run."""
    stored, manifest = rundir.read_json(config.run / "config.json"), rundir.read_json(config.data / "manifest.json")
    if not stored or not manifest or rundir.status(config.run)["state"] != "finished":
        return False
    same = stored["data"]["fingerprint"] == manifest["fingerprint"]
    return same and continued(config, stored["science"]).epochs == stored["science"]["epochs"]


def evaluate(args: list[str]) -> int:
    """a run and a split -> scores, predictions, confusion plot"""
    config = parse(EvaluateConfig, "evaluate", args)
    rundir.config(config.run)  # says so if it is no run folder, before torch is loaded
    r = _scored_before(config)
    if r:
        print(f"{config.run}: {config.split} was scored before with these weights, nothing to do")
    else:
        from fer_hpc.distributed import World
        from fer_hpc.evaluate import evaluate

        world = World.detect()
        r = evaluate(config, world)
        if world.rank:
            return EXIT_FINISHED
    print(_in_words(config, r))
    return EXIT_FINISHED


def _in_words(config: EvaluateConfig, r: dict[str, Any]) -> str:
    low, high = r["accuracy_95"]
    views = {"none": "", "flip": ", mean of 2 views", "ten_crop": ", mean of 10 views"}[config.tta]
    unfinished = "" if r["finished"] else " (run not finished)"
    lines = [f"{config.run} on {r['split']}, n = {r['n']:,}, weights of epoch {r['epoch']}{unfinished}{views}"]
    if r["masked"]:
        lines.append(f"  classes that only one side knows, left out: {', '.join(r['masked'])}; faces dropped: {r['dropped']:,}")
    lines.append(f"  accuracy          {r['accuracy']:.4f}  [{low:.4f}, {high:.4f}]   majority class {r['majority_rate']:.4f}")
    for key, title in (("balanced_accuracy", "balanced accuracy"), ("macro_f1", "macro-F1")):
        lines.append(f"  {title:<17} {r[key]:.4f}  [{r[key + '_95'][0]:.4f}, {r[key + '_95'][1]:.4f}]")
    lines.append(f"  loss              {r['loss']:.4f}")
    for name, c in r["classes"].items():
        lines.append(f"  recall {name:<10} " + (f"{c['recall']:.4f}  of {c['n']:,}" if c["n"] else "-       no face"))
    for pair in r["pairs"]:
        low, high = pair["accuracy_95"]
        lines.append(f"  {' or '.join(pair['classes']):<22} {pair['accuracy']:.4f}  [{low:.4f}, {high:.4f}]  of {pair['n']:,}")
    for dimension in ("valence", "arousal"):
        if f"{dimension}_rmse" in r:
            scores = (r[f"{dimension}_{key}"] for key in ("rmse", "ccc", "sign"))
            lines.append("  {:<17} RMSE {:.4f}  CCC {:.4f}  sign {:.4f}".format(dimension, *scores))
    return "\n".join(lines)


def _scored_before(config: EvaluateConfig) -> dict[str, Any] | None:
    """The scores of this split if they stand there already, from the same weights and data."""
    trained_on = rundir.config(config.run)["data"]["fingerprint"]
    found = rundir.read_json(config.run / f"eval-{rundir.result_name(config, trained_on)}.json")
    weights = rundir.outcome(config.run, "best.pt")
    if not found or not weights or rundir.status(config.run)["state"] != "finished":
        return None
    manifest = rundir.read_json((config.data or rundir.data_path(config.run)) / "manifest.json")
    same = manifest and found["data"] == manifest["fingerprint"] and found["weights"] == rundir.sha256(weights)
    return dict(found) if same and "pairs" in found else None


def report(args: list[str]) -> int:
    """run folders -> one HTML page of tables and plots"""
    config = parse(ReportConfig, "report", args)
    from fer_hpc.report import report

    print(f"report: {report(config)}")
    return EXIT_FINISHED


VERBS: dict[str, Callable[[list[str]], int]] = {
    "synthetic": synthetic,
    "preprocess": preprocess, "doctor": doctor, "sheet": sheet, "train": train, "evaluate": evaluate, "report": report,
}  # fmt: skip


def parse(config_class: type[Config], command: str, args: list[str], defaults: dict[str, Any] | None = None) -> Config:
    """The dataclass filled from the command line; flags, types and help come from its fields and their comments.

    `defaults` replaces the fields' own. The RUN of evaluate and the RUNS of report are positional.
    """
    import tyro

    kwargs: dict[str, Any] = {}
    if defaults:  # checked once it is filled; the fields without any default stay required
        base = object.__new__(config_class)
        for f in dataclasses.fields(config_class):  # type: ignore[arg-type]
            fallback = tyro.MISSING if f.default is dataclasses.MISSING else f.default
            object.__setattr__(base, f.name, defaults.get(f.name, fallback))
        kwargs["default"] = base
    positional = config_class in (DoctorConfig, EvaluateConfig, ReportConfig)
    about = config_class.__doc__ or ""
    if config_class is TrainConfig:
        about += f" Presets: {', '.join(PRESETS)}."
    return tyro.cli(
        config_class, prog=f"fer-hpc {command}", description=about, args=args,
        config=(tyro.conf.PositionalRequiredArgs,) if positional else (), **kwargs,
    )  # fmt: skip


def take_preset(args: list[str]) -> tuple[str | None, list[str]]:
    """Take the positional PRESET out of `args`: it decides the defaults of everything else."""
    switches = {f.name for f in dataclasses.fields(TrainConfig) if f.type == "bool"} | {"h", "help"}
    i = 0
    while i < len(args):
        if not args[i].startswith("-"):
            if args[i] not in PRESETS:
                raise unknown("preset", args[i], list(PRESETS))
            return args[i], args[:i] + args[i + 1 :]
        name = args[i].lstrip("-").replace("-", "_").removeprefix("no_")
        i += 1 if "=" in args[i] or name in switches else 2
    return None, args


def run_command(verb: str, command: Callable[[], int]) -> int:
    """Run a command; a UserError becomes one message on stderr and exit code 2, never a traceback."""
    try:
        return command()
    except UserError as error:
        print(f"fer-hpc {verb}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if error.filename is None:
            raise
        print(f"fer-hpc {verb}: error: {error.strerror}: {error.filename}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"\nfer-hpc {verb}: stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_RUN_AGAIN


def main(args: list[str] | None = None) -> int:
    args = sys.argv[1:] if args is None else args
    if args[1:2] == ["--"]:  # torchrun passes on the -- that it needs before arguments like --run, a prefix of its own
        del args[1]
    if not args or args[0] in ("-h", "--help"):
        print("usage: fer-hpc VERB ...   (python -m fer_hpc.VERB is the same)\n")
        for verb, command in VERBS.items():
            print(f"  {verb:<12}{command.__doc__}")
        print("\nfer-hpc VERB --help lists the flags of one.")
        return EXIT_FINISHED
    if args[0] == "--version":
        print(f"fer-hpc {__version__}")
        return EXIT_FINISHED
    if args[0] not in VERBS:
        print(f"fer-hpc: error: {unknown('verb', args[0], list(VERBS))}", file=sys.stderr)
        return EXIT_USER_ERROR
    return run_command(args[0], lambda: VERBS[args[0]](args[1:]))


if __name__ == "__main__":
    sys.exit(main())
