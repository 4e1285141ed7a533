"""Two ranks on one GPU through gloo (make test-gpu): the exchange between ranks, without NCCL."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from fer_hpc.config import EXIT_RUN_AGAIN, EXIT_USER_ERROR
from fer_hpc.run.folder import read_environment, read_status
from tests.helpers.processes import finish, start_ranks
from tests.helpers.runs import assert_same_outcome, until_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FLAGS = (
    "--batch-size 36 --checkpoint-every-s 0.2 --no-tensorboard --threads 1 --device cuda".split()
)
SHARED = (*FLAGS, "--deterministic", "--backend", "gloo")


@pytest.fixture(autouse=True)
def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible[0])


@pytest.mark.parametrize(
    "recipe",
    [
        "cnn_improved --epochs 8 --flip",
        "resnet_baseline --epochs 8 --schedule cosine --ema 0.9 --accumulate 3 --clip 1",
    ],
)
def test_killed_and_run_again_two_ranks_end_with_the_same_bytes(
    shards: Path, tmp_path: Path, recipe: str
) -> None:
    call = ("train", *recipe.split(), "--data", shards, *SHARED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(start_ranks(2, *call, "--run", whole)) == [0, 0]
    assert read_environment(whole)["world_size"] == 2
    ranks = start_ranks(2, *call, "--run", killed)
    until_training(killed, 1, images_seen=300)
    for rank in ranks:
        rank.kill()
    finish(ranks)
    assert read_status(killed)["state"] == "interrupted"
    assert finish(start_ranks(2, *call, "--run", killed)) == [0, 0]
    assert_same_outcome(killed, whole)


def test_a_dead_rank_ends_the_other_one(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    call = ("train", "cnn_baseline", "--data", shards, "--run", run, "--epochs", 5000, *SHARED)
    ranks = start_ranks(2, *call)
    until_training(run, 1, images_seen=36)
    ranks[1].kill()
    began = time.monotonic()
    assert finish(ranks, 90) == [EXIT_RUN_AGAIN, -signal.SIGKILL]
    assert time.monotonic() - began < 80
    assert read_status(run)["state"] == "interrupted"


def test_two_ranks_do_not_share_a_card_by_mistake(shards: Path, tmp_path: Path) -> None:
    call = ("train", "cnn_baseline", "--data", shards, "--run", tmp_path / "run", *FLAGS)
    ranks = start_ranks(2, *call)
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [EXIT_USER_ERROR] * 2
    assert "ranks 0 and 1 have the same GPU" in errors[0]
    assert "--backend gloo" in errors[0]


def test_the_gan_trains_in_two_ranks_on_one_card(shards: Path, tmp_path: Path) -> None:
    flags = "--epochs 1 --batch-size 16 --no-tensorboard --device cuda --backend gloo".split()
    call = ("train_gan", "--data", shards, "--run", tmp_path / "gan", *flags)
    assert finish(start_ranks(2, *call)) == [0, 0]
