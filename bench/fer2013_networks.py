"""Relatives of `resnet_small`: wider, deeper, with squeeze-and-excitation, with more dropout.

A plugin (--plugin bench/fer2013_networks.py); bench/fer2013.py compares them.
"""

from __future__ import annotations

from torch import Tensor, nn

from fer_hpc import register_model
from fer_hpc.models.resnet import initialized
from fer_hpc.models.seresnet import SqueezeExcitation


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN, squeeze-and-excitation if wanted, plus the input, then ReLU."""

    def __init__(self, channels: int, squeeze: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)
        self.squeeze = SqueezeExcitation(channels) if squeeze else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        out: Tensor = (x + self.squeeze(self.bn2(self.conv2(y)))).relu()
        return out


def build(
    classes: int, channels: int, width: float, blocks: int, squeeze: bool, dropout: float
) -> nn.Module:
    """`resnet_small` is width 1, one block a stage, dropout 0.2."""
    layers: list[nn.Module] = []
    inputs = channels
    for k, base in enumerate((32, 64, 128, 256, 512)):
        outputs = round(base * width / 8) * 8
        conv = nn.Conv2d(inputs, outputs, 3, 2 if k else 1, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [Block(outputs, squeeze) for _ in range(blocks)] if k else []
        inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)]
    return initialized(nn.Sequential(*layers, nn.Linear(inputs, classes)))


@register_model("small_wide")
def small_wide(classes: int, channels: int, size: int) -> nn.Module:
    return build(classes, channels, 1.5, 1, False, 0.2)


@register_model("small_deep")
def small_deep(classes: int, channels: int, size: int) -> nn.Module:
    return build(classes, channels, 1.0, 2, False, 0.2)


@register_model("small_squeeze")
def small_squeeze(classes: int, channels: int, size: int) -> nn.Module:
    return build(classes, channels, 1.0, 1, True, 0.2)


@register_model("small_dropout")
def small_dropout(classes: int, channels: int, size: int) -> nn.Module:
    return build(classes, channels, 1.0, 1, False, 0.5)


@register_model("small_wide_squeeze")
def small_wide_squeeze(classes: int, channels: int, size: int) -> nn.Module:
    return build(classes, channels, 1.5, 2, True, 0.4)
