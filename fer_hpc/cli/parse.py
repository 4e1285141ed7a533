"""From a verb and its arguments to its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fer_hpc.cli.flags import Given, Part, parse
from fer_hpc.cli.verbs import VERBS
from fer_hpc.config import PRESETS, TrainConfig, UserError, unknown_name_error
from fer_hpc.config.aliases import current_science
from fer_hpc.config.commands import (
    JobConfig,
    PipelineConfig,
    PreprocessConfig,
    StartConfig,
    SweepConfig,
)
from fer_hpc.config.plugins import load_plugins

SWEPT = frozenset({"data", "run", "batch_size", "lr", "seed"})  # set by a sweep for each trial
SEEDED = frozenset({"data", "run", "seed"})  # set by a pipeline for each training
_IN_TRIALS = "belongs to train; a sweep makes a run folder for each trial under --out"
TUNE_NOTES = {
    "--batch-size": "is varied by a sweep; give --batch-sizes with one or more values",
    "--lr": "is varied by a sweep; give --lrs with one or more values",
    "--seed": "is varied by a sweep; give --seeds with one or more values",
    "--run": _IN_TRIALS,
    "--from-sweep": _IN_TRIALS,
}
PIPELINE_NOTES = {
    "--seed": "is varied by a pipeline; give --seeds with one or more values",
    "--data": "is made by a pipeline: OUT/shards of --out OUT",
    "--run": "is made by a pipeline: OUT/runs/PRESET-seedN of --out OUT",
}


def configure(verb: str, args: list[str]) -> Any:
    """The configuration that a command's arguments mean; of tune: (sweep, preset, base)."""
    if verb == "trial":
        from fer_hpc.sweep.grid import trial_of_array

        return trial_of_array(Path(args[0]), Path(args[1]))
    return configure_job(verb, args)[1]


def configure_job(
    verb: str, args: list[str], more: tuple[type, ...] = (), command: str = ""
) -> tuple[Given, Any]:
    """What is given, and the configuration; `more` are configurations whose flags it takes as well.

    command: as the user types it; default: fer-hpc VERB
    """
    command = command or f"fer-hpc {verb}"
    known = [Part(each) for each in more]
    if verb in ("train", "sheet"):
        # For the help only. Of the arguments, tyro decides which one is the preset.
        shown = next((arg for arg in args if arg in PRESETS), "")
        parts = [Part(TrainConfig, defaults=PRESETS.get(shown, {})), Part(StartConfig), *known]
        about = VERBS[verb].about
        given = parse(command, about, parts, args, presets=True)
        return given, _training(given)
    if verb == "tune":
        parts = [Part(SweepConfig), Part(TrainConfig, SWEPT, {"threads": 1}), *known]
        given = parse(command, VERBS[verb].about, parts, args, True, TUNE_NOTES)
        return given, _sweep(given)
    if verb not in VERBS:
        raise unknown_name_error("verb", verb, list(VERBS))
    config_class = VERBS[verb].config_class
    given = parse(command, VERBS[verb].about, [Part(config_class), *known], args)
    config: Any = given.build(config_class)
    if isinstance(config, PreprocessConfig):
        check_source(config.source, config.plugin)
    return given, config


def _training(given: Given) -> TrainConfig:
    """The configuration of a training, on a preset or on the best configuration of a sweep."""
    folder = given.build(StartConfig).from_sweep
    if folder and given.preset:
        raise UserError(
            f"{given.preset} with --from-sweep: the sweep decides the preset; leave one of them out"
        )
    if folder:
        from fer_hpc.sweep.tables import best_of

        best = best_of(folder)
        filled_in = ("init_hash", "plugin_hash")
        science = {k: v for k, v in current_science(best["science"]).items() if k not in filled_in}
        files = best.get("runtime", {})
        needed: dict[str, Any] = {"plugin": tuple(map(Path, files.get("plugin", ())))}
        if "init_from" in files:
            needed["init_from"] = Path(files["init_from"])
        return given.build(TrainConfig, data=Path(best["data"]), **science, **needed)
    if given.preset is None and "model" in given.values[TrainConfig]:
        return given.build(TrainConfig)
    if given.preset is None:
        raise UserError(
            f"which preset? {given.command} PRESET (or --model NAME) --data DIR --run RUN "
            f"(presets: {', '.join(PRESETS)}), or --from-sweep DIR for the best of a sweep"
        )
    return given.build(TrainConfig, **PRESETS[given.preset])


def _sweep(given: Given) -> tuple[SweepConfig, str, TrainConfig]:
    """The sweep, its preset's name, and what its trials share."""
    sweep = given.build(SweepConfig)
    preset = given.preset or "cnn_improved"
    shared = {"data": sweep.data, "run": sweep.out / "trials", "threads": 1}
    base = given.build(TrainConfig, **shared, **PRESETS[preset])
    if not base.threads:
        raise UserError(
            "--threads 0: the trials of a sweep share the cores; say how many threads each "
            "process has, as --threads 1"
        )
    return sweep, preset, base


def configure_pipeline(args: list[str]) -> tuple[Given, JobConfig, PipelineConfig]:
    """What is given to jobs/pipeline.py, a PRESET included, and the parts that are not train's."""
    command = "jobs/pipeline.py"
    parts = [Part(PipelineConfig), Part(TrainConfig, SEEDED), Part(JobConfig)]
    about = str(PipelineConfig.__doc__)
    given = parse(command, about, parts, args, presets=True, notes=PIPELINE_NOTES)
    study = given.build(PipelineConfig)
    if given.preset is None:
        raise UserError(
            f"which preset? {command} PRESET --source ... --out DIR (presets: {', '.join(PRESETS)})"
        )
    check_source(study.source, given.values[TrainConfig].get("plugin", ()))
    return given, given.build(JobConfig), study


def check_source(source: str, plugins: tuple[Path, ...]) -> None:
    """A UserError unless `source` is built in or registered by a plugin."""
    from fer_hpc.data.sources import source_spec

    load_plugins(plugins)
    source_spec(source)
