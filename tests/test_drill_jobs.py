"""A drill's faults in processes that are no forks of it: ranks, and jobs of a scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from fer_hpc.cluster.scheduler import JobState
from fer_hpc.config import UserError
from fer_hpc.config.commands import DrillConfig
from fer_hpc.config.jobs import JobConfig
from fer_hpc.drill.foreign import Foreign, SlurmOwner
from fer_hpc.drill.job_faults import kinds_of
from fer_hpc.drill.remote import VARIABLE, Orders, _Posted
from fer_hpc.drill.subjects import SUBJECTS, TRAINING_EVENTS
from fer_hpc.drill.trap import Trap


def posted(folder: Path, rank: int = 0) -> _Posted:
    return _Posted(Orders(folder), rank)


def test_a_rank_is_struck_once_however_often_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append(number))
    work, folder = tmp_path / "work", tmp_path / "orders"
    trap = Trap("file", "signal", signal.SIGKILL, 1, TRAINING_EVENTS["publish"])
    orders = Orders.write(folder, work, {1: trap})
    renamed = ("os.rename", (f"{work}/final.pt", f"{work}/final.pt", -1, -1))
    assert posted(folder, 0).trap is None
    first, beside = posted(folder, 1), posted(folder, 1)
    first.marks.step(64)
    first._event(*renamed)
    assert sent == [signal.SIGKILL]
    assert orders.struck()[1][0] == 64
    beside._event(*renamed)  # a second process of this rank, which lived already
    assert posted(folder, 1).trap is None
    assert len(sent) == 1


def test_a_held_process_waits_for_the_drill_and_notes_when_it_is_back(tmp_path: Path) -> None:
    orders = Orders.write(tmp_path / "orders", tmp_path / "work", {0: Trap("step", "hold", 0, 8)})
    held = posted(orders.folder)
    held.marks.step(8)
    thread = threading.Thread(target=held._strike, args=("",))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    orders.release()
    thread.join(60)
    assert not thread.is_alive()
    again = posted(orders.folder)
    again.marks.step(4)
    assert orders.passed() is None
    again.marks.step(8)
    assert (orders.passed() or 0) >= orders.struck()[0][1]


def test_processes_of_a_fault_are_known_by_their_orders(tmp_path: Path) -> None:
    orders = Orders(tmp_path / "orders")
    environment = {**os.environ, VARIABLE: str(orders.folder)}
    sleeper = subprocess.Popen(["sleep", "60"], env=environment)
    other = subprocess.Popen(["sleep", "60"], env={**environment, VARIABLE: f"{orders.folder}2"})
    try:
        assert orders.processes() == [sleeper.pid]
    finally:
        sleeper.kill()
        other.kill()


class Answers:
    """A scheduler that knows the states of jobs."""

    def __init__(self, **states: str) -> None:
        self.known = {name: JobState(state, alive=True) for name, state in states.items()}

    def states(self, jobs: list[str]) -> dict[str, JobState]:
        return {job: self.known[job] for job in jobs if job in self.known}


def test_a_foreign_job_that_was_touched_is_noticed(tmp_path: Path) -> None:
    def foreign(text: str = "start n1\n", **states: str) -> str:
        answers = Answers(**({"a": "RUNNING", "b": "PENDING"} | states))
        found = Foreign(tmp_path, answers, SlurmOwner(), JobConfig())  # type: ignore[arg-type]
        found.jobs = ["a", "b"]
        found.file.write_text(text)
        return found.touched()

    assert foreign() == ""
    assert "signal TERM" in foreign("start n1\nsignal TERM\n")
    assert "start n2" in foreign("start n1\nstart n2\n")
    assert "is CANCELLED, and was RUNNING" in foreign(a="CANCELLED")
    assert "is RUNNING, and was PENDING" in foreign(b="RUNNING")


def test_kinds_for_jobs_follow_the_scheduler_and_what_may_be_broken() -> None:
    for name in ("slurm", "sge"):
        few, all_of_them = kinds_of(name, False), kinds_of(name, True)
        assert {k.name for k in all_of_them} - {k.name for k in few} == {
            "node lost",
            "link cut",
            "node's daemon killed",
            "controller away",
        }
        assert {s for kind in all_of_them for s in kind.subjects} <= set(SUBJECTS)
    assert {k.name for k in kinds_of("slurm", False)} ^ {
        k.name for k in kinds_of("sge", False)
    } == {
        "signal to the job",
        "processes killed",
        "suspended",
    }


def test_flags_of_jobs_need_a_cluster() -> None:
    with pytest.raises(UserError, match="--partition is for jobs"):
        DrillConfig(out=Path("x"), partition="main")
