"""Trainings that are killed, stopped and continued: they end with the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fer_hpc.run.folder import attempt_numbers, list_checkpoints, read_rows, read_status
from tests.conftest import TRAIN_SPEED, Fer, Preprocess, Train
from tests.helpers.processes import HOLD, Started
from tests.helpers.runs import SECONDS, assert_same_outcome, start, until_training
from tests.helpers.waiting import until


def test_killed_at_random_moments_it_ends_bit_identical(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run, rng = tmp_path / "run", random.Random(0)
    for attempt, images_seen in ((1, 30), (2, 120), (3, 270)):  # of 510, in a second or in ten
        process = start(shards, run, hold=480)
        until_training(run, attempt, images_seen, process)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.wait()
    assert read_status(run)["state"] == "interrupted"
    done = train(run)
    assert done.returncode == 0, done.stderr
    assert "from image" in done.stderr
    assert_same_outcome(run, finished_run)


def test_the_older_of_two_writers_loses_and_corrupts_nothing(
    shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    older = start(shards, run, hold=480)
    until_training(run, 1, 30, older)
    older.send_signal(signal.SIGSTOP)
    newer = start(shards, run)
    until_training(run, 2, 90, newer)
    older.send_signal(signal.SIGCONT)
    assert older.wait(SECONDS) == 4
    assert "another start has taken this run over" in older.communicate()[1]
    assert newer.wait(SECONDS) == 0
    assert_same_outcome(run, finished_run)
    assert read_status(run)["state"] == "finished"


def test_a_run_in_use_is_refused_with_who_holds_it(
    train: Train, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ("--epochs", 500, "--checkpoint-every-s", 1000)
    holder = start(shards, run, *flags)
    until_training(run, 1, process=holder)
    done = train(run, *flags)
    holder.kill()
    holder.wait(SECONDS)
    assert done.returncode == 2
    assert f"in use by process {holder.pid}" in done.stderr
    again = start(shards, run, *flags)
    until_training(run, 2, process=again)
    again.send_signal(signal.SIGTERM)
    said = again.communicate(SECONDS)[1]
    assert "attempt 2, from the beginning: earlier starts left no checkpoint" in said


def test_a_signal_saves_and_asks_to_be_run_again(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(shards, run, "--checkpoint-every-s", 1000, hold=240)
    until_training(run, 1, 210, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 75
    assert "SIGTERM" in read_status(run)["why"]
    assert list_checkpoints(run)[0][1] == 240, "within an epoch, whose last image is the 360th"
    assert train(run).returncode == 0
    assert_same_outcome(run, finished_run)


def test_a_training_whose_output_was_closed_goes_on(shards: Path, tmp_path: Path) -> None:
    """As after `| head -2`; its status says so, and a signal stops it as ever."""
    run = tmp_path / "run"
    flags = ("--data", shards, "--run", run, "--epochs", 5000, *TRAIN_SPEED[2:])
    command = [sys.executable, "-m", "fer_hpc", "train", "cnn_baseline", *map(str, flags)]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(command, stdout=writer, stderr=writer)
    os.close(writer)
    try:
        until(lambda: process.poll() is not None or len(read_rows(run)) > 1, SECONDS, "epochs")
        assert read_status(run)["state"] == "running"
        assert "its output was closed" in read_status(run)["why"]
        process.terminate()
        assert process.wait(SECONDS) == 75
    finally:
        process.kill()
    assert read_status(run)["why"] == "stopped by SIGTERM"


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(shards, run, "--checkpoint-every-s", 0.02, hold=480)
    until_training(run, 1, 450, process)
    process.kill()
    process.wait()
    (_, newest, path), (_, before, _) = list_checkpoints(run)[:2]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    done = train(run)
    assert f"{newest:012d}.pt" in done.stderr
    assert f"from image {before:,}" in done.stderr
    assert_same_outcome(run, finished_run)


def test_finished_says_so_without_loading_torch(train: Train, finished_run: Path) -> None:
    done = train(finished_run)
    assert done.returncode == 0
    assert "finished, nothing to do" in done.stdout
    assert attempt_numbers(finished_run) == [1]


def test_damaged_copies_are_named_and_made_again(
    train: Train, fer: Fer, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "best.pt").write_bytes((run / "best.pt").read_bytes()[:1000])
    (run / "final.pt").unlink()
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:100])
    names = ("best.pt", "final.pt", "metrics.jsonl")
    said = fer("verify", run, finished_run).stdout
    assert all(f"{run / name} is missing, cut or changed" in said for name in names)
    said = train(run).stderr
    assert all(f"{run / name} was missing, cut or changed; made again" in said for name in names)
    assert_same_outcome(run, finished_run)
    assert train(run).stderr == ""


def test_two_n_epochs_equal_n_and_n_more(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--epochs", 2, "--flip").returncode == 0
    assert train(tmp_path / "grown", "--epochs", 1, "--flip").returncode == 0
    assert train(tmp_path / "grown", "--epochs", 2, "--flip").returncode == 0
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (
        tmp_path / "grown" / "metrics.jsonl"
    ).read_bytes()


def test_a_differing_science_field_is_refused_by_name_a_runtime_field_is_not(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    refused = train(run, "--lr", 0.5)
    assert refused.returncode == 2
    assert "--lr 0.001 (now --lr 0.5)" in refused.stderr
    moved = shutil.copytree(shards, tmp_path / "moved")
    assert train(run, "--device", "cpu", data=moved).returncode == 0


def test_other_data_is_refused(
    preprocess: Preprocess, train: Train, finished_run: Path, tmp_path: Path
) -> None:
    preprocess("synthetic", tmp_path / "other", "--count", 30, "--seed", 9)  # fewer than a batch
    done = train(finished_run, data=tmp_path / "other")
    assert done.returncode == 2
    assert "trained on other data" in done.stderr


def test_every_augmentation_on_it_resumes_bit_identical(
    train: Train, shards: Path, tmp_path: Path
) -> None:
    flags = "--flip --rotate 15 --shift 0.1 --scale 0.2 --erase 0.5 --mixup 0.2".split()
    flags += ["--brightness", "0.1"]
    whole = train(tmp_path / "whole", "--epochs", 2, *flags)
    assert whole.returncode == 0, whole.stderr
    process = start(shards, tmp_path / "killed", "--epochs", 2, *flags, hold=330)
    until_training(tmp_path / "killed", 1, 60, process)
    process.kill()
    process.wait()
    train(tmp_path / "killed", "--epochs", 2, *flags)
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer adamw --schedule cosine --warmup-epochs 0.5 --ema 0.9 --clip 1".split(),
        pytest.param(
            ("--balanced", "--accumulate", "2", "--deterministic"), marks=pytest.mark.long
        ),
        pytest.param(
            ("--precision", "fp16", "--epochs", "1"),
            marks=pytest.mark.long,
            id="fp16, slow on a CPU",
        ),
        pytest.param(("--compile",), marks=pytest.mark.long, id="compiled, half a minute each"),
        # in bf16 where the machine has it
        "--class-weights 5 --label-smoothing 0.1 --mixup 0.2 --va-weight 0.5".split(),
    ],
)
def test_recipes_resume_bit_identical(
    fer: Fer, faces: Path, tmp_path: Path, flags: Sequence[str]
) -> None:
    arguments = ("resnet_baseline", "--data", faces, *TRAIN_SPEED, "--epochs", 2, *flags)
    assert fer("train", *arguments, "--run", tmp_path / "whole").returncode == 0
    call = ("train", *arguments, "--run", tmp_path / "killed")
    process = Started(*call, env={**os.environ, HOLD: "60 90"})
    until_training(tmp_path / "killed", 1, 60, process)
    process.kill()
    process.wait()
    assert fer("train", *arguments, "--run", tmp_path / "killed").returncode == 0
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")
