"""One rank of bench/scale.py: steps and all-reduces, as stdin asks, times on stdout.

`Training` is fer_hpc's own: network, DDP, warm-up, step and agreement; logs, checkpoints and
validation are left out. `Slept` has a preset's gradients, in the same DDP, and sleeps where
its layers would compute, as the host does beside a GPU: several ranks then fit on few cores.
Each request and each answer is a line of JSON.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scaling_table
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fer_hpc.config import preset
from fer_hpc.data.shards import read_manifest
from fer_hpc.parallel.collectives import Agreement, barrier, process_group
from fer_hpc.parallel.device import configure_torch
from fer_hpc.parallel.process import end_with_parent, keep_freed_memory
from fer_hpc.parallel.world import World
from fer_hpc.run.state import TrainState
from fer_hpc.training.batches import step_block, train_loader
from fer_hpc.training.optim import set_mode
from fer_hpc.training.setup import make_learner, warm_up_ddp, wrap_ddp
from fer_hpc.training.step import step
from fer_hpc.training.sums import SUMS

DEVICE = torch.device("cpu")
BLOCK = 64  # steps whose inputs are made beforehand


class Rank(abc.ABC):
    """What both kinds have: a network in DDP, and its measurements."""

    def __init__(self, world: World, net: nn.Module) -> None:
        self.world, self.net = world, net
        self.agreement = Agreement(world, 5)
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.forward_end = 0.0
        self.ready = [0.0] * len(self.parameters)  # when each gradient was there, last step
        for k, parameter in enumerate(self.parameters):
            parameter.register_post_accumulate_grad_hook(self._note(k))

    def _note(self, k: int) -> Callable[[torch.Tensor], None]:
        def note(_: torch.Tensor) -> None:
            self.ready[k] = time.perf_counter()

        return note

    @abc.abstractmethod
    def work(self) -> None:
        """Forward and backward pass, and the update; sets `forward_end`."""

    def one_step(self) -> float:
        start = time.perf_counter()
        self.work()
        self.agreement.exchange([0] * 5)
        return time.perf_counter() - start

    def steps(self, count: int) -> dict[str, Any]:
        """Seconds of steps with the exchange of gradients."""
        barrier(self.world)
        return {"s": [self.one_step() for _ in range(count)]}

    def local(self, count: int) -> dict[str, Any]:
        """Steps without exchange: forward, backward, all else, and when each gradient is ready."""
        parts, shares = [], [0.0] * len(self.parameters)
        is_ddp = isinstance(self.net, DistributedDataParallel)
        quiet = self.net.no_sync() if is_ddp else contextlib.nullcontext()
        barrier(self.world)
        with quiet:
            for _ in range(count):
                start = time.perf_counter()
                total = self.one_step()
                last = max(self.ready)
                backward = last - self.forward_end
                parts.append((self.forward_end - start, backward, start + total - last))
                for k, when in enumerate(self.ready):
                    shares[k] += (when - self.forward_end) / backward / count
        sizes = [p.numel() * p.element_size() for p in self.parameters]
        return {"parts": parts, "gradients": list(zip(shares, sizes, strict=True))}

    def buckets(self) -> dict[str, Any]:
        """The sizes of DDP's buckets in bytes, as it has them after its first steps."""
        known = self.net._get_ddp_logging_data()  # type: ignore[operator]
        text = known.get("rebuilt_bucket_sizes") or known.get("bucket_sizes", "")
        return {"sizes": [int(size) for size in str(text).split(",") if size.strip()]}


class Training(Rank):
    """A learner of a preset, with `images` a step on this rank."""

    def __init__(self, world: World, name: str, data: Path, images: int) -> None:
        config = preset(
            name, data=data, run=data / "run", batch_size=images * world.size, precision="fp32"
        )
        manifest = read_manifest(data)
        self.loader = train_loader(config, manifest, DEVICE, world)
        self.learner = make_learner(config, manifest, DEVICE, world)
        warm_up_ddp(self.learner, self.loader, world)
        set_mode(self.learner.net, config.freeze_bn)
        self.state = TrainState.fresh(self.learner.parts(), SUMS, DEVICE)
        self.block, self.count = step_block(config, self.loader, 0, BLOCK), 0
        self.forward, self.learner.forward = self.learner.forward, self._timed
        super().__init__(world, self.learner.net)

    def _timed(self, *args: Any) -> Any:
        result = self.forward(*args)
        self.forward_end = time.perf_counter()
        return result

    def work(self) -> None:
        inputs = self.block.inputs(self.count % BLOCK)
        step(self.learner, self.state, self.loader.make(inputs), inputs)
        self.count += 1


class SleptLayer(torch.autograd.Function):
    """Passes `x` on; its backward pass takes `seconds` and gives zeros."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float, *weights: torch.Tensor) -> torch.Tensor:
        ctx.seconds, ctx.zeros = seconds, [torch.zeros_like(w) for w in weights]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        time.sleep(ctx.seconds)
        return gradient, None, *ctx.zeros


class SleptNetwork(nn.Module):
    """The weights of a preset; the layers take their shares of `backward_s`."""

    def __init__(self, name: str, backward_s: float) -> None:
        super().__init__()
        done, layers = 0.0, []
        for share, group in itertools.groupby(scaling_table.gradients(name), lambda g: g[0]):
            weights = nn.ParameterList(nn.Parameter(torch.zeros(size)) for _, size in group)
            layers.append((backward_s * (share - done), weights))
            done = share
        layers.reverse()
        self.seconds = [seconds for seconds, _ in layers]
        self.layers = nn.ModuleList(weights for _, weights in layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for seconds, weights in zip(self.seconds, self.layers, strict=True):
            x = SleptLayer.apply(x, seconds, *weights)  # type: ignore[arg-type,no-untyped-call]
        return x


class Slept(Rank):
    """A preset's gradients, and a computation of `seconds`: a third of it forward."""

    def __init__(self, world: World, name: str, seconds: float) -> None:
        self.forward_s = scaling_table.FORWARD * seconds
        network = SleptNetwork(name, seconds - self.forward_s)
        super().__init__(world, wrap_ddp(network, False, world, DEVICE))
        for _ in range(2):  # DDP arranges its buckets after the first
            self.work()

    def work(self) -> None:
        self.net.zero_grad(set_to_none=True)
        time.sleep(self.forward_s)
        out = self.net(torch.zeros(1, requires_grad=True))
        self.forward_end = time.perf_counter()
        out.backward()


def allreduce(size: int, count: int) -> dict[str, Any]:
    """Seconds of all-reduces of `size` bytes."""
    values, times = torch.zeros(max(1, size // 4)), []
    for _ in range(count):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        times.append(time.perf_counter() - start)
    return {"s": times}


def come_first(first: bool) -> None:
    """Let all threads run before other programs, which a rank that mostly sleeps hardly delays."""
    policy = os.SCHED_FIFO if first else os.SCHED_OTHER
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(int(first)))


def main() -> None:
    data, rank, size = sys.argv[1:]
    end_with_parent(os.getppid())
    keep_freed_memory()
    world = World(int(rank), int(size))
    configure_torch(1, True, DEVICE)
    worker: Rank | None = None
    with process_group(world, DEVICE, "gloo"):
        for line in sys.stdin:
            request = json.loads(line)
            what = request.pop("what")
            answer: dict[str, Any] = {}
            if what == "train":
                come_first(False)
                worker = Training(world, request["name"], Path(data), request["images"])
            elif what == "sleep":
                worker = Slept(world, request["name"], request["seconds"])
                come_first(True)
            elif what == "allreduce":
                answer = allreduce(**request)
            else:
                answer = getattr(worker, what)(**request)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
