"""One fault: the work that it strikes, the starts it takes, and what is checked at the end."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fer_hpc.config import EXIT_FINISHED, EXIT_RUN_AGAIN, EXIT_TAKEN_OVER, EXIT_USER_ERROR
from fer_hpc.drill.remote import VARIABLE, Orders
from fer_hpc.drill.starts import Start, rank_variables
from fer_hpc.drill.subjects import (
    Subject,
    commands,
    differences,
    leftovers,
    runs_of,
)
from fer_hpc.drill.trap import Trap
from fer_hpc.run.folder import attempt_numbers, attempt_path, list_checkpoints, read_environment

MAX_STARTS = 6  # after a fault
REFUSALS = (EXIT_USER_ERROR,)
ORDERLY = (EXIT_FINISHED, EXIT_RUN_AGAIN, EXIT_TAKEN_OVER, EXIT_USER_ERROR)
ORPHAN_S = 30.0  # after which processes of an ended start count as orphans


class Failed(Exception):
    """The fault was not survived, and why."""


@dataclass
class Cost:
    """What coming back cost: images trained again, seconds until the run was where it had been."""

    images: int | None = None
    seconds: float | None = None


@dataclass
class Case:
    """A fault on a subject, in a folder of its own. `total`: images of the undisturbed run."""

    subject: Subject
    folder: Path
    data: Path
    reference: Path
    total: int
    random: random.Random
    detail: str = ""
    struck: bool = False
    refused: list[str] = field(default_factory=list)  # messages of exit code 2
    lost: list[str] = field(default_factory=list)  # what is lost, and was named
    cost: Cost = field(default_factory=Cost)
    starts: list[Start] = field(default_factory=list)
    orders: Orders | None = None  # for processes that are no forks of the drill
    codes: tuple[int, ...] = ORDERLY  # exit codes with which a start may end
    orphan_s: float = ORPHAN_S
    undo: list[Callable[[], None]] = field(default_factory=list)  # at the end, in any case

    @property
    def work(self) -> Path:
        """What the commands write into."""
        return self.folder / "work"

    def command(self, index: int = 0) -> list[str]:
        return commands(self.subject, self.work, self.data)[index]

    def begin(self, trap: Trap | None = None, index: int = 0, target: int = 0) -> Start:
        """Start a command of the subject in a process of its own; of one rank."""
        return self._start(self.command(index), trap, target, {})

    def begin_ranks(
        self, traps: dict[int, Trap] | None = None, index: int = 0, target: int = 0
    ) -> list[Start]:
        """Start all ranks of a command; a trap for some of them."""
        return [
            self._start(self.command(index), (traps or {}).get(rank), target, variables)
            for rank, variables in enumerate(rank_variables(self.subject.ranks))
        ]

    def _start(
        self, args: list[str], trap: Trap | None, target: int, variables: dict[str, str]
    ) -> Start:
        output = self.folder / f"start-{len(self.starts) + 1:02d}.txt"
        if self.orders:
            variables = variables | {VARIABLE: str(self.orders.folder)}
        start = Start(args, self.work, output, trap, target, variables)
        self.starts.append(start)
        return start

    def strike(self, traps: dict[int, Trap], index: int = 0) -> list[Start]:
        """Start with traps, and wait for the end; gives the starts."""
        starts = self.begin_ranks(traps, index)
        self.ended(*starts)
        self.struck = any(start.struck for start in starts)
        return starts

    def ended(self, *starts: Start, orderly: bool = False) -> None:
        """Wait for the ends of starts, and check them: no hang, traceback or orphan."""
        for start in starts:
            if not start.wait():
                raise Failed(f"{start.output.name}: did not end")
        for start in starts:
            deadline = time.monotonic() + self.orphan_s
            while self._orphans(start) and time.monotonic() < deadline:
                time.sleep(0.1)
            if orphans := self._orphans(start):
                raise Failed(f"{start.output.name}: left {len(orphans)} orphans")
            self._check_end(start, orderly)

    def _orphans(self, start: Start) -> list[int]:
        return start.children() + (self.orders.processes() if self.orders else [])

    def _check_end(self, start: Start, orderly: bool) -> None:
        text, name = start.text(), start.output.name
        if "Traceback (most recent call last)" in text:
            raise Failed(f"{name}: a traceback")
        if start.code > 0 and start.code not in self.codes:
            raise Failed(f"{name}: exit code {start.code}")
        if orderly and start.code < 0:
            raise Failed(f"{name}: ended by signal {-start.code}")
        if start.code == EXIT_USER_ERROR:
            lines = [line for line in text.splitlines() if ": error: " in line]
            if len(lines) != 1 and self.subject.ranks == 1:
                raise Failed(f"{name}: {len(lines)} messages with exit code 2")
            self.refused += lines[:1]

    def refuses(self, *words: str) -> None:
        """Start once more: it must refuse, in one message that has one of `words`."""
        start = self.begin()
        self.ended(start, orderly=True)
        if start.code != EXIT_USER_ERROR:
            raise Failed(f"{start.output.name}: exit code {start.code}, and not a refusal")
        if not any(word in self.refused[-1] for word in words):
            raise Failed(f"{start.output.name}: its message names none of {words}")

    def finish(self) -> None:
        """Give the same commands again until all have finished, without a further fault."""
        images = max((s.images for s in self.starts), default=0)
        before = self._newest()
        began = time.monotonic()
        first = True
        for index in range(len(commands(self.subject, self.work, self.data))):
            for _ in range(MAX_STARTS):
                starts = self.begin_ranks(index=index, target=images)
                self.ended(*starts, orderly=True)
                if first and self.struck and self.cost.seconds is None:
                    self._count_cost(starts[0], images, before)
                first = False
                if all(start.code == EXIT_FINISHED for start in starts):
                    break
                if any(start.code in REFUSALS for start in starts):
                    raise Failed(f"{starts[0].output.name}: refused, where it should go on")
            else:
                raise Failed(f"not finished after {MAX_STARTS} starts")
        if self.cost.seconds is None:
            self.cost.seconds = time.monotonic() - began

    def _newest(self) -> int:
        """The number of the newest attempt; 0 where there is none, or several runs."""
        return max(attempt_numbers(self.run()), default=0) if self.subject.one_run else 0

    def _count_cost(self, start: Start, images: int, before: int) -> None:
        """Note what coming back cost, where `start` had an attempt after number `before`."""
        if not self.subject.one_run:
            self.cost.seconds = time.monotonic() - start.began
        elif self._newest() <= before and self.work.exists() and before:
            self.cost = Cost(0, 0.0)  # the struck start had come to the end by itself
        else:
            parent = read_environment(self.work).get("parent") or {"images_seen": 0}
            images_again = max(images - parent["images_seen"], 0)
            self.cost = Cost(images_again, start.seconds_to_target())

    def check(self) -> None:
        """Failed unless the outcome is that of an undisturbed run, and nothing is left."""
        lines = differences(self.subject, self.work, self.reference)
        lines = [line for line in lines if not (self.lost and "metrics.jsonl" in line)]
        lines += [f"left behind: {path.name}" for path in leftovers(self.work)]
        if lines:
            raise Failed("; ".join(lines[:4]))

    def count_starts(self) -> int:
        """How often the work was started, the struck start included."""
        return len(self.starts)

    def end(self) -> None:
        """Kill what still runs, and undo what outlives the folder."""
        for start in self.starts:
            if start.process.is_alive() or start.children():
                start.end()
        for pid in self.orders.processes() if self.orders else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for action in reversed(self.undo):
            action()

    # ---- what faults look at ---------------------------------------------------------------------

    def step(self, low: float = 0.05, high: float = 0.95) -> int:
        """Images seen of a step that is drawn, as a share of the run."""
        steps = self.total // self.subject.batch
        drawn = self.random.randint(max(1, int(low * steps)), max(1, int(high * steps)))
        return drawn * self.subject.batch

    def run(self) -> Path:
        """The run folder of a subject that has one."""
        return runs_of(self.subject, self.work)[0]

    def attempt(self) -> Path:
        """The folder of the newest attempt."""
        return attempt_path(self.run(), max(attempt_numbers(self.run()), default=1))

    def checkpoints(self) -> list[Path]:
        """The checkpoints of the run's history, newest first."""
        return [path for _, _, path in list_checkpoints(self.run())]

    def copy_reference(self) -> None:
        """Begin with the results of an undisturbed run."""
        shutil.copytree(self.reference, self.work)
