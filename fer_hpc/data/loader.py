"""Training and evaluation batches, as a pure function of (seed, images seen).

Batch i is positions [iB, (i+1)B) of the concatenated epoch orders (order.py): every batch is full,
nothing is dropped, and resuming needs one integer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.data import augment
from fer_hpc.data.augment import Augmentation
from fer_hpc.data.order import Order, draws
from fer_hpc.data.shards import Split
from fer_hpc.data.store import Batch, ImageStore, affect_of

EVAL_CHUNK = 256  # images per evaluation step; fixed, so that sums do not depend on the ranks


class TrainLoader:
    """Training batches of one rank: its equal slice of every global batch, augmented."""

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        device: torch.device,
        window: int = 0,
        balanced: bool = False,
        affect: bool = False,
        rank: int = 0,
        size: int = 1,
        processes_per_gpu: int = 1,
    ) -> None:
        self.images, self.n = ImageStore(split, device, processes_per_gpu, affect), len(split)
        labels = split.columns["labels"] if balanced else None
        self.order = Order(split.starts, seed, window, labels)
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        self.rank, self.size = rank, size

    def rows(self, images_seen: int) -> NDArray[np.int64]:
        """Rows of the global batch that begins after `images_seen` images of the run."""
        return self.order.rows(images_seen, self.batch_size)

    def batch(self, images_seen: int) -> Batch:
        """This rank's part of the global batch that begins after `images_seen` images."""
        per_rank = self.batch_size // self.size
        places = np.arange(self.rank * per_rank, (self.rank + 1) * per_rank)
        batch, u = self._augmented(images_seen, places)
        if not self.augmentation.mixup:
            return batch
        kept_share = torch.from_numpy(augment.mix_weights(self.augmentation, u))
        weights = kept_share.to(self.images.device, non_blocking=True)
        offset = self._partner_offset(images_seen)
        if self.size == 1:  # the partners are in this batch already
            others = Batch(
                batch.images.roll(-offset, 0),
                batch.labels.roll(-offset, 0),
                batch.rows,
                affect=None if batch.affect is None else batch.affect.roll(-offset, 0),
            )
            images = batch.images
        else:
            images = batch.images.clone()  # the partners come through the same buffer
            others, _ = self._augmented(images_seen, (places + offset) % self.batch_size)
        kept = weights.view(-1, 1, 1, 1)
        images.mul_(kept).add_(others.images * (1 - kept))
        affect = batch.affect
        if affect is not None and others.affect is not None:
            affect = affect * weights[:, None] + others.affect * (1 - weights[:, None])
        return Batch(images, batch.labels, batch.rows, others.labels, weights, affect)

    def loss_normalizer(
        self, images_seen: int, weights: NDArray[np.float64] | None
    ) -> tuple[float, float]:
        """(sum of the images' class weights, number of known affect values) of the global batch.

        The order is a pure function, so every rank computes it without communication.
        """
        if weights is None and self.images.affect is None:
            return float(self.batch_size), 0.0
        rows, split = self.rows(images_seen), self.images.split
        known = None if self.images.affect is None else np.isfinite(affect_of(split)[rows])
        weight = np.ones(len(rows)) if weights is None else weights[split.columns["labels"][rows]]
        if self.augmentation.mixup:
            u = draws(self.seed, images_seen, len(rows))
            kept = augment.mix_weights(self.augmentation, u).astype(np.float64)
            offset = self._partner_offset(images_seen)
            weight = kept * weight + (1 - kept) * np.roll(weight, -offset)
            known = None if known is None else known & np.roll(known, -offset, 0)
        return float(weight.sum()), 0.0 if known is None else float(known.sum())

    def _partner_offset(self, images_seen: int) -> int:
        return augment.partner_offset(draws(self.seed, images_seen, 1)[0], self.batch_size)

    def _augmented(
        self, images_seen: int, places: NDArray[np.int64]
    ) -> tuple[Batch, NDArray[np.float64]]:
        """The augmented images at `places` of the global batch, and their random numbers."""
        a, low, count = self.augmentation, int(places.min()), int(np.ptp(places)) + 1
        rows = self.order.rows(images_seen + low, count)[places - low]
        u = draws(self.seed, images_seen + low, count)[places - low]
        batch = self.images.gather(rows, augment.mirrored(a, u) if a.flip and not a.warps else None)
        images = augment.warp(batch.images, a, u) if a.warps else batch.images
        images = augment.relight(images, a, u)
        if a.erase:
            images = augment.erase(images, a, u)
        return Batch(images, batch.labels, rows, affect=batch.affect), u


def eval_chunks(images: ImageStore, rank: int = 0, size: int = 1) -> Iterator[tuple[Batch, int]]:
    """This rank's chunks (rank, rank + size, ...) of a split in row order.

    Each is padded to EVAL_CHUNK images by repeating the last row; the number beside it counts the
    real ones.
    """
    n = len(images.split)
    for first in range(rank * EVAL_CHUNK, n, size * EVAL_CHUNK):
        rows = np.arange(first, first + EVAL_CHUNK)
        yield images.gather(np.minimum(rows, n - 1)), min(EVAL_CHUNK, n - first)
