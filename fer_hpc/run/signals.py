"""Signals ask a run to stop; the loop looks at them between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextvars import ContextVar

from fer_hpc.parallel.process import hangup_signals
from fer_hpc.run.folder import HALTED_REASON

# Reasons to stop that are no signal, numbered above all signals.
STOP_END_IS_NEAR, STOP_HALTED = 1000, 1001


def stop_reason(stop: int) -> str:
    """Why a run stopped, as text; `stop` is a signal's number or one of the constants above."""
    own = {STOP_END_IS_NEAR: "stopped before its job's end", STOP_HALTED: HALTED_REASON}
    return own.get(stop) or f"stopped by {signal.Signals(stop).name}"


# Beside the main thread, which alone may handle signals: a list that somebody else fills.
received_elsewhere: ContextVar[list[int]] = ContextVar("received_elsewhere")


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives the numbers of TERM, INT, USR1, USR2 and HUP when they arrive.

    A second Ctrl-C ends the process at once. Beside the main thread, as in Ray's workers, it is
    `received_elsewhere` of this thread, if set.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received_elsewhere.get(received)
        return

    def note(number: int, _: object) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        *hangup_signals(),
    )
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
