"""Training and evaluation batches, as a pure function of (seed, images seen).

Batch i is positions [iB, (i+1)B) of the concatenated epoch orders (order.py): every batch is full,
nothing is dropped, and resuming needs one integer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.data import augment
from fer_hpc.data.augment import Augmentation
from fer_hpc.data.order import Order, draws
from fer_hpc.data.shards import Split
from fer_hpc.data.step_inputs import Block, Inputs
from fer_hpc.data.store import Batch, ImageStore, affect_of
from fer_hpc.data.stream import PixelStream

EVAL_CHUNK = 256  # images per evaluation step; fixed, so that sums do not depend on the ranks
OTHER = "other_"  # prefix of the inputs that describe the images to mix in


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
        class_weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.images, self.n = ImageStore(split, device, processes_per_gpu, affect), len(split)
        labels = split.columns["labels"] if balanced else None
        self.order = Order(split.starts, seed, window, labels)
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        self.rank, self.size, self.class_weights = rank, size, class_weights
        height, width = self.images.parts[0].shape[1:3]
        self._places = augment.pixel_places(height, width).to(device)

    def rows(self, images_seen: int) -> NDArray[np.int64]:
        """Rows of the global batch that begins after `images_seen` images of the run."""
        return self.order.rows(images_seen, self.batch_size)

    def block(self, images_seen: int, steps: int) -> dict[str, NDArray[Any]]:
        """The inputs of this rank's next `steps` batches, arrays [steps, B / ranks, ...] by name.

        rows, and the augmentation's `parameters`; with mixup also `partner`, the places in the
        batch of the images to mix in, or with several ranks, whose batches lack them, these images'
        own inputs under names with the prefix "other_"; weight_sum and affect_count [steps], what
        the losses of the global batch are divided by; images_seen [steps].
        """
        count, height, width = steps * self.batch_size, *self.images.parts[0].shape[1:3]
        drawn = {"rows": self.order.rows(images_seen, count)}
        partner = np.empty((steps, 0), np.int64)
        if self.augmentation != Augmentation():
            u = draws(self.seed, images_seen, count)
            drawn |= augment.parameters(self.augmentation, u, height, width)
            if self.augmentation.mixup:
                firsts = u[:: self.batch_size]
                offsets = [augment.partner_offset(first, self.batch_size) for first in firsts]
                places = np.arange(self.batch_size) + np.array(offsets)[:, None]
                partner = places % self.batch_size
        drawn = {name: v.reshape(steps, self.batch_size, *v.shape[1:]) for name, v in drawn.items()}
        per_rank = self.batch_size // self.size
        mine = slice(self.rank * per_rank, (self.rank + 1) * per_rank)
        inputs = {name: values[:, mine] for name, values in drawn.items()}
        if self.augmentation.mixup and self.size == 1:
            inputs["partner"] = partner
        elif self.augmentation.mixup:
            step = np.arange(steps)[:, None]
            for name in drawn.keys() - {"kept"}:
                inputs[OTHER + name] = drawn[name][step, partner[:, mine]]
        weight_sum, affect_count = self._normalizers(drawn, partner)
        seen = images_seen + self.batch_size * np.arange(steps)
        return inputs | {
            "weight_sum": weight_sum,
            "affect_count": affect_count,
            "images_seen": seen,
        }

    def _normalizers(
        self, drawn: dict[str, NDArray[Any]], partner: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each global batch: the sum of the images' class weights (their number without
        weights), and the number of known affect values (at least 1); [steps] each.

        The order is a pure function, so every rank computes it without communication.
        """
        rows, split = drawn["rows"], self.images.split
        steps = len(rows)
        weight_sum = np.full(steps, float(self.batch_size))
        affect_count = np.ones(steps)
        if self.class_weights is not None:
            shares = split.targets
            if shares is None:
                weight = self.class_weights[split.columns["labels"][rows]]
            else:
                weight = shares[rows].astype(np.float64) @ self.class_weights
            if "kept" in drawn:
                kept = drawn["kept"].astype(np.float64)
                weight = kept * weight + (1 - kept) * np.take_along_axis(weight, partner, 1)
            weight_sum = np.array([of_step.sum() for of_step in weight])
        if self.images.affect is not None:
            known = np.isfinite(affect_of(split)[rows])
            if "kept" in drawn:
                known &= np.take_along_axis(known, partner[:, :, None], 1)
            affect_count = np.maximum(known.sum((1, 2)), 1).astype(np.float64)
        return weight_sum, affect_count

    def make(self, inputs: Inputs) -> Batch:
        """The batch that a step's inputs describe; runs on the device alone."""
        batch = self._augmented(inputs)
        if "kept" not in inputs:
            return batch
        kept, affect = inputs["kept"], batch.affect
        if "partner" in inputs:  # the images to mix in are in this batch
            partner = inputs["partner"]
            other_images = batch.images.index_select(0, partner)
            other_labels = batch.labels.index_select(0, partner)
            other_affect = None if affect is None else affect.index_select(0, partner)
            targets = batch.targets
            other_targets = None if targets is None else targets.index_select(0, partner)
            images = batch.images
        else:  # they come through the same buffer
            images = batch.images.clone()
            its = {k.removeprefix(OTHER): v for k, v in inputs.items() if k.startswith(OTHER)}
            others = self._augmented(its)
            other_images, other_labels, other_affect = others.images, others.labels, others.affect
            other_targets = others.targets
        images = augment.mix(images, other_images, kept)
        if affect is not None and other_affect is not None:
            affect = affect * kept[:, None] + other_affect * (1 - kept[:, None])
        return dataclasses.replace(
            batch,
            images=images,
            other_labels=other_labels,
            weights=kept,
            affect=affect,
            other_targets=other_targets,
        )

    def _augmented(self, inputs: Inputs) -> Batch:
        batch = self.images.gather(inputs)
        images = augment.augment(batch.images, inputs, self._places)
        return dataclasses.replace(batch, images=images)

    def batch(self, images_seen: int) -> Batch:
        """This rank's part of the global batch that begins after `images_seen` images.

        Training asks for blocks of steps instead.
        """
        block = Block(self.block(images_seen, 1)).to(self.images.device)
        inputs = block.inputs(0)
        return self.make(inputs | PixelStream(self.images).at(block, 0))


def eval_rows(n: int, rank: int = 0, size: int = 1) -> NDArray[np.int64]:
    """The rows [chunks, EVAL_CHUNK] of this rank's chunks (rank, rank + size, ...) of n rows.

    All ranks get as many chunks. The last row is repeated where rows are missing.
    """
    chunks_per_rank = -(-n // (EVAL_CHUNK * size))
    chunk = rank + size * np.arange(chunks_per_rank)
    return np.minimum(chunk[:, None] * EVAL_CHUNK + np.arange(EVAL_CHUNK), n - 1)
