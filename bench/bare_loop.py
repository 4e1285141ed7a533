"""The plainest training loops of the project's networks, for benchmarks to compare with."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from fer_hpc.config import TrainConfig, fields_of
from fer_hpc.models.registry import build_network
from fer_hpc.parallel.device import autocast
from fer_hpc.training.optim import make_optimizer


def bare_step(
    config: TrainConfig,
    device: torch.device,
    shape: tuple[int, int, int],
    classes: int,
    n: int,
    warps: bool = False,
) -> Callable[[], None]:
    """A step on `n` resident images of `shape` (H, W, C); all that it uses stays at its place.

    Gather rows, mirror half or warp all, forward pass, cross-entropy, backward pass, update, count.
    """
    torch.manual_seed(0)
    model = build_network(fields_of(config, "science"), classes, shape).train()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(config, model)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(config.lr, device=device)
        group["capturable"] = device.type == "cuda"
    net = torch.compile(model, dynamic=False) if config.compile else model
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, device=device)
    labels = torch.randint(0, classes, (n,), device=device)
    rows = torch.randint(0, n, (config.batch_size,), device=device)
    mirrored = (torch.rand(config.batch_size, device=device) < 0.5)[:, None, None, None]
    theta = torch.eye(2, 3, device=device).repeat(config.batch_size, 1, 1)
    theta += 0.1 * torch.rand_like(theta)
    sums = torch.zeros(2, device=device)

    def step() -> None:
        pixels = images.index_select(0, rows)
        if not warps:
            pixels = torch.where(mirrored, pixels.flip(2), pixels)
        x, y = pixels.permute(0, 3, 1, 2).float().mul_(1 / 255), labels.index_select(0, rows)
        if warps:
            grid = affine_grid(theta, list(x.shape), align_corners=False)
            x = grid_sample(x, grid, align_corners=False)
        with autocast(config.precision, device):
            out = net(x)
        loss = cross_entropy(out.float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums.add_(torch.stack([loss.detach(), (out.argmax(1) == y).sum().float()]))

    return step


def variants(config: TrainConfig, compiled: bool) -> list[tuple[str, str, bool]]:
    """(label, kind of call, whether faces are warped) of the loops to compare a preset with."""
    kinds = ["eager", "graph", *(["compile+graph"] if compiled else [])]
    loops = [(f"bare {kind}", kind, False) for kind in kinds]
    if config.rotate or config.shift or config.scale:
        loops += [(f"bare {kind}, warped", kind, True) for kind in kinds[1:]]
    return loops


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(_: object = step) -> None:  # keeps the tensors that the graph reads
        graph.replay()

    return replay


def rate(step: Callable[[], None], device: torch.device, batch: int, seconds: float) -> float:
    """Images/s of repeated steps."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(10 if device.type == "cuda" else 1):
            step()
            steps += 1
        wait()
    return steps * batch / (time.perf_counter() - start)


def or_zero(what: str, measure: Callable[[], float]) -> float:
    """What `measure` gives; 0, and a line that says why, where it fails."""
    try:
        return measure()
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 0.0
