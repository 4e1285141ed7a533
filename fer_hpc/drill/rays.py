"""Faults of a sweep with Ray: its workers, its driver, its own daemons."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

from fer_hpc.config import EXIT_CRASHED, EXIT_FINISHED, EXIT_RUN_AGAIN
from fer_hpc.drill.case import Case, Failed
from fer_hpc.drill.places import STOPS, place_trap
from fer_hpc.drill.remote import Orders
from fer_hpc.drill.starts import LIMIT_S, Start
from fer_hpc.drill.trap import Trap

DAEMONS = ("raylet", "gcs_server")
AGENTS_S = 180.0  # Ray's agents look for a lost gcs_server for a minute before they end


def worker_killed(case: Case) -> None:
    """A trial's process dies; Ray starts it again, and the sweep goes on by itself."""
    case.detail = "KILL of a trial's process"
    trap = place_trap(case, "signal", signal.SIGKILL)
    start = _begin(case, trap)
    case.ended(start, orderly=True)
    case.struck = bool(case.orders and case.orders.struck())
    if start.code != EXIT_FINISHED:
        raise Failed(f"{start.output.name}: exit code {start.code}, and Ray was to go on")


def driver_stopped(case: Case) -> None:
    number = case.random.choice(STOPS)
    start = _held(case, f"{number.name} to the driver, a trial")
    if start is None:
        return
    start.send(number)
    time.sleep(0.5)
    _release(case, start)
    if start.code not in (EXIT_FINISHED, EXIT_RUN_AGAIN):
        raise Failed(f"{start.output.name}: {number.name}, and exit code {start.code}")


def ray_killed(case: Case) -> None:
    """KILL of the driver, which takes Ray with it, or of one of Ray's daemons."""
    victim = case.random.choice(("driver", *DAEMONS))
    start = _held(case, f"KILL of the {victim}, a trial")
    if start is None:
        return
    folder = _temporary(case)
    case.orphan_s = AGENTS_S
    if victim != "driver":
        case.codes = (*case.codes, EXIT_CRASHED)  # Ray ends the driver, without asking
    pids = [start.pid] if victim == "driver" else _named(case, victim)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _release(case, start)
    case.finish()
    began_ray = "nothing to do" not in case.starts[-1].text()  # which cleans up
    if folder and folder.exists() and began_ray:
        raise Failed(f"left behind: {folder}")


def _begin(case: Case, trap: Trap) -> Start:
    case.orders = Orders.write(case.folder / "orders", case.work, {0: trap})
    return case.begin()


def _held(case: Case, detail: str) -> Start | None:
    """A sweep of which one trial waits at a step; None where it ended before."""
    case.detail = detail
    start, deadline = _begin(case, place_trap(case, "hold")), time.monotonic() + LIMIT_S
    assert case.orders
    while start.process.is_alive() and time.monotonic() < deadline:
        if case.orders.struck():
            case.struck = True
            return start
        time.sleep(0.05)
    case.ended(start)
    return None


def _release(case: Case, start: Start) -> None:
    assert case.orders
    case.orders.release()
    case.ended(start)


def _command_lines(case: Case) -> dict[int, str]:
    """The command lines of the sweep's processes, by process id."""
    line_by_pid = {}
    for pid in case.orders.processes() if case.orders else []:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            line_by_pid[pid] = text.decode(errors="replace")
    return line_by_pid


def _named(case: Case, program: str) -> list[int]:
    return [
        pid
        for pid, line in _command_lines(case).items()
        if Path(line.partition(" ")[0]).name == program
    ]


def _temporary(case: Case) -> Path | None:
    """Ray's folder for sockets and logs, which is not below the sweep's."""
    match = re.search(r"(/tmp/fer-ray-[^/ ]+)", " ".join(_command_lines(case).values()))
    return Path(match[1]) if match else None
