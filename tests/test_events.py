"""TensorBoard's event files: how large they get, and what step-wise scalars are."""

from __future__ import annotations

import json
import shutil
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer_hpc.run.attempts import Attempt
from fer_hpc.run.log import STEP_POINTS, RunLog
from fer_hpc.training.projector import COMPONENTS, reduced
from tests.helpers.browser import tensorboard

EPOCHS, EPOCH_IMAGES, BATCH = 100, 6400, 64
CLASSES = [f"class {k}" for k in range(8)]


def means(sums: list[int]) -> dict[str, float]:
    return {"loss/train, steps": sums[1] / sums[0]}


def picture(count: int, height: int, width: int) -> torch.Tensor:
    """Pictures as smooth as faces, [count, 3, height, width]."""
    coarse = torch.rand(count, 3, height // 8, width // 8)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    attempt = object.__new__(Attempt)
    attempt.run = tmp_path
    attempt.path = tmp_path
    return RunLog(attempt, True, 0, EPOCHS * EPOCH_IMAGES, EPOCH_IMAGES)


def test_the_events_of_a_long_run_stay_below_2_mb(log: RunLog, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p, labels = rng.dirichlet(np.ones(8), 4000), rng.integers(0, 8, 4000)
    log.sample(picture(64, 224, 224))
    grid = picture(1, 448, 768)[0]
    row: dict[str, Any] = dict.fromkeys(("lr", "grad_norm", "train_loss", "val_loss"), 0.5)
    row |= dict.fromkeys(("train_accuracy", "val_accuracy", "train_objective"), 0.5)
    timing = dict.fromkeys(("images_per_s", "data_share", "memory_gb", "tflop_per_s"), 1.0)
    for epoch in range(1, EPOCHS + 1):
        for k in range(1, EPOCH_IMAGES // BATCH + 1):
            seen = (epoch - 1) * EPOCH_IMAGES + k * BATCH
            log.step(seen, [k * BATCH, epoch * k * BATCH], means)
        log.confusion(rng.integers(0, 500, (8, 8)), seen)
        if log.shows_now(seen):
            log.precision_recall(p, labels, CLASSES, seen)
        log.images("neutral | expression | output", grid, seen)
        row |= {"epoch": epoch, "images_seen": seen, "best": False}
        log.epoch(row, timing, {"images_seen": seen}, "line")
    log.close()
    assert sum(file.stat().st_size for file in (tmp_path / "tb").iterdir()) < 2_000_000
    events = EventAccumulator(str(tmp_path / "tb"), {"images": 0, "scalars": 0}).Reload()
    steps = events.Scalars("loss/train, steps")
    assert STEP_POINTS / 2 < len(steps) <= STEP_POINTS
    assert [round(point.value) for point in steps[::4]] == list(range(1, EPOCHS + 1)), (
        "the mean over the steps of each epoch's own sums"
    )
    shown = [image.step // EPOCH_IMAGES for image in events.Images("neutral | expression | output")]
    assert shown == [1, 2, 4, 8, 16, 32, 64, 100]
    assert len(events.Tags()["tensors"]) == len(CLASSES)


def test_step_wise_scalars_are_means_since_the_last_point(log: RunLog, tmp_path: Path) -> None:
    log.step(1600, [1600, 1600 * 2], means)
    log.step(1700, [1700, 0], means)  # too early for a point
    log.step(3200, [3200, 1600 * 2 + 1600 * 5], means)
    log.close()
    points = EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("loss/train, steps")
    assert [(point.step, point.value) for point in points] == [(1600, 2.0), (3200, 5.0)]


@pytest.mark.long
def test_tensorboard_shows_each_of_100_runs(log: RunLog, tmp_path: Path) -> None:
    epochs, names = 3, {f"run{k:02}/tb" for k in range(100)}
    for epoch in range(1, epochs + 1):
        seen = epoch * EPOCH_IMAGES
        row = {"epoch": epoch, "images_seen": seen, "best": False, "val_loss": 0.5}
        log.epoch(row, {"images_per_s": 1.0}, {"images_seen": seen}, "line")
    log.close()
    for name in names:
        shutil.copytree(tmp_path / "tb", tmp_path / "runs" / name)

    with tensorboard(tmp_path / "runs", strict=True) as address:

        def get(path: str) -> Any:
            with urllib.request.urlopen(f"{address}/data/{path}", timeout=400) as answer:
                return json.load(answer)

        def points(run: str) -> int:
            query = urllib.parse.urlencode({"run": run, "tag": "loss/val"})
            return len(get(f"plugin/scalars/scalars?{query}"))

        deadline, found = time.monotonic() + 400, {}
        while set(found) != names and time.monotonic() < deadline:
            time.sleep(1)
            found = get("plugin/scalars/tags")
        assert set(found) == names == set(get("runs"))
        assert {points(run) for run in names} == {epochs}


def test_faces_of_the_projector_are_few_bytes_and_keep_their_distances() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(150, 20)) @ rng.normal(size=(20, 500)) + 7).astype(np.float32)
    shown = reduced(features)
    assert shown.shape == (150, COMPONENTS)
    assert shown.mean(0) == pytest.approx(np.zeros(COMPONENTS), abs=1e-3)
    for one, two in ((0, 1), (5, 140)):
        wanted = np.linalg.norm(features[one] - features[two])
        assert np.linalg.norm(shown[one] - shown[two]) == pytest.approx(wanted, rel=1e-3)
    assert max(len(str(value)) for value in shown[0].tolist()) <= 9
    assert reduced(features[:, :9]) == pytest.approx(
        features[:, :9] - features[:, :9].mean(0), abs=1e-3
    )
