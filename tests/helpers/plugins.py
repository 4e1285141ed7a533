"""Files of other people that register a network."""

from __future__ import annotations

from pathlib import Path

NETWORK = """
from torch import nn
from fer_hpc import register_model

@register_model({name!r}, sides=(16, 64), face=(32, 1))
def build(outputs, channels, side):
    inputs = channels * (side // 4) ** 2
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(inputs, outputs))
"""
LAYERS = "nn.AvgPool2d(4), nn.Flatten(), nn.Linear(inputs, outputs)"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
