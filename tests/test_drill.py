"""Drills: faults are survived, a drill that was stopped goes on, and ends its processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.config.commands import DrillConfig
from fer_hpc.drill.drill import drill as run_drill
from fer_hpc.drill.faults import KINDS
from fer_hpc.drill.site import Site
from fer_hpc.drill.subjects import SUBJECTS
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
