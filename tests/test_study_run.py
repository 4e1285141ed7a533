"""A study on this machine: what starts, what is stopped by a failure, what a kill costs."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fer_hpc.cluster import local
from fer_hpc.cluster.records import record_job
from fer_hpc.cluster.scheduler import Request
from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, EXIT_RUN_AGAIN, UserError
from fer_hpc.config.jobs import JobConfig
from fer_hpc.config.study import StudyConfig
from fer_hpc.files import read_json, sha256, write_json
from fer_hpc.run.folder import attempt_numbers
from fer_hpc.study import driver, state
from fer_hpc.study.driver import Driver, only_driver
from fer_hpc.study.graph import Kind, Part
from fer_hpc.study.machine import Room
from fer_hpc.study.plan import Plan, new_plan
from fer_hpc.study.state import read_part, record_part
from tests.helpers.waiting import until

LOCAL = JobConfig(cluster="local")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A study whose parts are shell scripts; one is finished when its folder has a file `done`."""

    def command(request: Request, args: list[str]) -> list[str]:
        lines = [shlex.split(line) for line in args[1:]] if args[0] == "several" else [args]
        return ["sh", "-c", "; ".join(line[-1] for line in lines)]

    monkeypatch.setattr(local, "_command", command)
    monkeypatch.setattr(
        state, "is_finished", lambda plan, part, parts=(): (part.folder / "done").exists()
    )
    monkeypatch.setattr(driver, "POLL_S", 0.02)
    return new_plan(StudyConfig(out=tmp_path, source="synthetic", scale="tiny"), LOCAL)


def part(plan: Plan, name: str, script: str, *needs: str, kind: Kind = "train") -> Part:
    """`script` may use $F, the part's folder."""
    folder = plan.out / name
    needed = tuple(f"train/{other}" for other in needs)
    script = f"F={folder}; {script}"
    return Part(f"{kind}/{name}", kind, ["train", script], folder, needed)


def run(plan: Plan, parts: list[Part], cores: int = 2) -> int:
    return Driver(plan, parts, LOCAL, Room(cores, memory_gb=64)).run()


DONE, WRONG = "touch $F/done", "echo 'fer-hpc train: error: no such face'; exit 2"


def test_a_failed_part_stops_only_what_needs_it(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    def parts(script: str) -> list[Part]:
        return [
            part(plan, "a", DONE),
            part(plan, "b", script),
            part(plan, "c", DONE, "b"),
            part(plan, "d", DONE, "a"),
        ]

    assert run(plan, parts(WRONG)) == EXIT_FINDINGS
    text = capsys.readouterr().out
    assert "failed: train/b: fer-hpc train: error: no such face" in text
    assert "not run, because they need those: train/c" in text
    assert [(plan.out / name / "done").exists() for name in "abcd"] == [True, False, False, True]
    assert run(plan, parts(DONE)) == EXIT_FINISHED, "the same command tries again"
    assert "start        train/a" not in capsys.readouterr().out


def test_a_killed_part_starts_again(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    once = "if [ -e $F/tried ]; then touch $F/done; else touch $F/tried; kill -9 $$; fi"
    killed = part(plan, "killed", once)
    assert run(plan, [killed]) == EXIT_FINISHED
    stored = read_part(plan, killed)
    assert stored
    assert stored["starts"] == 2
    assert "ended by SIGKILL; it goes on" in capsys.readouterr().out


def test_a_part_that_gains_nothing_is_given_up(plan: Plan) -> None:
    hopeless = part(plan, "hopeless", "kill -9 $$")
    assert run(plan, [hopeless]) == EXIT_FINDINGS
    stored = read_part(plan, hopeless)
    assert stored
    assert stored["starts"] == 3
    assert "3 starts without a gain" in stored["failed"]


def test_a_success_without_results_is_a_failure(plan: Plan) -> None:
    assert run(plan, [part(plan, "empty", "true")]) == EXIT_FINDINGS


def test_a_seed_is_not_trained_with_a_plugin_that_was_edited_meanwhile(plan: Plan) -> None:
    plugin = plan.out / "net.py"
    plugin.parent.mkdir(exist_ok=True)
    plugin.write_text("# as it was")
    entry = {"path": str(plugin), "sha256": sha256(plugin), "is_plugin": True}
    shape = {"science": {}, "data": {"path": "", "fingerprint": ""}, "plugins": {"model": entry}}
    config = plan.out / "config.json"
    write_json(config, shape)
    begins = f"mkdir -p $F; cp {config} $F; echo '# edited' > {plugin}; {DONE}"
    first, second = part(plan, "mine-seed0", begins), part(plan, "mine-seed1", DONE)
    later = part(plan, "other-seed0", DONE)
    assert run(plan, [first, second, later], cores=1) == EXIT_FINDINGS
    stored = read_part(plan, second)
    assert stored
    assert "other code" in stored["failed"] and str(plugin) in stored["failed"]
    assert not (second.folder / "done").exists()
    assert (later.folder / "done").exists()


def test_a_job_of_a_killed_driver_is_found_again(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, later = part(plan, "lost", ""), part(plan, "later", DONE, "lost")
    beside = part(plan, "beside", f"touch {lost.folder}/go; {DONE}")  # once `lost` is found
    waits = "for i in $(seq 1200); do [ -e $F/go ] && break; sleep 0.1; done"
    args = ["train", f"F={lost.folder}; {waits}; {DONE}"]
    by = local.Local()
    process, name = by.start(Request(LOCAL, lost.folder, [args], []), args, {"ITS": "own"})
    assert local.environment_of(name)["ITS"] == "own"
    more = {"scheduler": "local", "cluster": by.cluster(), "parts": [lost.name]}
    record_job(lost.folder, name, args, [], **more)
    record_part(plan, lost, started=True)
    assert run(plan, [lost, later, beside]) == EXIT_FINISHED
    process.wait()
    text = capsys.readouterr().out
    assert "runs still   train/lost" in text
    assert "start        train/lost" not in text


def test_runs_are_scored_together(plan: Plan) -> None:
    script = f"mkdir -p $F; {DONE}; echo $$ >> {plan.out}/processes"
    scores = [part(plan, name, script, kind="val") for name in "abc"]
    assert run(plan, scores) == EXIT_FINISHED
    processes = (plan.out / "processes").read_text().split()
    assert len(processes) == 3
    assert len(set(processes)) == 1


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match="works on this study already")
    with only_driver(tmp_path), refused, only_driver(tmp_path):
        pass
    with only_driver(tmp_path):
        assert len(read_json(tmp_path / "parts" / "driver.json")) == 2


def test_a_signal_stops_the_parts(plan: Plan) -> None:
    waits = part(plan, "waits", f"echo $$ > $F/pid; kill -TERM {os.getpid()}; exec sleep 60")
    assert run(plan, [waits]) == EXIT_RUN_AGAIN
    pid = int((waits.folder / "pid").read_text())
    assert local.process_state(pid)[0] in ("", "Z")


# ---- a complete one ------------------------------------------------------------------------------


def start(out: Path) -> subprocess.Popen[bytes]:
    with (out.parent / f"{out.name}.log").open("ab") as log:
        command = ("study", out, "--source", "synthetic", "--scale", "tiny")
        return subprocess.Popen(
            [sys.executable, "-m", "fer_hpc", *map(str, command)], stdout=log, stderr=log
        )


def compared(out: Path) -> dict[str, bytes]:
    """The weights, metrics and scores of a study, without the times of day."""
    names = ("final.pt", "best.pt", "metrics.jsonl", "manifest.json", "eval-*.json", "best.json")
    found = {p for name in names for p in out.rglob(name) if "attempts" not in p.parts}
    texts = {path.relative_to(out).as_posix(): path.read_bytes() for path in found}
    texts = {k: v.replace(bytes(out), b"OUT") for k, v in texts.items()}
    page = (out / "report" / "index.html").read_text()
    texts["tables"] = "".join(re.findall(r"<h3[^>]*>Table 2.*?</table>", page, re.S)).encode()
    return texts


@pytest.mark.long
def test_a_tiny_study_that_is_killed_twice_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(3000) == EXIT_FINISHED, (tmp_path / "whole.log").read_text()

    first = start(killed)
    run = killed / "runs" / "cnn_improved-seed1"
    until((run / "config.json").exists, 900, "the second model's training")
    first.kill()
    first.wait()
    second = start(killed)
    run = killed / "runs" / "resnet_improved-seed0"
    until(lambda: (run / "attempts" / "0001" / "owner.json").exists(), 1500, "a large training")
    with contextlib.suppress(ProcessLookupError):
        os.kill(read_json(run / "attempts" / "0001" / "owner.json")["pid"], signal.SIGKILL)
    assert second.wait(3000) == EXIT_FINISHED, (tmp_path / "killed.log").read_text()
    assert len(attempt_numbers(run)) == 2
    a, b = compared(whole), compared(killed)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
    finals = [name for name in a if name.endswith("final.pt")]
    assert len(finals) == 18 + 27 + 2, "the networks, the grid, the GAN and its judge of persons"
    shutil.rmtree(tmp_path)
