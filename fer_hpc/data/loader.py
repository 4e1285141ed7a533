"""Whole batches from memory-mapped shards, as a pure function of (seed, images seen).

Batch i is positions [iB, (i+1)B) of the concatenated epoch orders: every batch is full, nothing is dropped, and one
integer is all it takes to resume. Random numbers come from Philox counters (Salmon et al., 2011), whose raw stream
numpy keeps stable between versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.data import augment
from fer_hpc.data.augment import DRAWS, Augmentation
from fer_hpc.data.shards import Split

_ORDER, _AUGMENT, _SHARDS, _CLASSES, NEUTRALS = 1, 2, 3, 4, 5  # independent streams of one seed

EVAL_CHUNK = 256  # images per evaluation step, fixed: sums and predictions do not depend on the number of ranks
CACHED = (
    1 << 20
)  # floats that are converted and scaled at a time on a CPU: they stay in its cache in between
SMALL = (
    1 << 15
)  # bytes of an image below which a call for each costs more than copying them together
RESIDENT_SHARE = 0.25  # of a GPU's memory that the pixels may take, else they are streamed


class Order:
    """The endless order of a split's rows: one permutation an epoch, concatenated.

    `window` 0 permutes all rows. `window` k shuffles the shards and permutes within k of them at a time, so that a set
    larger than memory is read k shards at a time. `balanced` labels [n] give every class the same share of an epoch: an
    epoch is still n places, in which the images of small classes come several times and those of large ones in turn.
    """

    def __init__(
        self,
        starts: NDArray[np.int64],
        seed: int,
        window: int = 0,
        balanced: NDArray[np.int64] | None = None,
        stream: int = _ORDER,
    ) -> None:
        self.starts, self.n, self.seed, self.window, self.balanced = (
            starts,
            int(starts[-1]),
            seed,
            window,
            balanced,
        )
        self.stream = stream  # orders of one seed that shall not be the same have different ones
        self._epochs: dict[
            int, NDArray[np.int64]
        ] = {}  # the current one, and the next across a border

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            keys = np.random.Philox(key=[self.seed, self.stream << 48 | epoch]).random_raw(self.n)
            rows = np.argsort(keys, kind="stable")
            if self.window:
                shards = len(self.starts) - 1
                drawn = np.random.Philox(key=[self.seed, _SHARDS << 48 | epoch]).random_raw(shards)
                place = np.argsort(
                    np.argsort(drawn, kind="stable"), kind="stable"
                )  # of each shard in this epoch
                window = place[np.searchsorted(self.starts, rows, side="right") - 1] // self.window
                rows = rows[np.argsort(window, kind="stable")]
            if self.balanced is not None:
                rows = self._class_balanced(rows, self.balanced, epoch)
            self._epochs = {e: r for e, r in self._epochs.items() if abs(e - epoch) == 1} | {
                epoch: rows
            }
        return self._epochs[epoch]

    def _class_balanced(
        self, rows: NDArray[np.int64], labels: NDArray[np.int64], epoch: int
    ) -> NDArray[np.int64]:
        """The permutation `rows` with its places dealt out to the classes alike, each class's images in their order."""
        present = np.unique(labels)
        keys = np.random.Philox(key=[self.seed, _CLASSES << 48 | epoch]).random_raw(self.n)
        class_per_slot = present[
            np.argsort(keys, kind="stable") % len(present)
        ]  # the class at each place
        evened = np.empty(self.n, np.int64)
        for label in present:
            mine, places = rows[labels[rows] == label], np.flatnonzero(class_per_slot == label)
            evened[places] = mine[np.arange(len(places)) % len(mine)]
        return evened

    def rows(self, start: int, count: int) -> NDArray[np.int64]:
        """Rows at positions [start, start + count)."""
        parts = []
        while count:
            epoch, first = divmod(start, self.n)
            part = self.epoch(epoch)[first : first + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def draws(seed: int, start: int, count: int) -> NDArray[np.float64]:
    """Uniform random numbers [count, DRAWS] in [0, 1) that belong to positions start ... of the order."""
    philox = np.random.Philox(
        key=[seed, _AUGMENT << 48], counter=start * (DRAWS // 4)
    )  # a counter step is 4 words
    words = philox.random_raw(count * DRAWS).reshape(count, DRAWS)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Batch:
    images: (
        torch.Tensor
    )  # [B, C, H, W] float32 in [0, 1], channels-last; a buffer that the next batch overwrites
    labels: torch.Tensor  # [B] int64
    rows: NDArray[np.int64]  # [B] rows of the split
    other_labels: torch.Tensor | None = None  # [B] of the images mixed in
    weights: torch.Tensor | None = None  # [B] share of the images that `labels` belongs to
    affect: torch.Tensor | None = (
        None  # [B, 2] valence and arousal, NaN where unknown; mixed as the images are
    )

    def parts(self, count: int) -> list[Batch]:
        """The batch in `count` equal pieces."""
        if count == 1:
            return [self]
        size = len(self.labels) // count
        cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
        optional = ("other_labels", "weights", "affect")
        return [
            Batch(
                self.images[c],
                self.labels[c],
                self.rows[c],
                **{k: None if (v := getattr(self, k)) is None else v[c] for k in optional},
            )
            for c in cuts
        ]


class ImageStore:
    """A split's pixels and labels, gathered into batches on the device.

    On the CPU the mapping itself is read. On a GPU the set is resident if it takes less than RESIDENT_SHARE of the
    memory (times the processes that share the GPU), else batches go through pinned memory.
    """

    def __init__(
        self, split: Split, device: torch.device, processes_per_gpu: int = 1, affect: bool = False
    ) -> None:
        self.split, self.device = split, device
        size = sum(part.nbytes for part in split.images)
        self.resident = device.type == "cpu" or (
            size * processes_per_gpu
            < RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory
        )
        self._store = device if self.resident else torch.device("cpu")  # where rows are selected
        self.parts = [
            torch.from_numpy(part).to(self._store) for part in split.images
        ]  # each [n, H, W, C] uint8
        self.labels = torch.from_numpy(split.columns["labels"]).to(device)
        self.affect = torch.from_numpy(affect_of(split)).to(device) if affect else None
        self._bytes = [torch.empty(0, dtype=torch.uint8)] * 2
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._floats = torch.empty(0)
        self._turn = 0

    def select(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The rows' pixels [B, H, W, C] uint8 on the device, in a buffer that a later call overwrites."""
        if (
            not self.resident
        ):  # two pinned buffers in turn: one is filled while the other is on its way to the device
            self._turn ^= 1
        shape = (len(rows), *self.parts[0].shape[1:])
        if self._bytes[self._turn].shape != shape:
            self._bytes[self._turn] = (
                _buffer(shape, np.uint8).to(self._store)
                if self.resident
                else torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            )
        buffer, copied = self._bytes[self._turn], self._copied[self._turn]
        if copied is not None:
            copied.synchronize()  # the copy of two batches ago; long done
        if len(self.parts) == 1:
            flat = self.parts[0].view(
                len(self.parts[0]), -1
            )  # an image as one run of bytes is copied faster
            torch.index_select(
                flat, 0, torch.from_numpy(rows).to(self._store), out=buffer.view(len(rows), -1)
            )
        else:
            shard = np.searchsorted(self.split.starts, rows, side="right") - 1
            by_shard = np.argsort(shard, kind="stable")
            for here in np.split(by_shard, np.flatnonzero(np.diff(shard[by_shard])) + 1):
                k = shard[here[0]]
                local = torch.from_numpy(rows[here] - self.split.starts[k]).to(self._store)
                buffer[torch.from_numpy(here).to(self._store)] = self.parts[k].index_select(
                    0, local
                )
        if self.resident:
            return buffer
        on_device = buffer.to(self.device, non_blocking=True)
        self._copied[self._turn] = torch.cuda.Event()
        self._copied[self._turn].record()  # type: ignore[union-attr]
        return on_device

    def gather(self, rows: NDArray[np.int64], flip: NDArray[np.bool_] | None = None) -> Batch:
        """The rows as one normalised batch, the flagged ones mirrored.

        Writes into one reused buffer: fresh memory costs more in page faults than the arithmetic in it.
        """
        pixels = self.select(rows)
        if self._floats.shape != pixels.shape:
            self._floats = _buffer(tuple(pixels.shape), np.float32).to(self.device)
        if flip is not None and flip.any():
            _mirror(pixels, np.flatnonzero(flip))
        per_piece = max(1, CACHED // pixels[0].numel()) if self.device.type == "cpu" else len(rows)
        for floats, part in zip(
            self._floats.split(per_piece), pixels.split(per_piece), strict=True
        ):
            floats.copy_(part).mul_(1 / 255)
        index = torch.from_numpy(rows).to(self.device, non_blocking=True)
        affect = None if self.affect is None else self.affect[index]
        return Batch(self._floats.permute(0, 3, 1, 2), self.labels[index], rows, affect=affect)


def affect_of(split: Split) -> NDArray[np.float32]:
    """Valence and arousal [n, 2], NaN where unknown."""
    return np.stack([split.columns["valence"], split.columns["arousal"]], 1)


def _buffer(shape: tuple[int, ...], kind: type) -> torch.Tensor:
    """Memory to be written again and again; numpy asks the kernel for huge pages where torch does not."""
    return torch.from_numpy(np.empty(shape, kind))


def _mirror(pixels: torch.Tensor, which: NDArray[np.int64]) -> None:
    """Mirror some images of [B, H, W, C] in place."""
    if pixels.device.type != "cpu":
        index = torch.from_numpy(which).to(pixels.device, non_blocking=True)
        pixels[index] = pixels[index].flip(2)
        return
    images = pixels.numpy()  # OpenCV mirrors 8 to 20 times as fast as torch does on a CPU
    if images[0].nbytes < SMALL:  # the images under each other are one tall image
        chosen = images[which]
        images[which] = cv2.flip(chosen.reshape(-1, *chosen.shape[2:]), 1).reshape(chosen.shape)
    else:
        for i in which.tolist():
            image = images[i]
            cv2.flip(image, 1, image)


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
        self.order = Order(
            split.starts, seed, window, split.columns["labels"] if balanced else None
        )
        self.batch_size, self.seed, self.augmentation, self.rank, self.size = (
            batch_size,
            seed,
            augmentation,
            rank,
            size,
        )

    def rows(self, images_seen: int) -> NDArray[np.int64]:
        """Rows of the global batch that begins after `images_seen` images of the run."""
        return self.order.rows(images_seen, self.batch_size)

    def batch(self, images_seen: int) -> Batch:
        """This rank's part of the global batch."""
        share = self.batch_size // self.size
        mine = np.arange(self.rank * share, (self.rank + 1) * share)
        batch, u = self._augmented(images_seen, mine)
        if not self.augmentation.mixup:
            return batch
        weights = torch.from_numpy(augment.mix_weights(self.augmentation, u)).to(
            self.images.device, non_blocking=True
        )
        offset = self._partner_offset(images_seen)
        if self.size == 1:  # the partners are in this batch already
            rolled = None if batch.affect is None else batch.affect.roll(-offset, 0)
            others = Batch(
                batch.images.roll(-offset, 0),
                batch.labels.roll(-offset, 0),
                batch.rows,
                affect=rolled,
            )
            images = batch.images
        else:
            images = batch.images.clone()  # the partners come through the same buffer
            others, _ = self._augmented(images_seen, (mine + offset) % self.batch_size)
        kept = weights.view(-1, 1, 1, 1)
        images.mul_(kept).add_(others.images * (1 - kept))
        affect = batch.affect
        if affect is not None and others.affect is not None:
            affect = affect * weights[:, None] + others.affect * (1 - weights[:, None])
        return Batch(images, batch.labels, batch.rows, others.labels, weights, affect)

    def loss_normalizer(
        self, images_seen: int, weights: NDArray[np.float64] | None
    ) -> tuple[float, float]:
        """(weight of the images by class, known valence and arousal values) of the global batch.

        The order is a pure function, so every rank knows it without asking the others.
        """
        if weights is None and self.images.affect is None:
            return float(self.batch_size), 0.0
        rows, split = self.rows(images_seen), self.images.split
        known = None if self.images.affect is None else np.isfinite(affect_of(split)[rows])
        weighed = np.ones(len(rows)) if weights is None else weights[split.columns["labels"][rows]]
        if self.augmentation.mixup:
            kept = augment.mix_weights(
                self.augmentation, draws(self.seed, images_seen, len(rows))
            ).astype(np.float64)
            offset = self._partner_offset(images_seen)
            weighed = kept * weighed + (1 - kept) * np.roll(weighed, -offset)
            known = None if known is None else known & np.roll(known, -offset, 0)
        return float(weighed.sum()), 0.0 if known is None else float(known.sum())

    def _partner_offset(self, images_seen: int) -> int:
        return augment.partner_offset(draws(self.seed, images_seen, 1)[0], self.batch_size)

    def _augmented(
        self, images_seen: int, places: NDArray[np.int64]
    ) -> tuple[Batch, NDArray[np.float64]]:
        """The images at `places` of the global batch, and the random numbers that belong to them."""
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
    """This rank's chunks (r, r + size, ...) of the split in row order, each padded to EVAL_CHUNK, with its real rows."""
    n = len(images.split)
    for first in range(rank * EVAL_CHUNK, n, size * EVAL_CHUNK):
        rows = np.arange(first, first + EVAL_CHUNK)
        yield images.gather(np.minimum(rows, n - 1)), min(EVAL_CHUNK, n - first)
