"""Progress of faces that are read or drawn: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0  # between lines in a log file


class FaceProgress:
    """Count faces on stderr; used as a context manager."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._console = Console(stderr=True)
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal and total:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> FaceProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, faces: int) -> None:
        """Count `faces` more."""
        self.done += faces
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=self.done)
        elif now - self._last_line >= PLAIN_EVERY_S:
            self._last_line = now
            left = f"{(self.total - self.done) / rate:.0f} s left"
            line = f"{self.what}: {self.done:,} of {self.total:,} faces, {rate:,.0f}/s, {left}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
