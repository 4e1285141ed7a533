"""The kinds of faults: how each strikes, and what must follow.

A fault is drawn from a seed and its number. It leaves the work where the same commands finish it.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fer_hpc.config import EXIT_FINISHED
from fer_hpc.drill import damage
from fer_hpc.drill.case import Case, Failed
from fer_hpc.drill.trap import Trap

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
TRAINING_EVENTS = {
    "claim": r"attempts/\d+",
    "configuration": r"config\.json",
    "start": r"attempts/\d+/environment\.json",
    "status": r"attempts/\d+/status\.json",
    "metrics of an attempt": r"attempts/\d+/metrics\.jsonl",
    "checkpoint": r"attempts/\d+/0\d+\.pt",
    "unfinished checkpoint": r"attempts/\d+/\.0\d+\.pt\..*",
    "weights": r"attempts/\d+/final\.pt",
    "publish": r"(final|best)\.pt",
    "metrics": r"metrics\.jsonl",
}
EVENTS = {
    "preprocess": {"manifest": r"manifest\.json", "shard": r".*\.h5"},
    "evaluate": {"predictions": r"predictions-val\.npz", "scores": r"eval-val\.json"},
    "sweep": {name: rf"trials/seed\d/{p}" for name, p in TRAINING_EVENTS.items()},
}
OFTEN = ("checkpoint", "unfinished checkpoint", "status")
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EIO, errno.EACCES, errno.EROFS, errno.ESTALE)


@dataclass(frozen=True)
class Kind:
    """A kind of fault: its name, what it may strike, and how."""

    name: str
    subjects: tuple[str, ...]
    act: Callable[[Case], None]


def _file_trap(
    case: Case, what: Literal["signal", "error"], number: int, after: bool = False
) -> Trap:
    """A trap at a file event that is drawn from those of the subject."""
    events = EVENTS.get(case.subject.name, TRAINING_EVENTS)
    name = case.random.choice(sorted(events))
    at = case.random.randint(1, 3) if name in OFTEN else 1
    case.detail += f" at {name}" + (f" {at}" if at > 1 else "") + (", after it" if after else "")
    return Trap("file", what, number, at, events[name], after)


def _last_command(case: Case) -> int:
    """Where a subject has several commands: which of them is struck."""
    return case.random.randint(0, 1) if case.subject.name == "sweep" else 0


def _set_up(case: Case) -> None:
    if case.subject.name == "evaluate":
        case.copy_reference()
        for pattern in ("eval-*", "predictions-*", "confusion-*"):
            for path in case.work.glob(pattern):
                path.unlink()


# ---- signals -------------------------------------------------------------------------------------


def kill_at_step(case: Case) -> None:
    at, ranks = case.step(), range(case.subject.ranks)
    struck = list(ranks) if case.random.random() < 0.5 else [case.random.choice(list(ranks))]
    case.detail = f"KILL at {at} images" + (f", ranks {struck}" if len(ranks) > 1 else "")
    case.strike({rank: Trap("step", "signal", signal.SIGKILL, at) for rank in struck})


def stop_at_step(case: Case) -> None:
    at, number = case.step(), case.random.choice(STOPS)
    case.detail = f"{number.name} at {at} images"
    traps = {r: Trap("step", "signal", number, at) for r in range(case.subject.ranks)}
    for start in case.strike(traps):
        if start.code < 0:
            raise Failed(f"{start.output.name}: {number.name} was not handled")


def kill_at_file(case: Case) -> None:
    _set_up(case)
    case.detail = "KILL"
    trap = _file_trap(case, "signal", signal.SIGKILL, case.random.random() < 0.5)
    case.strike({0: trap}, _last_command(case))


def stop_at_file(case: Case) -> None:
    _set_up(case)
    number = case.random.choice(STOPS)
    case.detail = number.name
    case.strike({0: _file_trap(case, "signal", number)})


# ---- storage -------------------------------------------------------------------------------------


def _size_to_cut(case: Case) -> int:
    """A number of bytes within the files that the subject writes."""
    files = [p for p in case.reference.rglob("*") if p.is_file() and p.stat().st_size > 2000]
    return case.random.randint(600, max(p.stat().st_size for p in files) - 1)


def torn_write(case: Case) -> None:
    _set_up(case)
    size = _size_to_cut(case)
    case.detail = f"ended while it writes byte {size:,} of a file"
    case.strike({0: Trap("begin", "tear", size)})


def full_disk(case: Case) -> None:
    _set_up(case)
    if case.random.random() < 0.5:
        size = _size_to_cut(case)
        case.detail = f"no file may have more than {size:,} bytes"
        case.strike({0: Trap("begin", "limit", size)})
        return
    number = case.random.choice(FULL)
    case.detail = errno.errorcode[number]
    case.strike({0: _file_trap(case, "error", number)})


def failing_storage(case: Case) -> None:
    _set_up(case)
    number = case.random.choice(REFUSED)
    case.detail = errno.errorcode[number]
    case.strike({0: _file_trap(case, "error", number)})


def slow_storage(case: Case) -> None:
    case.detail = "each file event takes 50 ms more"
    (start,) = case.strike({0: Trap("begin", "slow")})
    if start.code != EXIT_FINISHED:
        raise Failed(f"{start.output.name}: exit code {start.code}")


KINDS = (
    Kind("killed at a step", ("classifier", "two ranks", "GAN"), kill_at_step),
    Kind("killed at a file event", ("preprocess", "classifier", "evaluate", "GAN", "sweep"),
         kill_at_file),
    Kind("stop signal at a step", ("classifier", "GAN", "two ranks"), stop_at_step),
    Kind("checkpoint cut or flipped", ("classifier", "GAN"), damage.checkpoint_damaged),
    Kind("frozen, taken over", ("classifier", "GAN"), damage.take_over),
    Kind("full disk", ("classifier", "preprocess", "evaluate", "GAN"), full_disk),
    Kind("metrics cut or flipped", ("classifier",), damage.metrics_damaged),
    Kind("shard cut or flipped", ("classifier",), damage.shard_flipped),
    Kind("record damaged", ("classifier",), damage.record_damaged),
    Kind("folder deleted while it trains", ("classifier",), damage.folder_deleted),
    Kind("write torn", ("classifier", "preprocess", "GAN", "evaluate"), torn_write),
    Kind("two starts at once", ("classifier",), damage.two_starts),
    Kind("folder moved while it trains", ("classifier",), damage.folder_moved),
    Kind("I/O error or no permission", ("classifier", "preprocess", "evaluate", "GAN"),
         failing_storage),
    Kind("stop signal at a file event", ("classifier", "preprocess", "evaluate", "GAN"),
         stop_at_file),
    Kind("frozen and thawed", ("two ranks", "classifier"), damage.freeze),
    Kind("all checkpoints damaged", ("classifier",), damage.all_checkpoints_damaged),
    Kind("checkpoints deleted while it trains", ("classifier",), damage.checkpoints_deleted),
    Kind("clock skewed", ("classifier",), damage.clock_skewed),
    Kind("slow storage", ("classifier", "preprocess"), slow_storage),
)  # fmt: skip


def kind_and_subject(number: int) -> tuple[Kind, str]:
    """Fault `number`, from 1 on: kinds take turns, and each its subjects."""
    turn, index = divmod(number - 1, len(KINDS))
    kind = KINDS[index]
    return kind, kind.subjects[turn % len(kind.subjects)]
