"""The C library's allocator."""

import contextlib
import ctypes
import os
import signal
from multiprocessing import parent_process


def keep_freed_memory() -> None:
    """Let the C library reuse freed buffers instead of returning them to the kernel.

    Activations are tens of megabytes and a decoded photo half a one: mapping them anew each time costs more in page faults
    than the arithmetic, or as much as the decoding (docs/benchmarks.md has the figures). A no-op where it is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation by mmap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep the heap's top


def end_with_parent() -> None:
    """Have the kernel end this worker process when its parent dies, however that happens: no orphans (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    parent = parent_process()
    if parent and parent.pid != os.getppid():  # it died before that call
        os._exit(1)
