"""Training in several processes: the same batches, the same end after kills, no rank waits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fer_hpc.run.folder import list_checkpoints, read_environment, read_rows, read_status
from fer_hpc.training.setup import reads_buffers
from tests.conftest import Preprocess, Train
from tests.helpers.processes import finish, start_ranks
from tests.helpers.runs import assert_same_outcome, until_training

COMMON = "--checkpoint-every-s 0.3 --no-tensorboard --threads 1".split()
# Each family with a schedule and the features that keep state of their own.
CASES = {
    "cnn_plateau_mixup": "cnn_baseline --batch-size 36 --epochs 3 --mixup 0.3 --flip",
    "resnet_cosine_ema": "resnet_baseline --batch-size 36 --epochs 3 --schedule cosine"
    " --warmup-epochs 1 --ema 0.9 --mixup 0.3 --accumulate 3 --clip 1",
}


def arguments(case: str, shards: Path, run: Path) -> tuple[object, ...]:
    preset, *flags = CASES[case].split()
    return (preset, "--data", shards, "--run", run, *COMMON, *flags)


def kill_and_finish(
    size: int, case: str, shards: Path, folder: Path, kills: int, rng: random.Random
) -> None:
    """Train undisturbed, and again with all ranks killed at random moments; both must end alike."""
    whole, killed = folder / "whole", folder / "killed"
    began = time.monotonic()
    assert finish(start_ranks(size, "train", *arguments(case, shards, whole))) == [0] * size
    seconds = time.monotonic() - began
    end = read_status(whole)["images_seen"]
    for attempt in range(1, kills + 1):
        ranks = start_ranks(
            size, "train", *arguments(case, shards, killed), hold=f"{end - 72} {end}"
        )
        until_training(killed, attempt, process=ranks[0])
        time.sleep(rng.uniform(0.1, 0.35 * seconds / kills))
        for rank in ranks:
            rank.kill()
        finish(ranks)
    assert read_status(killed)["state"] == "interrupted"
    assert finish(start_ranks(size, "train", *arguments(case, shards, killed))) == [0] * size
    assert_same_outcome(killed, whole)


@pytest.mark.parametrize(
    ("size", "case"),
    [
        pytest.param(1, "resnet_cosine_ema", marks=pytest.mark.long),
        (2, "cnn_plateau_mixup"),
        pytest.param(4, "resnet_cosine_ema", marks=pytest.mark.long),
    ],
)
def test_killed_ranks_end_bit_identical(shards: Path, tmp_path: Path, size: int, case: str) -> None:
    kill_and_finish(size, case, shards, tmp_path, kills=2, rng=random.Random(size))


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_killed_many_times_end_bit_identical(
    shards: Path, tmp_path: Path, size: int, case: str
) -> None:
    kill_and_finish(size, case, shards, tmp_path, kills=20, rng=random.Random(size))


@pytest.fixture(scope="module")
def rgb_shards(preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 synthetic faces of 64x64 in colour, the smallest that resnet_improved takes."""
    out = tmp_path_factory.mktemp("rgb") / "shards"
    done = preprocess("synthetic", out, "--count", 120, "--size", 64, "--channels", 3)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.long
@pytest.mark.parametrize("preset", ["vgg", "resnet_improved"])
def test_the_large_networks_end_bit_identical(
    shards: Path, rgb_shards: Path, tmp_path: Path, preset: str
) -> None:
    """Their checkpoints have hundreds of megabytes: the interval is longer, the kills are few."""
    faces = rgb_shards if preset == "resnet_improved" else shards
    CASES[preset] = f"{preset} --batch-size 12 --epochs 3 --checkpoint-every-s 2"
    kill_and_finish(2, preset, faces, tmp_path, kills=3, rng=random.Random(5))


def losses(run: Path) -> list[float]:
    return [row[key] for row in read_rows(run) for key in ("train_loss", "val_loss")]


@pytest.mark.parametrize(
    ("precision", "sizes", "epochs", "tolerance"),
    [
        pytest.param("fp32", (1, 2, 4), 3, 1e-4, marks=pytest.mark.long),
        ("fp64", (1, 2), 1, 1e-9),
    ],
)
def test_losses_agree_at_any_world_size(
    faces: Path,
    tmp_path: Path,
    precision: str,
    sizes: tuple[int, ...],
    epochs: int,
    tolerance: float,
) -> None:
    """Without dropout and with frozen batch norm: nothing else depends on ranks."""
    flags = (
        f"--batch-size 12 --epochs {epochs} --freeze-bn --precision {precision} --class-weights 5"
        " --mixup 0.2 --flip --rotate 10 --erase 0.3 --label-smoothing 0.1 --clip 0.5"
    ).split()
    for size in sizes:
        run = tmp_path / f"{size}"
        call = ("resnet_baseline", "--data", faces, "--run", run, *flags, *COMMON)
        assert finish(start_ranks(size, "train", *call)) == [0] * size
        assert read_status(run)["images_seen"] >= epochs * 7 * 12
        assert losses(run) == pytest.approx(losses(tmp_path / "1"), abs=tolerance)


class Counting(torch.nn.Module):
    """A layer of somebody else's whose training step reads what it has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))


def test_buffers_are_copied_each_step_only_where_a_step_may_read_them() -> None:
    plain = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    assert not reads_buffers(plain)
    assert not reads_buffers(torch.nn.SyncBatchNorm.convert_sync_batchnorm(plain))
    assert reads_buffers(torch.nn.Sequential(plain, Counting()))
    theirs = type("Renorm", (torch.nn.BatchNorm2d,), {})
    assert reads_buffers(torch.nn.Sequential(theirs(2)))


def test_a_dead_rank_ends_the_others_within_seconds(shards: Path, tmp_path: Path) -> None:
    preset, *flags = CASES["cnn_plateau_mixup"].split()
    flags[flags.index("--epochs") + 1] = "500"
    ranks = start_ranks(
        2, "train", preset, "--data", shards, "--run", tmp_path / "run", *flags, *COMMON
    )
    until_training(tmp_path / "run", 1, 36, ranks[0])
    ranks[1].kill()
    began = time.monotonic()
    assert finish(ranks, 120) == [75, -signal.SIGKILL]
    assert time.monotonic() - began < 60
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert "lost another rank" in status["why"]


def test_a_signal_to_one_rank_saves_all(shards: Path, tmp_path: Path) -> None:
    """Preempted on two ranks, then finished on one: the order of images goes on."""
    preset, *flags = CASES["cnn_plateau_mixup"].split()
    run = tmp_path / "run"
    call = (preset, "--data", shards, "--run", run, *flags, *COMMON, "--checkpoint-every-s", "1000")
    ranks = start_ranks(2, "train", *call, hold="72 144")
    until_training(run, 1, 72, ranks[0])
    ranks[1].send_signal(signal.SIGUSR1)
    assert finish(ranks) == [75, 75]
    status = read_status(run)
    assert (status["state"], status["why"]) == ("interrupted", "stopped by SIGUSR1")
    saved = list_checkpoints(run)[0][1]
    assert saved == status["images_seen"] > 72
    assert finish(start_ranks(1, "train", *call)) == [0]
    assert [row["epoch"] for row in read_rows(run)] == [1, 2, 3]
    assert read_environment(run)["parent"]["images_seen"] == saved


@pytest.mark.long
def test_torchrun_starts_the_same_command(shards: Path, tmp_path: Path) -> None:
    preset, *flags = CASES["resnet_cosine_ema"].split()
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 -m fer_hpc.train --"
    arguments = [preset, "--data", str(shards), "--run", str(tmp_path / "run"), *flags, *COMMON]
    call = [sys.executable, *torchrun.split(), *arguments, "--epochs", "1"]
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=400, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stderr
    assert done.stdout.count("finished") == 1


def test_an_indivisible_batch_is_refused_once(train: Train, shards: Path, tmp_path: Path) -> None:
    call = ("cnn_baseline", "--data", shards, "--run", tmp_path / "run", "--batch-size", 25)
    ranks = start_ranks(2, "train", *call, *COMMON)
    errors = [rank.communicate(timeout=400)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "--batch-size 25 does not divide by world size 2; use 24 or 26" in errors[0]
    assert errors[1] == ""
    done = train(tmp_path / "run", "--batch-size", 50, "--accumulate", 4)
    assert done.returncode == 2
    assert "world size 1 times --accumulate 4; use 48 or 52" in done.stderr
