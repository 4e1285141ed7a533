"""Small residual networks: the source report's ResNet, and one for training on 48x48 faces."""

from __future__ import annotations

import torch
from torch import nn

from fer_hpc.models.cnn import keras_batch_norm


class _Block(nn.Module):
    """conv-BN-ReLU-conv-BN plus the shortcut, then ReLU (He et al. 2016).

    As in Keras, the convolutions have biases, and a convolution with stride 2 pads a picture of
    even side at the right and bottom only.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride > 1 else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 0 if stride > 1 else 1)
        self.bn1 = keras_batch_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.bn2 = keras_batch_norm(outputs)
        shortcut = (
            [nn.Conv2d(inputs, outputs, 1, stride), keras_batch_norm(outputs)] if stride > 1 else []
        )
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(self.pad(x))).relu()))
        return (y + self.shortcut(x)).relu()


def resnet_baseline(classes: int, channels: int = 1, size: int = 48) -> nn.Module:
    """The report's 14-layer ResNet of 16, 32 and 64 channels.

    [B, channels, size, size] to logits [B, classes]; 175,400 parameters at 8 classes and one
    channel. He initialisation.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1), keras_batch_norm(16), nn.ReLU()]
    inputs = 16
    for outputs, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers.append(_Block(inputs, outputs, stride))
        inputs = outputs
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # By fan-in, as Keras' he_normal.
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    head = network[-1]
    assert isinstance(head, nn.Linear)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return network


class _SmallBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus the input, then ReLU.

    The weight of the last BN is zero at first, so a new block is the identity before its ReLU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def resnet_small(classes: int, channels: int = 1, size: int = 48) -> nn.Module:
    """A residual network for small faces and little compute.

    A 3x3 stem, then a convolution of stride 2 and one residual block at each of 64, 128, 256 and
    512 channels. [B, channels, size, size] to logits [B, classes]; 7,843,816 parameters at 8
    classes and one channel, 0.2 G multiply-adds an image of 48x48.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 32, 3, 1, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
    ]
    inputs = 32
    for outputs in (64, 128, 256, 512):
        layers += [
            nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            _SmallBlock(outputs),
        ]
        inputs = outputs
    network = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, classes)
    )
    return initialized(network)


def initialized(network: nn.Module) -> nn.Module:
    """The network with He initialisation of convolutions by fan-out, Glorot of dense layers."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return network
