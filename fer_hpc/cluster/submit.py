"""Submitting a command as a job, or several commands as an array. The only user of submitit.

Slurm starts every job through slurm/launch.sh, for `sbatch slurm/train_cnn.sh` and
`python jobs/train.py` alike. That script starts the ranks, forwards signals and requeues the job.
"""

from __future__ import annotations

import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.cluster.launch import check_job
from fer_hpc.cluster.records import JobCommand, record_job
from fer_hpc.cluster.slurm import (
    DependencyType,
    batch_parameters,
    check_installed,
    refusal_error,
)
from fer_hpc.config import (
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    GanConfig,
    TrainConfig,
    UserError,
    check_divides,
)
from fer_hpc.config.commands import JobConfig
from fer_hpc.parallel.world import job_port

LAUNCH = Path(__file__).parents[2] / "slurm" / "launch.sh"


# ---- in the job ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One fer_hpc command, which submitit stores and calls on every rank."""

    args: tuple[str, ...]

    def __call__(self) -> None:
        # submitit's handlers requeue and exit from within the signal. The default handlers end the
        # process until train() installs those that only note the signal.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
        if local:
            export_torchrun_env()
        code = _run_by_name(self.args)
        if local and code == EXIT_RUN_AGAIN:
            from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

            sys.exit(LOCAL_REQUEUE_RETURN_CODE)
        if code != EXIT_FINISHED:
            sys.exit(code)


def _run_by_name(args: tuple[str, ...]) -> int:
    """Run `python -m fer_hpc ARGS` in this process; gives its exit code.

    The command line is above this package, so it is found by name, as a shell finds it.
    """
    sys.argv = ["fer-hpc", *args]
    try:
        runpy.run_module("fer_hpc", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    return EXIT_FINISHED


def export_torchrun_env() -> None:
    """Set the variables that torchrun sets for the ranks of a local job."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    variables = {
        "RANK": job.global_rank,
        "LOCAL_RANK": job.local_rank,
        "WORLD_SIZE": job.num_tasks,
        "LOCAL_WORLD_SIZE": job.num_tasks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": job_port(int(job.job_id)),
    }
    os.environ.update({name: str(value) for name, value in variables.items()})


# ---- submitting ----------------------------------------------------------------------------------


def submit(
    job: JobConfig,
    folder: Path,
    commands: list[list[str]],
    config: JobCommand | None,
    after: Sequence[str] = (),
    gpus: int = 0,
    launch_args: list[str] | None = None,
    dependency_type: DependencyType = "afterok",
) -> list[str]:
    """Submit one job, or an array of several `commands`, whose results go to `folder`.

    Each command is [verb, arguments...]. `config` is the configuration of the first, which is
    checked before submitting; None where the jobs `after` make its input. `launch_args` are the
    arguments of slurm/launch.sh; default: the first command. `after=["wait"]` waits for a local
    job. Gives the job ids; none with `--cluster debug`, which runs the commands in this process.
    """
    if config is not None:
        check_job(config, job.nodes * max(gpus, 1))
    calls = [Command(tuple(args)) for args in commands]
    logs = folder / "jobs"
    if job.cluster == "debug":
        from submitit import DebugExecutor

        executor = DebugExecutor(logs)
        for call in calls:
            executor.submit(call).result()
        return []
    if job.cluster == "local":
        jobs, log_pattern = _submit_local(job, logs, calls, gpus), "{}_*_log.*"
    else:
        parameters = batch_parameters(job, f"fer-{commands[0][0]}", after, gpus, dependency_type)
        jobs = _submit_slurm(job, logs, calls, gpus, launch_args or commands[0], parameters)
        log_pattern = "{}_0_log.out"
    for submitted, args in zip(jobs, commands, strict=True):
        record_job(folder, submitted.job_id, args, [log_pattern.format(submitted.job_id)])
    if job.cluster == "local" and list(after) == ["wait"]:
        for submitted in jobs:
            submitted.wait()
    return [submitted.job_id for submitted in jobs]


def _submit_local(job: JobConfig, logs: Path, calls: list[Command], gpus: int) -> list[Any]:
    """Start the commands in the background of this machine; gives submitit's jobs."""
    from submitit import LocalExecutor

    executor = LocalExecutor(logs)
    executor.update_parameters(
        timeout_min=job.time_min, tasks_per_node=max(gpus, 1), gpus_per_node=gpus
    )
    return [executor.submit(call) for call in calls]


def _submit_slurm(
    job: JobConfig,
    logs: Path,
    calls: list[Command],
    gpus: int,
    launch_args: list[str],
    parameters: dict[str, Any],
) -> list[Any]:
    """Submit the commands with sbatch, several as an array; gives submitit's jobs."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    check_installed()
    executor = SlurmExecutor(logs, python=_batch_command(launch_args))
    try:
        executor.update_parameters(**parameters, array_parallelism=len(calls))
        if len(calls) == 1:
            return [executor.submit(calls[0])]
        with executor.batch():
            return [executor.submit(call) for call in calls]
    except (FailedJobError, subprocess.CalledProcessError) as error:
        raise refusal_error(job, str(error), gpus) from None


def _batch_command(launch_args: list[str]) -> str:
    """The batch script's command: launch.sh, its arguments, --, and submitit's program."""
    if not LAUNCH.exists():
        raise UserError(
            f"{LAUNCH} is missing; jobs are submitted from a checkout (pip install -e .)"
        )
    # exec: the batch shell, which gets the warning signal, becomes launch.sh, which traps it
    return f"exec {shlex.join([str(LAUNCH), *launch_args])} -- {shlex.quote(sys.executable)}"


def dry_run(
    job: JobConfig,
    folder: Path,
    commands: list[list[str]],
    after: Sequence[str] = (),
    gpus: int = 0,
) -> str:
    """The text that would be given to sbatch, without submitting; works without Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    logs = folder / "jobs"
    program = f"-u -m submitit.core._submit {shlex.quote(str(logs))}"
    parameters = batch_parameters(job, f"fer-{commands[0][0]}", after, gpus)
    if len(commands) > 1:
        parameters |= {"map_count": len(commands), "array_parallelism": len(commands)}
    line = f"{_batch_command(commands[0])} {program}"
    return str(_make_sbatch_string(line, logs, **parameters))


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
    return f"{text}; {job.time_min} min, signal {job.signal_lead_s} s before"
