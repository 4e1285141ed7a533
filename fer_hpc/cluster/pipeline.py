"""Several jobs that belong together: a pipeline of stages, a sweep as an array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fer_hpc.cluster.launch import check_job
from fer_hpc.cluster.records import JobCommand
from fer_hpc.cluster.scheduler import scheduler
from fer_hpc.cluster.submit import dry_run, layout, submit
from fer_hpc.config import TrainConfig, UserError, changed_fields, flag_arguments
from fer_hpc.config.commands import SweepConfig
from fer_hpc.config.errors import counted
from fer_hpc.config.jobs import JobConfig, PipelineConfig
from fer_hpc.config.plugins import load_plugins

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

    report_config = configure("report", report[1:])
    scores = {run: ["evaluate", str(run), "--split", study.eval_split] for run in trainings}
    score_configs = {run: configure("evaluate", args[1:]) for run, args in scores.items()}

    stages = _Stages(job)
    gpus = job.gpus_per_node
    # What a stage cannot have is refused before the first is submitted, too.
    plan = [(preprocess_config, 0), *((config, gpus) for config in configs.values())]
    for config, count in plan:
        layout(job, config, count)
    check_job(preprocess_config, 1)
    shard_jobs = stages.submit(shards, preprocess, preprocess_config, [])
    yield from stages.new_lines()
    score_jobs: list[str] = []
    for run, args in trainings.items():
        train_jobs = stages.submit(run, [args], configs[run], shard_jobs, gpus)
        yield from stages.new_lines()
        count = min(gpus, 1)
        score_jobs += stages.submit(run, [scores[run]], score_configs[run], train_jobs, count)
        yield from stages.new_lines()
    stages.submit(out / "report", [report], report_config, score_jobs)
    yield from stages.new_lines()
    yield f"page: {out / 'report' / 'index.html'}    fer-hpc status {out}    fer-hpc cancel {out}"


class _Stages:
    """Submits one stage after another and keeps a line on each."""

    def __init__(self, job: JobConfig) -> None:
        self.job = job
        self.lines: list[str] = []

    def new_lines(self) -> list[str]:
        """The lines since the last call: a stage of this machine takes as long as its work."""
        lines, self.lines = self.lines, []
        return lines

    def submit(
        self,
        folder: Path,
        commands: list[list[str]],
        config: JobCommand,
        after: list[str],
        gpus: int = 0,
    ) -> list[str]:
        """Submit `commands` behind the jobs `after`; gives those that the next waits for."""
        job = self.job
        self.lines.append(f"{folder}: {layout(job, config, gpus)}")
        if job.dry_run:
            self.lines.append(dry_run(job, folder, commands, after, gpus))
            return [f"JOB-OF-{commands[0][0].upper()}-{folder.name}"]
        ids = submit(job, folder, commands, None, after or _wait(job), gpus)
        follows = f", after {', '.join(after)}" if after else ""
        self.lines.append(f"  job {', '.join(ids)}{follows}" if ids else "  done")
        return _to_wait_for(job, ids)


def _wait(job: JobConfig) -> list[str]:
    """`after` of a job without a scheduler: submitting returns when the job has ended."""
    return WAIT if job.cluster == "local" else []


def _to_wait_for(job: JobConfig, ids: list[str]) -> list[str]:
    """What the jobs behind `ids` name as those that they wait for."""
    return scheduler(job.cluster).dependency(ids) if job.cluster in ("slurm", "sge") else []


def _face_of(config: TrainConfig) -> tuple[int, int]:
    """(side, channels) of the faces that the network of a training was made for."""
    from fer_hpc.models.registry import model_spec  # loads torch

    load_plugins(config.plugin)
    return model_spec(config.model).face


def sweep_array(
    job: JobConfig, config: SweepConfig, preset: str, base: TrainConfig, args: list[str]
) -> Iterator[str]:
    """Submit a sweep's unfinished trials as one array; gives the lines to print.

    A job behind the array writes the tables, also where some of its tasks have failed.
    """
    from fer_hpc.sweep.grid import grid, prepare, trial_states

    if config.scheduler != "fifo":
        raise UserError(
            f"--scheduler {config.scheduler} decides while trials run, which an array cannot; "
            "use fer_hpc.tune"
        )
    gpus = job.gpus_per_node
    trials = grid(config, base)
    for trial in trials:
        layout(job, trial.config, gpus)
    states = trial_states(config.out, [trial.name for trial in trials])
    unfinished = [t for t, (s, _) in zip(trials, states, strict=True) if s != "finished"]
    commands = [["train", preset, *_train_args(preset, t.config)] for t in unfinished]
    out = config.out.absolute()
    finished = len(trials) - len(unfinished)
    shape = layout(job, trials[0].config, gpus)
    yield f"{out}: {counted(len(trials), 'trial')}, {finished} finished; {shape}"
    if job.dry_run:
        if commands:
            yield dry_run(job, out, commands, gpus=gpus)
        return
    prepare(config, preset, trials)
    array: list[str] = []
    if commands:
        first = unfinished[0].config
        ids = submit(job, out, commands, first, _wait(job), gpus)
        yield f"  job {', '.join(ids)}" if ids else "  done"
        array = _to_wait_for(job, ids)
    tables = ["tune", *args, "--collect"]
    ids = submit(job, out, [tables], None, array or _wait(job), dependency_type="afterany")
    yield f"  job {', '.join(ids)}, the tables" + (f", after {', '.join(array)}" if array else "")
    yield f"fer-hpc status {out}    fer-hpc cancel {out}    results {out / 'summary.json'}"


def _train_args(preset: str, config: TrainConfig) -> list[str]:
    """The flags with which `train PRESET` gives `config`."""
    values = {name: getattr(config, name) for name in ("data", "run", "batch_size", "lr", "seed")}
    values |= changed_fields(preset, config)
    return [arg for name, value in values.items() for arg in flag_arguments(name, value)]
