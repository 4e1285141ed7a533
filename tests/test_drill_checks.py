"""What a drill finds in a run, its traps, and the disk that it fills."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from fer_hpc.config.commands import DrillConfig
from fer_hpc.drill import table, tmpfs
from fer_hpc.drill.case import Case, Failed
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
