"""What training steps need to know, for a block of steps at a time.

The host computes a block in a thread while the block before it is used, and uploads it in one copy:
a step then finds everything on the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK_STEPS = 64
ALIGNMENT = 8  # bytes; the widest item

Inputs = Mapping[str, torch.Tensor]  # of one step, by name; tensors on the device


class Block:
    """The inputs of consecutive steps: arrays [steps, ...] by name, packed in one buffer.

    `arrays` stay on the host. `packed` [steps, bytes] uint8 holds a step's inputs in one row, so
    that one copy brings them to where a CUDA graph reads them.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = arrays
        self._layout: dict[str, tuple[int, int, torch.dtype, tuple[int, ...]]] = {}
        width = 0
        flat: list[NDArray[np.uint8]] = []
        for name, array in arrays.items():
            steps, shape = len(array), array.shape[1:]
            content = np.ascontiguousarray(array).reshape(steps, -1).view(np.uint8)
            padded = -(-content.shape[1] // ALIGNMENT) * ALIGNMENT
            dtype = torch.from_numpy(array[:0]).dtype
            self._layout[name] = width, width + content.shape[1], dtype, shape
            flat.append(np.pad(content, ((0, 0), (0, padded - content.shape[1]))))
            width += padded
        self.packed = torch.from_numpy(np.concatenate(flat, 1))

    def __len__(self) -> int:
        return len(self.packed)

    def to(self, device: torch.device) -> Block:
        """The same block with `packed` on the device; the copy does not make the host wait."""
        if device.type == "cpu":
            return self
        self.packed = self.packed.pin_memory().to(device, non_blocking=True)
        return self

    def inputs(self, k: int) -> dict[str, torch.Tensor]:
        """The inputs of step `k` of the block, as views of `packed`."""
        return self.views(self.packed[k])

    def views(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        """The inputs that one row of bytes holds; `row` may be a copy of a row of `packed`."""
        return {
            name: row[first:last].view(dtype).view(shape)
            for name, (first, last, dtype, shape) in self._layout.items()
        }


class BlocksAhead:
    """Blocks of a run's steps, in order; `make(images_seen, steps)` runs one block ahead.

    `batch_size` images are seen a step, `total` in the run.
    """

    def __init__(
        self,
        make: Callable[[int, int], Block],
        device: torch.device,
        images_seen: int,
        batch_size: int,
        total: int,
    ) -> None:
        self._make, self._device = make, device
        self._batch_size, self._total = batch_size, total
        self._thread = ThreadPoolExecutor(1, "step inputs")
        self._first = images_seen
        self._block: Block | None = None
        self._next = self._start(images_seen)

    def _start(self, images_seen: int) -> Future[Block]:
        left = -(-(self._total - images_seen) // self._batch_size)
        return self._thread.submit(self._make, images_seen, max(1, min(BLOCK_STEPS, left)))

    def at(self, images_seen: int) -> tuple[Block, int]:
        """The block of the step that begins after `images_seen` images, and its place there."""
        k = (images_seen - self._first) // self._batch_size
        if self._block is None or k == len(self._block):
            self._first, self._block = images_seen, self._next.result().to(self._device)
            self._next, k = self._start(images_seen + len(self._block) * self._batch_size), 0
        return self._block, k

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def blocks_ahead(
    make: Callable[[int, int], Block],
    device: torch.device,
    images_seen: int,
    batch_size: int,
    total: int,
) -> Iterator[BlocksAhead]:
    """`BlocksAhead` whose thread ends with the body."""
    blocks = BlocksAhead(make, device, images_seen, batch_size, total)
    try:
        yield blocks
    finally:
        blocks.close()
