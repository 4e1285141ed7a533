"""What strikes a start from inside its own process: at a step, or at a file event.

The process sets its trap before it runs the command, so the commands hold no code for drills. File
events come from Python's audit hooks, steps from the watchdog, which every training tells of them.
"""

from __future__ import annotations

import mmap
import os
import re
import resource
import signal
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SLOW_S = 0.05  # of every file event of a slow file system
_FIELDS = struct.Struct("<qqdq")  # images seen, images to come back to, when that was, struck
_PATH_AT = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0, "open": 0}


@dataclass(frozen=True)
class Trap:
    """Where a start is struck, and by what.

    when: "step" is after `at` images seen; "file" is the `at`-th event of a path that matches
    `path` (a regular expression, below the folder of the command); "begin" is before the command
    what: "signal" sends `number` to the process itself; "error" lets the event, and then every
    write below the folder, fail with the errno `number`; "limit" lets every write beyond `number`
    bytes fail, "tear" ends the process in the middle of it; "slow" delays every file event; "hold"
    waits until the drill has struck from outside (remote.py)
    after: strike when the file event has happened, not before it
    """

    when: Literal["step", "file", "begin"]
    what: Literal["signal", "error", "limit", "tear", "slow", "hold"]
    number: int = 0
    at: int = 1
    path: str = ""
    after: bool = False


class Probe:
    """Some numbers that a process shares with the drill, also when it is killed: a mapped file."""

    def __init__(self, path: Path, target: int = 0, create: bool = False) -> None:
        if create:
            path.write_bytes(_FIELDS.pack(0, target, 0.0, 0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _FIELDS.size)

    def read(self) -> tuple[int, int, float, int]:
        """(images seen, target, monotonic time when the target was passed or 0, whether struck)."""
        images, target, reached, struck = _FIELDS.unpack(self._map[:])
        return images, target, reached, struck

    def step(self, images_seen: int) -> None:
        _, target, reached, struck = self.read()
        if not reached and images_seen >= target:
            reached = time.monotonic()
        self._map[:] = _FIELDS.pack(images_seen, target, reached, struck)

    def strike(self) -> None:
        images, target, reached, _ = self.read()
        self._map[:] = _FIELDS.pack(images, target, reached, 1)


class Armed:
    """A trap in this process."""

    def __init__(self, trap: Trap | None, folder: Path, probe: Probe) -> None:
        self.trap, self.folder, self.probe = trap, f"{folder}{os.sep}", probe
        self.seen, self.struck, self.follows = 0, False, False
        self.pattern = re.compile(trap.path) if trap and trap.when == "file" else None

    def set(self) -> None:
        """Set the trap. It stays for the life of the process."""
        self._watch_steps()
        trap = self.trap
        if trap is None:
            return
        if trap.what in ("limit", "tear"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (trap.number, trap.number))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            action = signal.SIG_DFL if trap.what == "tear" else signal.SIG_IGN
            signal.signal(signal.SIGXFSZ, action)
            self.probe.strike()
        elif trap.when == "file" or trap.what == "slow":
            sys.addaudithook(self._event)

    def _watch_steps(self) -> None:
        from fer_hpc.run.watchdog import Watchdog

        step = Watchdog.step

        def watched(watchdog: Watchdog, images_seen: int) -> None:
            step(watchdog, images_seen)
            self.probe.step(images_seen)
            trap = self.trap
            if trap and trap.when == "step" and images_seen >= trap.at and not self.struck:
                self._strike("")

        Watchdog.step = watched  # type: ignore[method-assign, assignment]

    def _event(self, name: str, args: tuple[Any, ...]) -> None:
        if self.follows:  # the event that was waited for has happened
            self.follows = False
            self._strike("")
        place = _PATH_AT.get(name)
        if place is None:
            return
        path = args[place]
        if self.trap is None:  # it has struck in another process
            return
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.folder):
            return
        if name == "open" and not _writes(args[1], args[2]):
            return
        if self.trap.what == "slow":
            self.probe.strike()
            time.sleep(SLOW_S)
            return
        text = os.fspath(path)
        if self.struck:
            if self.trap.what == "error" and name != "os.remove":
                self._strike(text)
            return
        assert self.pattern
        if name in ("os.rename", "open") and self.pattern.fullmatch(text[len(self.folder) :]):
            self.seen += 1
            if self.seen == self.trap.at:
                self.follows = self.trap.after
                if not self.follows:
                    self._strike(text)

    def _strike(self, path: str) -> None:
        assert self.trap
        self.struck = True
        self.probe.strike()
        if self.trap.what == "error":
            raise OSError(self.trap.number, os.strerror(self.trap.number), path)
        os.kill(os.getpid(), self.trap.number)


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
