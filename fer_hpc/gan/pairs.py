"""Pairs of a neutral and an expressive face of different people.

A pair is a pure function of (seed, pairs seen), as single images are in training: both faces come
from endless orders of their own pool, and an epoch is one pass over the expressive faces. So one
integer resumes a run, and ranks take slices of the same global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.data.order import NEUTRALS, Order, draws
from fer_hpc.data.shards import Split
from fer_hpc.data.step_inputs import Block, Inputs
from fer_hpc.data.store import Batch, ImageStore
from fer_hpc.data.stream import PixelStream, gather_rows

SAME_SHARE = 1 / 8  # improved mode: share of pairs whose two faces are the same neutral face
PERSON_TRIES = 16  # neutral faces to try until the two faces of a pair are of different people


@dataclass(frozen=True)
class Pairs:
    """A batch. Faces are [B, C, H, W] float32 in [-1, 1], channels-last."""

    neutral: torch.Tensor
    expressive: torch.Tensor
    target: torch.Tensor  # [B] int64: the class that the output should show
    same: torch.Tensor  # [B] bool: both faces are the same one; the output should be that face


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
        processes_per_gpu: int = 1,
    ) -> None:
        """`neutral` is the class of neutral faces, `batch_size` that of all ranks together.

        `improved` switches on same-face pairs and mirroring, and with `balanced`, every expression
        is drawn equally often.
        """
        self.images = ImageStore(split, device, processes_per_gpu)
        self.labels, self.groups = split.columns["labels"], split.columns["group"]
        # Rows of the neutral faces, and of the expressive ones.
        self.pools = np.flatnonzero(self.labels == neutral), np.flatnonzero(self.labels != neutral)
        self.n = len(self.pools[1])
        classes = self.labels[self.pools[1]] if balanced and improved else None
        self.expressive = Order(np.array([0, self.n]), seed, balanced=classes)
        self.neutral = Order(np.array([0, len(self.pools[0])]), seed, stream=NEUTRALS)
        self.batch_size, self.seed, self.improved = batch_size, seed, improved
        self.rank, self.size = rank, size

    def rows(
        self, images_seen: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
        """The global batch: neutral rows, expressive rows, same face?, random numbers in [0, 1)."""
        count = self.batch_size
        u = draws(self.seed, images_seen, count)
        expressive = self.pools[1][self.expressive.rows(images_seen, count)]
        candidates = self.pools[0][self.neutral.rows(images_seen, count + PERSON_TRIES)]
        neutral = candidates[:count].copy()
        for k in range(1, PERSON_TRIES + 1):  # another person, where people are known
            clash = (self.groups[neutral] == self.groups[expressive]) & (self.groups[neutral] >= 0)
            if not clash.any():
                break
            neutral[clash] = candidates[k : k + count][clash]
        same = (u[:, 2] < SAME_SHARE) & self.improved
        return neutral, np.where(same, neutral, expressive), same, u

    def block(self, images_seen: int, steps: int) -> dict[str, NDArray[Any]]:
        """The inputs of this rank's next `steps` batches, arrays [steps, B / ranks] by name.

        rows and other_rows (neutral, expressive faces), same, images_seen [steps]; in the improved
        mode, which mirrors half of all faces, also flip and other_flip.
        """
        rank_batch = self.batch_size // self.size
        mine = slice(self.rank * rank_batch, (self.rank + 1) * rank_batch)
        seen = images_seen + self.batch_size * np.arange(steps)
        columns = [np.stack(values) for values in zip(*map(self.rows, seen.tolist()), strict=True)]
        neutral, expressive, same, u = (values[:, mine] for values in columns)
        inputs = {"rows": neutral, "other_rows": expressive, "same": same, "images_seen": seen}
        if self.improved:
            inputs["flip"] = u[:, :, 0] < 0.5
            inputs["other_flip"] = np.where(same, inputs["flip"], u[:, :, 1] < 0.5)
        return inputs

    def make(self, inputs: Inputs) -> Pairs:
        """The pairs that a step's inputs describe; runs on the device alone."""
        neutral = _scaled(self.images.gather(inputs))
        others = {k.removeprefix("other_"): v for k, v in inputs.items() if k.startswith("other_")}
        expressive = self.images.gather(others)
        return Pairs(neutral, _scaled(expressive), expressive.labels, inputs["same"])

    def batch(self, images_seen: int) -> Pairs:
        """This rank's part of the global batch. Training asks for blocks of steps instead."""
        block = Block(self.block(images_seen, 1)).to(self.images.device)
        return self.make(block.inputs(0) | PixelStream(self.images).at(block, 0))

    def faces(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The faces of some rows, [B, C, H, W] in [-1, 1], in new memory."""
        return _scaled(gather_rows(self.images, rows))


def _scaled(batch: Batch) -> torch.Tensor:
    """Faces in [-1, 1], in new memory."""
    return batch.images.mul(2).sub_(1)
