"""A VGG for 48x48 faces, in the usual form of four stages.

The source report names a VGG without specifying it.
"""

from __future__ import annotations

from torch import nn

from fer_hpc.models.cnn import Dropout


def vgg(classes: int, channels: int = 1, size: int = 48) -> nn.Module:
    """Four stages of two conv3x3-BN-ReLU and a max-pool, then two dense layers of 4096.

    [B, channels, size, size] to logits [B, classes]; 40,380,616 parameters at 8 classes and
    48x48x1. He initialisation.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for outputs in (64, 128, 256, 512):
        for _ in range(2):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    inputs = inputs * (size // 16) ** 2
    for _ in range(2):
        layers += [nn.Linear(inputs, 4096), nn.ReLU(), Dropout(0.5)]
        inputs = 4096
    network = nn.Sequential(*layers, nn.Linear(inputs, classes))
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network
