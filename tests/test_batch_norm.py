"""Batch norm's statistics from training images."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fer_hpc.config import preset
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.store import ImageStore
from fer_hpc.data.stream import gather_rows
from fer_hpc.models.registry import build_network
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import read_rows
from fer_hpc.training.batch_norm import (
    BatchNormEstimator,
    counted_together,
    usual_batch_norms,
)
from fer_hpc.training.loop import train

CPU = torch.device("cpu")


def test_statistics_are_those_of_the_images(shards: Path) -> None:
    images = ImageStore(open_split(read_manifest(shards), "train"), CPU)
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32**2, 8))
    norm = network[0]
    estimator = BatchNormEstimator(network, images, 256, seed=3, precision="fp32")
    estimator.estimate()
    pixels = gather_rows(images, estimator._block.arrays["rows"][0]).images
    assert norm.running_mean.item() == pytest.approx(pixels.mean().item(), rel=1e-5)
    assert norm.running_var.item() == pytest.approx(pixels.var().item(), rel=1e-4)
    assert norm.momentum == 0.1
    assert int(norm.num_batches_tracked) == 0
    assert not network.training


def test_it_changes_statistics_only_and_repeats(shards: Path) -> None:
    images = ImageStore(open_split(read_manifest(shards), "train"), CPU)
    torch.manual_seed(0)
    network = build_network({"model": "cnn_baseline"}, 8, (32, 32, 1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    BatchNormEstimator(network, images, 300, 0, "fp32").estimate()
    first = {name: value.clone() for name, value in network.state_dict().items()}
    BatchNormEstimator(network, images, 300, 0, "fp32").estimate()
    for name, value in network.state_dict().items():
        assert torch.equal(value, first[name]), name
        changed = not torch.equal(value, before[name])
        assert changed == name.endswith(("running_mean", "running_var")), name
    BatchNormEstimator(network, images, 0, 0, "fp32").estimate()  # 0: nothing


def test_a_short_run_is_validated_with_statistics_that_fit_its_weights(
    shards: Path, tmp_path: Path
) -> None:
    """A running average of 1 % a step lags behind weights that change quickly."""
    rows = {}
    for count in (0, 256):
        config = preset(
            "cnn_baseline",
            data=shards,
            run=tmp_path / str(count),
            bn_images=count,
            batch_size=20,
            optimizer="adamw",
            lr=0.01,
            epochs=2,
            tensorboard=False,
            device="cpu",
        )
        train(config, World())
        rows[count] = read_rows(tmp_path / str(count))[-1]
    assert rows[0]["train_loss"] == rows[256]["train_loss"]
    assert rows[256]["val_loss"] < 0.5 * rows[0]["val_loss"]


def test_passes_are_counted_as_the_layers_count_them() -> None:
    class Own(nn.BatchNorm2d):
        """May read its counter."""

    layers = [nn.BatchNorm2d(1), nn.BatchNorm2d(1, momentum=None), nn.BatchNorm2d(1), Own(1)]
    together = nn.Sequential(*layers, nn.BatchNorm2d(1, track_running_stats=False)).train()
    layers[2].eval()
    alone = copy.deepcopy(together)
    norms = usual_batch_norms(together)
    assert layers[0] in norms and layers[3] not in norms
    faces = torch.rand(4, 1, 3, 3)
    for _ in range(3):
        alone(faces)
        with counted_together(norms):
            assert layers[0].num_batches_tracked is None
            together(faces)
    wanted = alone.state_dict()
    assert int(wanted["0.num_batches_tracked"]) == 3 and int(wanted["2.num_batches_tracked"]) == 0
    assert all(torch.equal(v, wanted[name]) for name, v in together.state_dict().items())
    with pytest.raises(ValueError), counted_together(norms):
        together(torch.rand(1))
    assert int(together[0].num_batches_tracked) == 3  # a pass that failed is not counted


def test_layers_that_need_their_counter_keep_it() -> None:
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(1)))
    with counted_together(usual_batch_norms(synced)):
        assert synced[0].num_batches_tracked is not None
        synced(torch.rand(4, 1, 3, 3))
    assert int(synced[0].num_batches_tracked) == 1
