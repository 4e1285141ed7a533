"""Who am I among the processes of this run. The only reader of RANK, WORLD_SIZE, SLURM_PROCID and their kin."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fer_hpc.config import UserError
from fer_hpc.rundir import Job

if TYPE_CHECKING:
    import torch


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


@contextlib.contextmanager
def process_group(world: World, timeout_s: float = 120.0) -> Iterator[None]:
    """The ranks of `world` connected over gloo, at the address in MASTER_ADDR and MASTER_PORT; nothing for one process."""
    if world.size == 1:
        yield
        return
    import torch.distributed as dist

    try:
        timeout = datetime.timedelta(seconds=timeout_s)
        dist.init_process_group("gloo", rank=world.rank, world_size=world.size, timeout=timeout)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"rank {world.rank} of {world.size} could not reach the others: {str(error).splitlines()[0]}; "
            "start all ranks with torchrun, which sets MASTER_ADDR and MASTER_PORT"
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather_in_turn(mine: torch.Tensor, world: World) -> torch.Tensor:
    """Chunks that were dealt out in turn (rank r has r, r + size, ...), back in order.

    `mine` [k, ...] must have the same k on every rank; gives [k * size, ...] on every rank.
    """
    if world.size == 1:
        return mine
    import torch
    import torch.distributed as dist

    everyones = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(everyones, mine)
    return torch.stack(everyones, 1).flatten(0, 1)


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not text.isdecimal():
        raise UserError(f"environment variable {name} is {text!r}, wanted a whole number; start ranks with torchrun or srun")
    return int(text)
