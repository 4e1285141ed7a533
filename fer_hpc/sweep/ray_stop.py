"""How a sweep that is asked to stop lets its trials save.

Trials run beside the main thread of Ray's workers, where no signal arrives. They look for a key in
the store of Ray's head instead, on any node. Those that run then save and end, and so does Tune.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from fer_hpc.parallel.process import hangup_signals
from fer_hpc.run.signals import received_elsewhere

GRACE_S = 40.0  # for trials to save; tune.sh is warned 60 s before its end
LOOK_S = 0.5


class SweepStop:
    """Whether the sweep is to stop; the first signal asks its trials, a second Ctrl-C ends them.

    `end_at_once` is the handler of Tune, which kills the trials after 10 s.
    """

    def __init__(self) -> None:
        self.key = f"fer_hpc/stop/{secrets.token_hex(8)}".encode()
        self.is_asked = False
        self._ask, self._is_over = threading.Event(), threading.Event()
        self._end_at_once: Callable[[int, Any], None] = signal.default_int_handler

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Within the block the trials are asked to stop when a signal arrives."""
        thread = threading.Thread(target=self._ask_trials, name="stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._handle_by(signal.default_int_handler)
            self._is_over.set()
            self._ask.set()
            thread.join()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given; nothing reads that

    def take_signals(self, end_at_once: Callable[[int, Any], None]) -> None:
        self._end_at_once = end_at_once
        self._handle_by(self._handle)

    def _handle_by(self, handler: Callable[[int, Any], None]) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        for number in (*numbers, *hangup_signals()):
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.is_asked and number == signal.SIGINT:
            self._end_at_once(number, frame)
        self.is_asked = True
        self._ask.set()  # a handler must not wait for Ray

    def _ask_trials(self) -> None:
        from ray.experimental import internal_kv

        self._ask.wait()
        if self._is_over.is_set():
            return
        with contextlib.suppress(Exception):  # Ray has ended: what remains is to end Tune
            internal_kv._internal_kv_put(self.key, b"")
        print("stopping: the trials save; Ctrl-C ends them at once", flush=True)
        if not self._is_over.wait(GRACE_S):
            os.kill(os.getpid(), signal.SIGINT)
            self._is_over.wait()
        with contextlib.suppress(Exception):
            internal_kv._internal_kv_del(self.key)


@contextlib.contextmanager
def stopped_with_sweep(key: bytes) -> Iterator[None]:
    """A training in the block, in this thread, is stopped as by SIGTERM once `key` is there."""
    from ray.experimental import internal_kv

    received: list[int] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_S):
            with contextlib.suppress(Exception):  # Ray is ending, and the trial with it
                if internal_kv._internal_kv_exists(key):
                    received.append(signal.SIGTERM)
                    return

    before = received_elsewhere.set(received)
    thread = threading.Thread(target=look, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        received_elsewhere.reset(before)
