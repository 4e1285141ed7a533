"""On a real GPU (make test-gpu): the promises that the CPU cannot show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import Fer
from tests.helpers import processes
from tests.helpers.runs import assert_same_outcome, until_training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FLAGS = "--epochs 4 --batch-size 30 --checkpoint-every-s 0.2 --no-tensorboard --device cuda".split()


def test_killed_and_run_again_a_deterministic_run_ends_with_the_same_bytes(
    fer: Fer, shards: Path, tmp_path: Path
) -> None:
    call = ("train", "cnn_improved", "--data", shards, "--flip", "--deterministic", *FLAGS)
    done = fer(*call, "--run", tmp_path / "undisturbed")
    assert done.returncode == 0, done.stderr
    process = processes.Started(*call, "--run", tmp_path / "killed")
    until_training(tmp_path / "killed", 1, images_seen=300)
    process.kill()
    process.wait(60)
    assert fer(*call, "--run", tmp_path / "killed").returncode == 0
    assert_same_outcome(tmp_path / "killed", tmp_path / "undisturbed")


def test_a_gpu_run_is_recorded_with_its_card(fer: Fer, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    call = ("train", "resnet_baseline", "--data", shards, "--run", run, "--precision", "fp32")
    assert fer(*call, *FLAGS).returncode == 0
    environment = json.loads((run / "attempts" / "0001" / "environment.json").read_text())
    assert environment["device"] == torch.cuda.get_device_name(0)
    assert fer("evaluate", run, "--split", "val").returncode == 0


def test_the_gan_trains_on_a_gpu(fer: Fer, shards: Path, tmp_path: Path) -> None:
    call = ("train_gan", "--data", shards, "--run", tmp_path / "gan", "--epochs", 1)
    flags = ("--batch-size", 16, "--no-tensorboard", "--device", "cuda")
    done = fer(*call, *flags)
    assert done.returncode == 0, done.stderr
