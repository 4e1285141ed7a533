"""Questions to Slurm."""

from __future__ import annotations

import os
import subprocess

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


def current_job_id() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


# ---- what became of it -----------------------------------------------------------------------------------------------


def job_states(jobs: list[str]) -> dict[str, tuple[str, str]]:
    """(state, reason) of Slurm's jobs: one call of squeue for what lives, one of sacct for the rest; {} without Slurm."""
    found: dict[str, tuple[str, str]] = {}
    for line in command_lines(
        "squeue",
        "-h",
        "-r",
        "-t",
        "all",
        "-o",
        "%i|%T|%r",
        *(["-j", ",".join(jobs)] if jobs else []),
    ):
        name, state, reason = line.split("|", 2)
        found[name] = state, "" if reason == "None" else reason
    rest = [job for job in jobs if job not in found]
    if rest:
        for line in command_lines(
            "sacct", "-X", "-n", "-P", "-D", "-o", "JobID,State,ExitCode", "-j", ",".join(rest)
        ):
            name, state, code = line.split("|", 2)
            found[name] = (
                state.split()[0],
                "" if code == "0:0" else f"exit code {code.partition(':')[0]}",
            )
    return found


def command_lines(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if "|" in line]
