"""From a verb and its arguments to its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fer_hpc.cli.flags import Given, Part, parse
from fer_hpc.cli.table import VERBS
from fer_hpc.config import PRESETS, TrainConfig, UserError, unknown_name_error
from fer_hpc.config.commands import (
    PreprocessConfig,
    RanksConfig,
    StartConfig,
    SweepConfig,
)
from fer_hpc.config.jobs import JobConfig, PipelineConfig
from fer_hpc.config.plugins import load_plugins
from fer_hpc.config.study import StudyConfig
from fer_hpc.parallel.local import LOCAL_VERBS

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
JOB_NOTES = {"--procs": "is for this machine; a job has --nodes times --gpus-per-node ranks"}
PIPELINE_NOTES = {
    **JOB_NOTES,
    "--seed": "is varied by a pipeline; give --seeds with one or more values",
    "--data": "is made by a pipeline: OUT/shards of --out OUT",
    "--run": "is made by a pipeline: OUT/runs/PRESET-seedN of --out OUT",
}


def configure(verb: str, args: list[str]) -> Any:
    """The configuration that a command's arguments mean; of tune: (sweep, preset, base)."""
    return configure_job(verb, args)[1]


def configure_job(
    verb: str, args: list[str], more: tuple[type, ...] = (), command: str = ""
) -> tuple[Given, Any]:
    """What is given, and the configuration; `more` are configurations whose flags it takes as well.

    command: as the user types it; default: fer-hpc VERB
    """
    if verb not in VERBS:
        raise unknown_name_error("verb", verb, list(VERBS))
    # For the help only. Of the arguments, tyro decides which one is the preset.
    shown = next((arg for arg in args if arg in PRESETS), "")
    parts = parts_of(verb, shown, as_job=bool(more)) + [Part(each) for each in more]
    presets = any(part.config_class is TrainConfig for part in parts)
    notes = (JOB_NOTES if more else {}) | (TUNE_NOTES if verb == "tune" else {})
    settings = parse(command or f"fer-hpc {verb}", VERBS[verb].about, parts, args, presets, notes)
    if verb == "tune":
        return settings, _sweep(settings)
    if presets:
        return settings, _training(settings)
    if verb == "study":
        return settings, _study(settings)
    config: Any = settings.build(VERBS[verb].config_class)
    if isinstance(config, PreprocessConfig):
        check_source(config.source, config.input, config.plugin)
    return settings, config


def parts_of(verb: str, preset: str = "", as_job: bool = False) -> list[Part]:
    """The configurations whose fields are flags of a verb, its own first.

    preset: whose defaults the help shows; as_job: the number of ranks is that of the job
    """
    ranks = [Part(RanksConfig)] if verb in LOCAL_VERBS and not as_job else []
    if verb in ("train", "sheet"):
        return [Part(TrainConfig, defaults=PRESETS.get(preset, {})), Part(StartConfig), *ranks]
    if verb == "tune":
        defaults = {**PRESETS.get(preset, {}), "threads": 1}
        return [Part(SweepConfig), Part(TrainConfig, SWEPT, defaults)]
    if verb == "study":
        return [Part(StudyConfig), Part(JobConfig, defaults={"cluster": "local"})]
    return [Part(VERBS[verb].config_class), *ranks]


def _training(settings: Given) -> TrainConfig:
    """The configuration of a training, on a preset or on the best configuration of a sweep."""
    folder = settings.build(StartConfig).from_sweep
    if folder and settings.preset:
        raise UserError(
            f"{settings.preset} with --from-sweep: the sweep decides the preset; leave one of "
            "them out"
        )
    if folder:
        from fer_hpc.sweep.tables import best_of

        best = best_of(folder)
        files = best["runtime"]
        needed: dict[str, Any] = {"plugin": tuple(map(Path, files.get("plugin") or ()))}
        if files.get("init_from"):
            needed["init_from"] = Path(files["init_from"])
        stated = settings.values[TrainConfig]
        for field, flags in (("plugin_hash", ("model", "loss")), ("init_hash", ("init_from",))):
            if any(stated.get(f, best["science"].get(f)) != best["science"].get(f) for f in flags):
                best["science"].pop(field, None)  # another network or other weights are wanted
        return settings.build(TrainConfig, data=Path(best["data"]), **best["science"], **needed)
    if settings.preset is None and "model" in settings.values[TrainConfig]:
        return settings.build(TrainConfig)
    if settings.preset is None:
        raise UserError(
            f"which preset? {settings.command} PRESET (or --model NAME) --data DIR --run RUN "
            f"(presets: {', '.join(PRESETS)}), or --from-sweep DIR for the best of a sweep"
        )
    return settings.build(TrainConfig, **PRESETS[settings.preset])


def _sweep(settings: Given) -> tuple[SweepConfig, str, TrainConfig]:
    """The sweep, its preset's name, and what its trials share."""
    sweep = settings.build(SweepConfig)
    preset = settings.preset or "cnn_improved"
    shared = {"data": sweep.data, "run": sweep.out / "trials", "threads": 1}
    base = settings.build(TrainConfig, **shared, **PRESETS[preset])
    if not base.threads:
        raise UserError(
            "--threads 0: the trials of a sweep share the cores; say how many threads each "
            "process has, as --threads 1"
        )
    return sweep, preset, base


def _study(settings: Given) -> tuple[StudyConfig, dict[str, Any], JobConfig]:
    """A study, the flags of it that are given, and the resources of its jobs."""
    study = settings.build(StudyConfig)
    if study.source:
        check_source(study.source, study.input, ())
    return study, settings.values[StudyConfig], settings.build(JobConfig, cluster="local")


def configure_pipeline(args: list[str]) -> tuple[Given, JobConfig, PipelineConfig]:
    """What is given to jobs/pipeline.py, a PRESET included, and the parts that are not train's."""
    command = "jobs/pipeline.py"
    parts = [Part(PipelineConfig), Part(TrainConfig, SEEDED), Part(JobConfig)]
    about = str(PipelineConfig.__doc__)
    settings = parse(command, about, parts, args, presets=True, notes=PIPELINE_NOTES)
    study = settings.build(PipelineConfig)
    if settings.preset is None:
        raise UserError(
            f"which preset? {command} PRESET --source ... --out DIR (presets: {', '.join(PRESETS)})"
        )
    check_source(study.source, study.input, settings.values[TrainConfig].get("plugin", ()))
    return settings, settings.build(JobConfig), study


def check_source(source: str, folder: Path | None, plugins: tuple[Path, ...]) -> None:
    """A UserError unless `source` is known, by a plugin too, and has the input that it needs."""
    from fer_hpc.data.sources import source_spec

    load_plugins(plugins)
    spec = None if source == "auto" else source_spec(source)
    if (spec is None or spec.needs_input) and folder is None:
        form = f" ({spec.help})" if spec else ""
        raise UserError(f"--source {source} needs --input PATH{form}")
