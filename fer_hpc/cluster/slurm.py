"""Slurm's programs and options: squeue, sacct, scancel, sinfo and what sbatch is given.

Another scheduler needs the functions of this file, a launch.sh of its own, and the variables that
parallel/world.py reads.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Literal

from fer_hpc.config import UserError
from fer_hpc.config.commands import JobConfig

DependencyType = Literal["afterok", "afterany"]

ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
)


# ---- submitting ----------------------------------------------------------------------------------


def check_installed() -> None:
    """A UserError where jobs cannot be submitted because Slurm's programs are missing."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "no sbatch on the PATH here: submit on a login node of the cluster, "
            "or use --cluster local"
        )


def batch_parameters(
    job: JobConfig,
    name: str,
    after: Sequence[str],
    gpus: int,
    dependency_type: DependencyType = "afterok",
) -> dict[str, Any]:
    """submitit's parameters for a job of `gpus` GPUs a node.

    The job starts when the jobs `after` have succeeded (afterok) or have ended (afterany).
    """
    more: dict[str, Any] = {"signal": f"B:USR1@{job.signal_lead_s}", "requeue": True}
    if after:
        more["dependency"] = f"{dependency_type}:{':'.join(after)}"
        more["kill-on-invalid-dep"] = "yes"
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


def refusal_error(job: JobConfig, error: str, gpus: int) -> UserError:
    """The error for sbatch's refusal `error`: its reason, and which partitions there are."""
    lines = error.strip().splitlines()
    reason = next((line for line in lines if "error:" in line), lines[-1])
    reason = reason.partition("error:")[2].strip() or reason
    command = ["sinfo", "-h", "-o", "%R: %D nodes, %c cores, %G"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        return UserError(
            f"no Slurm answers here ({reason}): submit on a login node of the cluster, "
            "or use --cluster local"
        )
    partitions = "; ".join(sorted(set(listed.stdout.split("\n")) - {""})) or "unknown"
    wanted = f"--nodes {job.nodes} --gpus-per-node {gpus} --cpus {job.cpus}"
    if job.partition:
        wanted += f" --partition {job.partition}"
    return UserError(f"sbatch refused {wanted}: {reason} (partitions here: {partitions})")


# ---- jobs that were submitted --------------------------------------------------------------------


def job_states(jobs: list[str]) -> dict[str, tuple[str, str]]:
    """(state, reason) of each job that Slurm knows; {} without Slurm.

    One call of squeue for the living ones and one of sacct for the others.
    """
    states: dict[str, tuple[str, str]] = {}
    if not jobs:
        return states
    fields = ("-o", "%i|%T|%r", "-j", ",".join(jobs))
    for line in _output_lines("squeue", "-h", "-r", "-t", "all", *fields):
        name, state, reason = line.split("|", 2)
        states[name] = state, "" if reason == "None" else reason
    others = [job for job in jobs if job not in states]
    if others:
        fields = ("-o", "JobID,State,ExitCode", "-j", ",".join(others))
        for line in _output_lines("sacct", "-X", "-n", "-P", "-D", *fields):
            name, state, code = line.split("|", 2)
            reason = "" if code == "0:0" else f"exit code {code.partition(':')[0]}"
            states[name] = state.split()[0], reason
    return states


def waiting_jobs() -> list[tuple[str, str, str]]:
    """(id, name, reason) of each of this user's jobs that wait to start."""
    lines = _output_lines("squeue", "-h", "-r", "--me", "-t", "PENDING", "-o", "%i|%j|%r")
    return [(job, name, reason) for job, name, reason in (line.split("|", 2) for line in lines)]


def cancel_jobs(jobs: list[str]) -> None:
    """End these jobs; a UserError with scancel's message where it fails."""
    done = subprocess.run(["scancel", *jobs], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"scancel: {done.stderr.strip()}")


def _output_lines(*command: str) -> list[str]:
    """The lines of fields that a command prints; none where it is missing or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if "|" in line]
