"""Pairs of a neutral and an expressive face of different people, as a pure function of (seed, images seen).

Both come from endless orders of their own pool; an epoch is one pass over the expressive faces. So, as with single images,
one integer resumes, and ranks take slices of the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.data.order import NEUTRALS, Order, draws
from fer_hpc.data.shards import Split
from fer_hpc.data.store import ImageStore

SAME = 1 / 8  # share of pairs, in the improved mode, that are one neutral face twice
OTHERS = 16  # neutral faces that are tried before a pair is made of one person's


@dataclass(frozen=True)
class Pairs:
    """Faces [B, C, H, W] float32 in [-1, 1], channels-last."""

    neutral: torch.Tensor
    expressive: torch.Tensor
    target: torch.Tensor  # [B] int64: class that the output shall show
    same: torch.Tensor  # [B] bool: both are the same face, which shall come out


class PairLoader:
    """One rank's equal slice of every global batch of pairs."""

    def __init__(
        self,
        split: Split,
        neutral: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        improved: bool = True,
        balanced: bool = True,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        labels = split.columns["labels"]
        self.images, self.labels, self.groups = (
            ImageStore(split, device),
            labels,
            split.columns["group"],
        )
        self.pools = np.flatnonzero(labels == neutral), np.flatnonzero(labels != neutral)
        self.n = len(self.pools[1])
        chosen = labels[self.pools[1]] if balanced and improved else None
        self.expressive = Order(np.array([0, self.n]), seed, balanced=chosen)
        self.neutral = Order(np.array([0, len(self.pools[0])]), seed, stream=NEUTRALS)
        self.batch_size, self.seed, self.improved, self.rank, self.size = (
            batch_size,
            seed,
            improved,
            rank,
            size,
        )

    def rows(
        self, images_seen: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
        """(neutral rows, expressive rows, whether both are one face, random numbers) of the global batch."""
        count = self.batch_size
        u = draws(self.seed, images_seen, count)
        expressive = self.pools[1][self.expressive.rows(images_seen, count)]
        tried = self.pools[0][self.neutral.rows(images_seen, count + OTHERS)]
        neutral = tried[:count].copy()
        for k in range(1, OTHERS + 1):  # another person, where people are known
            clash = (self.groups[neutral] == self.groups[expressive]) & (self.groups[neutral] >= 0)
            if not clash.any():
                break
            neutral[clash] = tried[k : k + count][clash]
        same = (u[:, 2] < SAME) & self.improved
        return neutral, np.where(same, neutral, expressive), same, u

    def batch(self, images_seen: int) -> Pairs:
        """This rank's part of the global batch; in the improved mode, half of all faces mirrored."""
        share = self.batch_size // self.size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        neutral, expressive, same, u = self.rows(images_seen)
        neutral, expressive, same, u = neutral[mine], expressive[mine], same[mine], u[mine]
        flips = [(u[:, k] < 0.5) & self.improved for k in (0, 1)]
        flips[1] = np.where(same, flips[0], flips[1])
        faces = [
            self.faces(rows, flip) for rows, flip in zip((neutral, expressive), flips, strict=True)
        ]
        device = self.images.device
        target, both = torch.from_numpy(self.labels[expressive]), torch.from_numpy(same)
        return Pairs(
            faces[0],
            faces[1],
            target.to(device, non_blocking=True),
            both.to(device, non_blocking=True),
        )

    def faces(self, rows: NDArray[np.int64], flip: NDArray[np.bool_] | None = None) -> torch.Tensor:
        """Some rows' faces in [-1, 1], in memory of their own."""
        return self.images.gather(rows, flip).images.mul(2).sub_(1)
