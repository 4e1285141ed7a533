"""A plugin: a network that is small, so that a drill is quick, but has all that a step changes."""

from __future__ import annotations

from torch import nn

from fer_hpc.drill.remote import arm
from fer_hpc.models.registry import register_model

arm()  # in Ray's workers, where the drill has left orders


@register_model("drill", sides=(32, 32), face=(32, 1))
def drill_network(outputs: int, channels: int, side: int) -> nn.Module:
    """Convolution, batch norm, dropout: 5,000 weights."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(8 * (side // 4) ** 2, outputs),
    )
