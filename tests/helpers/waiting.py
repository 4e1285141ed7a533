"""Waiting for what other processes do, with patience for a slow machine."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 4  # how much slower than expected a machine may be: a limit only ends what hangs


def until(condition: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    """Wait for `condition`; a TimeoutError contains `what`, which may be a function called then."""
    seconds *= PATIENCE
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what() if callable(what) else what}: not within {seconds:g} s")
        time.sleep(0.1)
