"""One fault on work that runs as jobs of a cluster."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fer_hpc.cluster.records import read_records
from fer_hpc.cluster.scheduler import JobState, Scheduler
from fer_hpc.cluster.submit import submit
from fer_hpc.config import UserError
from fer_hpc.config.jobs import JobConfig
from fer_hpc.drill.case import MAX_STARTS, Case, Cost, Failed
from fer_hpc.drill.foreign import Foreign, Owner, call
from fer_hpc.drill.remote import VARIABLE, Orders
from fer_hpc.drill.subjects import commands
from fer_hpc.drill.trap import Trap
from fer_hpc.files import read_json
from fer_hpc.run.folder import attempt_numbers, attempt_path

LIMIT_S = 3600.0  # for anything that is waited for: a cluster may be full
ORPHAN_S = 90.0  # a cut-off process ends when it sees that another has its run
LOGS = ("jobs/*_log.out", "jobs/*.o[0-9]*", "logs/*.log")


@dataclass
class JobCase(Case):
    """A fault on a subject whose commands are jobs; several commands are an array.

    goes_on: what struck it must not need a person: the jobs start again by themselves
    """

    by: Scheduler = field(kw_only=True)
    owner: Owner = field(kw_only=True)
    job: JobConfig = field(kw_only=True)
    foreign: Foreign | None = field(kw_only=True)
    exported: dict[str, str] = field(kw_only=True)
    breaker: Path | None = field(kw_only=True)
    undisturbed_s: float = field(kw_only=True)  # what the work takes, waiting included
    current: list[str] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    goes_on: bool = True

    # ---- jobs ------------------------------------------------------------------------------------

    def submit(self, traps: dict[int, Trap] | None = None, **settings: Any) -> list[str]:
        """Submit the subject's commands; the first time with traps. `settings` of the jobs."""
        if self.orders is None:
            self.orders = Orders.write(self.folder / "orders", self.work, traps or {})
        lines = commands(self.subject, self.work, self.data)
        job = replace(
            self.job, **{k: v for k, v in settings.items() if k not in ("sbatch", "qsub")}
        )
        job = replace(
            job,
            sbatch=(*job.sbatch, *settings.get("sbatch", ())),
            qsub=(*job.qsub, *settings.get("qsub", ())),
        )
        if self.subject.name == "preprocess":
            lines = [[*lines[0], "--task", str(i), "--tasks", "2"] for i in range(2)]
        if self.subject.ranks > 1 and job.cluster == "slurm":
            job = replace(job, sbatch=(*job.sbatch, "nodes=2", f"ntasks={self.subject.ranks}"))
        elif self.subject.ranks > 1:
            lines = [[*line, "--procs", str(self.subject.ranks)] for line in lines]
        exported = self.exported | {VARIABLE: str(self.orders.folder)}
        os.environ.update(exported)
        if job.cluster == "sge":
            pairs = ",".join(f"{name}={value}" for name, value in exported.items())
            job = replace(job, qsub=(*job.qsub, f"v={pairs}"))
        names = submit(job, self.work, lines, None)
        self.current = names
        self.submitted += names
        return names

    def hold(self, trap: Trap, **settings: Any) -> bool:
        """Submit with a trap that holds rank 0; True when it is held."""
        self.submit({0: trap}, **settings)
        return self.until_struck()

    def until_struck(self) -> bool:
        """Wait for the strike of a trap; False where the jobs end before."""
        assert self.orders
        deadline = time.monotonic() + LIMIT_S
        while not self.orders.struck():
            if time.monotonic() > deadline:
                raise Failed("the jobs neither reached the fault nor ended")
            states = self.states(self.current)
            if len(states) == len(self.current) and not any(s.alive for s in states.values()):
                break
            time.sleep(0.3)
        self.struck = bool(self.orders.struck())
        return self.struck

    def states(self, jobs: list[str]) -> dict[str, JobState]:
        return self.by.states(jobs)

    def until(self, what: Any, seconds: float) -> bool:
        """Wait until what() is true; False where it was not within so many seconds."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.3)
        return True

    def is_running(self) -> bool:
        """Whether the scheduler says that a job of the last submission runs."""
        return any(state.state == "RUNNING" for state in self.states(self.current).values())

    def wait(self, jobs: list[str]) -> dict[str, JobState]:
        """Wait until jobs have ended; their states."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            states = self.states(jobs)
            if len(states) == len(jobs) and not any(s.alive for s in states.values()):
                return states
            for name, state in states.items():
                if "launch_failed" in state.reason.replace(" ", "_") or state.state == "ERROR":
                    with contextlib.suppress(UserError):
                        self.owner.release(name)
            if time.monotonic() > deadline:
                raise Failed(f"job {', '.join(jobs)} did not end: {states}")
            time.sleep(0.5)

    # ---- the outcome -----------------------------------------------------------------------------

    def finish(self) -> None:
        """Wait until the work is done; submit it again where the fault needs that."""
        if not self.current:
            self.submit()
        for _ in range(MAX_STARTS):
            states = self.wait(self.current)
            self._check_logs()
            ended = {name: s for name, s in states.items() if s.state != "COMPLETED"}
            if not ended:
                break
            if self.goes_on:
                shown = ", ".join(f"{name} {s.state} {s.reason}" for name, s in ended.items())
                raise Failed(f"job {shown}, and was to go on by itself")
            self.submit()
        else:
            raise Failed(f"not finished after {MAX_STARTS} submissions")
        self._count()

    def _check_logs(self) -> None:
        refused = []
        for pattern in LOGS:
            for path in sorted(self.work.rglob(pattern)):
                text = path.read_text(errors="replace")
                if "Traceback (most recent call last)" in text:
                    raise Failed(f"{path.name}: a traceback")
                refused += re.findall(r"(?m)^fer-hpc \w+: error: .*", text)
        self.refused = list(dict.fromkeys(refused))

    def _count(self) -> None:
        """What coming back cost: the struck start is the first."""
        struck = self.orders.struck() if self.orders else {}
        if not struck or not self.subject.one_run:
            return
        images, when = struck[min(struck)]
        if len(attempt_numbers(self.run())) < 2:
            self.cost = Cost(0, 0.0)
            return
        second = attempt_path(self.run(), sorted(attempt_numbers(self.run()))[1])
        environment = read_json(second / "environment.json") or {}
        parent = environment.get("parent") or {"images_seen": 0}
        passed = self.orders.passed() if self.orders else None
        seconds = max(passed - when, 0.0) if passed else None
        self.cost = Cost(max(images - parent["images_seen"], 0), seconds)

    def check(self) -> None:
        """Failed unless the outcome is that of an undisturbed job, and nothing else was touched."""
        super().check()
        alive = [name for name, s in self.states(self.submitted).items() if s.alive]
        if alive:
            raise Failed(f"jobs still alive: {', '.join(alive)}")
        assert self.orders
        if not self.until(lambda: not self._orphans_seen(), ORPHAN_S):
            raise Failed(f"left {len(self._orphans_seen())} orphans")
        if self.foreign and (touched := self.foreign.touched()):
            raise Failed(touched)

    def _orphans_seen(self) -> list[int]:
        return self.orders.processes() if self.orders else []

    def count_starts(self) -> int:
        folders = {path.parent.parent for path in self.work.rglob("jobs/*.json")}
        return sum(len(r["starts"]) for folder in folders for r in read_records(folder))

    def end(self) -> None:
        """Cancel what still lives of our own jobs."""
        alive = [name for name, s in self.states(self.submitted).items() if s.alive]
        if alive:
            with contextlib.suppress(UserError):
                self.by.cancel(alive)
            self.until(lambda: not any(s.alive for s in self.states(alive).values()), 120)
        super().end()

    def do(self, *args: str) -> None:
        """Call the program that breaks the cluster, and repairs it."""
        assert self.breaker
        call(self.breaker, *args)
