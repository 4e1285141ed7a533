"""The kinds of faults that strike jobs, by scheduler."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import time
from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.drill.case import Failed
from fer_hpc.drill.foreign import GridEngineOwner, SlurmOwner
from fer_hpc.drill.job_case import JobCase
from fer_hpc.drill.places import FULL, REFUSED, Kind, file_trap, place_trap
from fer_hpc.drill.trap import Trap
from fer_hpc.run.folder import attempt_numbers

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
NOTICED_S = 180.0  # within which a scheduler sees that a node is gone
MIN_LIMIT_MIN = 3
LIMIT_FACTOR = 5  # of an undisturbed job: a start must get to its steps before the warning

# ---- inside the job ------------------------------------------------------------------------------


def killed_at_step(case: JobCase) -> None:
    ranks = list(range(case.subject.ranks))
    struck = ranks if case.random.random() < 0.5 else [case.random.choice(ranks)]
    case.detail = "KILL" + (f" of ranks {struck}" if len(ranks) > 1 else "")
    trap = place_trap(case, "signal", signal.SIGKILL)
    case.submit(dict.fromkeys(struck, trap))
    case.until_struck()


def killed_at_file(case: JobCase) -> None:
    case.goes_on = bool(case.subject.batch)  # preprocess is not started again by itself
    case.detail = "KILL"
    case.submit({0: file_trap(case, "signal", signal.SIGKILL, case.random.random() < 0.5)})
    case.until_struck()


def failing_storage(case: JobCase) -> None:
    case.goes_on = False  # an error of the disk is for a person
    number = case.random.choice((*FULL, *REFUSED))
    case.detail = errno.errorcode[number]
    case.submit({0: file_trap(case, "error", number)})
    case.until_struck()


# ---- by the scheduler's programs -----------------------------------------------------------------


def signalled(case: JobCase) -> None:
    assert isinstance(case.owner, SlurmOwner)
    number = case.random.choice(SIGNALS)
    case.detail = f"{number.name} to the script"
    if _held(case):
        case.owner.signal(case.current[0], number)
        time.sleep(1)
        _release(case)


def processes_killed(case: JobCase) -> None:
    assert isinstance(case.owner, SlurmOwner)
    case.detail = "KILL of the job's step"
    if _held(case):
        case.owner.kill_processes(case.current[0])
        _release(case)


def started_again(case: JobCase) -> None:
    case.detail = "requeued by hand" if case.owner.name == "slurm" else "qmod -rj"
    if _held(case):
        case.owner.start_again(case.current[0])
        time.sleep(1)
        _release(case)


def suspended(case: JobCase) -> None:
    assert isinstance(case.owner, GridEngineOwner)
    case.detail = "suspended and continued"
    if _held(case):
        case.owner.suspend(case.current[0])
        _release(case)
        time.sleep(case.random.uniform(1, 8))
        with contextlib.suppress(UserError):  # it may have ended in between
            case.owner.unsuspend(case.current[0])


def cancelled(case: JobCase) -> None:
    case.goes_on = False
    case.detail = "cancelled, submitted again"
    if _held(case):
        case.by.cancel(case.current[:1])
        time.sleep(1)
        _release(case)
        case.wait(case.current)
        if case.subject.one_run and len(attempt_numbers(case.run())) > 1:
            raise Failed("a cancelled job was started again")


def submitted_twice(case: JobCase) -> None:
    case.detail = "the same command as a second job"
    if not _held(case):
        return
    first = case.current
    second = case.submit()
    states = case.wait(second)
    _release(case)
    case.current = first
    if any(state.state == "COMPLETED" for state in states.values()):
        raise Failed(f"the second job ended as if the run were its own: {states}")


def time_limit(case: JobCase) -> None:
    """The limit comes near while the run trains: it must stop before, and go on."""
    limit_min = max(MIN_LIMIT_MIN, math.ceil(LIMIT_FACTOR * case.undisturbed_s / 60))
    case.detail = f"a limit of {limit_min} minutes"
    began = time.monotonic()
    if _held(case, time_min=limit_min):
        # Grid Engine warns half of a short limit before its end.
        wait_s = limit_min * 60 * (0.6 if case.owner.name == "sge" else 0.8)
        case.until(lambda: time.monotonic() - began > wait_s or not case.is_running(), wait_s)
        _release(case)


# ---- nodes, links and daemons --------------------------------------------------------------------


def node_lost(case: JobCase) -> None:
    case.detail = "a node loses power"
    if _held(case, **_elsewhere(case)):
        node = _node(case)
        case.do("lose", node)
        try:
            _release(case)
            case.until(lambda: not case.is_running(), NOTICED_S)
        finally:
            case.do("restore", node)


def link_cut(case: JobCase) -> None:
    _apart(case, "cut", "join", "the link of a node is cut")


def daemon_killed(case: JobCase) -> None:
    _apart(case, "stop-daemon", "start-daemon", "the daemon of a node is killed")


def _apart(case: JobCase, harm: str, repair: str, what: str) -> None:
    """The scheduler loses sight of a node whose processes run on; released at once, or later."""
    at_once = case.random.random() < 0.5
    case.detail = what + (", released at once" if at_once else ", released when it was replaced")
    if not _held(case, **_elsewhere(case)):
        return
    node = _node(case)
    case.do(harm, node)
    try:
        if at_once:
            _release(case)
        if case.subject.one_run:
            case.until(
                lambda: len(attempt_numbers(case.run())) > 1 or not case.is_running(), NOTICED_S
            )
    finally:
        case.do(repair, node)
        _release(case)


def controller_away(case: JobCase) -> None:
    """The scheduler gives no answer while a process dies, or while the work ends."""
    kills = case.random.random() < 0.5
    case.detail = "the controller is away, " + ("KILL" if kills else "the run ends")
    if not _held(case):
        return
    pids = _command_processes(case)
    case.do("stop-controller")
    try:
        for pid in pids if kills else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _release(case)
        time.sleep(case.random.uniform(5, 15))
    finally:
        case.do("start-controller")


def _command_processes(case: JobCase) -> list[int]:
    """The processes that run the command, where this machine sees them."""
    pids = []
    for pid in case.orders.processes() if case.orders else []:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"fer_hpc" in words and words[0].rpartition(b"/")[2].startswith(b"python"):
                pids.append(pid)
    return pids


# ---- helpers -------------------------------------------------------------------------------------


def _held(case: JobCase, **settings: object) -> bool:
    """Submit, and wait until rank 0 is held at a place that is drawn."""
    trap: Trap = place_trap(case, "hold")
    return case.hold(trap, **settings)


def _release(case: JobCase) -> None:
    assert case.orders
    case.orders.release()


def _elsewhere(case: JobCase) -> dict[str, tuple[str, ...]]:
    """Options that keep the job from the node of the foreign one, which goes on."""
    return case.owner.elsewhere(case.foreign.node) if case.foreign else {}


def _node(case: JobCase) -> str:
    """A node of the job, drawn; it is added to the detail."""
    node: str = case.random.choice(case.owner.nodes_of(case.current[0]))
    case.detail += f" ({node})"
    return node


INSIDE = (
    Kind("killed at a step", ("classifier", "two ranks", "GAN", "sweep"), killed_at_step),
    Kind("killed at a file event", ("preprocess", "classifier", "GAN"), killed_at_file),
    Kind("storage fails", ("classifier", "preprocess"), failing_storage),
    Kind("cancelled", ("classifier", "two ranks"), cancelled),
    Kind("started again by hand", ("classifier", "GAN"), started_again),
    Kind("submitted twice", ("classifier",), submitted_twice),
)
SLURM = (
    Kind("signal to the job", ("two ranks", "classifier", "GAN", "sweep"), signalled),
    Kind("processes killed", ("classifier", "two ranks"), processes_killed),
)
GRID_ENGINE = (Kind("suspended", ("classifier", "GAN"), suspended),)
LIMIT = (Kind("time limit", ("classifier", "GAN"), time_limit),)
NODES = (
    Kind("node lost", ("two ranks", "classifier"), node_lost),
    Kind("link cut", ("classifier", "two ranks"), link_cut),
    Kind("node's daemon killed", ("classifier",), daemon_killed),
    Kind("controller away", ("classifier", "GAN"), controller_away),
)


def kinds_of(scheduler: str, breaks: bool) -> tuple[Kind, ...]:
    """The kinds that a cluster of this scheduler can have; of nodes where they may be broken."""
    own = SLURM if scheduler == "slurm" else GRID_ENGINE
    kinds = (*INSIDE, *own, *(NODES if breaks else ()), *LIMIT)
    if scheduler == "slurm":
        return kinds
    # A Grid Engine's job has one host: two ranks cannot lose one of them.
    return tuple(Kind(k.name, ("classifier",), k.act) if k in NODES[:2] else k for k in kinds)
