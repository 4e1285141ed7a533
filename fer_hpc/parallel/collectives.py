"""Who am I among the processes of this run, and what they tell each other. The only reader of RANK, WORLD_SIZE,
SLURM_PROCID and their kin."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fer_hpc.config import UserError
from fer_hpc.parallel.world import World, set_rendezvous

if TYPE_CHECKING:
    import torch
    from torch import nn


class PeerLost(Exception):
    """Another rank is gone; this one can only stop."""


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
        set_rendezvous()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            rank=world.rank,
            world_size=world.size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
    except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"rank {world.rank} of {world.size} could not reach the others: {str(error).splitlines()[0]}; "
            "start all ranks with torchrun or srun, or set MASTER_ADDR and MASTER_PORT"
        ) from None
    yield
    dist.destroy_process_group()  # not after an exception: it would wait for ranks that are gone


@contextlib.contextmanager
def detect_lost_peers(world: World) -> Iterator[None]:
    """Turn what torch raises when a connection breaks into PeerLost."""
    try:
        yield
    except RuntimeError as error:
        if world.size > 1 and re.search(
            r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe", str(error)
        ):
            raise PeerLost(
                f"rank {world.rank} lost another rank: {str(error).splitlines()[0][-160:]}"
            ) from None
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
            told = {
                "error": f"{error.filename}: {error.strerror}" if error.filename else str(error)
            }
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


def gather_json(mine: Any, world: World) -> list[Any]:
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


def min_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    return _reduced(values, world, "MIN")


def _reduced(values: torch.Tensor, world: World, operation: str) -> torch.Tensor:
    if world.size == 1:
        return values
    import torch.distributed as dist

    total = values.clone()
    dist.all_reduce(total, getattr(dist.ReduceOp, operation))
    return total


def broadcast_buffers(model: nn.Module, world: World) -> None:
    """Give every rank rank 0's buffers (batch norm's running statistics), as DDP does before each forward pass."""
    found = [
        buffer for buffer in model.buffers() if buffer.is_floating_point()
    ]  # counters are the same everywhere
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


def gather_round_robin(mine: torch.Tensor, world: World) -> torch.Tensor:
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
