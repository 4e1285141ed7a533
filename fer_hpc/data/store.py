"""A split's pixels and labels, gathered into batches on the device."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.data.shards import Split

CPU_CACHE_FLOATS = 1 << 20  # converted and scaled at a time on a CPU: they stay in its cache
SMALL_IMAGE_BYTES = 1 << 15  # below this, mirroring images one by one costs more than copying them
RESIDENT_SHARE = 0.25  # of a GPU's memory that the pixels may take, else they are streamed


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor  # [B, C, H, W] float32 in [0, 1], channels-last; reused by the next batch
    labels: torch.Tensor  # [B] int64
    rows: NDArray[np.int64]  # [B] rows of the split
    other_labels: torch.Tensor | None = None  # [B] of the images mixed in
    weights: torch.Tensor | None = None  # [B] share of the images that `labels` belongs to
    affect: torch.Tensor | None = None  # [B, 2] valence, arousal (mixed as the images); NaN: none

    def parts(self, count: int) -> list[Batch]:
        """The batch in `count` equal pieces."""
        if count == 1:
            return [self]
        size = len(self.labels) // count
        cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
        optional = ("other_labels", "weights", "affect")
        return [
            Batch(
                self.images[cut],
                self.labels[cut],
                self.rows[cut],
                **{k: None if (v := getattr(self, k)) is None else v[cut] for k in optional},
            )
            for cut in cuts
        ]


class ImageStore:
    """A split's pixels and labels, from which batches are gathered.

    On the CPU the memory mapping itself is read. On a GPU the pixels are resident where they take
    less than RESIDENT_SHARE of its memory (all `processes_per_gpu` copies together); else batches
    go through pinned memory.
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
        # each part [n, H, W, C] uint8
        self.parts = [torch.from_numpy(part).to(self._store) for part in split.images]
        self.labels = torch.from_numpy(split.columns["labels"]).to(device)
        self.affect = torch.from_numpy(affect_of(split)).to(device) if affect else None
        self._bytes = [torch.empty(0, dtype=torch.uint8)] * 2
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._floats = torch.empty(0)
        self._turn = 0

    def select(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The rows' pixels [B, H, W, C] uint8 on the device, in a buffer that is used again."""
        if not self.resident:  # two pinned buffers: one is filled while the other is copied
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
        if len(self.parts) == 1:  # an image as one run of bytes is copied faster
            flat = self.parts[0].view(len(self.parts[0]), -1)
            index = torch.from_numpy(rows).to(self._store)
            torch.index_select(flat, 0, index, out=buffer.view(len(rows), -1))
        else:
            shard = np.searchsorted(self.split.starts, rows, side="right") - 1
            by_shard = np.argsort(shard, kind="stable")
            for members in np.split(by_shard, np.flatnonzero(np.diff(shard[by_shard])) + 1):
                k = shard[members[0]]
                local = torch.from_numpy(rows[members] - self.split.starts[k]).to(self._store)
                target = torch.from_numpy(members).to(self._store)
                buffer[target] = self.parts[k].index_select(0, local)
        if self.resident:
            return buffer
        on_device = buffer.to(self.device, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._copied[self._turn] = event
        return on_device

    def gather(self, rows: NDArray[np.int64], flip: NDArray[np.bool_] | None = None) -> Batch:
        """The rows as one batch in [0, 1], those of `flip` [B] mirrored.

        It writes into one reused buffer: fresh memory costs more in page faults than the
        arithmetic in it.
        """
        pixels = self.select(rows)
        if self._floats.shape != pixels.shape:
            self._floats = _buffer(tuple(pixels.shape), np.float32).to(self.device)
        if flip is not None and flip.any():
            _mirror(pixels, np.flatnonzero(flip))
        on_cpu = self.device.type == "cpu"
        per_piece = max(1, CPU_CACHE_FLOATS // pixels[0].numel()) if on_cpu else len(rows)
        pieces = zip(self._floats.split(per_piece), pixels.split(per_piece), strict=True)
        for floats, part in pieces:
            floats.copy_(part).mul_(1 / 255)
        index = torch.from_numpy(rows).to(self.device, non_blocking=True)
        affect = None if self.affect is None else self.affect[index]
        return Batch(self._floats.permute(0, 3, 1, 2), self.labels[index], rows, affect=affect)


def affect_of(split: Split) -> NDArray[np.float32]:
    """Valence and arousal [n, 2], NaN where unknown."""
    return np.stack([split.columns["valence"], split.columns["arousal"]], 1)


def _buffer(shape: tuple[int, ...], dtype: type) -> torch.Tensor:
    """Memory to be written many times; numpy asks the kernel for huge pages, torch does not."""
    return torch.from_numpy(np.empty(shape, dtype))


def _mirror(pixels: torch.Tensor, which: NDArray[np.int64]) -> None:
    """Mirror some images of [B, H, W, C] in place."""
    if pixels.device.type != "cpu":
        index = torch.from_numpy(which).to(pixels.device, non_blocking=True)
        pixels[index] = pixels[index].flip(2)
        return
    images = pixels.numpy()  # OpenCV mirrors 8 to 20 times as fast as torch does on a CPU
    if images[0].nbytes < SMALL_IMAGE_BYTES:  # stacked upon each other they are one tall image
        stack = images[which]
        images[which] = cv2.flip(stack.reshape(-1, *stack.shape[2:]), 1).reshape(stack.shape)
    else:
        for i in which.tolist():
            image = images[i]
            cv2.flip(image, 1, image)
