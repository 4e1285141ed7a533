"""The kinds of faults: how each strikes, and what must follow.

A fault is drawn from a seed and its number. It leaves the work where the same commands finish it.
"""

from __future__ import annotations

import errno
import signal

from fer_hpc.config import EXIT_FINISHED
from fer_hpc.drill import damage, rays, tmpfs
from fer_hpc.drill.case import Case, Failed
from fer_hpc.drill.places import (
    FULL,
    REFUSED,
    STOPS,
    Kind,
    file_trap,
    set_up,
    size_to_cut,
)
from fer_hpc.drill.trap import Trap

# ---- signals -------------------------------------------------------------------------------------


def _last_command(case: Case) -> int:
    """Where a subject has several commands: which of them is struck."""
    return case.random.randint(0, 1) if case.subject.trials else 0


def kill_at_step(case: Case) -> None:
    if case.subject.ray:
        rays.worker_killed(case)
        return
    at, ranks = case.step(), range(case.subject.ranks)
    struck = list(ranks) if case.random.random() < 0.5 else [case.random.choice(list(ranks))]
    case.detail = f"KILL at {at} images" + (f", ranks {struck}" if len(ranks) > 1 else "")
    case.strike({rank: Trap("step", "signal", signal.SIGKILL, at) for rank in struck})


def stop_at_step(case: Case) -> None:
    if case.subject.ray:
        rays.driver_stopped(case)
        return
    at, number = case.step(), case.random.choice(STOPS)
    case.detail = f"{number.name} at {at} images"
    traps = {r: Trap("step", "signal", number, at) for r in range(case.subject.ranks)}
    for start in case.strike(traps):
        if start.code < 0:
            raise Failed(f"{start.output.name}: {number.name} was not handled")


def kill_at_file(case: Case) -> None:
    set_up(case)
    case.detail = "KILL"
    trap = file_trap(case, "signal", signal.SIGKILL, case.random.random() < 0.5)
    case.strike({0: trap}, _last_command(case))


def stop_at_file(case: Case) -> None:
    set_up(case)
    number = case.random.choice(STOPS)
    case.detail = number.name
    case.strike({0: file_trap(case, "signal", number)})


# ---- storage -------------------------------------------------------------------------------------


def torn_write(case: Case) -> None:
    set_up(case)
    size = size_to_cut(case)
    case.detail = f"ended while it writes byte {size:,} of a file"
    case.strike({0: Trap("begin", "tear", size)})


def full_disk(case: Case) -> None:
    set_up(case)
    if case.random.random() < 0.5:
        size = size_to_cut(case)
        case.detail = f"no file may have more than {size:,} bytes"
        case.strike({0: Trap("begin", "limit", size)})
        return
    number = case.random.choice(FULL)
    case.detail = errno.errorcode[number]
    case.strike({0: file_trap(case, "error", number)})


def failing_storage(case: Case) -> None:
    set_up(case)
    number = case.random.choice(REFUSED)
    case.detail = errno.errorcode[number]
    case.strike({0: file_trap(case, "error", number)})


def slow_storage(case: Case) -> None:
    case.detail = "each file event takes 50 ms more"
    set_up(case)
    (start,) = case.strike({0: Trap("begin", "slow")})
    if start.code != EXIT_FINISHED:
        raise Failed(f"{start.output.name}: exit code {start.code}")


KINDS = (
    Kind("killed at a step", ("classifier", "two ranks", "GAN", "Ray sweep"), kill_at_step),
    Kind("killed at a file event", ("preprocess", "classifier", "evaluate", "GAN", "sweep"),
         kill_at_file),
    Kind("stop signal at a step", ("classifier", "GAN", "two ranks", "Ray sweep"), stop_at_step),
    Kind("checkpoint cut or flipped", ("classifier", "GAN"), damage.checkpoint_damaged),
    Kind("frozen, taken over", ("classifier", "GAN", "preprocess"), damage.take_over),
    Kind("full disk", ("classifier", "preprocess", "evaluate", "GAN"), full_disk),
    Kind("metrics cut or flipped", ("classifier", "GAN"), damage.metrics_damaged),
    Kind("shard cut or flipped", ("classifier", "GAN", "preprocess"), damage.shard_damaged),
    Kind("record damaged", ("classifier", "preprocess", "GAN"), damage.record_damaged),
    Kind("folder deleted meanwhile", ("classifier", "preprocess", "GAN"), damage.folder_deleted),
    Kind("write torn", ("classifier", "preprocess", "GAN", "evaluate"), torn_write),
    Kind("two starts at once", ("classifier", "preprocess", "GAN"), damage.two_starts),
    Kind("folder moved meanwhile", ("classifier", "GAN", "preprocess"), damage.folder_moved),
    Kind("I/O error or no permission", ("classifier", "preprocess", "evaluate", "GAN"),
         failing_storage),
    Kind("stop signal at a file event", ("classifier", "preprocess", "evaluate", "GAN"),
         stop_at_file),
    Kind("frozen and thawed", ("two ranks", "classifier", "preprocess", "GAN"), damage.freeze),
    Kind("all checkpoints damaged", ("classifier", "GAN"), damage.all_checkpoints_damaged),
    Kind("checkpoints deleted meanwhile", ("classifier", "GAN"), damage.checkpoints_deleted),
    Kind("clock skewed", ("classifier", "preprocess", "GAN"), damage.clock_skewed),
    Kind("slow storage", ("classifier", "preprocess", "evaluate", "GAN"), slow_storage),
    Kind("small full disk", ("preprocess", "classifier", "GAN", "evaluate"), tmpfs.small_disk),
    Kind("Ray or its driver killed", ("Ray sweep",), rays.ray_killed),
)  # fmt: skip
