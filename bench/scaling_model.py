"""How long a training step of several ranks takes, from compute, bandwidth and latency. Pure.

Assumptions, which bench/scale.py checks on throttled links:
- all ranks compute equally fast, and begin a step together;
- DDP's buckets: parameters in the order in which their gradients are ready, the first bucket closed
  at 1 MiB and the others at 25 MiB;
- a bucket is exchanged as soon as it is complete and the one before it is through, beside the
  backward pass, which the exchange does not slow down;
- an all-reduce is a ring: 2 (n - 1) hops, and 2 (n - 1) / n of the bytes over each link.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20  # bytes; torch's own, which fer_hpc does not change


@dataclass(frozen=True)
class Link:
    """What lies between two neighbours of a ring."""

    bytes_per_s: float  # in one direction
    latency_s: float  # one way
    call_s: float = 0.0  # of an all-reduce of next to nothing, without the latency of the link
    trips: int = 1  # one-way trips of a hop: gloo asks before it sends


@dataclass(frozen=True)
class Compute:
    """The parts of a step without exchange, in seconds."""

    forward_s: float
    backward_s: float
    update_s: float = 0.0  # and all else that waits for the gradients

    @property
    def total_s(self) -> float:
        return self.forward_s + self.backward_s + self.update_s


@dataclass(frozen=True)
class Bucket:
    """Gradients that are exchanged together."""

    ready: float  # share of the backward pass after which the last of them is there
    size: float  # bytes


AllReduce = Callable[[float], float]  # bytes -> seconds


def ring_bytes(size: float, ranks: int) -> float:
    """Bytes that each rank sends in an all-reduce of `size` bytes."""
    return 2 * (ranks - 1) / ranks * size


def ring_s(size: float, ranks: int, link: Link) -> float:
    """Seconds of an all-reduce of `size` bytes in a ring of equal links."""
    if ranks == 1:
        return 0.0
    latency = 2 * (ranks - 1) * link.trips * link.latency_s
    return link.call_s + latency + ring_bytes(size, ranks) / link.bytes_per_s


def nodes_s(size: float, ranks: int, inner: Link, outer: Link, node: int = 8) -> float:
    """Seconds of an all-reduce over nodes of `node` GPUs, one link of `outer` from each node.

    The faster of a ring and a tree, between which NCCL chooses: a ring has the fewer bytes, a tree
    (a chain inside each node) the fewer hops.
    """
    if ranks <= node:
        return ring_s(size, ranks, inner)
    depth = math.ceil(math.log2(ranks / node))
    hops = 2 * (depth * outer.latency_s + (node - 1) * inner.latency_s)
    tree = outer.call_s + hops + 2 * size / outer.bytes_per_s
    return min(ring_s(size, ranks, outer), tree)


def make_buckets(
    gradients: Sequence[tuple[float, float]], first: int = FIRST_BUCKET, cap: int = BUCKET
) -> list[Bucket]:
    """DDP's buckets of `gradients`, (share of the backward pass, bytes) in the order of readiness.

    A bucket is closed by the gradient that brings it to its limit.
    """
    buckets: list[Bucket] = []
    ready = size = 0.0
    for share, count in gradients:
        ready, size = max(ready, share), size + count
        if size >= (cap if buckets else first):
            buckets.append(Bucket(ready, size))
            ready = size = 0.0
    return [*buckets, Bucket(ready, size)] if size else buckets


def step_s(compute: Compute, buckets: Sequence[Bucket], all_reduce: AllReduce) -> float:
    """Seconds of a step: the exchange runs beside the backward pass, bucket after bucket."""
    free = 0.0  # seconds of the backward pass after which the network is free again
    for bucket in buckets:
        free = max(free, bucket.ready * compute.backward_s) + all_reduce(bucket.size)
    return compute.forward_s + max(compute.backward_s, free) + compute.update_s


@dataclass(frozen=True)
class Card:
    """What one GPU needs for a step of `b` images: max(host_s, fixed_s + b image_s).

    `host_s` is the time in which the host launches the kernels of a step, which a CUDA graph saves.
    """

    host_s: float
    fixed_s: float
    image_s: float

    def step_s(self, images: float, graph: bool) -> float:
        device = self.fixed_s + images * self.image_s
        return device if graph else max(self.host_s, device)

    def images_at_host(self) -> float:
        """Images a step from which on the GPU, not the host, decides its time."""
        return max(0.0, (self.host_s - self.fixed_s) / self.image_s)
