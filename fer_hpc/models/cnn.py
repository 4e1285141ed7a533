"""The source report's two convolutional networks for 48x48 gray faces."""

from __future__ import annotations

import torch
from torch import nn


class Dropout(nn.Dropout):
    """Dropout that takes one random byte an element on the CPU, where torch draws eight.

    There the probability is rounded to a multiple of 1/256. The scale uses the rounded value, so
    the expectation is exact.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or x.device.type != "cpu" or x.numel() % 8:
            return super().forward(x)
        dropped = round(self.p * 256)
        # empty_like keeps the memory format; the words below may fill it in any order.
        noise = torch.empty_like(x, dtype=torch.uint8)
        noise.as_strided((x.numel(),), (1,)).view(torch.int64).random_(-(2**63), None)
        return x * (noise >= dropped).to(x.dtype).mul_(256 / (256 - dropped))


def keras_batch_norm(features: int, dims: int = 2) -> nn.Module:
    """Batch norm with Keras' constants, with which the report's networks were trained."""
    layer = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
    return layer(features, eps=1e-3, momentum=0.01)


def _stage(inputs: int, outputs: int, pool: bool, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        keras_batch_norm(outputs),
    ]
    return [*layers, *([nn.MaxPool2d(2)] if pool else []), Dropout(dropout)]


def _cnn(
    stages: list[tuple[int, bool, float]], classes: int, channels: int, size: int
) -> nn.Sequential:
    layers: list[nn.Module] = [keras_batch_norm(channels)]
    inputs = channels
    for outputs, pool, dropout in stages:
        layers += _stage(inputs, outputs, pool, dropout)
        inputs, size = outputs, size // 2 if pool else size
    layers += [
        nn.Flatten(),
        nn.Linear(inputs * size**2, 1024),
        nn.ReLU(),
        Dropout(0.3),
        keras_batch_norm(1024, 1),
    ]
    network = nn.Sequential(*layers, nn.Linear(1024, classes))
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):  # Keras' default initialisation
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network


# One convolution each: (channels, max-pool, dropout).
_BASELINE = [(32, False, 0.2), (32, True, 0.2), (64, True, 0.2), (64, True, 0.2)]


def cnn_baseline(classes: int, channels: int = 1, size: int = 48) -> nn.Module:
    """Four convolutions and a dense layer; [B, channels, size, size] to logits [B, classes].

    2,435,946 parameters at 8 classes and 48x48x1.
    """
    return _cnn(_BASELINE, classes, channels, size)


def cnn_improved(classes: int, channels: int = 1, size: int = 48) -> nn.Module:
    """`cnn_baseline` with a fifth convolution, of 128 channels.

    4,869,354 parameters at 8 classes and 48x48x1.
    """
    return _cnn([*_BASELINE, (128, False, 0.3)], classes, channels, size)
