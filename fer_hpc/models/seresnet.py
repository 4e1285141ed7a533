"""The source report's improved network: ResNet-50 with squeeze-and-excitation in every block."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018): scales channels by a function of their means.

    Two dense layers with biases.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * weights[:, :, None, None]


class _SEBottleneck(Bottleneck):
    """torchvision's ResNet-50 block; squeeze-and-excitation before the addition."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.se = SqueezeExcitation(self.conv3.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.se(self.bn3(self.conv3(y)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def resnet_improved(classes: int, channels: int = 3, size: int = 224) -> nn.Module:
    """SE-ResNet-50 without pretrained weights, made for 224x224x3.

    [B, channels, size, size] to logits [B, classes]; 26,055,416 parameters at 8 classes. He
    initialisation of convolutions (fan-out, as in torchvision), Glorot of dense layers.
    """
    network = ResNet(_SEBottleneck, [3, 4, 6, 3], num_classes=classes)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return network
