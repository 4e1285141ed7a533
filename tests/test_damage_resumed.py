"""Trainings that start again in a damaged run folder: what they take over, and what they say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fer_hpc.run.folder import list_checkpoints, read_rows, read_status
from tests.conftest import TRAIN_SPEED, Fer, Train
from tests.helpers.runs import assert_same_outcome


@pytest.mark.parametrize("content", ["", "{}", None])
def test_a_start_whose_record_is_damaged_keeps_its_place_in_the_history(
    train: Train, fer: Fer, finished_run: Path, tmp_path: Path, content: str | None
) -> None:
    """What it continued stands in status.json as well; the first one can have continued nothing."""
    run = tmp_path / "run"
    assert train(run, "--epochs", 2).returncode == 0
    assert train(run).returncode == 0
    for attempt in ("0001", "0002"):
        file = run / "attempts" / attempt / "environment.json"
        file.unlink() if content is None else file.write_text(content)
    again = train(run)
    assert "nothing to do" in again.stdout, again.stderr
    assert_same_outcome(run, finished_run)
    assert fer("evaluate", run).returncode == 0
    assert f"{file} is missing or damaged" in fer("verify", run, finished_run).stdout
    status = run / "attempts" / "0002" / "status.json"
    known = json.loads(status.read_text())
    assert known.pop("parent")["attempt"] == 1
    status.write_text(json.dumps(known))  # as an earlier version wrote it
    for done in (train(run), fer("evaluate", run)):
        assert done.returncode == 2 and str(file) in done.stderr
    name = "metrics.jsonl"
    assert (run / name).read_bytes() == (finished_run / name).read_bytes()


def test_a_run_whose_end_cannot_be_recorded_has_not_finished(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code = """
import errno, sys
from fer_hpc.cli.main import main
from fer_hpc.run import attempts
real = attempts.write_json
def write(path, value):
    if path.name == "status.json" and value["state"] != "running":
        raise OSError(errno.EIO, "Input/output error")
    real(path, value)
attempts.write_json = write
sys.exit(main(sys.argv[1:]))
"""
    call = ["train", "cnn_baseline", "--data", shards, "--run", run, *TRAIN_SPEED]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, call)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout
    assert "Input/output error" in done.stderr and "Traceback" not in done.stderr
    assert "attempt 2, from image 510" in train(run).stderr
    assert_same_outcome(run, finished_run)


def test_results_without_the_attempts_that_they_came_from_are_not_replaced(
    train: Train, fer: Fer, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "attempts")
    for done in (train(run), fer("evaluate", run)):
        assert done.returncode == 2
        assert "final.pt, but not the folder attempts/" in done.stderr
    assert (run / "final.pt").read_bytes() == (finished_run / "final.pt").read_bytes()
    assert not (run / "attempts").exists()


def test_a_training_goes_on_over_torn_lines_and_says_so(
    train: Train, finished_run: Path, tmp_path: Path
) -> None:
    """The line is lost, and named; weights and all other lines are those of an undisturbed run."""
    run = tmp_path / "run"
    assert train(run, "--epochs", 2).returncode == 0
    file = run / "attempts" / "0001" / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0][:20] + b"\n" + lines[1])
    done = train(run)
    assert done.returncode == 0, done.stderr
    assert f"{file}: 1 damaged line(s) left out" in done.stderr
    assert [row["epoch"] for row in read_rows(run)] == [2, 3]

    whole = (finished_run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(whole[0] + (run / "metrics.jsonl").read_bytes())
    assert_same_outcome(run, finished_run)


def test_data_that_was_changed_in_place_is_not_trained_on(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    data, run = shutil.copytree(shards, tmp_path / "data"), tmp_path / "run"
    assert train(run, "--epochs", 2, data=data).returncode == 0
    saved = [(n, p.name) for n, _, p in list_checkpoints(run)]
    shard = data / "train-00000.h5"
    good = shard.read_bytes()
    with shard.open("r+b") as f:  # not by another file of the same name
        f.seek(len(good) // 2)
        f.write(bytes(2000))
    done = train(run, data=data)
    assert done.returncode == 2
    assert "train-00000.h5 does not have the checksum in the manifest" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run / "final.pt").exists() or read_status(run)["state"] == "failed"
    parent = list_checkpoints(run)[0]
    assert (1, parent[2].name) in saved, "nothing that this start trained stays"
    shard.write_bytes(good)
    assert train(run, data=data).returncode == 0
    assert_same_outcome(run, finished_run)
