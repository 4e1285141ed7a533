"""Where a fault strikes, drawn from the case's random numbers, and what a kind of faults is."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fer_hpc.drill.case import Case
from fer_hpc.drill.subjects import EVENTS, TRAINING_EVENTS
from fer_hpc.drill.trap import Trap

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
OFTEN = ("checkpoint", "unfinished checkpoint", "status")
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EIO, errno.EACCES, errno.EROFS, errno.ESTALE)


@dataclass(frozen=True)
class Kind:
    """A kind of fault: its name, what it may strike, and how."""

    name: str
    subjects: tuple[str, ...]
    act: Callable[[Any], None]  # takes a Case, or a JobCase


def file_trap(
    case: Case, what: Literal["signal", "error", "hold"], number: int = 0, after: bool = False
) -> Trap:
    """A trap at a file event that is drawn from those of the subject; adds it to the detail."""
    events = EVENTS.get(case.subject.name, TRAINING_EVENTS)
    name = case.random.choice(sorted(events))
    at = case.random.randint(1, 3) if name in OFTEN else 1
    case.detail += f" at {name}" + (f" {at}" if at > 1 else "") + (", after it" if after else "")
    return Trap("file", what, number, at, events[name], after)


def place_trap(
    case: Case, what: Literal["signal", "hold"], number: int = 0, low: float = 0.05
) -> Trap:
    """A trap at a step that is drawn, at least the share `low` of the run; of a subject without
    steps at a file of its results. Adds the place to the detail."""
    if case.subject.batch:
        at = case.step(low)
        case.detail += f" at {at} images"
        return Trap("step", what, number, at)
    pattern = EVENTS["preprocess"]["shard"]
    at = case.random.randint(1, len(list(case.reference.glob("*.h5"))))
    case.detail += f" at shard {at}"
    return Trap("file", what, number, at, pattern)


def set_up(case: Case) -> None:
    """Of a subject that needs the results of another: have them, without its own."""
    if case.subject.name == "evaluate":
        case.copy_reference()
        for pattern in ("eval-*", "predictions-*", "confusion-*"):
            for path in case.work.glob(pattern):
                path.unlink()


def size_to_cut(case: Case) -> int:
    """A number of bytes within the files that the subject writes."""
    files = [p for p in case.reference.rglob("*") if p.is_file() and p.stat().st_size > 2000]
    return case.random.randint(600, max(p.stat().st_size for p in files) - 1)
