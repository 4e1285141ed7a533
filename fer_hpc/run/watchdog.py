"""Ends a process that has stopped making progress, so that a scheduler can start it again."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator

from fer_hpc.config import EXIT_RUN_AGAIN

CHECK_S = 1.0
HARD_KILL_AFTER_S = 60.0  # then a timer in C ends a process whose threads cannot run any more
STACK_DUMP_S = 4.0  # time for every rank, hanging for the same reason, to write its stacks


class Watchdog:
    """Ends the process when a step takes over `factor` times the usual one, and over `floor_s`.

    Then every thread's Python stack goes to stderr, `on_hang(why)` is called, and the exit code is
    EXIT_RUN_AGAIN. Every rank has a watchdog: a hang of one rank stops the steps of all, so all
    write their stacks. A factor of 0 watches nothing.
    """

    def __init__(
        self, factor: float, floor_s: float, rank: int, on_hang: Callable[[str], None]
    ) -> None:
        self.factor, self.floor_s, self.rank, self.on_hang = factor, floor_s, rank, on_hang
        self._durations: collections.deque[float] = collections.deque(maxlen=50)
        self._phases: dict[str, float] = {}  # longest so far
        self._phase, self._images_seen = "start", 0
        self._last = time.monotonic()
        self._longest_s = 0.0
        self._ended = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.factor:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.factor:
            faulthandler.cancel_dump_traceback_later()

    def step(self, images_seen: int) -> None:
        """Note the end of a step."""
        now = time.monotonic()
        if self._phase == "step":
            self._durations.append(now - self._last)
            self._longest_s = max(self._longest_s, now - self._last)
        self._phase, self._images_seen, self._last = "step", images_seen, now

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The body is something other than a step: validation, a checkpoint."""
        outer, self._phase, self._last = self._phase, name, time.monotonic()
        start = self._last
        try:
            yield
        finally:
            now = time.monotonic()
            self._phases[name] = max(self._phases.get(name, 0.0), now - start)
            self._phase, self._last = outer, now

    @property
    def longest_s(self) -> float:
        """Seconds that may pass between two looks at the stop signals: the longest turn so far."""
        return self._longest_s + sum(self._phases.values())

    def _limit_s(self) -> tuple[float, float]:
        """(seconds without a step that mean a hang now, usual seconds)."""
        if self._phase == "step":
            usual = statistics.median(self._durations) if self._durations else 0.0
        else:
            usual = self._phases.get(self._phase, 0.0)
        known = bool(self._durations) if self._phase == "step" else self._phase in self._phases
        return max(self.factor * usual, self.floor_s if known else 4 * self.floor_s), usual

    def _watch(self) -> None:
        while not self._ended.wait(CHECK_S):
            limit_s, usual_s = self._limit_s()
            silent_s = time.monotonic() - self._last
            # C code that hangs with the interpreter's lock stops this thread, but not this timer.
            faulthandler.dump_traceback_later(
                max(limit_s - silent_s, 0) + HARD_KILL_AFTER_S, exit=True
            )
            if silent_s > limit_s:
                self._end(silent_s, usual_s)

    def _end(self, silent_s: float, usual_s: float) -> None:
        usual = f"usually {usual_s:.2g} s" if usual_s else "never seen before"
        why = (
            f"rank {self.rank} hangs in {self._phase} since {silent_s:.0f} s ({usual}) "
            f"at {self._images_seen:,} images seen"
        )
        # In case what follows hangs as well.
        faulthandler.dump_traceback_later(HARD_KILL_AFTER_S, exit=True)
        print(f"fer-hpc: {why}; Python stacks of rank {self.rank}:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        # In a thread: storage may be what hangs.
        threading.Thread(target=self.on_hang, args=(why,), daemon=True).start()
        time.sleep(STACK_DUMP_S)
        os._exit(EXIT_RUN_AGAIN)
