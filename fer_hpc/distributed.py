"""Who am I among the processes of this run, and what they tell each other. The only reader of RANK, WORLD_SIZE,
SLURM_PROCID and their kin."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fer_hpc.config import UserError
from fer_hpc.rundir import Job

if TYPE_CHECKING:
    import torch
    from torch import nn


class PeerLost(Exception):
    """Another rank is gone; this one can only stop."""


@dataclass(frozen=True)
class World:
    """The processes of one run; `rank` 0 writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among this node's processes: which of its GPUs
    local_size: int = 1  # processes on this node
    job: Job | None = None

    @staticmethod
    def detect() -> World:
        """From torchrun's variables; else from Slurm's, but only inside a step of several tasks (a batch shell has
        SLURM_PROCID=0 too, and is not a rank); else one process."""
        env, job = os.environ, this_job()
        if "WORLD_SIZE" in env or "RANK" in env:
            local_size = _number("LOCAL_WORLD_SIZE", "1")
            if _number("RANK") >= _number("WORLD_SIZE"):
                raise UserError(f"RANK is {env['RANK']} and WORLD_SIZE {env['WORLD_SIZE']}: ranks count from 0; use torchrun")
            return World(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", "0"), local_size, job)
        if env.get("SLURM_STEP_ID", "").isdecimal() and _number("SLURM_STEP_NUM_TASKS", "1") > 1:
            per_node = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
            local_size = per_node[min(_number("SLURM_NODEID", "0"), len(per_node) - 1)]
            return World(_number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_LOCALID"), local_size, job)
        return World(job=job)


def this_job() -> Job | None:
    """The scheduler's job that this process runs in."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    end = _number("SLURM_JOB_END_TIME", "0") or math.inf
    return Job(os.environ["SLURM_JOB_ID"], _number("SLURM_RESTART_COUNT", "0"), end)


@dataclass(frozen=True)
class StepNode:
    """This node's place in a Slurm step that has one task on each node."""

    index: int
    count: int
    head: str  # name of the first node
    port: int  # the first of two that are the job's own there
    gpus: int


def node_of_step() -> StepNode | None:
    """Where this process stands among the nodes of its Slurm step; None outside one (a batch shell is outside)."""
    env = os.environ
    if not env.get("SLURM_STEP_ID", "").isdecimal():
        return None
    _rendezvous()
    count, gpus = _number("SLURM_STEP_NUM_TASKS", "1"), _number("SLURM_GPUS_ON_NODE", "0")
    return StepNode(_number("SLURM_PROCID"), count, env["MASTER_ADDR"], _number("MASTER_PORT"), gpus)


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))] or [1]


def _rendezvous() -> None:
    """Set MASTER_ADDR and MASTER_PORT inside a Slurm step that has none: its first node, and a port by job and step."""
    env = os.environ
    if "MASTER_ADDR" in env or "SLURM_STEP_ID" not in env:
        return
    nodes = env.get("SLURM_STEP_NODELIST", "localhost")
    if "[" in nodes or "," in nodes:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=60
        )
        nodes = listed.stdout.split()[0]
    env["MASTER_ADDR"] = nodes
    env.setdefault("MASTER_PORT", str(20_000 + (7 * int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])) % 20_000))


@contextlib.contextmanager
def process_group(world: World, timeout_s: float = 1800.0) -> Iterator[None]:
    """The ranks of `world` connected: gloo for tensors in main memory, NCCL for those on GPUs; nothing for one process.

    A rank that dies closes its connections, which the others see at their next exchange (`noticing_lost_peers`).
    """
    if world.size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():  # by Ray, which also ends it
        yield
        return
    try:
        _rendezvous()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=datetime.timedelta(seconds=timeout_s))
    except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"rank {world.rank} of {world.size} could not reach the others: {str(error).splitlines()[0]}; "
            "start all ranks with torchrun or srun, or set MASTER_ADDR and MASTER_PORT"
        ) from None
    yield
    dist.destroy_process_group()  # not after an exception: it would wait for ranks that are gone


@contextlib.contextmanager
def noticing_lost_peers(world: World) -> Iterator[None]:
    """Turn what torch raises when a connection breaks into PeerLost."""
    try:
        yield
    except RuntimeError as error:
        if world.size > 1 and re.search(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe", str(error)):
            raise PeerLost(f"rank {world.rank} lost another rank: {str(error).splitlines()[0][-160:]}") from None
        raise


def on_rank_0(world: World, work: Callable[[], Any]) -> Any:
    """What `work()` gives on rank 0, a JSON value, on every rank; its UserError, or OSError, is a UserError on every rank."""
    if world.size == 1:
        return work()
    told: dict[str, Any] = {}
    if world.rank == 0:
        try:
            told = {"value": work()}
        except UserError as error:
            told = {"error": str(error)}
        except OSError as error:
            told = {"error": f"{error.filename}: {error.strerror}" if error.filename else str(error)}
    text = _broadcast(json.dumps(told).encode() if world.rank == 0 else b"")
    told = json.loads(text)
    if "error" in told:
        raise UserError(told["error"])
    return told["value"]


def _broadcast(data: bytes) -> bytes:
    """Rank 0's bytes, on every rank."""
    import torch
    import torch.distributed as dist

    length = torch.tensor([len(data)])
    dist.broadcast(length, 0)
    body = torch.zeros(int(length), dtype=torch.uint8)
    if data:
        body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(body, 0)
    return body.numpy().tobytes()


def told_by_all(mine: Any, world: World) -> list[Any]:
    """Everyone's `mine`, a JSON value of at most 1,000 bytes, in the order of ranks."""
    if world.size == 1:
        return [mine]
    import torch
    import torch.distributed as dist

    text = torch.tensor(list(json.dumps(mine).encode().ljust(1000)), dtype=torch.uint8)
    texts = [torch.empty_like(text) for _ in range(world.size)]
    dist.all_gather(texts, text)
    return [json.loads(each.numpy().tobytes()) for each in texts]


def sum_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    """The sum of everyone's `values`; integers, so that it does not depend on the order."""
    return _reduced(values, world, "SUM")


def least_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    return _reduced(values, world, "MIN")


def _reduced(values: torch.Tensor, world: World, operation: str) -> torch.Tensor:
    if world.size == 1:
        return values
    import torch.distributed as dist

    total = values.clone()
    dist.all_reduce(total, getattr(dist.ReduceOp, operation))
    return total


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every rank rank 0's buffers (batch norm's running statistics), as DDP does before each forward pass."""
    found = [buffer for buffer in model.buffers() if buffer.is_floating_point()]  # counters are the same everywhere
    if world.size > 1 and found:
        import torch
        import torch.distributed as dist

        together = torch.cat([buffer.reshape(-1) for buffer in found])
        dist.broadcast(together, 0)
        for buffer, part in zip(found, together.split([b.numel() for b in found]), strict=True):
            buffer.copy_(part.view_as(buffer))


def average_gradients(parameters: Iterable[torch.Tensor], world: World) -> None:
    """Replace gradients by their mean over the ranks, in one exchange whose order of additions never changes."""
    if world.size == 1:
        return
    import torch
    import torch.distributed as dist

    found = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([g.reshape(-1) for g in found])
    dist.all_reduce(together)
    together /= world.size
    for gradient, part in zip(found, together.split([g.numel() for g in found]), strict=True):
        gradient.copy_(part.view_as(gradient))


class Agreement:
    """What the ranks decide together, without waiting for it: the largest of everyone's numbers, one step later.

    `exchange` posts this rank's numbers and gives what was agreed on those of the call before (zeros at the first). All
    ranks get the same answer at the same step. One process agrees with itself at once.
    """

    def __init__(self, world: World, count: int) -> None:
        self.world, self._count = world, count
        self._pending: tuple[torch.Tensor, Any] | None = None
        if world.size > 1:
            import torch.distributed as dist

            self._group: Any = dist.new_group(backend="gloo")

    def exchange(self, mine: list[int]) -> list[int]:
        if self.world.size == 1:
            return mine
        agreed = self.close()
        import torch
        import torch.distributed as dist

        posted = torch.tensor(mine)
        work = dist.all_reduce(posted, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = posted, work
        return agreed

    def close(self) -> list[int]:
        """The answer that is still under way."""
        if self._pending is None:
            return [0] * self._count
        posted, work = self._pending
        work.wait()
        self._pending = None
        return list(posted.tolist())


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
