"""Repeats a step as a CUDA graph, with the bits of the step called directly.

The host's part of a step, hundreds of kernel launches, is then one launch. What a captured step
reads must lie at fixed places on the device: its inputs are copied there before each replay, and
everything that it changes is changed in place.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch

from fer_hpc.config import UserError

# Held by a thread while the process must not wait for the device, or while it does wait.
waiting = threading.Lock()
WARM_UP_STEPS = 3  # before a capture, as torch's documentation asks: libraries start, buffers exist

Inputs = Mapping[str, torch.Tensor]
Step = Callable[[Inputs, Any], Any]


class Packed(Protocol):
    """Inputs of steps in one buffer, as data/step_inputs.py makes them."""

    packed: torch.Tensor

    def views(self, row: torch.Tensor) -> dict[str, torch.Tensor]: ...


class StepRunner:
    """Calls `step(inputs, variant)`; on a GPU as a CUDA graph of each variant where `graph` is set.

    A variant is what the host decides (which networks learn, say): the same variant always launches
    the same kernels. `changed()` gives all tensors that a step changes, which stay at their
    places; None where it changes none. A step that cannot be captured is called directly and a
    line says why; with `required` that is a UserError.
    """

    def __init__(
        self,
        step: Step,
        changed: Callable[[], Iterable[torch.Tensor]] | None,
        device: torch.device,
        graph: bool,
        required: bool = False,
    ) -> None:
        self._step, self._changed, self._device, self._required = step, changed, device, required
        self.graph = graph and device.type == "cuda"
        # On a CPU, and where nothing changes, a step that is called directly needs no warm-up.
        self._warm = device.type != "cuda" or changed is None
        self._captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._pool: Any = None
        self._row = torch.empty(0)  # where captured steps read their inputs
        self._streamed: dict[str, torch.Tensor] = {}

    def run(
        self,
        block: Packed,
        k: int,
        seed: int | None = None,
        variant: Hashable = None,
        usual: bool = True,
        streamed: Inputs | None = None,
    ) -> Any:
        """Step `k` of `block`, its random numbers from `seed`; gives what the step gives.

        A step that is not `usual`, one of a few of its variant, is not worth a graph of its own.
        `streamed` are inputs that are not in the block. What a captured step gives is overwritten
        by the next one.
        """
        if self.graph and usual:
            if variant not in self._captured:
                self._prepare(block, k, variant, streamed or {})
            if variant in self._captured:
                self._row.copy_(block.packed[k], non_blocking=True)
                for name, tensor in (streamed or {}).items():
                    self._streamed[name].copy_(tensor, non_blocking=True)
                if seed is not None:
                    seed_generator(seed, self._device)
                graph, result = self._captured[variant]
                graph.replay()
                return result
        inputs = {**block.views(block.packed[k]), **(streamed or {})}
        if not self._warm:
            self._warm_up(inputs, variant)
        if seed is not None:
            torch.manual_seed(seed)
        return self._step(inputs, variant)

    def _prepare(self, block: Packed, k: int, variant: Hashable, streamed: Inputs) -> None:
        """Capture `variant`, or switch graphs off where that cannot be."""
        if not self._row.numel():
            self._row = block.packed[k].clone()
            self._streamed = {name: tensor.clone() for name, tensor in streamed.items()}
        inputs = {**block.views(self._row), **self._streamed}
        self._row.copy_(block.packed[k])
        for name, tensor in streamed.items():
            self._streamed[name].copy_(tensor)
        try:
            if any(t.device.type == "cpu" for t in self._places().values()):
                raise RuntimeError("it changes a tensor in main memory")
            self._warm_up(inputs, variant, forbid_waiting=True)
            self._captured[variant] = self._capture(inputs, variant)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            why = f"the step cannot be captured: {str(error).splitlines()[0]}"
            if self._required:
                raise UserError(f"--graph on: {why}; use --graph auto") from None
            print(f"--graph off: {why}", file=sys.stderr, flush=True)
            self.graph = False

    def _capture(self, inputs: Inputs, variant: Hashable) -> tuple[torch.cuda.CUDAGraph, Any]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # thread_local: other threads (checkpoints, pixels) may use the GPU meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = self._step(inputs, variant)
        except RuntimeError:
            # torch leaves its stream, and random numbers that wait for the end of the capture
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[self._device.index or 0]
            generator.graphsafe_set_state(torch.Generator(self._device))
            raise
        self._pool = graph.pool()
        return graph, result

    def _warm_up(self, inputs: Inputs, variant: Hashable, forbid_waiting: bool = False) -> None:
        """Some steps beside the training: they leave all tensors as they were.

        A tensor that appears in them (momentum, moments) starts as zero. `forbid_waiting` raises a
        RuntimeError where the last one makes the host wait for the device, which a graph cannot.
        That is a setting of the whole process, so that no other thread may wait meanwhile.
        """
        before = {key: (tensor, tensor.clone()) for key, tensor in self._places().items()}
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(side):
                for i in range(WARM_UP_STEPS):
                    is_checked = forbid_waiting and i == WARM_UP_STEPS - 1
                    with _without_waiting() if is_checked else contextlib.nullcontext():
                        self._step(inputs, variant)
        finally:
            torch.cuda.current_stream(self._device).wait_stream(side)
            for tensor, value in before.values():
                tensor.copy_(value)
            for key, tensor in self._places().items():
                if key not in before:
                    tensor.zero_()
        self._warm = True

    def _places(self) -> dict[tuple[int, int], torch.Tensor]:
        """The tensors that a step changes, by where they lie: two objects may share memory."""
        changed = self._changed() if self._changed else ()
        return {(t.data_ptr(), t.numel()): t.detach() for t in changed if t.numel()}


@contextlib.contextmanager
def _without_waiting() -> Iterator[None]:
    """A RuntimeError for whatever waits for the device."""
    with waiting:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def seed_generator(seed: int, device: torch.device) -> None:
    """Seed the device's random numbers; a captured step takes them from here at its replay."""
    torch.cuda.default_generators[device.index or 0].manual_seed(seed)
