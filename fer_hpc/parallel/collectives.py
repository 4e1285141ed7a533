"""The exchanges between the ranks of a run: one place that calls torch.distributed.

Every function works for a single process as well, and then exchanges nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fer_hpc.config import UserError
from fer_hpc.parallel.heartbeat import Heartbeat
from fer_hpc.parallel.world import (
    LOOPBACK,
    World,
    rendezvous_in_words,
    set_rendezvous,
    store_holder,
)

if TYPE_CHECKING:
    import torch
    from torch import nn


SLOW_MEETING_S = 30.0


class PeerLost(Exception):
    """Another rank is gone; this one can only stop."""


@contextlib.contextmanager
def process_group(
    world: World,
    device: torch.device | None = None,
    backend: str = "auto",
    on_lost: Callable[[str], object] = str,
    timeout_s: float = 1800.0,
) -> Iterator[None]:
    """Connect the ranks of `world`: gloo for tensors in main memory, NCCL for those on GPUs.

    With `backend` gloo it is gloo for all. A rank that dies closes its connections, which the
    others see at their next exchange (`detect_lost_peers`); where they cannot, as in NCCL, the
    heartbeat ends them and calls `on_lost(why)`. Raises UserError where the ranks do not find each
    other, or where two of them have the same GPU as `device` and the backend is not gloo.
    """
    if world.size == 1:
        yield
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    from fer_hpc.parallel.device import card_of, refuse_shared_cards

    if dist.is_initialized():  # by Ray, which also ends it
        yield
        return
    try:
        set_rendezvous()
        use_nccl = backend == "auto" and torch.cuda.is_available()
        timeout = datetime.timedelta(seconds=timeout_s)
        store = _meet(world, timeout)
        store.set_timeout(timeout)
        heartbeat = Heartbeat(store, world, on_lost)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if use_nccl else "gloo",
            store=PrefixStore("process_group", store),
            rank=world.rank,
            world_size=world.size,
            timeout=timeout,
        )
    except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"rank {world.rank} of {world.size} could not reach the others: "
            f"{str(error).splitlines()[0]}; {rendezvous_in_words()}. Start all ranks with --procs, "
            "torchrun or srun; where hosts have several networks, set FER_INTERFACE (ip -br addr)"
        ) from None
    with heartbeat:
        if device and backend == "auto":
            cards = gather_json(card_of(device), world)
            refuse_shared_cards([(host, card) for host, card in cards])
        yield
        # Not after an exception: it would wait for ranks that are gone.
        dist.destroy_process_group()


def _meet(world: World, timeout: datetime.timedelta) -> Any:
    """The store where the ranks meet, once all are there; a line says so where that takes long.

    In a thread: torch waits without Python, so that no signal would be handled here meanwhile.
    """
    outcome: list[Any] = []

    def meet() -> None:
        try:
            outcome.append(_meeting_place(world, timeout))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=meet, name="meeting", daemon=True)
    thread.start()
    thread.join(SLOW_MEETING_S)
    if thread.is_alive():
        print(
            f"rank {world.rank} of {world.size} waits for the others: {rendezvous_in_words()}",
            file=sys.stderr,
            flush=True,
        )
    while thread.is_alive():
        thread.join(1.0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _meeting_place(world: World, timeout: datetime.timedelta) -> Any:
    """The store where the ranks meet. That of ranks on one machine listens on loopback only.

    torch's own listens on all networks of the machine, to anyone.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    port = os.environ.get("MASTER_PORT", "")
    is_local = os.environ.get("MASTER_ADDR") == LOOPBACK and port.isdecimal()
    if world.rank or not is_local or store_holder() != "rank 0":
        return next(rendezvous("env://", world.rank, world.size, timeout=timeout))[0]
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, int(port)))
        listener.listen()
        own = listener.detach()
    return TCPStore(LOOPBACK, int(port), world.size, True, timeout, master_listen_fd=own)


@contextlib.contextmanager
def detect_lost_peers(world: World) -> Iterator[None]:
    """Turn what torch raises when a connection breaks into PeerLost."""
    broken = r"[Cc]onnection (closed|reset|refused)( by peer)?|Broken pipe|gloo|NCCL"
    try:
        yield
    except RuntimeError as error:
        match = re.search(broken, str(error))
        if world.size > 1 and match:  # the rest is torch's advice to its developers
            raise PeerLost(f"rank {world.rank} lost another rank ({match[0]})") from None
        raise


def on_rank_0(world: World, work: Callable[[], Any]) -> Any:
    """Call `work` on rank 0 only; every rank gets its result, which must be a JSON value.

    A UserError or OSError in `work` is raised as a UserError on every rank.
    """
    if world.size == 1:
        return work()
    outcome: dict[str, Any] = {}
    if world.rank == 0:
        try:
            outcome = {"value": work()}
        except UserError as error:
            outcome = {"error": str(error)}
        except OSError as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            outcome = {"error": message}
    text = _broadcast(json.dumps(outcome).encode() if world.rank == 0 else b"")
    outcome = json.loads(text)
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


def _broadcast(data: bytes) -> bytes:
    """Give every rank the bytes of rank 0."""
    import torch
    import torch.distributed as dist

    length = torch.tensor([len(data)])
    dist.broadcast(length, 0)
    body = torch.zeros(int(length), dtype=torch.uint8)
    if data:
        body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(body, 0)
    return body.numpy().tobytes()


def gather_json(value: Any, world: World) -> list[Any]:
    """The `value` of every rank, in the order of ranks; a JSON value of at most 1,000 bytes."""
    if world.size == 1:
        return [value]
    import torch
    import torch.distributed as dist

    text = torch.tensor(list(json.dumps(value).encode().ljust(1000)), dtype=torch.uint8)
    texts = [torch.empty_like(text) for _ in range(world.size)]
    dist.all_gather(texts, text)
    return [json.loads(each.numpy().tobytes()) for each in texts]


def sum_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    """The sum of all ranks' `values`: integers, so that the order of additions does not matter."""
    return _all_reduce(values, world, "SUM")


def min_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    """The element-wise minimum of all ranks' `values`."""
    return _all_reduce(values, world, "MIN")


def _all_reduce(values: torch.Tensor, world: World, operation: str) -> torch.Tensor:
    if world.size == 1:
        return values
    import torch.distributed as dist

    total = values.clone()
    dist.all_reduce(total, getattr(dist.ReduceOp, operation))
    return total


def broadcast_buffers(model: nn.Module, world: World) -> None:
    """Copy rank 0's buffers (running statistics of batch norm) to every rank."""
    # Integer buffers are counters, which are equal on all ranks.
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if world.size > 1 and buffers:
        import torch
        import torch.distributed as dist

        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(flat, 0)
        for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))


def barrier(world: World) -> None:
    """Wait for all ranks."""
    if world.size > 1:
        import torch.distributed as dist

        dist.barrier()


def average_gradients(parameters: Iterable[torch.Tensor], world: World) -> None:
    """Replace the gradients of `parameters` by their mean over the ranks.

    One exchange of one flat tensor, so that the order of additions never changes.
    """
    if world.size == 1:
        return
    import torch
    import torch.distributed as dist

    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world.size
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class Agreement:
    """The element-wise maximum of `count` numbers over the ranks, one step late, without waiting.

    `exchange` posts this rank's numbers and gives the maximum over those posted by the call before
    (zeros at the first call). All ranks get the same answer at the same step. A single process
    gets its own numbers at once.
    """

    def __init__(self, world: World, count: int) -> None:
        self.world, self._count = world, count
        self._pending: tuple[torch.Tensor, Any] | None = None
        if world.size > 1:
            import torch.distributed as dist

            self._group: Any = dist.new_group(backend="gloo")

    def exchange(self, numbers: list[int]) -> list[int]:
        if self.world.size == 1:
            return numbers
        agreed = self.close()
        import torch
        import torch.distributed as dist

        posted = torch.tensor(numbers)
        work = dist.all_reduce(posted, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = posted, work
        return agreed

    def close(self) -> list[int]:
        """Wait for the answer to the last `exchange`."""
        if self._pending is None:
            return [0] * self._count
        posted, work = self._pending
        work.wait()
        self._pending = None
        return list(posted.tolist())


def gather_round_robin(chunks: torch.Tensor, world: World) -> torch.Tensor:
    """All ranks' chunks in their original order; rank r has the chunks r, r + size, ...

    `chunks` [k, ...] must have the same k on every rank; gives [k * size, ...] on every rank.
    """
    if world.size == 1:
        return chunks
    import torch
    import torch.distributed as dist

    by_rank = [torch.empty_like(chunks) for _ in range(world.size)]
    dist.all_gather(by_rank, chunks)
    return torch.stack(by_rank, 1).flatten(0, 1)
