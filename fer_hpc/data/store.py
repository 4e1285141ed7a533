"""A split's pixels and labels, gathered into batches on the device."""

from __future__ import annotations

from collections.abc import Mapping
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
    rows: torch.Tensor  # [B] int64, rows of the split
    other_labels: torch.Tensor | None = None  # [B] of the images mixed in
    weights: torch.Tensor | None = None  # [B] share of the images that `labels` belongs to
    affect: torch.Tensor | None = None  # [B, 2] valence, arousal (mixed as the images); NaN: none
    targets: torch.Tensor | None = None  # [B, classes] shares, where the shards hold distributions
    other_targets: torch.Tensor | None = None  # of the images mixed in

    def parts(self, count: int) -> list[Batch]:
        """The batch in `count` equal pieces."""
        if count == 1:
            return [self]
        size = len(self.labels) // count
        cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
        optional = ("other_labels", "weights", "affect", "targets", "other_targets")
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

    On the CPU the memory mapping itself is read. On a GPU the pixels are one resident tensor where
    they take less than RESIDENT_SHARE of its memory (all `processes_per_gpu` copies together); else
    the pixels of a batch are streamed: `read_pixels` reads them on the host.
    """

    def __init__(
        self, split: Split, device: torch.device, processes_per_gpu: int = 1, affect: bool = False
    ) -> None:
        self.split, self.device = split, device
        self.on_cpu = device.type == "cpu"
        size = sum(part.nbytes for part in split.images)
        self.resident = self.on_cpu or (
            size * processes_per_gpu
            < RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory
        )
        # each part [n, H, W, C] uint8: the mapped shards, or one tensor on the GPU
        self.parts = [torch.from_numpy(part) for part in split.images]
        if self.resident and not self.on_cpu:
            self.parts = [_joined(self.parts, device)]
        self.labels = torch.from_numpy(split.columns["labels"]).to(device)
        self.affect = torch.from_numpy(affect_of(split)).to(device) if affect else None
        shares = split.targets
        self.targets = None if shares is None else torch.from_numpy(shares).to(device)
        self._bytes, self._floats = torch.empty(0, dtype=torch.uint8), torch.empty(0)

    def read_pixels(self, rows: NDArray[np.int64], out: torch.Tensor) -> None:
        """Copy the pixels of `rows` [B] from the mapped shards into `out` [B, H, W, C] uint8."""
        if len(self.parts) == 1:  # an image as one run of bytes is copied faster
            flat = self.parts[0].view(len(self.parts[0]), -1)
            torch.index_select(flat, 0, torch.from_numpy(rows), out=out.view(len(rows), -1))
            return
        shard = np.searchsorted(self.split.starts, rows, side="right") - 1
        by_shard = np.argsort(shard, kind="stable")
        for members in np.split(by_shard, np.flatnonzero(np.diff(shard[by_shard])) + 1):
            k = shard[members[0]]
            local = torch.from_numpy(rows[members] - self.split.starts[k])
            out[torch.from_numpy(members)] = self.parts[k].index_select(0, local)

    def gather(self, inputs: Mapping[str, torch.Tensor]) -> Batch:
        """The images of `inputs["rows"]` [B] as one batch in [0, 1], those of `flip` [B] mirrored.

        `inputs["pixels"]` [B, H, W, C] uint8 holds the pixels of a streamed batch. On the CPU a
        batch lies in one reused buffer: fresh memory costs more in page faults than the arithmetic.
        """
        rows, flip = inputs["rows"], inputs.get("flip")
        floats = self._on_cpu(rows, flip) if self.on_cpu else self._on_gpu(inputs)
        affect = None if self.affect is None else self.affect.index_select(0, rows)
        labels = self.labels.index_select(0, rows)
        targets = None if self.targets is None else self.targets.index_select(0, rows)
        return Batch(floats.permute(0, 3, 1, 2), labels, rows, affect=affect, targets=targets)

    def _on_gpu(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if "pixels" in inputs:
            pixels = inputs["pixels"]
        else:
            flat = self.parts[0].view(len(self.parts[0]), -1)
            pixels = flat.index_select(0, inputs["rows"]).view(-1, *self.parts[0].shape[1:])
        if "flip" in inputs:
            pixels = torch.where(inputs["flip"][:, None, None, None], pixels.flip(2), pixels)
        return pixels.to(torch.float32).mul_(1 / 255)

    def _on_cpu(self, rows: torch.Tensor, flip: torch.Tensor | None) -> torch.Tensor:
        shape = (len(rows), *self.parts[0].shape[1:])
        if self._bytes.shape != shape:
            self._bytes, self._floats = _buffer(shape, np.uint8), _buffer(shape, np.float32)
        self.read_pixels(rows.numpy(), self._bytes)
        if flip is not None and flip.numpy().any():
            _mirror(self._bytes.numpy(), np.flatnonzero(flip.numpy()))
        per_piece = max(1, CPU_CACHE_FLOATS // self._bytes[0].numel())
        pieces = zip(self._floats.split(per_piece), self._bytes.split(per_piece), strict=True)
        for floats, part in pieces:
            floats.copy_(part).mul_(1 / 255)
        return self._floats


def affect_of(split: Split) -> NDArray[np.float32]:
    """Valence and arousal [n, 2], NaN where unknown."""
    return np.stack([split.columns["valence"], split.columns["arousal"]], 1)


def _joined(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The parts, one after the other, in one tensor on the device."""
    images = torch.empty(
        sum(map(len, parts)), *parts[0].shape[1:], dtype=torch.uint8, device=device
    )
    first = 0
    for part in parts:
        images[first : first + len(part)].copy_(part)
        first += len(part)
    return images


def _buffer(shape: tuple[int, ...], dtype: type) -> torch.Tensor:
    """Memory to be written many times; numpy asks the kernel for huge pages, torch does not."""
    return torch.from_numpy(np.empty(shape, dtype))


def _mirror(images: NDArray[np.uint8], which: NDArray[np.int64]) -> None:
    """Mirror some images of [B, H, W, C] in place; OpenCV is 8 to 20 times as fast as torch."""
    if images[0].nbytes < SMALL_IMAGE_BYTES:  # stacked upon each other they are one tall image
        stack = images[which]
        images[which] = cv2.flip(stack.reshape(-1, *stack.shape[2:]), 1).reshape(stack.shape)
    else:
        for i in which.tolist():
            image = images[i]
            cv2.flip(image, 1, image)
