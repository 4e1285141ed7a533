"""The chain of a run: a hash over the samples and the sums of every step, in order.

Two runs with equal chains have trained on the same samples in the same order, with the same losses
in every step. Each step multiplies the chain by an odd number and adds its own values, in integers
of 64 bits that wrap around: a difference at any step never leaves it, and it is linear, so that
the ranks' chains add up to that of the global batches. It finds differences; it is no protection
against somebody who makes up numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fer_hpc.parallel.collectives import sum_over_ranks
from fer_hpc.parallel.world import World

STOPS = 32  # steps of an epoch at which the chain is kept
MULTIPLIER = 6364136223846793005  # odd, of a linear congruential generator (Knuth)
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: 2^64 / golden ratio
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Chain:
    """The chain [k] of an epoch's k sums, the first of which counts the images: its place holds the
    order of the samples. `stops` [STOPS, k] are its values at STOPS steps of the current epoch.

    `since`: images seen where it began, 0 except in runs that an older version began.
    """

    def __init__(self, sums: int, device: torch.device) -> None:
        self.values = torch.zeros(sums, dtype=torch.int64, device=device)
        self.stops = torch.zeros(STOPS, sums, dtype=torch.int64, device=device)
        self.since = 0

    def add(self, inputs: Mapping[str, torch.Tensor], sums: torch.Tensor) -> None:
        """Add a step with `inputs` (see `chain_inputs`), after which the epoch's sums of this
        rank are `sums` [k]. Stays on the device."""
        torch.add(sums, self.values, alpha=MULTIPLIER, out=self.values)
        self.values[0].add_(inputs["order"])
        torch.where(inputs["stop"][:, None], self.values, self.stops, out=self.stops)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.values, self.stops

    def state_dict(self, world: World) -> dict[str, Any]:
        """What a checkpoint holds; on all ranks together."""
        values, stops = (sum_over_ranks(each, world) for each in self.tensors())
        return {"values": values, "stops": stops, "since": self.since}

    def load_state_dict(self, saved: dict[str, Any] | None, images_seen: int, rank: int) -> None:
        """Restore `state_dict`'s content on rank 0, zeros on the others; None: an older version's
        checkpoint, with which the chain begins."""
        content = saved or {"values": 0, "stops": 0, "since": images_seen}
        for name, tensor in (("values", self.values), ("stops", self.stops)):
            value = torch.as_tensor(content[name], device=tensor.device)
            if saved and value.shape != tensor.shape:
                raise ValueError(f"{name} of the chain are {list(value.shape)}")
            tensor.copy_(value if rank == 0 else torch.zeros_like(tensor))
        self.since = int(content["since"])

    def row(
        self, world: World, images_seen: int, batch_size: int, epoch_images: int, weights: str
    ) -> dict[str, Any]:
        """The row of chain.jsonl at the end of an epoch; on all ranks together.

        Each entry of `stops` is [images seen, order, sums]; `weights` is `weights_digest`.
        """
        values, stops = (sum_over_ranks(each, world).cpu().numpy() for each in self.tensors())
        last = images_seen // batch_size - 1
        first, count = _epoch_of(np.array([last]), batch_size, epoch_images)
        steps = np.arange(first[0], last + 1)
        at = dict(zip((steps - first) * STOPS // count, steps, strict=True))  # the last of each
        kept = [[int(step + 1) * batch_size, *_texts(stops[stop])] for stop, step in at.items()]
        order, sums = _texts(values)
        row = {"images_seen": images_seen, "since": self.since, "order": order, "sums": sums}
        return row | {"weights": weights, "stops": kept}


def chain_inputs(
    samples: Sequence[NDArray[np.int64]],
    images_seen: NDArray[np.int64],
    batch_size: int,
    epoch_images: int,
    rank: int,
) -> dict[str, NDArray[Any]]:
    """What `Chain.add` needs of a block of steps: order [steps] int64, stop [steps, STOPS] bool.

    `samples` are this rank's rows, arrays [steps, B / ranks]; `images_seen` [steps] is the clock
    before each step.
    """
    order = np.zeros(len(images_seen), np.uint64)
    for rows in samples:
        place = rank * rows.shape[1] + np.arange(rows.shape[1], dtype=np.uint64)
        terms = (rows.astype(np.uint64) + np.uint64(1)) * (2 * place + 1) * _MIX
        order = order * np.uint64(MULTIPLIER) + terms.sum(1)
    step = images_seen // batch_size
    first, count = _epoch_of(step, batch_size, epoch_images)
    stop = (step - first) * STOPS // count
    return {"order": order.view(np.int64), "stop": stop[:, None] == np.arange(STOPS)}


def _epoch_of(
    step: NDArray[np.int64], batch_size: int, epoch_images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first step of the epoch that a step belongs to, and the number of that epoch's steps."""
    epoch = step * batch_size // epoch_images
    first = -(-(epoch * epoch_images) // batch_size)
    return first, -(-((epoch + 1) * epoch_images) // batch_size) - first


def _texts(values: NDArray[np.int64]) -> tuple[str, str]:
    """The order and the sums of chain values [k], 16 hex digits each."""
    sums = hashlib.blake2b(np.ascontiguousarray(values[1:]).tobytes(), digest_size=8).hexdigest()
    return f"{int(values[0]) % 2**64:016x}", sums


def weights_digest(networks: Iterable[nn.Module]) -> str:
    """16 hex digits over all bits of the weights and buffers, computed where they are."""
    digest = 0
    for network in networks:
        for tensor in network.state_dict().values():
            bits = tensor.detach().reshape(-1).view(_INTEGERS[tensor.element_size()]).long()
            odd = torch.arange(len(bits), device=bits.device).mul_(2).add_(1)
            digest = (digest * MULTIPLIER + int((bits * odd).sum()) + len(bits)) % 2**64
    return f"{digest:016x}"
