"""The classifier of a run folder, with torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.deploy.model import About, Outputs, calibrated
from fer_hpc.evaluation.calibration import stored_temperature
from fer_hpc.evaluation.load import StoredNetwork, load_network
from fer_hpc.evaluation.score import split_outputs
from fer_hpc.files import sha256
from fer_hpc.parallel.device import inference, pick_device


class TorchModel:
    """A run's best weights in its own precision; with a note on stderr if not calibrated."""

    def __init__(self, run: Path, device: str = "auto", plugins: Sequence[Path] = ()) -> None:
        self._device = pick_device(device)
        self.network = load_network(run, self._device, plugins)
        self.about, note = describe(run, self.network)
        if note:
            print(f"note: {note}", file=sys.stderr)

    def logits(self, faces: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Outputs [N, K (+ 2)] for faces [N, H, W, C]."""
        precision = self.network.science["precision"]
        images = torch.from_numpy(faces).to(self._device).permute(0, 3, 1, 2)
        images = images.to(torch.float64 if precision == "fp64" else torch.float32) * (1 / 255)
        with inference(precision, self._device):
            outputs = self.network.model(images).float().cpu().numpy()
        return np.asarray(outputs, dtype=np.float64)

    def __call__(self, faces: NDArray[np.uint8]) -> Outputs:
        logits, affect = split_outputs(self.logits(faces), len(self.about.classes))
        return Outputs(calibrated(logits, self.about.temperature), affect)


def describe(run: Path, network: StoredNetwork) -> tuple[About, str]:
    """What belongs to a run's weights, and a note where they are not calibrated."""
    weights = sha256(network.weights)
    temperature, note = stored_temperature(run, weights)
    about = About(
        run=run.resolve().name,
        network=network.science["model"],
        classes=list(network.data["classes"]),
        image_shape=list(network.data["image_shape"]),
        faces=network.data.get("faces", {}),
        weights=weights,
        epoch=int(network.best["epoch"]),
        temperature=temperature,
    )
    return about, f"probabilities are not calibrated: {note}" if note else ""
