"""The judge of a GAN: a classifier that took no part in the GAN's training.

It is another network with another seed, trained on the real faces of the same train split. Its
features carry the distances; Inception's would have to be downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fer_hpc.config import TrainConfig, UserError, preset
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.shards import Manifest
from fer_hpc.evaluation.load import load_network
from fer_hpc.files import read_record, sha256
from fer_hpc.gan.measures import Features
from fer_hpc.gan.networks import CLASSIFIER_MODEL
from fer_hpc.gan.pairs import PairLoader
from fer_hpc.gan.weights import mode_of
from fer_hpc.parallel.device import inference
from fer_hpc.run.folder import data_folder, outcome_file, read_run_config

JUDGE_IMAGES = 100_000  # how many the judge's training sees, unless the epochs' limits forbid it
JUDGE_EPOCHS = (3, 60)  # least and most
JUDGE_SEED = 1000
CHUNK = 64  # faces at a time

# faces [B, C, H, W] in [-1, 1] -> features [B, d], logits [B, classes]
Judge = Callable[[torch.Tensor], tuple[Features, Features]]


def judge_config(config: EvaluateConfig, stored: dict[str, Any]) -> TrainConfig:
    """The training of the default judge: preset fer2013 in RUN/judge, on the GAN's own data."""
    fields = training_of(config, stored, config.run / "judge", stored["data"]["train"])
    return preset("fer2013", data=data_folder(config.run), seed=JUDGE_SEED, **fields)


def training_of(
    config: EvaluateConfig, stored: dict[str, Any], run: Path, faces: int
) -> dict[str, Any]:
    """The fields of a judge's training on so many faces: how long it is, and where it runs."""
    least, most = JUDGE_EPOCHS
    epochs = min(max(-(-JUDGE_IMAGES // faces), least), most)
    batch_size = min(128, faces)
    return {
        "run": run,
        "epochs": epochs,
        # The moving average covers the last twentieth of the steps.
        "ema": min(0.998, max(0.0, 1 - 20 * batch_size / (epochs * faces))),
        "threads": stored["science"]["threads"],
        "device": config.device,
        "batch_size": batch_size,
    }


def load_judge(
    run: Path,
    manifest: Manifest,
    gan: dict[str, Any],
    device: torch.device,
    plugins: Sequence[Path] = (),
) -> tuple[Judge, dict[str, Any]]:
    """The judge of a classifier's run, and its description for the result file.

    `gan` is the GAN's stored configuration; `plugins` register the judge's network. Raises
    UserError where the run is not finished, was trained on other classes or on generated faces, or
    is the network of the GAN's own classifier.
    """
    stored = read_run_config(run)
    if stored.get("kind", "classifier") != "classifier" or outcome_file(run, "best.pt") is None:
        raise UserError(f"--judge {run}: wanted the finished run of a classifier")
    channels = stored["data"]["image_shape"][2]
    if channels != manifest.image_shape[2] or stored["data"]["classes"] != list(manifest.classes):
        raise UserError(
            f"--judge {run} was trained on {channels} channel(s) and the classes "
            f"{', '.join(stored['data']['classes'])}; the GAN has {manifest.image_shape[2]} and "
            f"{', '.join(manifest.classes)}; give a judge of the same"
        )
    if stored["science"]["model"] == CLASSIFIER_MODEL and mode_of(gan["science"]) == "improved":
        raise UserError(
            f"--judge {run} is a {CLASSIFIER_MODEL}, the network of the GAN's own classifier and "
            "expression encoder; give a run of another network"
        )
    judge_data = read_record(data_folder(run) / "manifest.json", {})
    if judge_data and judge_data.get("generated"):
        raise UserError(
            f"--judge {run} was trained on faces that a GAN generated; give a run that was trained "
            "on real faces"
        )
    return load_features(run, device, plugins, len(manifest.classes))


def load_features(
    run: Path, device: torch.device, plugins: Sequence[Path], classes: int
) -> tuple[Judge, dict[str, Any]]:
    """A classifier with what enters its last layer, and its description for the result file."""
    network = load_network(run, device, plugins)
    model = network.model.float()
    side = network.data["image_shape"][0]
    last_layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    inputs_of_last: list[torch.Tensor] = []
    last_layer.register_forward_pre_hook(lambda _, inputs: inputs_of_last.append(inputs[0]))

    def judge(faces: torch.Tensor) -> tuple[Features, Features]:
        inputs_of_last.clear()
        with inference("fp32", device):
            if faces.shape[-1] != side:
                faces = functional.interpolate(faces, (side, side), mode="bilinear", antialias=True)
            logits = model((faces + 1) / 2)[:, :classes]
        return inputs_of_last[0].double().cpu().numpy(), logits.double().cpu().numpy()

    description = {
        "model": network.science["model"],
        "seed": network.science["seed"],
        "sha256": sha256(network.weights),
        "trained_on": read_run_config(run)["data"]["fingerprint"],
        "val_accuracy": network.best["val_accuracy"],
        "features": last_layer.in_features,
        "image_shape": list(network.data["image_shape"]),
    }
    return judge, description


def judge_rows(
    judge: Judge, loader: PairLoader, rows: NDArray[np.int64]
) -> tuple[Features, Features]:
    """The judge's features and logits of some rows of a split."""
    parts = [judge(loader.faces(rows[k : k + CHUNK])) for k in range(0, len(rows), CHUNK)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
