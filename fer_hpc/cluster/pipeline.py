"""Several jobs that belong together: a pipeline of stages, a sweep as an array."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fer_hpc.cluster.records import JobCommand
from fer_hpc.cluster.submit import dry_run, layout, submit
from fer_hpc.config import TrainConfig, UserError, changed_fields, flag_arguments
from fer_hpc.config.commands import JobConfig, PipelineConfig, SweepConfig
from fer_hpc.config.plugins import load_plugins
from fer_hpc.files import write_json

Configure = Callable[[str, list[str]], Any]  # cli.parse.configure, which is above this package
WAIT = ["wait"]  # `after` of a job without a scheduler: submit returns when the job has ended


def pipeline(
    job: JobConfig,
    study: PipelineConfig,
    preset: str,
    train_args: list[str],
    configure: Configure,
) -> Iterator[str]:
    """Submit the stages of a study, each waiting for the one before; gives the lines to print.

    Preprocessing as an array, a training for each seed, its scores, and one report.
    """
    if not study.seeds:
        raise UserError("--seeds: wanted at least one value")
    out = study.out.absolute()
    shards = out / "shards"
    trainings: dict[Path, list[str]] = {}
    for seed in study.seeds:
        run = out / "runs" / f"{preset}-seed{seed}"
        places = ["--data", str(shards), "--run", str(run), "--seed", str(seed)]
        trainings[run] = ["train", preset, *places, *train_args]
    # Every stage is parsed before the first is submitted, so that a mistake costs no job.
    configs = {run: configure(args[0], args[1:]) for run, args in trainings.items()}
    side, channels = _face_of(next(iter(configs.values())))
    source = ["--source", study.source, "--out", str(shards), "--tasks", str(study.tasks)]
    source += ["--size", str(study.size or side), "--channels", str(study.channels or channels)]
    source += flag_arguments("split", study.split)
    source += flag_arguments("classes", study.classes or None)
    plugins = next(iter(configs.values())).plugin
    source += flag_arguments("plugin", tuple(path.absolute() for path in plugins) or None)
    if study.input:
        source += ["--input", str(study.input.absolute())]
    else:
        source += ["--count", str(study.count)]
    preprocess = [["preprocess", *source, "--task", str(i)] for i in range(study.tasks)]
    preprocess_config = configure("preprocess", preprocess[0][1:])
    report = ["report", str(out / "runs"), "--out", str(out / "report")]

    stages = _Stages(job)
    gpus = job.gpus_per_node
    shard_jobs = stages.submit(shards, preprocess, preprocess_config, [], check=True)
    shard_jobs = _whole_arrays(shard_jobs)
    score_jobs: list[str] = []
    for run, args in trainings.items():
        train_jobs = stages.submit(run, [args], configs[run], shard_jobs, gpus)
        evaluate = ["evaluate", str(run), "--split", study.eval_split]
        evaluate_config = configure("evaluate", evaluate[1:])
        score_jobs += stages.submit(run, [evaluate], evaluate_config, train_jobs, min(gpus, 1))
    stages.submit(out / "report", [report], configure("report", report[1:]), score_jobs)
    yield from stages.lines
    yield f"page: {out / 'report' / 'index.html'}    fer-hpc status {out}    fer-hpc cancel {out}"


class _Stages:
    """Submits one stage after another and keeps a line on each."""

    def __init__(self, job: JobConfig) -> None:
        self.job = job
        self.lines: list[str] = []

    def submit(
        self,
        folder: Path,
        commands: list[list[str]],
        config: JobCommand,
        after: list[str],
        gpus: int = 0,
        check: bool = False,
    ) -> list[str]:
        """Submit `commands` behind the jobs `after`; gives the ids that the next stage waits for.

        `check`: the input of `config` is there already, so that mistakes are found now.
        """
        job = self.job
        self.lines.append(f"{folder}: {layout(job, config, gpus)}")
        if job.dry_run:
            self.lines.append(dry_run(job, folder, commands, after, gpus))
            return [f"JOB-OF-{commands[0][0].upper()}-{folder.name}"]
        if job.cluster != "slurm":
            after = WAIT
        ids = submit(job, folder, commands, config if check else None, after, gpus)
        follows = f", after {', '.join(after)}" if after and after != WAIT else ""
        self.lines.append(f"  job {', '.join(ids)}{follows}")
        return ids if job.cluster == "slurm" else []


def _face_of(config: TrainConfig) -> tuple[int, int]:
    """(side, channels) of the faces that the network of a training was made for."""
    from fer_hpc.models.registry import model_spec  # loads torch

    load_plugins(config.plugin)
    return model_spec(config.model).face


def _whole_arrays(jobs: list[str]) -> list[str]:
    """The array numbers of array tasks: 12 for 12_0, 12_1, ...; a dependency means all tasks."""
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


def sweep_array(
    job: JobConfig, config: SweepConfig, preset: str, base: TrainConfig, args: list[str]
) -> Iterator[str]:
    """Submit a sweep's unfinished trials as one array; gives the lines to print.

    A job behind the array writes the tables, also where some of its tasks have failed.
    """
    from fer_hpc.sweep.grid import grid, prepare, trial_state

    if config.scheduler != "fifo":
        raise UserError(
            f"--scheduler {config.scheduler} decides while trials run, which an array cannot; "
            "use fer_hpc.tune"
        )
    gpus = job.gpus_per_node
    trials = grid(config, base)
    for trial in trials:
        layout(job, trial.config, gpus)
    unfinished = [t for t in trials if trial_state(config.out, t.name)[0] != "finished"]
    commands = [["train", preset, *_train_args(preset, t.config)] for t in unfinished]
    out = config.out.absolute()
    finished = len(trials) - len(unfinished)
    shape = layout(job, trials[0].config, gpus)
    yield f"{out}: {len(trials)} trials, {finished} finished; {shape}"
    if job.dry_run:
        if commands:
            yield dry_run(job, out, commands, gpus=gpus)
        return
    prepare(config, preset, trials)
    wait = WAIT if job.cluster == "local" else []
    array: list[str] = []
    if commands:
        names = out / "jobs" / f"array-{time.time_ns()}.json"
        names.parent.mkdir(exist_ok=True)
        write_json(names, [t.name for t in unfinished])
        launch_args = ["trial", str(out), str(names)]
        ids = submit(job, out, commands, unfinished[0].config, wait, gpus, launch_args)
        yield f"  job {', '.join(ids)}"
        array = _whole_arrays(ids) if job.cluster == "slurm" else []
    tables = ["tune", *args, "--collect"]
    ids = submit(job, out, [tables], None, array or wait, dependency_type="afterany")
    yield f"  job {', '.join(ids)}, the tables" + (f", after {', '.join(array)}" if array else "")
    yield f"fer-hpc status {out}    fer-hpc cancel {out}    results {out / 'summary.json'}"


def _train_args(preset: str, config: TrainConfig) -> list[str]:
    """The flags with which `train PRESET` gives `config`."""
    values = {name: getattr(config, name) for name in ("data", "run", "batch_size", "lr", "seed")}
    values |= changed_fields(preset, config)
    return [arg for name, value in values.items() for arg in flag_arguments(name, value)]
