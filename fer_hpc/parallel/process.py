"""Settings of a process: its memory, and that it ends with its parent; asking other programs."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing import parent_process

from fer_hpc.config.errors import UserError, counted

PATIENCE_S = 60.0
FEW, A_CORE = 16, 4  # more processes than both allow do not get more done, but use up the memory


def process_count(flag: str, count: int) -> int:
    """`count` processes or threads, 0: one for each core; UserError for more than any use has."""
    cores = len(os.sched_getaffinity(0))
    most = max(FEW, A_CORE * cores)
    if count > most:
        raise UserError(
            f"{flag} {count:,}: this process may use {counted(cores, 'core')} here; "
            f"wanted {most} or fewer"
        )
    return count or cores


def keep_freed_memory() -> None:
    """Let the C library reuse freed buffers instead of returning them to the kernel, in any thread.

    Activations are tens of megabytes and a decoded photo half a one: mapping them anew each time
    costs more in page faults than the arithmetic, or as much as the decoding (docs/benchmarks.md
    has the figures). Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation by mmap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep the heap's top
        mallopt(-8, 1)  # M_ARENA_MAX: a thread's own heap has no room for a whole shard


def hangup_signals() -> tuple[signal.Signals, ...]:
    """SIGHUP, with which a terminal ends, but nothing under nohup: it has that signal ignored."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return () if ignored else (signal.SIGHUP,)


@contextlib.contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """No such signal arrives in the block, nor in processes that start in it, for their life."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(parent_pid: int | None = None, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process when its parent dies, so that no orphan is left (Linux).

    `parent_pid` is needed where multiprocessing did not start this process.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(1, by)  # PR_SET_PDEATHSIG
    if parent_pid is None and (parent := parent_process()):
        parent_pid = parent.pid
    if parent_pid and parent_pid != os.getppid():  # the parent died before that call
        os._exit(1)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """For the start of workers of a pool, which call `begin_worker`.

    It is not cut in half by Ctrl-C or SIGTERM. Workers never see Ctrl-C: their parent ends them.
    """
    with blocked(signal.SIGINT, signal.SIGTERM):
        yield


def begin_worker() -> None:
    """End with the parent, and at SIGTERM."""
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def output_of(*command: str) -> str:
    """What a program prints; "" where it is missing or does not answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
