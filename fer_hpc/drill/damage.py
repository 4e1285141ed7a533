"""Faults that strike from outside: freezes, second starts, damaged files and folders."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from fer_hpc.config import EXIT_FINISHED, EXIT_TAKEN_OVER, EXIT_USER_ERROR
from fer_hpc.drill.case import Case, Failed
from fer_hpc.drill.places import place_trap
from fer_hpc.drill.subjects import EVENTS
from fer_hpc.drill.trap import Trap

DAY_S = 86_400

# ---- freezes and second starts -------------------------------------------------------------------


def _frozen(case: Case, low: float = 0.05) -> bool:
    """Start, and wait until it has stopped itself at a place that is drawn; True where it did."""
    case.detail = "STOP"
    starts = case.begin_ranks(
        {case.subject.ranks - 1: place_trap(case, "signal", signal.SIGSTOP, low)}
    )
    case.struck = starts[-1].wait_until_stopped()
    if not case.struck:
        case.ended(*starts)
    return case.struck


def freeze(case: Case) -> None:
    if _frozen(case):
        seconds = case.random.uniform(0.2, 2)
        case.detail += f", CONT after {seconds:.1f} s"
        time.sleep(seconds)
        case.starts[-1].send(signal.SIGCONT)
        case.ended(*case.starts, orderly=True)
        if any(start.code != EXIT_FINISHED for start in case.starts):
            raise Failed(f"exit codes {[start.code for start in case.starts]}")


def take_over(case: Case) -> None:
    if _frozen(case):
        case.detail += ", a second start finishes, CONT"
        case.finish()
        _thaw_superseded(case)


def _thaw_superseded(case: Case) -> None:
    first = case.starts[0]
    first.send(signal.SIGCONT)
    case.ended(first, orderly=True)
    if first.code != EXIT_TAKEN_OVER and case.subject.batch:  # preprocess has no owner
        raise Failed(f"the start that lost its run ended with exit code {first.code}")


def two_starts(case: Case) -> None:
    case.detail = "the same command twice at once"
    starts = [case.begin(), case.begin()]
    case.ended(*starts, orderly=True)
    case.struck = True
    codes = sorted(start.code for start in starts)
    late = [EXIT_FINISHED, EXIT_FINISHED]  # the second came when the first had finished
    if codes not in ([EXIT_FINISHED, EXIT_USER_ERROR], late):
        raise Failed(f"exit codes {codes}, wanted that one is refused")


# ---- what is on the disk -------------------------------------------------------------------------


def _killed(case: Case, low: float = 0.3) -> bool:
    """Kill a start at a place that is drawn; True where it has a checkpoint."""
    case.detail += "KILL"
    trap = place_trap(case, "signal", signal.SIGKILL, low)
    case.strike(dict.fromkeys(range(case.subject.ranks), trap))
    case.struck = False  # by what follows
    return bool(case.subject.batch and case.checkpoints())


def _damage(case: Case, path: Path) -> str:
    """Cut a file or flip one of its bits; says which."""
    data = bytearray(path.read_bytes())
    where = case.random.randrange(len(data))
    if case.random.random() < 0.5:
        path.write_bytes(data[:where])
        return f"{path.name} cut at byte {where:,}"
    data[where] ^= 1 << case.random.randrange(8)
    path.write_bytes(data)
    return f"bit flipped in byte {where:,} of {path.name}"


def checkpoint_damaged(case: Case) -> None:
    if _killed(case):
        case.detail += ", " + _damage(case, case.checkpoints()[0])
        case.struck = True


def all_checkpoints_damaged(case: Case) -> None:
    if _killed(case):
        case.detail += "".join(", " + _damage(case, path) for path in case.checkpoints())
        case.struck = True


def checkpoints_deleted(case: Case) -> None:
    if not _frozen(case, 0.3):
        return
    checkpoints = case.checkpoints()
    case.detail += f", {len(checkpoints)} checkpoints deleted, CONT"
    for path in checkpoints:
        path.unlink()
    case.starts[-1].send(signal.SIGCONT)
    case.ended(*case.starts, orderly=True)


def shard_damaged(case: Case) -> None:
    if not case.subject.batch:
        _own_shard_damaged(case)
        return
    data = shutil.copytree(case.data, case.folder / "data")
    case.data = data
    _killed(case)
    path = case.random.choice(sorted(data.glob("*.h5")))
    good = path.read_bytes()
    case.detail += ", " + _damage(case, path)
    case.struck = True
    if path.name.startswith("test"):  # which a training does not read
        return
    case.refuses(path.name)
    path.write_bytes(good)


def _own_shard_damaged(case: Case) -> None:
    """Damage what preprocess has written, before it has finished."""
    last = len(list(case.reference.glob("*.h5")))
    at = case.random.randint(1, last)
    case.detail = f"KILL after shard {at}"
    shard = EVENTS["preprocess"]["shard"]
    case.strike({0: Trap("file", "signal", signal.SIGKILL, at, shard, after=True)})
    case.struck = False  # by what follows
    if written := sorted(case.work.glob("*.h5")):
        case.detail += ", " + _damage(case, case.random.choice(written))
        case.struck = True


def metrics_damaged(case: Case) -> None:
    if not _killed(case, 0.5):
        return
    path = case.attempt() / "metrics.jsonl"
    data = bytearray(path.read_bytes())
    if not data:
        return
    where = case.random.randrange(len(data))
    if case.random.random() < 0.5:
        path.write_bytes(data[:where])
        case.detail += f", metrics.jsonl cut at byte {where}"
    else:
        data[where] ^= 0x80
        path.write_bytes(data)
        case.detail += f", high bit flipped in byte {where} of metrics.jsonl"
    case.struck = True
    case.finish()
    words = ("damaged line(s) left out", "lines of metrics.jsonl of epoch")
    lines = [line for s in case.starts for line in s.text().splitlines()]
    case.lost = [line for line in lines if any(each in line for each in words)]


def record_damaged(case: Case) -> None:
    _killed(case)
    if case.subject.batch:
        name = case.random.choice(("status.json", "owner.json", "environment.json", "config.json"))
        path = (case.run() if name == "config.json" else case.attempt()) / name
    else:
        parts = sorted(case.work.glob("parts/*.json"))
        path = case.random.choice(parts) if parts else case.work
        name = path.name
    if not path.is_file():
        return
    good = path.read_bytes()
    content = case.random.choice((b"", b"{", b"[1]", good[: len(good) // 2], b"\0" * len(good)))
    path.write_bytes(content)
    case.detail += f", {name} becomes {content[:12]!r}"
    case.struck = True
    if name == "owner.json":  # its heartbeat says that its process is gone
        os.utime(path.parent, (0, 0))
        (path.parent / "heartbeat").unlink(missing_ok=True)
        os.utime(path.parent, (0, 0))
    if name == "config.json":
        case.refuses("config.json")
        path.write_bytes(good)


def clock_skewed(case: Case) -> None:
    _killed(case)
    skew = case.random.choice((-DAY_S, DAY_S, 400 * DAY_S, -(10**9)))
    case.detail += f", all files {abs(skew) // DAY_S} days {'older' if skew < 0 else 'younger'}"
    for path in case.work.rglob("*"):
        when = path.stat().st_mtime + skew
        os.utime(path, (when, when))
    case.struck = True


# ---- folders -------------------------------------------------------------------------------------


def folder_deleted(case: Case) -> None:
    if _frozen(case):
        case.detail += ", folder deleted, a second start finishes, CONT"
        shutil.rmtree(case.work)
        case.finish()
        _thaw_superseded(case)


def folder_moved(case: Case) -> None:
    elsewhere = case.folder / "elsewhere"
    if _frozen(case):
        case.detail += ", folder moved, CONT, moved back"
        case.work.rename(elsewhere)
        _thaw_superseded(case)
        elsewhere.rename(case.work)
