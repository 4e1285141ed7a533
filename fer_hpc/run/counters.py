"""Reads a training's counters without making the host wait for the device."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from fer_hpc.run.state import TrainState

GPU_EVERY_S = 0.25  # between two copies from a GPU


@dataclass(frozen=True)
class Counters:
    """The values of TrainState after `images_seen` images."""

    images_seen: int
    bad_step: int
    sums: list[int]


class CounterReader:
    """`poll` gives the newest counters that the host knows.

    On a CPU they are those of now. From a GPU a copy is started now and then, and given once it has
    arrived: a few steps late.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._host = torch.empty(0, dtype=torch.int64)  # bad step, sums; pinned
        self._copied: torch.cuda.Event | None = None
        self._images_seen, self._asked = 0, 0.0

    def poll(self, state: TrainState) -> Counters | None:
        """Counters, or None where no copy has arrived since the last call."""
        if self._on_cpu:
            return Counters(state.images_seen, int(state.bad_step), state.sums.tolist())
        if self._copied is not None:
            if not self._copied.query():
                return None
            self._copied = None
            bad_step, *sums = self._host.tolist()
            return Counters(self._images_seen, bad_step, sums)
        now = time.monotonic()
        if now - self._asked >= GPU_EVERY_S:
            self._asked, self._images_seen = now, state.images_seen
            if not self._host.numel():
                self._host = torch.empty(1 + len(state.sums), dtype=torch.int64, pin_memory=True)
            self._host[:1].copy_(state.bad_step.view(1), non_blocking=True)
            self._host[1:].copy_(state.sums, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        return None
