"""Training of a GAN that survives kills and refuses mistakes."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from fer_hpc.run.folder import list_checkpoints, read_rows, read_status
from tests.conftest import GAN_SPEED, Fer, Once, Preprocess
from tests.helpers.processes import Started, finish, start_ranks
from tests.helpers.runs import SECONDS, until_training


@pytest.fixture
def faces(preprocess: Preprocess, once: Once) -> Path:
    """64 drawn faces, half of those for the other tests of the GAN."""
    flags = ("--count", 64, "--size", 32)
    return once("few/shards", lambda path: preprocess("synthetic", path, *flags))


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        (1, "improved"),
        pytest.param(1, "paper", marks=pytest.mark.long),
        pytest.param(2, "improved", marks=pytest.mark.long),
    ],
)
def test_killed_it_ends_bit_identical(faces: Path, tmp_path: Path, size: int, mode: str) -> None:
    """Killed once before and once during the adversarial steps."""
    rng, whole, killed = random.Random(size), tmp_path / "whole", tmp_path / "killed"
    call = ("--data", faces, "--epochs", 2, "--warmup", 0.6, "--mode", mode, *GAN_SPEED)
    assert finish(start_ranks(size, "train_gan", *call, "--run", whole)) == [0] * size
    epoch = read_rows(whole)[0]["images_seen"]
    for attempt, images_seen in ((1, 8), (2, epoch)):
        hold = f"{epoch + 8} {epoch + 24}"
        ranks = start_ranks(size, "train_gan", *call, "--run", killed, hold=hold)
        until_training(killed, attempt, images_seen, ranks[0])
        time.sleep(rng.uniform(0, 0.3))
        for rank in ranks:
            rank.kill()
        finish(ranks)
    assert read_status(killed)["state"] == "interrupted"
    assert list_checkpoints(killed)[0][1] >= epoch, "saved during the adversarial steps"
    assert finish(start_ranks(size, "train_gan", *call, "--run", killed)) == [0] * size
    for name in ("metrics.jsonl", "final.pt"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    rows = read_rows(whole)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(0 <= row["train_d_correct"] <= 1 for row in rows)


def test_the_papers_mode_trains_and_is_another_experiment(
    fer: Fer, faces: Path, tmp_path: Path
) -> None:
    call = ("train_gan", "--data", faces, "--run", tmp_path / "run", "--epochs", 2, *GAN_SPEED)
    done = fer(*call, "--mode", "paper")
    assert done.returncode == 0, done.stderr
    row = read_rows(tmp_path / "run")[-1]
    assert row["train_c_correct"] > 0.9, "its classifier sees one label only"
    assert row["train_identity"] == row["train_reconstruction"] == 0
    again = fer(*call)
    assert again.returncode == 2
    assert "--mode paper (now --mode improved)" in again.stderr


def test_what_cannot_be_trained_is_one_message(
    fer: Fer, faces: Path, of_40_pixels: Path, finished_run: Path, tmp_path: Path
) -> None:
    wrong = fer("train_gan", "--data", of_40_pixels, "--run", tmp_path / "run")
    assert wrong.returncode == 2
    assert "the GAN takes 32, 64, 128 or 256 pixels; preprocess with --size 32" in wrong.stderr
    other = fer("train_gan", "--data", faces, "--run", finished_run)
    assert other.returncode == 2
    assert "holds a classifier; give another --run" in other.stderr
    no_checkpoint = ("--batch-size", 8, "--threads", 1, "--checkpoint-every-s", 600, "--lr", 1e30)
    broken = fer("train_gan", "--data", faces, "--run", tmp_path / "broken", *no_checkpoint)
    assert broken.returncode == 2
    assert "a loss is not a finite number" in broken.stderr
    assert read_status(tmp_path / "broken")["state"] == "failed"
    early = fer("evaluate", tmp_path / "broken", "--pairs", 8)
    assert early.returncode == 2
    assert "holds no weights" in early.stderr


def test_a_signal_saves_and_asks_to_be_run_again(faces: Path, tmp_path: Path) -> None:
    started = Started(
        "train_gan", "--data", faces, "--run", tmp_path / "run", "--epochs", 500, *GAN_SPEED
    )
    until_training(tmp_path / "run", 1)
    started.send_signal(15)
    assert started.wait(SECONDS) == 75
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["why"] == "stopped by SIGTERM"
    assert list_checkpoints(tmp_path / "run")[0][1] == status["images_seen"]
