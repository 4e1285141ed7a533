"""Run folders in tests: begin one, wait for one, compare two."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from fer_hpc.drill.verify import flat_parts
from fer_hpc.run.folder import attempt_path, list_checkpoints, read_rows
from tests.conftest import TRAIN_SPEED
from tests.helpers.processes import HOLD, Started
from tests.helpers.waiting import until

SECONDS = 120  # for anything that a test waits for
TINY = ("--threads", 1, "--checkpoint-every-s", 0.5, "--batch-size", 36)


def until_training(
    run: Path, attempt: int, images_seen: int = 0, process: Started | None = None
) -> None:
    """Wait until an attempt trains and has a checkpoint at or after `images_seen` (0: none).

    Where `process` has ended before, the error is what it wrote.
    """
    folder, deadline = attempt_path(run, attempt), time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        code = process.returncode if process else None
        saved = [int(p.stem) for p in folder.glob("0*.pt")]
        if (folder / "environment.json").exists() and (
            not images_seen or max(saved, default=0) >= images_seen
        ):
            return
        if process and code is not None:
            raise AssertionError(f"it ended with {code}: {''.join(process.communicate())}")
        time.sleep(0.01)
    raise TimeoutError(f"attempt {attempt} did not begin")


def assert_same_outcome(run: Path, other: Path) -> None:
    """Equal bytes: metrics, weights, chain, and the last checkpoint with all that a continuation
    needs."""
    names = ["metrics.jsonl", "final.pt", *(["best.pt"] if (other / "best.pt").exists() else [])]
    for name in names:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    chains = [read_rows(each, "chain.jsonl") for each in (run, other)]
    assert chains[0] == chains[1] != []
    last, others = (list_checkpoints(each)[0][2] for each in (run, other))
    assert last.name == others.name
    assert last.read_bytes() == others.read_bytes(), differing(last, others)


def differing(path: Path, other: Path) -> list[str]:
    """What two checkpoints do not have alike."""

    def content(tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor):
            return repr(tensor)
        return tensor.stride(), tensor.untyped_storage().nbytes(), tensor.numpy().tobytes()

    a, b = (flat_parts(torch.load(p, weights_only=True)) for p in (path, other))
    return sorted(
        f"{name}: {a.get(name)!s:.60} / {b.get(name)!s:.60}"
        for name in a.keys() | b.keys()
        if content(a.get(name)) != content(b.get(name))
    )


def lasting(run: Path, seconds: float) -> tuple[object, ...]:
    """Flags of a training that takes about so long on this machine, on which `run` was trained.

    By its fastest epoch: the first also prepares the kernels, in bf16 for longer than it trains.
    Where other tests ran beside `run`, it takes less than half the time.
    """
    rows = read_rows(run, "timing.jsonl")
    epoch_s = min(row["train_s"] + row["val_s"] for row in rows)
    return (*TINY, "--epochs", max(4, math.ceil(seconds / epoch_s)), "--no-tensorboard")


def until_saved(run: Path, images: int = 36, attempt: int = 1) -> None:
    """Wait until start number `attempt` of a run has saved a checkpoint beyond `images`."""
    until(
        lambda: any(n >= attempt and seen >= images for n, seen, _ in list_checkpoints(run)),
        90,
        f"a checkpoint of attempt {attempt} beyond {images} images in {run}",
    )


def start(shards: Path, run: Path, *flags: object, hold: int = 0) -> Started:
    """A training; with `hold` it waits at so many images for a signal, and saves a batch before."""
    call = ("train", "cnn_baseline", "--data", shards, "--run", run, *TRAIN_SPEED, *flags)
    return Started(*call, env={**os.environ, **({HOLD: f"{hold - 30} {hold}"} if hold else {})})
