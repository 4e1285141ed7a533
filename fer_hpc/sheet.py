"""What the network will see: the first training batch, augmented, as one picture."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from fer_hpc.cli import main

    sys.exit(main(["sheet", *sys.argv[1:]]))

from pathlib import Path

import cv2
import numpy as np
import torch

from fer_hpc.config import TrainConfig
from fer_hpc.data.shards import read_manifest
from fer_hpc.train import train_loader

COLUMNS, ROWS = 12, 8


def sheet(config: TrainConfig) -> Path:
    """Write RUN/sheet.png: the first COLUMNS x ROWS images of the run, exactly as training begins with them."""
    loader = train_loader(config, read_manifest(config.data), torch.device("cpu"))
    batch = loader.batch(0)
    pixels = (batch.images[: COLUMNS * ROWS] * 255).round().byte().permute(0, 2, 3, 1).numpy()  # [B, H, W, C]
    padding = -len(pixels) % COLUMNS
    pixels = np.concatenate([pixels, np.zeros((padding, *pixels.shape[1:]), np.uint8)])
    height, width, channels = pixels.shape[1:]
    tiles = pixels.reshape(-1, COLUMNS, height, width, channels).swapaxes(1, 2).reshape(-1, COLUMNS * width, channels)
    config.run.mkdir(parents=True, exist_ok=True)
    path = config.run / "sheet.png"
    cv2.imwrite(str(path), tiles[..., ::-1] if channels == 3 else tiles)
    return path
