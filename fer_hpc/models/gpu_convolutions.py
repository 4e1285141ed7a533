"""Weight gradients of convolutions of few channels in forms that are quick with determinism.

cuDNN's deterministic kernels for them are slow. On an H200 in bf16 at batch 64, microseconds:

| channels, pixels | deterministic | not | here |
|---|---|---|---|
| 1 -> 16, 48x48 | 183 | 32 | 33, matrix product |
| 16 -> 16, 48x48 | 151 | 44 | 70, widened |
| 32 -> 32, 24x24 | 55 | 22 | 36, widened |
| 16 -> 32, 1x1, stride 2 | 128 | 18 | 15, matrix product |

Other widths, and the gradients for the images, have quick deterministic kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d, pad

FEW, FEW_1X1 = 8, 32  # channels of an image up to which a matrix product is the quickest
SOME = 16  # up to which cuDNN's kernel for WIDE is
SOME_SMALL, SMALL = 32, 32  # and up to which it is for images of so many pixels a side
WIDE = 64  # channels, of the images and of the gradients


class QuickConv2d(nn.Conv2d):
    """A convolution whose weight gradient, on a GPU with determinism, has a quick form."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type != "cuda" or not torch.is_grad_enabled():
            return super().forward(input)
        large = _is_wide(self) and input.shape[2] > SMALL
        if large or not torch.are_deterministic_algorithms_enabled():
            return super().forward(input)
        return convolve(self, input)


def use_quick_convolutions(network: nn.Module) -> nn.Module:
    """Let the network's plain convolutions of few channels be quick on a GPU."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _has_quick_form(module):
            module.__class__ = QuickConv2d
    return network


def _has_quick_form(conv: nn.Conv2d) -> bool:
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    padded = not isinstance(conv.padding, str)
    size, channels = max(conv.kernel_size), conv.in_channels
    small = channels <= SOME or (channels <= SOME_SMALL and conv.out_channels <= SOME_SMALL)
    return plain and padded and size <= 3 and (channels <= FEW_1X1 if size == 1 else small)


def _is_wide(conv: nn.Conv2d) -> bool:
    return conv.in_channels > SOME and max(conv.kernel_size) > 1


def convolve(conv: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    """`conv(images)`, with the weight gradient in its quick form."""
    weight, bias = conv.weight, conv.bias
    kind = images.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        images, weight = images.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    result: torch.Tensor = _Convolution.apply(images, weight, bias, conv.stride, conv.padding)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_images, _, of_bias = torch.ops.aten.convolution_backward(
            gradient, images, weight, [len(weight)], ctx.stride, ctx.padding, (1, 1), False, (0, 0),
            1, (ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]),
        )  # fmt: skip
        of_weight = None
        if ctx.needs_input_grad[1]:
            few = weight.shape[1] <= FEW or max(weight.shape[2:]) == 1
            form = _product if few else _widened
            of_weight = form(images, gradient, weight, ctx.stride, ctx.padding)
        return of_images, of_weight, of_bias, None, None


def _widened(
    images: torch.Tensor,
    gradient: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> torch.Tensor:
    """The gradient [K, C, h, w] for `weight` from that of the outputs [N, K, H, W].

    By the convolution's own kernel, for channels of zeros beside those that there are.
    """
    outputs, channels, height, width = weight.shape
    more = [max(0, WIDE - n) for n in (channels, outputs)]
    images = pad(images, (0, 0, 0, 0, 0, more[0]))
    gradient = pad(gradient, (0, 0, 0, 0, 0, more[1]))
    shape = (outputs + more[1], channels + more[0], height, width)
    like = weight.new_empty(shape).contiguous(memory_format=torch.channels_last)
    dilation, transposed, output_padding, groups = (1, 1), False, (0, 0), 1
    how = (stride, padding, dilation, transposed, output_padding, groups)
    only_weight = (False, True, False)
    backward = torch.ops.aten.convolution_backward
    weight_gradient: torch.Tensor = backward(gradient, images, like, None, *how, only_weight)[1]
    return weight_gradient[:outputs, :channels].contiguous(memory_format=torch.channels_last)


def _product(
    images: torch.Tensor,
    gradient: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> torch.Tensor:
    """The same: for each image its patches [C h w, H W] times [H W, K], then a sum."""
    (_, channels, height, width), (rows, columns) = weight.shape, gradient.shape[2:]
    images = pad(images, (padding[1], padding[1], padding[0], padding[0]))
    form = torch.channels_last if channels % 8 == 0 else torch.contiguous_format
    images = images.contiguous(memory_format=form)
    patches = torch.cat(
        [
            images[:, :, i :: stride[0], j :: stride[1]][:, :, :rows, :columns]
            for i in range(height)
            for j in range(width)
        ],
        dim=1,
    )
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    products = torch.bmm(patches.flatten(2), gradient.flatten(2).transpose(1, 2))
    total = products.sum(0, dtype=torch.promote_types(torch.float32, products.dtype))
    total = total.reshape(height, width, channels, -1).permute(3, 2, 0, 1)
    return total.to(weight.dtype, memory_format=torch.channels_last)
