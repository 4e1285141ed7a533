"""Jobs: what is submitted, what becomes of it, and how it is ended. The only user of submitit; loads no torch.

Slurm starts everything through slurm/launch.sh, for `sbatch slurm/train_cnn.sh` and `python jobs/train.py` alike: it
starts the ranks, passes on signals, and is the one that requeues. `begin` and `end` are its questions.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.cluster.launch import check_job
from fer_hpc.cluster.records import JobCommand, record_job
from fer_hpc.config import (
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    GanConfig,
    TrainConfig,
    UserError,
    check_divides,
)
from fer_hpc.config.commands import (
    JobConfig,
)

LAUNCH = Path(__file__).parents[2] / "slurm" / "launch.sh"


# ---- submitting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """What submitit stores and calls on every rank: one fer_hpc command."""

    args: tuple[str, ...]

    def __call__(self) -> None:
        # submitit's handlers requeue and exit from within the signal. Ours note it, in train(); before that, it ends us.
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
    """The exit code of `python -m fer_hpc ARGS` in this process; it is found by name, as a shell would."""
    sys.argv = ["fer-hpc", *args]
    try:
        runpy.run_module("fer_hpc", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return int(ended.code or 0)
    return EXIT_FINISHED


def export_torchrun_env() -> None:
    """Tell the ranks of a local job about each other."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    size, port = job.num_tasks, 20_000 + 7 * int(job.job_id) % 12_000
    known = {
        "RANK": job.global_rank,
        "LOCAL_RANK": job.local_rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in known.items()}, MASTER_ADDR="127.0.0.1")


def parameters(
    job: JobConfig, name: str, after: Sequence[str], gpus: int, whatever: bool = False
) -> dict[str, Any]:
    """submitit's words for the resources of a job that starts when the jobs `after` have succeeded, or, `whatever` became of
    them, ended."""
    more: dict[str, Any] = {"signal": f"B:USR1@{job.signal_lead_s}", "requeue": True}
    if after:
        more |= {
            "dependency": ("afterany:" if whatever else "afterok:") + ":".join(after),
            "kill-on-invalid-dep": "yes",
        }
    if gpus:
        more |= {"gres": f"gpu:{gpus}", "cpus-per-gpu": job.cpus}
    wanted: dict[str, Any] = {
        "job_name": name,
        "time": job.time_min,
        "nodes": job.nodes if gpus else 1,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "mem": job.mem or None,
        "cpus_per_task": None if gpus else job.cpus,
        "setup": [f"export FER_PYTHON={shlex.quote(sys.executable)}"],
        "use_srun": False,
        "stderr_to_stdout": True,
        "additional_parameters": more,
    }
    return {key: value for key, value in wanted.items() if value is not None}


def submit(
    job: JobConfig,
    folder: Path,
    commands: list[list[str]],
    config: JobCommand | None,
    after: Sequence[str] = (),
    gpus: int = 0,
    launched: list[str] | None = None,
    whatever: bool = False,
) -> list[str]:
    """Submit one job, or an array of several `commands`, whose results go to `folder`; gives their ids.

    Each command is [verb, arguments...]. `config` is what the first of them means, checked now; None where its input is
    only made by the jobs `after`. `launched` is what slurm/launch.sh is told instead of the first command. Returns at once,
    but for `--cluster debug`, which runs here and now.
    """
    from submitit import DebugExecutor, LocalExecutor
    from submitit.core.utils import FailedJobError

    ranks = job.nodes * max(gpus, 1)
    if config is not None:
        check_job(config, ranks)
    calls = [Command(tuple(args)) for args in commands]
    name = f"fer-{commands[0][0]}"
    logs = folder / "jobs"
    if job.cluster == "debug":
        executor = DebugExecutor(logs)
        for call in calls:
            executor.submit(call).result()
        return []
    if job.cluster == "local":
        local = LocalExecutor(logs)
        local.update_parameters(
            timeout_min=job.time_min, tasks_per_node=max(gpus, 1), gpus_per_node=gpus or None
        )
        made = [local.submit(call) for call in calls]
        for each, args in zip(made, commands, strict=True):
            record_job(folder, each.job_id, args, [f"{each.job_id}_*_log.*"])
        for each in made if list(after) == ["wait"] else []:
            each.wait()
        return [each.job_id for each in made]
    slurm = _slurm_executor(logs, launched or commands[0])
    try:
        slurm.update_parameters(
            **parameters(job, name, after, gpus, whatever), array_parallelism=len(calls)
        )
        if len(calls) == 1:
            made = [slurm.submit(calls[0])]
        else:
            with slurm.batch():
                made = [slurm.submit(call) for call in calls]
    except (FailedJobError, subprocess.CalledProcessError) as error:
        raise UserError(_why_not(job, str(error), gpus)) from None
    for each, args in zip(made, commands, strict=True):
        record_job(folder, each.job_id, args, [f"{each.job_id}_0_log.out"])
    return [each.job_id for each in made]


def _slurm_executor(folder: Path, command: list[str]) -> Any:
    from submitit import SlurmExecutor

    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "no sbatch on the PATH here: submit on a login node of the cluster, or use --cluster local"
        )
    return SlurmExecutor(folder, python=_launched(command))


def _launched(command: list[str]) -> str:
    """The batch script's command: launch.sh, told what it starts and, behind --, how submitit wants it started."""
    if not LAUNCH.exists():
        raise UserError(
            f"{LAUNCH} is missing; jobs are submitted from a checkout (pip install -e .)"
        )
    # exec: the batch shell, which gets the warning signal, becomes launch.sh, which traps it
    return f"exec {shlex.join([str(LAUNCH), *command])} -- {shlex.quote(sys.executable)}"


def _why_not(job: JobConfig, error: str, gpus: int) -> str:
    """sbatch's refusal in a line, with what there is instead."""
    said = next(
        (line for line in error.splitlines() if "error:" in line), error.strip().splitlines()[-1]
    )
    said = said.partition("error:")[2].strip() or said
    listed = subprocess.run(
        ["sinfo", "-h", "-o", "%R: %D nodes, %c cores, %G"],
        capture_output=True,
        text=True,
        check=False,
    )
    there = "; ".join(sorted(set(listed.stdout.split("\n")) - {""})) or "unknown"
    if listed.returncode:
        raise UserError(
            f"no Slurm answers here ({said}): submit on a login node of the cluster, or use --cluster local"
        )
    wanted = f"--nodes {job.nodes} --gpus-per-node {gpus} --cpus {job.cpus}" + (
        f" --partition {job.partition}" if job.partition else ""
    )
    return f"sbatch refused {wanted}: {said} (partitions here: {there})"


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
    line = f"{_launched(commands[0])} -u -m submitit.core._submit {shlex.quote(str(logs))}"
    array: dict[str, Any] = (
        {"map_count": len(commands), "array_parallelism": len(commands)}
        if len(commands) > 1
        else {}
    )
    return str(
        _make_sbatch_string(
            line, logs, **parameters(job, f"fer-{commands[0][0]}", after, gpus), **array
        )
    )


def layout(job: JobConfig, config: JobCommand | None, gpus: int) -> str:
    """A line on how many processes there will be and what each gets; a UserError where that cannot work."""
    nodes = job.nodes if gpus else 1
    ranks = nodes * max(gpus, 1)
    words = f"{nodes} node(s) x {max(gpus, 1)} task(s) = {ranks} ranks, {job.cpus} core(s) each, {gpus} GPU(s) a node"
    if isinstance(config, TrainConfig | GanConfig):
        check_divides(
            config.batch_size, ranks, config.accumulate if isinstance(config, TrainConfig) else 1
        )
        words += f"; batch {config.batch_size} = {ranks} x {config.batch_size // ranks}"
    return f"{words}; {job.time_min} min, signal {job.signal_lead_s} s before"
