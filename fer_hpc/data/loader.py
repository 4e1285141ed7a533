"""Whole batches from memory-mapped shards, as a pure function of (seed, images seen).

Batch i is positions [iB, (i+1)B) of the concatenated epoch permutations: every batch is full, nothing is dropped, and
one integer is all it takes to resume. Random numbers come from Philox counters (Salmon et al., 2011), whose raw stream
numpy keeps stable between versions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.data.shards import Split

DRAWS = 16  # random numbers per position; each augmentation has its own column
DRAW_FLIP = 0
_ORDER, _AUGMENT = 1, 2  # independent streams of one seed

EVAL_CHUNK = 256  # images per evaluation step, fixed: sums and predictions do not depend on the number of ranks


@functools.lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of epoch `epoch`: ranks of n random 64-bit keys."""
    keys = np.random.Philox(key=[seed, _ORDER << 48 | epoch]).random_raw(n)
    return np.argsort(keys, kind="stable")


def order(n: int, seed: int, start: int, count: int) -> NDArray[np.int64]:
    """Rows at positions [start, start + count) of the concatenated epoch permutations of n rows."""
    rows = []
    while count:
        epoch, first = divmod(start, n)
        part = permutation(n, seed, epoch)[first : first + count]
        rows.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(rows)


def draws(seed: int, start: int, count: int) -> NDArray[np.float64]:
    """Uniform random numbers [count, DRAWS] in [0, 1) that belong to positions start ... of the order."""
    philox = np.random.Philox(key=[seed, _AUGMENT << 48], counter=start * (DRAWS // 4))  # a counter step is 4 words
    words = philox.random_raw(count * DRAWS).reshape(count, DRAWS)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor  # [B, C, H, W] float32 in [0, 1], channels-last; a buffer that the next batch overwrites
    labels: torch.Tensor  # [B] int64
    rows: NDArray[np.int64]  # [B] rows of the split


class Images:
    """A split's pixels and labels where the batches are made: on the CPU the mapping itself, else device memory."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split, self.device = split, device
        self.parts = [torch.from_numpy(part).to(device) for part in split.images]  # each [n, H, W, C] uint8
        self.labels = torch.from_numpy(split.columns["labels"]).to(device)
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._floats = torch.empty(0)

    def gather(self, rows: NDArray[np.int64], flip: NDArray[np.bool_] | None = None) -> Batch:
        """The rows as one normalised batch, the flagged ones mirrored. Reuses one buffer: fresh memory costs more
        in page faults than the arithmetic in it."""
        shape = (len(rows), *self.parts[0].shape[1:])
        if self._bytes.shape != shape:
            self._bytes = torch.empty(shape, dtype=torch.uint8, device=self.device)
            self._floats = torch.empty(shape, device=self.device)
        if len(self.parts) == 1:
            torch.index_select(self.parts[0], 0, torch.from_numpy(rows).to(self.device), out=self._bytes)
        else:
            shard = np.searchsorted(self.split.starts, rows, side="right") - 1
            for k in np.unique(shard):
                here = np.flatnonzero(shard == k)
                local = torch.from_numpy(rows[here] - self.split.starts[k]).to(self.device)
                self._bytes[torch.from_numpy(here).to(self.device)] = self.parts[k].index_select(0, local)
        if flip is not None:
            mirrored = torch.from_numpy(np.flatnonzero(flip)).to(self.device)
            self._bytes[mirrored] = self._bytes[mirrored].flip(2)
        self._floats.copy_(self._bytes).mul_(1 / 255)
        labels = self.labels[torch.from_numpy(rows).to(self.device)]
        return Batch(self._floats.permute(0, 3, 1, 2), labels, rows)


class TrainLoader:
    """Training batches of one rank: its equal slice of every global batch."""

    def __init__(
        self, split: Split, batch_size: int, seed: int, flip: bool, device: torch.device, rank: int = 0, size: int = 1
    ) -> None:
        self.images, self.n = Images(split, device), len(split)
        self.batch_size, self.seed, self.flip, self.rank, self.size = batch_size, seed, flip, rank, size

    def batch(self, images_seen: int) -> Batch:
        """The batch that begins after `images_seen` images of the run."""
        share = self.batch_size // self.size
        start = images_seen + self.rank * share
        rows = order(self.n, self.seed, start, share)
        flip = draws(self.seed, start, share)[:, DRAW_FLIP] < 0.5 if self.flip else None
        return self.images.gather(rows, flip)


def eval_chunks(images: Images, rank: int = 0, size: int = 1) -> Iterator[tuple[Batch, int]]:
    """This rank's chunks of the split in row order, each padded to EVAL_CHUNK, with the number of real rows in it."""
    n = len(images.split)
    for first in range(rank * EVAL_CHUNK, n, size * EVAL_CHUNK):
        rows = np.arange(first, first + EVAL_CHUNK)
        yield images.gather(np.minimum(rows, n - 1)), min(EVAL_CHUNK, n - first)
