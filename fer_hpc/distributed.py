"""Who am I among the processes of this run. The only reader of RANK, WORLD_SIZE, SLURM_PROCID and their kin."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fer_hpc.config import UserError
from fer_hpc.rundir import Job


@dataclass(frozen=True)
class World:
    """The processes of one run; `rank` 0 writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among this node's processes: which of its GPUs
    job: Job | None = None

    @staticmethod
    def detect() -> World:
        """From torchrun's variables; else from Slurm's, but only inside a step of several tasks (a batch shell has
        SLURM_PROCID=0 too, and is not a rank); else one process."""
        env = os.environ
        job = Job(env["SLURM_JOB_ID"], _number("SLURM_RESTART_COUNT", "0")) if "SLURM_JOB_ID" in env else None
        if "WORLD_SIZE" in env or "RANK" in env:
            return World(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", "0"), job)
        if env.get("SLURM_STEP_ID", "").isdecimal() and _number("SLURM_STEP_NUM_TASKS", "1") > 1:
            return World(_number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_LOCALID"), job)
        return World(job=job)


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not text.isdecimal():
        raise UserError(f"environment variable {name} is {text!r}, wanted a whole number; start ranks with torchrun or srun")
    return int(text)
