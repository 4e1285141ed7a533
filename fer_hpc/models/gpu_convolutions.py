"""Convolutions in forms for which a GPU has quick deterministic kernels.

cuDNN's deterministic kernels for the gradients of a convolution of one channel or of stride 2 are
slow. On an H200, 162 of the 1,128 microseconds of a step of cnn_baseline went into the weight
gradient of its first convolution; fer2013, with four convolutions of stride 2, lost 62 % of its
rate. The forms here give the same sums, and the parameters keep their names and shapes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import pad

WIDTH = 8  # channels that the tensor cores take at a time


class _QuickConv2d(nn.Conv2d):
    """A convolution which on a GPU takes the form of `convolve`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type != "cuda" or not torch.are_deterministic_algorithms_enabled():
            return super().forward(input)
        return convolve(self, input)


def use_quick_convolutions(network: nn.Module) -> nn.Module:
    """Let the network's plain convolutions of one channel or of stride 2 be quick on a GPU."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _has_quick_form(module):
            module.__class__ = _QuickConv2d
    return network


def _has_quick_form(conv: nn.Conv2d) -> bool:
    square = len(set(conv.kernel_size)) == 1 and len(set(conv.stride)) == 1
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    padded = not isinstance(conv.padding, str) and len(set(conv.padding)) == 1
    strided = conv.stride == (2, 2)
    return square and plain and padded and (strided or conv.in_channels == 1)


def convolve(conv: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    """`conv(images)`: stride 2 as stride 1 over blocks of 2x2 pixels, one channel as eight."""
    weight, padding = conv.weight, int(conv.padding[0])
    if conv.stride == (2, 2):
        images, weight = _in_blocks(images, weight, padding)
        padding = 0
    missing = -images.shape[1] % WIDTH
    if missing and images.shape[1] < WIDTH:
        images, weight = (pad(t, (0, 0, 0, 0, 0, missing)) for t in (images, weight))
    images, weight = (t.contiguous(memory_format=torch.channels_last) for t in (images, weight))
    return nn.functional.conv2d(images, weight, conv.bias, 1, padding)


def _in_blocks(
    images: torch.Tensor, weight: torch.Tensor, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, 4C, h, w] and weights [K, 4C, r, r] whose convolution of stride 1 is that of
    stride 2 of the given ones: each 2x2 pixels become the channels of one."""
    size = weight.shape[2]
    even = size + size % 2
    sides = [(side + 2 * padding - size) // 2 * 2 + even for side in images.shape[2:]]
    extra = [want - side - padding for want, side in zip(sides, images.shape[2:], strict=True)]
    images = pad(images, (padding, extra[1], padding, extra[0]))
    weight = pad(weight, (0, even - size, 0, even - size))
    return _blocks(images), _blocks(weight)


def _blocks(values: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] as [N, 4C, H/2, W/2]."""
    n, c, h, w = values.shape
    blocks = values.reshape(n, c, h // 2, 2, w // 2, 2)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
