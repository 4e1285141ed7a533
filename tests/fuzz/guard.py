"""What no input may do: a traceback, a hang, memory over 1 GB, a write outside its folder."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fer_hpc.cli.main import system_error
from fer_hpc.config import UserError
from fer_hpc.data.faces import Reject

SECONDS = 10.0  # of the processor for one input, which takes milliseconds
WAITING = 120.0  # seconds by the clock: machines are busy
MEMORY = 1_000_000_000  # bytes more than before
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {  # audit event -> how many of its arguments are paths
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "shutil.rmtree": 1,
}
MESSAGE = 4000  # characters of a message, at most


class Broken(BaseException):
    """An input does what none may do; no handler of the code under test catches it."""


Call = Callable[[Any], object]


@dataclass
class Fuzz:
    """A parser under test: a good input, bad ones, and the calls that read them, one by one.

    A message names one of `names`; () where there is no file.
    """

    good: Any
    inputs: st.SearchStrategy[Any]
    parse: Call | Sequence[Call]
    names: tuple[str, ...] = ()

    @property
    def calls(self) -> Sequence[Call]:
        return [self.parse] if callable(self.parse) else self.parse


Maker = Callable[[Path], Fuzz]
TARGETS: dict[str, Maker] = {}


def target(make: Maker) -> Maker:
    """Decorator: a function that prepares a folder and gives its Fuzz, by its name."""
    TARGETS[make.__name__] = make
    return make


# ---- writes outside the folder -------------------------------------------------------------------

_box: Path | None = None
_others: frozenset[threading.Thread] = frozenset()  # of earlier tests, as heartbeats are


def _watch(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: Broken where anything outside the box is about to be written."""
    if _box is None or threading.current_thread() in _others:
        return
    if event == "open":
        path, _, flags = args
        if flags & WRITES:
            _check_inside(path)
    elif event in CHANGES:
        beside = args[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
        if beside == -1:  # else a name in an open folder, as rmtree has them
            for path in args[: CHANGES[event]]:
                _check_inside(path)


def _check_inside(path: Any) -> None:
    if isinstance(path, int) or path is None:
        return
    text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 as links are not followed
    known = f"{_box}/", "/dev/", "/proc/"
    if not text.startswith(known) and text != str(_box) and "__pycache__" not in text:
        raise Broken(f"wrote outside its folder: {text}")


sys.addaudithook(_watch)


# ---- time and memory -----------------------------------------------------------------------------


@contextmanager
def _watched(box: Path) -> Iterator[None]:
    """Broken where the body writes outside of `box`, or takes too long."""
    global _box, _others
    _others = frozenset(threading.enumerate()) - {threading.current_thread()}
    _box = box
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _box = None


def _status(key: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    return 0


@contextmanager
def _limits() -> Iterator[Callable[[], None]]:
    """Bound address space; gives a check of the memory used."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise Broken(f"took longer than {SECONDS:.0f} s")

    numbers = (signal.SIGALRM, signal.SIGPROF)

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, room = _status("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
    # What is asked for and never touched counts as well; threads and arenas need some.
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + 3 * MEMORY, room[1]))
    before_handlers = [signal.signal(number, too_long) for number in numbers]

    def check() -> None:
        used = _status("VmHWM") - before
        if used > MEMORY:
            raise Broken(f"took {used / 1e9:.1f} GB")

    try:
        yield check
    finally:
        for number, handler in zip(numbers, before_handlers, strict=True):
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, room)


# ---- one parser ----------------------------------------------------------------------------------


def fuzz(
    make: Maker, folder: Path, count: int, start: int | None = None, shrink: bool = True
) -> int:
    """Give a parser `count` inputs; gives their number. An error is that of a bad input.

    start: seed of the inputs; None: the same ones each time; shrink: look for a small bad input
    """
    box = folder / "outer" / "box"
    box.mkdir(parents=True)
    case = make(box)
    done = 0

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=start is None,
        phases=(Phase.generate, *([Phase.shrink] if shrink else [])),
        suppress_health_check=list(HealthCheck),
    )
    @given(case.inputs)
    def one(data: Any) -> None:
        nonlocal done
        done += 1
        for call in case.calls:
            try:
                with _watched(box), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                    call(data)
            except Reject as reason:
                assert str(reason)
            except (UserError, OSError) as error:
                _check_message(error, case.names)
        check()

    run = one if start is None else seed(start)(one)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for call in case.calls:
            call(case.good)  # loads what is needed, which takes time and memory, too
    with _limits() as check:
        run()
    return done


def _check_message(error: UserError | OSError, names: tuple[str, ...]) -> None:
    """A message is one line that names the file; the command line shows it as it is."""
    if isinstance(error, OSError):
        assert error.filename is not None, f"names no file: {error}"
    text = system_error(error) if isinstance(error, OSError) else str(error)
    assert text, "an empty message"
    assert "\n" not in text, f"not one line: {text!r}"
    assert len(text) <= MESSAGE, f"a message of {len(text):,} characters"
    assert not names or any(name in text for name in names), f"names no file: {text}"
