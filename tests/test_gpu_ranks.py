"""Two ranks on one GPU through gloo (make test-gpu): the exchange between ranks, without NCCL."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fer_hpc.config import EXIT_RUN_AGAIN, EXIT_USER_ERROR
from fer_hpc.run.folder import read_environment, read_status
from tests.helpers.processes import call, finish, start_ranks
from tests.helpers.runs import assert_same_outcome, until_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
USUAL: dict[str, Any] = {
    "batch_size": 36,
    "checkpoint_every_s": 0.2,
    "tensorboard": False,
    "threads": 1,
    "device": "cuda",
}
SHARED = {**USUAL, "backend": "gloo"}


@pytest.fixture(autouse=True)
def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible[0])


@pytest.mark.parametrize(
    "recipe",
    [
        {"preset": "cnn_improved", "flip": True},
        {"preset": "resnet_baseline", "schedule": "cosine", "ema": 0.9, "accumulate": 3, "clip": 1},
    ],
    ids=lambda recipe: recipe["preset"],
)
def test_killed_and_run_again_two_ranks_end_with_the_same_bytes(
    gpu_shards: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    fields = {**SHARED, **recipe, "data": gpu_shards, "epochs": 8}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(start_ranks(2, *call("train", run=whole, **fields))) == [0, 0]
    assert read_environment(whole)["world_size"] == 2
    ranks = start_ranks(2, *call("train", run=killed, **fields))
    until_training(killed, 1, images_seen=300)
    for rank in ranks:
        rank.kill()
    finish(ranks)
    assert read_status(killed)["state"] == "interrupted"
    assert finish(start_ranks(2, *call("train", run=killed, **fields))) == [0, 0]
    assert_same_outcome(killed, whole)


def test_a_dead_rank_ends_the_other_one(gpu_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fields = {**SHARED, "data": gpu_shards, "run": run, "epochs": 5000}
    ranks = start_ranks(2, *call("train", "cnn_baseline", **fields))
    until_training(run, 1, images_seen=36)
    ranks[1].kill()
    began = time.monotonic()
    assert finish(ranks, 90) == [EXIT_RUN_AGAIN, -signal.SIGKILL]
    assert time.monotonic() - began < 80
    assert read_status(run)["state"] == "interrupted"


def test_two_ranks_do_not_share_a_card_by_mistake(gpu_shards: Path, tmp_path: Path) -> None:
    fields = {**USUAL, "data": gpu_shards, "run": tmp_path / "run"}
    ranks = start_ranks(2, *call("train", "cnn_baseline", **fields))
    errors = [rank.communicate(timeout=400)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [EXIT_USER_ERROR] * 2
    assert "ranks 0 and 1 have the same GPU" in errors[0]
    assert "--backend gloo" in errors[0]


def test_the_gan_trains_in_two_ranks_on_one_card(gpu_shards: Path, tmp_path: Path) -> None:
    fields = {**SHARED, "data": gpu_shards, "run": tmp_path / "gan", "epochs": 1, "batch_size": 16}
    assert finish(start_ranks(2, *call("train_gan", **fields))) == [0, 0]
