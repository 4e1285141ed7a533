"""Several jobs that belong together: a pipeline, a sweep as an array."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fer_hpc.cluster.records import JobCommand
from fer_hpc.cluster.submit import dry_run, layout, submit
from fer_hpc.config import TrainConfig, UserError, changed_fields, format_flag
from fer_hpc.config.commands import JobConfig, PipelineConfig, SweepConfig
from fer_hpc.files import write_json


def pipeline(
    job: JobConfig,
    study: PipelineConfig,
    preset: str,
    train_args: list[str],
    configure: Callable[[str, list[str]], JobCommand],
) -> Iterator[str]:
    """Submit the stages of a study, each waiting for the one before; gives a line on each."""
    out, shards = study.out.absolute(), study.out.absolute() / "shards"
    size, channels = (224, 3) if preset == "resnet_improved" else (48, 1)
    make = [
        "--source",
        study.source,
        "--out",
        str(shards),
        "--size",
        str(study.size or size),
        "--channels",
        str(study.channels or channels),
        "--tasks",
        str(study.tasks),
    ]
    make += (
        ["--input", str(study.input.absolute())] if study.input else ["--count", str(study.count)]
    )
    runs = [out / "runs" / f"{preset}-seed{seed}" for seed in study.seeds]
    trains = [
        [
            "train",
            preset,
            "--data",
            str(shards),
            "--run",
            str(run),
            "--seed",
            str(seed),
            *train_args,
        ]
        for run, seed in zip(runs, study.seeds, strict=True)
    ]

    def stage(
        folder: Path,
        commands: list[list[str]],
        after: list[str],
        gpus: int = 0,
        known: bool = False,
    ) -> list[str]:
        config = configure(commands[0][0], commands[0][1:])
        lines.append(f"{folder}: {layout(job, config, gpus)}")
        if job.dry_run:
            lines.append(dry_run(job, folder, commands, after, gpus))
            return [f"JOB-OF-{commands[0][0].upper()}-{folder.name}"]
        ids = submit(job, folder, commands, config if known else None, after, gpus)
        lines.append(
            f"  job {', '.join(ids)}"
            + (f", after {', '.join(after)}" if after and after != ["wait"] else "")
        )
        return ids if job.cluster == "slurm" else []

    lines: list[str] = []
    wait = [] if job.cluster == "slurm" else ["wait"]  # elsewhere each stage is waited for
    made = stage(
        shards,
        [["preprocess", *make, "--task", str(i)] for i in range(study.tasks)],
        wait,
        known=True,
    )
    made = list(dict.fromkeys(each.partition("_")[0] for each in made))  # all tasks of the array
    scored: list[str] = []
    for run, command in zip(runs, trains, strict=True):
        trained = stage(run, [command], made or wait, job.gpus_per_node)
        scored += stage(
            run,
            [["evaluate", str(run), "--split", study.eval_split]],
            trained or wait,
            min(job.gpus_per_node, 1),
        )
    report = ["report", str(out / "runs"), "--out", str(out / "report")]
    stage(out / "report", [report], scored or wait)
    yield from lines
    yield f"page: {out / 'report' / 'index.html'}    fer-hpc status {out}    fer-hpc cancel {out}"


def sweep_array(
    job: JobConfig, config: SweepConfig, preset: str, base: TrainConfig, args: list[str]
) -> Iterator[str]:
    """Submit a sweep's unfinished trials as one array, and a job after it that writes the tables; gives a line on each."""
    from fer_hpc.sweep.grid import grid, prepare, trial_state

    if config.scheduler != "fifo":
        raise UserError(
            f"--scheduler {config.scheduler} decides while trials run, which an array cannot; use fer_hpc.tune"
        )
    trials = grid(config, base)
    for trial in trials:
        layout(job, trial.config, job.gpus_per_node)
    todo = [trial for trial in trials if trial_state(config.out, trial.name)[0] != "finished"]
    own = {"batch_size", "lr", "seed", "run", "data"}
    flags = [
        said_flag
        for name, value in changed_fields(preset, base).items()
        if name not in own
        for said_flag in format_flag(name, value).split(" ", 1)
    ]
    commands = [
        [
            "train",
            preset,
            "--data",
            str(t.config.data),
            "--run",
            str(t.config.run),
            "--batch-size",
            str(t.config.batch_size),
            "--lr",
            str(t.config.lr),
            "--seed",
            str(t.config.seed),
            *flags,
        ]
        for t in todo
    ]
    out = config.out.absolute()
    yield f"{out}: {len(trials)} trials, {len(trials) - len(todo)} finished; {layout(job, trials[0].config, job.gpus_per_node)}"
    tables = ["tune", *args, "--collect"]
    if job.dry_run:
        if commands:
            yield dry_run(job, out, commands, gpus=job.gpus_per_node)
        return
    prepare(config, preset, trials)
    made: list[str] = []
    if commands:
        listed = out / "jobs" / f"array-{time.time_ns()}.json"
        listed.parent.mkdir(exist_ok=True)
        write_json(listed, [t.name for t in todo])
        launched = ["trial", str(out), str(listed)]
        made = submit(
            job,
            out,
            commands,
            todo[0].config,
            ["wait"] if job.cluster == "local" else (),
            job.gpus_per_node,
            launched,
        )
        yield f"  job {', '.join(made)}"
    array = (
        list(dict.fromkeys(each.partition("_")[0] for each in made))
        if job.cluster == "slurm"
        else []
    )
    ids = submit(
        job,
        out,
        [tables],
        None,
        array or (["wait"] if job.cluster == "local" else ()),
        0,
        whatever=True,
    )
    yield f"  job {', '.join(ids)}, the tables" + (f", after {', '.join(array)}" if array else "")
    yield f"fer-hpc status {out}    fer-hpc cancel {out}    results {out / 'summary.json'}"
