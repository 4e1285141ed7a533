"""Distributions as labels, from FER+'s votes to a training; and a set that is only for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from fer_hpc.data.augment import Augmentation
from fer_hpc.data.loader import TrainLoader
from fer_hpc.data.shards import TARGETS, open_split, read_manifest
from fer_hpc.training.objective import class_weights
from tests.conftest import TRAIN_SPEED, Fer
from tests.helpers.forms import ferplus, save


def test_a_training_on_distributions_and_a_foreign_test_set(fer: Fer, tmp_path: Path) -> None:
    folder = ferplus(tmp_path / "f", 120)
    flags = ("--source", "ferplus", "--input", folder, "--size", 32, "--workers", 1)
    data = tmp_path / "shards"
    made = fer("preprocess", *flags, "--labels", "distribution", "--out", data)
    assert made.returncode == 0, made.stderr
    assert "FER+'s votes, distribution" in made.stdout
    manifest = read_manifest(data)
    split = open_split(manifest, "train")
    assert split.columns[TARGETS].shape == (manifest.n("train"), 8)
    assert (split.targets.argmax(1) == split.columns["labels"]).all()

    run = tmp_path / "run"
    train = ("train", "cnn_baseline", "--data", data, "--run", run, *TRAIN_SPEED)
    done = fer(
        *train, "--epochs", 1, "--label-smoothing", 0.1, "--class-weights", 5, "--mixup", 0.2
    )
    assert done.returncode == 0, done.stderr
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    logits = None
    scored = fer("evaluate", run, "--split", "val")
    assert scored.returncode == 0, scored.stderr
    stored = np.load(run / "predictions-val.npz")
    logits = torch.from_numpy(stored["logits"]).double()
    shares = torch.from_numpy(open_split(manifest, "val").targets).double()
    wanted = torch.nn.functional.cross_entropy(logits, shares).item()
    assert abs(row["val_loss"] - wanted) < 1e-5
    assert abs(json.loads((run / "eval-val.json").read_text())["loss"] - wanted) < 1e-5

    other = tmp_path / "other"
    for i in range(12):
        save(tmp_path / f"o/test/{('happy', 'sad', 'calm')[i % 3]}/{i}.png", 20 * i)
    flags = ("--source", "folder", "--input", tmp_path / "o", "--size", 32, "--out", other)
    made = fer("preprocess", *flags, "--classes", "happy,sad,calm")
    assert made.returncode == 0, made.stderr
    scored = fer("evaluate", run, "--split", "test", "--data", other)
    assert scored.returncode == 2  # "happy" is a class of its own beside "calm"
    flags = ("--source", "folder", "--input", tmp_path / "o", "--size", 32)
    (tmp_path / "c.csv").write_text("happy,Happiness\nsad,Sadness\ncalm,calm\n")
    third = tmp_path / "third"
    made = fer("preprocess", *flags, "--out", third, "--classes", tmp_path / "c.csv")
    assert made.returncode == 0, made.stderr
    scored = fer("evaluate", run, "--split", "test", "--data", third)
    assert scored.returncode == 0, scored.stderr
    assert "n = 8" in scored.stdout  # the calm faces are dropped, and counted


def test_class_weights_of_distributions_are_means_over_their_classes(tmp_path: Path) -> None:
    from fer_hpc.data.shards import Columns, Split

    n = 16
    shares = np.random.default_rng(0).dirichlet([1.0] * 4, n).astype(np.float32)
    images = np.zeros((n, 32, 32, 1), np.uint8)
    columns: Columns = {"labels": shares.argmax(1), TARGETS: shares}  # type: ignore[assignment]
    split = Split("train", [images], np.array([0, n]), columns, has_targets=True)
    weights = class_weights(np.bincount(shares.argmax(1), minlength=4).tolist(), 5.0)
    device = torch.device("cpu")
    loader = TrainLoader(split, 8, 0, Augmentation(), device, class_weights=weights)
    batch, block = loader.batch(0), loader.block(0, 1)
    assert torch.equal(batch.targets, torch.from_numpy(shares)[batch.rows])
    assert np.isclose(block["weight_sum"][0], (batch.targets.double().numpy() @ weights).sum())
    mixed = TrainLoader(split, 8, 0, Augmentation(mixup=0.5), device, class_weights=weights)
    batch, block = mixed.batch(0), mixed.block(0, 1)
    kept = batch.weights.double().numpy()[:, None]
    target = (
        kept * batch.targets.double().numpy() + (1 - kept) * batch.other_targets.double().numpy()
    )
    assert np.isclose(block["weight_sum"][0], (target @ weights).sum())
