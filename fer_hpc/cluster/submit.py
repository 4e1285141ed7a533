"""Submitting a command as a job, or several commands as an array.

Every scheduler starts a job through slurm/launch.sh, for `sbatch slurm/train_cnn.sh` and
`python jobs/train.py` alike.
"""

from __future__ import annotations

import os
import runpy
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_hpc.cluster.code import code_root, keep_code
from fer_hpc.cluster.launch import check_job
from fer_hpc.cluster.records import JobCommand, record_job
from fer_hpc.cluster.scheduler import DependencyType, Request, scheduler
from fer_hpc.cluster.sge import warning_lead_s
from fer_hpc.config import EXIT_FINISHED, GanConfig, TrainConfig, UserError, check_divides
from fer_hpc.config.jobs import JobConfig
from fer_hpc.files import write_json
from fer_hpc.parallel.local import LOCAL_VERBS


def launch_script() -> Path:
    """slurm/launch.sh of the folder whose jobs/ has the script that runs, else of the one whose
    env.sh was sourced, of the checkout, or of the current folder."""
    script, site = Path(sys.argv[0]).absolute(), os.environ.get("FER_SITE")
    folders = [script.parents[1]] if script.parent.name == "jobs" else []
    folders += [Path(site)] if site else [Path(__file__).parents[2], Path.cwd()]
    for folder in folders:
        launch = (folder / "slurm" / "launch.sh").absolute()
        if launch.exists():
            return launch
    raise UserError(
        f"found no slurm/launch.sh in {' or '.join(map(str, folders))}: write it with "
        "fer-hpc init SITE, then call SITE/jobs/..., or source SITE/slurm/env.sh first"
    )


def make_request(
    job: JobConfig,
    folder: Path,
    commands: list[list[str]],
    after: Sequence[str] = (),
    gpus: int = 0,
    dependency_type: DependencyType = "afterok",
    keep: bool = False,
    also_after: Sequence[str] = (),
) -> Request:
    """What a scheduler is asked for. `keep` writes the files that the job needs, else only names
    them."""
    launch_args, code = ["--job", *commands[0]], ""
    if len(commands) > 1:
        listed = folder.absolute() / "jobs" / f"array-{time.time_ns()}.json"
        launch_args = ["--job", "--array", str(listed)]
        if keep:
            listed.parent.mkdir(parents=True, exist_ok=True)
            write_json(listed, commands)
    if keep and job.keep_code and job.cluster != "local":
        code = str(keep_code(code_root(folder)))
    launch = launch_script() if job.cluster in ("slurm", "sge") else Path()
    values = (job, folder, commands, launch_args, gpus, after, dependency_type, also_after)
    return Request(*values, launch, code)


def submit(
    job: JobConfig,
    folder: Path,
    commands: list[list[str]],
    config: JobCommand | None,
    after: Sequence[str] = (),
    gpus: int = 0,
    dependency_type: DependencyType = "afterok",
    also_after: Sequence[str] = (),
    **recorded: Any,
) -> list[str]:
    """Submit one job, or an array of several `commands`, whose results go to `folder`.

    Each command is [verb, arguments...]. `config` is the configuration of the first, which is
    checked before submitting; None where the jobs `after` make its input. `after` that is not empty
    makes a local job be waited for. `also_after` must have ended, with any result. `recorded` is
    kept in the jobs' records. Gives the names of the jobs; with `--cluster debug` the
    commands run in this process.
    """
    if config is not None:
        check_job(config, job.nodes * max(gpus, 1))
    if job.cluster == "debug":
        for args in commands:
            _run_in_this_process(args, gpus)
        return []
    by = scheduler(job.cluster)
    by.check_installed()
    cluster = by.cluster()
    wanted = (job, folder, commands, after, gpus, dependency_type)
    request = make_request(*wanted, keep=True, also_after=also_after)
    began = round(time.time(), 1)
    names = by.submit(request)
    log = {"slurm": "{}_0_log.out", "local": "{}_0_log.out", "sge": "*.o{}"}[job.cluster]
    for name, args in zip(names, commands, strict=True):
        more = {"scheduler": job.cluster, "cluster": cluster, "name": request.name, **recorded}
        record_job(folder, name, args, [log.format(name)], submitted=began, **more)
    return names


def _run_in_this_process(args: list[str], gpus: int) -> None:
    """Run `python -m fer_hpc ARGS`. The command line is above this package: found by name."""
    ranks = ["--procs", str(gpus)] if gpus > 1 and args[0] in LOCAL_VERBS else []
    sys.argv = ["fer-hpc", *args, *ranks]
    try:
        runpy.run_module("fer_hpc", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (None, EXIT_FINISHED):
            raise


def dry_run(
    job: JobConfig,
    folder: Path,
    commands: list[list[str]],
    after: Sequence[str] = (),
    gpus: int = 0,
) -> str:
    """The text that would be given to the scheduler, without submitting; works without it."""
    by = scheduler("local" if job.cluster == "debug" else job.cluster)
    text = by.script(make_request(job, folder, commands, after, gpus))
    if len(commands) > 1:  # they are in a file of the folder then
        tasks = [f"# task {i}: {shlex.join(args)}" for i, args in enumerate(commands)]
        text = "\n".join([text, *tasks])
    return text


def layout(job: JobConfig, config: JobCommand | None, gpus: int) -> str:
    """One line of text: the number of processes and the resources of each.

    Raises UserError where the batch does not divide by that number.
    """
    nodes = job.nodes if gpus else 1
    ranks = nodes * max(gpus, 1)
    text = (
        f"{nodes} node(s) x {max(gpus, 1)} task(s) = {ranks} ranks, "
        f"{job.cpus} core(s) each, {gpus} GPU(s) a node"
    )
    if isinstance(config, TrainConfig | GanConfig):
        accumulate = config.accumulate if isinstance(config, TrainConfig) else 1
        check_divides(config.batch_size, ranks, accumulate)
        text += f"; batch {config.batch_size} = {ranks} x {config.batch_size // ranks}"
    lead_s = warning_lead_s(job.time_min) if job.cluster == "sge" else job.signal_lead_s
    return f"{text}; {job.time_min} min, signal {lead_s} s before"
