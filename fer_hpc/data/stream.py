"""The pixels of a split that does not fit on the GPU, brought there one step ahead."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.data.step_inputs import Block
from fer_hpc.data.store import Batch, ImageStore


def gather_rows(images: ImageStore, rows: NDArray[np.int64]) -> Batch:
    """The images of `rows` [B] as they are, now."""
    block = Block({"rows": rows[None]}).to(images.device)
    return images.gather(block.inputs(0) | PixelStream(images).at(block, 0))


@dataclass
class _Slot:
    """Room for the pixels of one step; `copied` and `used` are events of the device."""

    host: torch.Tensor  # pinned
    device: torch.Tensor
    copied: torch.cuda.Event
    used: torch.cuda.Event  # the last step that read it is done


class PixelStream:
    """`at(block, k)` gives the pixels of a step, while those of the next one are on their way.

    A thread reads them from the mapped shards into pinned memory and a stream of its own copies
    them. Nothing is given for a split that is resident.
    """

    def __init__(self, images: ImageStore) -> None:
        self._images = images
        self._thread = ThreadPoolExecutor(1, "pixels")
        self._stream = None if images.resident else torch.cuda.Stream(images.device)
        self._slots: list[_Slot] = []
        self._turn = 0
        self._next: tuple[Block, int, Future[None]] | None = None

    def at(self, block: Block, k: int) -> dict[str, torch.Tensor]:
        """The pixels of step `k` by name: "pixels", and "other_pixels" of images to mix in."""
        if self._images.resident:
            return {}
        if self._next is None or self._next[:2] != (block, k):
            self._start(block, k)
        assert self._next
        self._next[2].result()
        slot = self._slots[self._turn]
        torch.cuda.current_stream(self._images.device).wait_event(slot.copied)
        pixels, first = {}, 0
        for name in ("rows", "other_rows"):
            if name in block.arrays:
                count = block.arrays[name].shape[1]
                pixels[name.replace("rows", "pixels")] = slot.device[first : first + count]
                first += count
        self._slots[self._turn ^ 1].used.record()  # by the steps launched so far
        if k + 1 < len(block):
            self._start(block, k + 1)
        return pixels

    def _start(self, block: Block, k: int) -> None:
        names = [name for name in ("rows", "other_rows") if name in block.arrays]
        rows = np.concatenate([block.arrays[name][k] for name in names])
        if not self._slots or len(self._slots[0].host) != len(rows):
            self._slots = [self._new_slot(len(rows)) for _ in range(2)]
        self._turn ^= 1
        slot = self._slots[self._turn]
        self._next = block, k, self._thread.submit(self._fill, slot, rows)

    @torch.inference_mode(False)  # the thread may write into tensors of no inference mode only
    def _new_slot(self, count: int) -> _Slot:
        assert self._stream
        shape = (count, *self._images.parts[0].shape[1:])
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        device = torch.empty(shape, dtype=torch.uint8, device=self._images.device)
        slot = _Slot(host, device, torch.cuda.Event(), torch.cuda.Event())
        # The memory may be that of a freed tensor which steps launched so far still read; and once
        # the slot is freed, it is kept until its copies are done.
        slot.used.record()
        device.record_stream(self._stream)
        return slot

    def _fill(self, slot: _Slot, rows: NDArray[np.int64]) -> None:
        slot.copied.synchronize()  # the copy of two steps ago out of the same memory
        self._images.read_pixels(rows, slot.host)
        assert self._stream
        with torch.cuda.stream(self._stream):
            slot.used.wait()
            slot.device.copy_(slot.host, non_blocking=True)
            slot.copied.record()
