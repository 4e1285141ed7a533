"""Trainings that cannot go on: one message that names the flag, the file or the limit."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from fer_hpc.data.shards import read_manifest
from fer_hpc.run.folder import list_checkpoints, read_status
from tests.conftest import TRAIN_SPEED, Fer, Train
from tests.helpers.processes import Started
from tests.helpers.processes import run as run_command
from tests.helpers.runs import SECONDS, assert_same_outcome, start, until_training


def test_a_diverging_run_stops_and_names_the_place(
    train: Train, shards: Path, tmp_path: Path
) -> None:
    done = train(tmp_path / "run", "--lr", 1e30)
    assert done.returncode == 2
    assert "images seen" in done.stderr
    assert "--lr" in done.stderr
    assert read_status(tmp_path / "run")["state"] == "failed"
    one_step = ("--epochs", 1, "--batch-size", read_manifest(shards).n("train"))
    after = train(tmp_path / "after", *one_step, "--lr", 1e30)
    assert after.returncode == 2, "the step's own loss is a number, that of val after it is none"
    assert "the loss on val is not a finite number" in after.stderr
    assert not (tmp_path / "after" / "best.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cnn_improve",), "did you mean 'cnn_improved'"),
        ((), "which preset?"),
        (("cnn_improved", "--batchsize", "3"), "--batchsize"),
        (
            ("cnn_improved", "--data", "/nowhere"),
            "/nowhere: not a folder of shards",
        ),
        (("cnn_improved", "--lr", "fast"), "--lr"),
        (("cnn_improved", "--epochs", "0"), "--epochs 0"),
    ],
)
def test_bad_arguments_are_one_clear_message(
    fer: Fer, shards: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    where = ["--data", shards] if "--data" not in arguments else []
    done = fer("train", *arguments, *where, "--run", tmp_path / "run")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def run_limited(resource_id: int, limit: int, *args: object) -> tuple[int, str]:
    """Exit code and messages of a command that may use `limit` (bytes) of a resource."""
    process = Started(*args)
    resource.prlimit(process.pid, resource_id, (limit, limit))
    messages = process.communicate(timeout=400)[1]
    return process.wait(), messages


def test_too_little_memory_names_the_batch_size(shards: Path, tmp_path: Path) -> None:
    flags = ("--batch-size", 150, "--threads", 1)
    call = ("train", "vgg", "--data", shards, "--run", tmp_path / "run", *flags)
    code, messages = run_limited(resource.RLIMIT_DATA, 1_300_000_000, *call)
    assert code == 2
    assert "out of memory with --batch-size 150: take a smaller one, or --accumulate" in messages
    assert "Traceback" not in messages


def test_full_storage_keeps_the_checkpoint_before_and_says_so(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(shards, run, hold=60)
    until_training(run, 1, 30, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 75
    saved = list_checkpoints(run)[0]
    call = ("train", "cnn_baseline", "--data", shards, "--run", run, *TRAIN_SPEED)
    code, messages = run_limited(resource.RLIMIT_FSIZE, 5 << 20, *call)  # a checkpoint has 30 MB
    assert code == 2
    assert f"the checkpoint at {saved[1]:,} images is kept: make room" in messages
    assert "Traceback" not in messages
    assert list_checkpoints(run)[0][1] == saved[1]
    assert train(run).returncode == 0
    assert_same_outcome(run, finished_run)


def test_full_storage_before_a_checkpoint_names_none(shards: Path, tmp_path: Path) -> None:
    call = ("train", "cnn_baseline", "--data", shards, "--run", tmp_path / "run", *TRAIN_SPEED)
    code, messages = run_limited(resource.RLIMIT_FSIZE, 5 << 20, *call)
    assert code == 2
    assert "there is no checkpoint yet: make room" in messages


def test_a_file_size_limit_is_named_by_export(finished_run: Path, tmp_path: Path) -> None:
    call = ("export", finished_run, "--out", tmp_path)
    code, messages = run_limited(resource.RLIMIT_FSIZE, 20 << 10, *call)
    assert code == 2
    assert f"error: File too large: {tmp_path / 'model.onnx'}\n" in messages


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_damaged_data_is_one_message(train: Train, shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    shard = next(broken.glob("train-*.h5"))
    shard.write_bytes(bytes(100) + shard.read_bytes()[100:])
    headless = train(tmp_path / "run", data=broken)
    assert headless.returncode == 2
    assert "is damaged" in headless.stderr
    for text in (
        '{"format": 1}',
        "[1]",
        '{"format": 1, "image_shape": [48, 48, 1], "classes": [], "fingerprint": "", "splits": 3}',
    ):
        (broken / "manifest.json").write_text(text)
        done = train(tmp_path / "run", data=broken)
        assert done.returncode == 2, text
        assert "preprocess again" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_pickle_that_runs_code_is_refused(train: Train, tmp_path: Path) -> None:
    torch.save({"model": RunsCode()}, tmp_path / "pickle.pt")
    done = train(tmp_path / "run", "--init-from", tmp_path / "pickle.pt")
    assert done.returncode == 2
    assert "not a file of weights alone: it holds other Python objects" in done.stderr


def test_compiling_without_a_compiler_is_refused(shards: Path, tmp_path: Path) -> None:
    arguments = ("resnet_baseline", "--data", shards, "--run", tmp_path / "run", "--compile")
    ended = run_command("train", *arguments, env={**os.environ, "CXX": "no-such-compiler"})
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "--compile needs a C++ compiler, and there is no no-such-compiler" in ended.stderr
    assert not (tmp_path / "run" / "config.json").exists()
