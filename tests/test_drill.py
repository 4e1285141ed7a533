"""The drill finds what it looks for, and its faults can be repeated by number."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cluster.scheduler import JobState
from fer_hpc.config import UserError
from fer_hpc.config.commands import DrillConfig
from fer_hpc.config.jobs import JobConfig
from fer_hpc.drill import table, tmpfs
from fer_hpc.drill.case import Case, Failed
from fer_hpc.drill.drill import drill as run_drill
from fer_hpc.drill.faults import KINDS
from fer_hpc.drill.foreign import Foreign, SlurmOwner
from fer_hpc.drill.job_faults import kinds_of
from fer_hpc.drill.remote import VARIABLE, Orders, _Posted
from fer_hpc.drill.site import Site
from fer_hpc.drill.starts import Start
from fer_hpc.drill.subjects import (
    EVENTS,
    SUBJECTS,
    TRAINING_EVENTS,
    commands,
    differences,
    leftovers,
    runs_of,
)
from fer_hpc.drill.trap import Armed, Probe, Trap
from tests.conftest import command

SECONDS = 1800


def drill(out: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("cli", "drill", out, *flags),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def check_drill(out: Path, faults: int) -> None:
    done = drill(out, "--faults", faults, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((out / "drill.json").read_text())
    assert summary["survived"] == summary["tried"]
    assert summary["tried"] + summary["not_reached"] == faults == len(summary["faults"])
    assert summary["tried"] > 0.8 * faults
    assert [f["number"] for f in summary["faults"]] == list(range(1, faults + 1))
    refused = [f for f in summary["faults"] if f["fault"] == "shard cut or flipped"]
    assert any(".h5" in message for f in refused for message in f["refused"])
    costs = [f["images_again"] for f in summary["faults"] if f["fault"] == "killed at a step"]
    assert all(cost is not None and cost >= 0 for cost in costs)
    page = (out / "index.html").read_text()
    assert f"{summary['tried']} of {summary['tried']} faults survived" in page
    assert not list((out / "cases").iterdir()), "folders of survived faults are deleted"
    assert "resource_tracker" not in done.stderr


def test_twelve_faults_are_survived(tmp_path: Path) -> None:
    check_drill(tmp_path / "drill", 12)


def test_a_drill_that_was_stopped_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "drill"
    assert drill(out, "--faults", 2).returncode == 0
    first = json.loads((out / "drill.json").read_text())
    (out / "drill.json").write_text(json.dumps({**first, "faults": first["faults"][:1]}))
    done = drill(out, "--faults", 2)
    assert "goes on after fault 1" in done.stderr, done.stderr
    assert done.stderr.count(": survived") == 1, "only the fault that was missing"
    summary = json.loads((out / "drill.json").read_text())
    assert [f["detail"] for f in summary["faults"]] == [f["detail"] for f in first["faults"]]
    assert summary["faults"][:1] == first["faults"][:1]
    assert summary["seconds"] > first["seconds"]
    done = drill(out, "--faults", 2)
    assert "nothing to do" in done.stderr and done.returncode == 0
    for flags, what in ((("--seed", 1), "another seed"), (("--only", 2), "an earlier drill")):
        done = drill(out, "--faults", 2, *flags)
        assert done.returncode == 2 and what in done.stderr
    assert json.loads((out / "drill.json").read_text()) == summary
    (out / "drill.json").write_text("{}")
    assert "drill.json is damaged" in drill(out).stderr


def test_a_drill_that_is_stopped_ends_its_processes(tmp_path: Path) -> None:
    call = command("cli", "drill", tmp_path / "drill", "--faults", 5)
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        next(line for line in process.stderr if "survived" in line)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(240) == 75
    assert "the same command continues" in rest
    assert "Traceback" not in rest


class StoppedInFinalizer:
    """A fault at whose end a stop signal comes while Python frees its objects."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_python_drops_stops_it_before_the_next_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    struck, handler = [], signal.getsignal(signal.SIGTERM)

    def strike(site: Site, number: int, seed: int) -> dict[str, Any]:
        struck.append(number)
        StoppedInFinalizer()
        return dict(faults[0], number=number)

    faults = [{"number": 1, "fault": "a", "subject": "b", "detail": "", "struck": True}]
    faults[0] |= {"survived": True, "why": "", "refused": [], "lost": [], "starts": 2}
    faults[0] |= {"images_again": 0, "seconds": 1.0, "took_s": 1.0}
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # not pytest's
    monkeypatch.setattr(Site, "strike", strike)
    monkeypatch.setattr(Site, "make_reference", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        run_drill(DrillConfig(out=tmp_path / "drill", faults=3))
    assert struck == [1]
    assert "Traceback" not in capfd.readouterr().err
    assert len(json.loads((tmp_path / "drill" / "drill.json").read_text())["faults"]) == 1
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.long
def test_two_hundred_faults_are_survived(tmp_path: Path) -> None:
    check_drill(tmp_path / "drill", 200)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    done = drill(tmp_path)
    assert done.returncode == 2
    assert "holds other files (thesis.tex)" in done.stderr
    assert (tmp_path / "thesis.tex").exists()


def test_kinds_and_subjects_take_turns() -> None:
    site = Site(Path("nowhere"), print)
    struck = {site.kind_and_subject(n) for n in range(1, 5 * len(KINDS) + 1)}
    assert struck == {(kind, subject) for kind in KINDS for subject in kind.subjects}
    assert {name for kind in KINDS for name in kind.subjects} == set(SUBJECTS)


# ---- the checks ----------------------------------------------------------------------------------


def case_of(folder: Path, reference: Path, name: str = "classifier") -> Case:
    (folder / "case").mkdir(parents=True)
    drawn = random.Random("0 1")
    return Case(SUBJECTS[name], folder / "case", folder, reference, 720, drawn)


def test_what_differs_from_an_undisturbed_run_is_found(finished_run: Path, tmp_path: Path) -> None:
    case = case_of(tmp_path, finished_run)
    shutil.copytree(finished_run, case.work)
    case.check()
    metrics = case.work / "metrics.jsonl"
    good = metrics.read_bytes()
    for content, words in (
        (good.replace(b'"epoch": 1', b'"epoch": 7'), "metrics.jsonl differs"),
        (good.splitlines(keepends=True)[0], "metrics.jsonl differs"),
    ):
        metrics.write_bytes(content)
        with pytest.raises(Failed, match=words):
            case.check()
    metrics.write_bytes(good)
    (case.work / "attempts" / "0001" / ".final.pt.host-1.tmp").write_text("half")
    with pytest.raises(Failed, match=r"left behind: \.final\.pt"):
        case.check()
    assert [path.name for path in leftovers(case.work)] == [".final.pt.host-1.tmp"]
    (case.work / "best.pt").unlink()
    assert "best.pt is missing" in differences(case.subject, case.work, finished_run)
    rows = case.work / "attempts" / "0001" / "metrics.jsonl"
    rows.write_bytes(rows.read_bytes().splitlines(keepends=True)[0])
    assert any(
        line.startswith("epochs [1] in metrics.jsonl, wanted [1, 2, 3]")
        for line in differences(case.subject, case.work, finished_run)
    )


class Ended(Start):
    """A start that has ended with a code and a text."""

    def __init__(self, folder: Path, code: int, text: str) -> None:
        self.output, self._code = folder / "start-01.txt", code
        self.output.write_text(text)

    @property
    def code(self) -> int:
        return self._code

    def wait(self, limit_s: float = 0) -> bool:
        return True

    def children(self) -> list[int]:
        return []


@pytest.mark.parametrize(
    "code, text, words",
    [
        (1, "", "exit code 1"),
        (2, "no message", "0 messages"),
        (2, "fer-hpc train: error: a\nfer-hpc train: error: b", "2 messages"),
        (0, "Traceback (most recent call last):", "a traceback"),
        (-15, "", "ended by signal 15"),
    ],
)
def test_an_end_that_is_not_orderly_is_no_survival(
    tmp_path: Path, code: int, text: str, words: str
) -> None:
    case = case_of(tmp_path, tmp_path)
    with pytest.raises(Failed, match=words):
        case.ended(Ended(case.folder, code, text), orderly=True)
    case.ended(Ended(case.folder, 2, "fer-hpc train: error: the disk is full"), orderly=True)
    assert case.refused[-1].endswith("the disk is full")


def test_faults_are_drawn_from_seed_and_number(tmp_path: Path) -> None:
    def drawn(seed: int, number: int) -> list[int]:
        case = case_of(tmp_path / f"{seed} {number} {random.random()}", tmp_path)
        case.random = random.Random(f"{seed} {number}")
        return [case.step() for _ in range(5)]

    assert drawn(0, 1) == drawn(0, 1) != drawn(0, 2)
    assert drawn(0, 1) != drawn(1, 1)


# ---- the trap ------------------------------------------------------------------------------------


def armed(trap: Trap, folder: Path) -> Armed:
    return Armed(trap, folder, Probe(folder / "a.probe", create=True))


def test_a_trap_strikes_at_the_event_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append(number))
    pattern = TRAINING_EVENTS["checkpoint"]
    trap = armed(Trap("file", "signal", signal.SIGKILL, 2, pattern), tmp_path)
    saved = f"{tmp_path}/attempts/0001/000000000032.pt"
    for name, path in (
        ("os.rename", f"{tmp_path}/attempts/0001/final.pt"),
        ("os.rename", "/elsewhere/attempts/0001/000000000032.pt"),
        ("os.remove", saved),
        ("os.rename", saved),
    ):
        trap._event(name, (path, path, -1, -1))
    trap._event("open", (saved, "rb", 0))
    assert not sent
    trap._event("os.rename", (saved, saved, -1, -1))
    assert sent == [signal.SIGKILL]
    assert trap.probe.read()[3] == 1
    later = armed(Trap("file", "signal", signal.SIGTERM, 1, pattern, after=True), tmp_path)
    later._event("os.rename", (saved, saved, -1, -1))
    assert len(sent) == 1
    later._event("anything", ())
    assert sent[1:] == [signal.SIGTERM]


def test_a_full_disk_stays_full(tmp_path: Path) -> None:
    trap = armed(Trap("file", "error", 28, 1, EVENTS["preprocess"]["manifest"]), tmp_path)
    path = f"{tmp_path}/manifest.json"
    trap._event("open", (f"{tmp_path}/x.h5", "wb", 0))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            trap._event("os.rename", (path, path, -1, -1))
    with pytest.raises(OSError, match="No space left"):
        trap._event("open", (f"{tmp_path}/x.h5", "wb", 0))
    trap._event("os.remove", (path, -1))
    trap._event("open", (f"{tmp_path}/x.h5", "rb", 0))


def test_a_probe_knows_when_its_target_was_passed(tmp_path: Path) -> None:
    probe = Probe(tmp_path / "probe", 24, create=True)
    probe.step(16)
    assert probe.read()[:3] == (16, 24, 0.0)
    probe.step(24)
    reached = Probe(tmp_path / "probe").read()[2]
    assert reached > 0
    probe.step(32)
    assert probe.read()[:3] == (32, 24, reached)


def test_every_subject_has_commands_and_folders(tmp_path: Path) -> None:
    for subject in SUBJECTS.values():
        lines = commands(subject, tmp_path / "work", tmp_path / "data")
        assert all(str(tmp_path) in " ".join(args) for args in lines)
        assert len(lines) == (2 if subject.name == "sweep" else 1)
        assert bool(runs_of(subject, tmp_path)) == bool(subject.batch and not subject.ray)


def test_the_table_counts_what_was_struck() -> None:
    kinds = {"fault": "a", "subject": "s", "why": "", "refused": [], "lost": [], "took_s": 1}
    kinds |= {"detail": "", "starts": 2}
    faults = [
        {**kinds, "number": 1, "struck": True, "survived": True, "images_again": 8, "seconds": 1.0},
        {**kinds, "number": 2, "struck": True, "survived": False, "images_again": 24, "seconds": 3},
        {**kinds, "number": 3, "struck": False, "survived": True, "images_again": None}
        | {"seconds": None},
    ]
    config = DrillConfig(out=Path("x"), cluster="slurm", partition="a b", breaker=Path("c"))
    summary = table.summarize(config, faults, 5.0)
    assert (summary["tried"], summary["survived"], summary["not_reached"]) == (2, 1, 1)
    assert table.table_rows(summary) == [("a", "2", "1", "0", "16 (24)", "2.0 (3.0)")]
    text = table.format_summary(summary, Path("x"))
    assert "1 of 2 faults survived" in text
    assert "--only 2 --seed 0 --cluster slurm --partition 'a b' --breaker c" in text
    assert "jobs of a Slurm" in table.page(summary)


# ---- processes that are no forks of the drill ----------------------------------------------------


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_small_disk_runs_full_and_keeps_its_files_at_the_end(tmp_path: Path) -> None:
    case = case_of(tmp_path, tmp_path)
    case.work.mkdir()
    (case.work / "before").write_text("here")
    if not tmpfs._mounted(case, 2**16):
        pytest.skip("mounts are not allowed here")
    try:
        assert (case.work / "before").read_text() == "here"
        with pytest.raises(OSError, match="No space"):
            (case.work / "large").write_bytes(b"x" * 2**18)
        assert tmpfs._mount(case.work, tmpfs.ENOUGH, tmpfs.MS_REMOUNT) == 0
        (case.work / "large").write_bytes(b"x" * 2**18)
    finally:
        case.end()
    assert not case.work.is_mount()
    assert (case.work / "large").stat().st_size == 2**18
    assert tmpfs._mount(case.work, 2**16) == 0  # by a drill that is killed now
    tmpfs.release(case.work)
    assert not case.work.is_mount()
    shutil.rmtree(case.folder)


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
