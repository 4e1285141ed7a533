"""The suite as a library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fer_hpc
from fer_hpc import TrainConfig, UserError, evaluate, load, preset, train
from tests.conftest import Fer, command

SMALL: dict[str, Any] = dict(epochs=1, batch_size=30, threads=1, tensorboard=False)


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    loaded = python(
        "import sys, fer_hpc\n"
        "from fer_hpc import TrainConfig, preset, train, evaluate\n"
        "print([m for m in ('torch', 'ray', 'h5py', 'matplotlib') if m in sys.modules])"
    )
    assert loaded == "[]"


def test_the_command_modules_do_not_replace_the_functions() -> None:
    assert (
        python(
            "import fer_hpc.train, fer_hpc.evaluate, fer_hpc\n"
            "from fer_hpc import train\n"
            "import fer_hpc.train\n"
            "print(callable(train), callable(fer_hpc.train), fer_hpc.train is train,"
            " callable(fer_hpc.evaluate))"
        )
        == "True True True True"
    )


def test_the_commands_still_work_as_modules() -> None:
    done = subprocess.run(
        command("train", "--help"), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0
    assert "--batch-size" in done.stdout


def test_every_name_of_the_api_exists_and_has_a_docstring() -> None:
    for name in fer_hpc.API:
        assert getattr(fer_hpc, name).__doc__, name
        assert name in dir(fer_hpc)
    with pytest.raises(AttributeError, match="trian"):
        fer_hpc.trian  # noqa: B018


def test_train_and_evaluate_give_what_the_commands_write(
    fer: Fer, shards: Path, tmp_path: Path
) -> None:
    status = train("cnn_baseline", data=str(shards), run=str(tmp_path / "a"), **SMALL)
    assert status["state"] == "finished"
    assert status["best"]["epoch"] == 1
    scores = evaluate(str(tmp_path / "a"), split="test")
    assert scores["n"] > 0
    assert (tmp_path / "a" / "eval-test.json").exists()
    predictor = load(str(tmp_path / "a"))
    shares = predictor(np.zeros((2, 32, 32), np.uint8))
    assert shares.shape == (2, 8)
    assert shares.sum(1) == pytest.approx([1, 1])
    flags = ("--epochs", 1, "--batch-size", 30, "--threads", 1, "--no-tensorboard")
    done = fer("train", "cnn_baseline", "--data", shards, "--run", tmp_path / "b", *flags)
    assert done.returncode == 0, done.stderr
    for name in ("final.pt", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    again = train("cnn_baseline", data=str(shards), run=str(tmp_path / "b"), **SMALL)
    assert again["state"] == "finished"
    assert again["best"] == status["best"]
    assert [p.name for p in (tmp_path / "b" / "attempts").iterdir()] == ["0001"]


def test_a_configuration_trains_as_it_is(shards: Path, tmp_path: Path) -> None:
    config = preset("cnn_baseline", data=str(shards), run=str(tmp_path / "a"), **SMALL)
    assert isinstance(config, TrainConfig)
    assert config.data == shards
    assert train(config, seed=3)["state"] == "finished"
    with pytest.raises(UserError, match="--seed"):
        train(config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epoch": 3}, ("epoch", "epochs")),
        ({"optimizer": "adam"}, ("--optimizer", "adamw")),
        ({"epochs": "three"}, ("--epochs", "'three'", "whole number")),
        ({"epochs": 0}, ("--epochs", "at least 1")),
        ({"flip": "no"}, ("--flip", "bool")),
        ({"data": 3}, ("--data", "Path")),
        ({"model": "cnn"}, ("cnn", "cnn_baseline")),
    ],
)
def test_mistakes_are_errors_of_the_command_line(
    fields: dict[str, Any], words: tuple[str, ...], shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        train("cnn_baseline", **{"data": shards, "run": tmp_path / "run", **SMALL, **fields})
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "run" / "config.json").exists()


def test_folders_that_are_missing_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run is missing"):
        train("cnn_baseline", data=tmp_path)
    with pytest.raises(UserError, match="fer2014"):
        preset("fer2014", data=tmp_path, run=tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        evaluate(tmp_path / "nowhere")
