"""What the network will see: the first training batch, augmented, as one picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config import TrainConfig
from fer_hpc.data.pictures import signature, signed
from fer_hpc.data.shards import read_manifest
from fer_hpc.files import check_output, write_bytes
from fer_hpc.training.batches import train_loader

COLUMNS, ROWS = 12, 8
SIDE = 96  # pixels: smaller faces are enlarged by a whole number to at least this
TITLE = 16  # pixels: height of a face's title


def sheet(config: TrainConfig) -> Path:
    """Write RUN/sheet.png and give its path: the run's first images, as the network sees them.

    At most COLUMNS x ROWS faces, each under its class; mixed images have the larger part's class.
    """
    path = config.run / "sheet.png"
    check_output(path, signature("sheet"), "--run")
    manifest = read_manifest(config.data)
    batch = train_loader(config, manifest, torch.device("cpu")).batch(0)
    count = min(COLUMNS * ROWS, len(batch.labels))
    pixels = (batch.images[:count] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    labels = batch.labels[:count]
    if batch.weights is not None and batch.other_labels is not None:
        labels = torch.where(batch.weights[:count] < 0.5, batch.other_labels[:count], labels)
    tiles = [
        _tile(face, manifest.classes[label])
        for face, label in zip(pixels, labels.tolist(), strict=True)
    ]
    tiles += [np.zeros_like(tiles[0])] * (-count % COLUMNS)
    picture = np.concatenate(
        [np.concatenate(tiles[i : i + COLUMNS], 1) for i in range(0, len(tiles), COLUMNS)]
    )
    config.run.mkdir(parents=True, exist_ok=True)
    png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    write_bytes(path, signed(png, "sheet"))
    return path


def _tile(face: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    """A face [H, W, C] under its class: [TITLE + kH, kW, 3] with a whole k."""
    times = -(-SIDE // face.shape[0])
    big = face.repeat(times, 0).repeat(times, 1)
    strip = np.zeros((TITLE, big.shape[1], 3), np.uint8)
    cv2.putText(
        strip, title, (2, TITLE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA
    )
    return np.concatenate([strip, np.broadcast_to(big, (*big.shape[:2], 3))])
