"""The weights of products in their lower precision, cast together.

Autocast casts a weight where it is used, and its gradient back: two small kernels for each. On a
GPU a small network spends a tenth of its step on them. The values are autocast's. For networks
that use the weights of their layers in these layers alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fer_hpc.models.gpu_convolutions import QuickConv2d
from fer_hpc.parallel.device import LOW_PRECISION

# Of these autocast casts all parameters, and nothing else reads them.
_PRODUCTS = (nn.Conv2d.forward, nn.Linear.forward, QuickConv2d.forward)


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        return _together(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        wide = iter(_together([g for g in gradients if g is not None], torch.float32))
        return None, *(None if g is None else next(wide) for g in gradients)


def _together(tensors: Any, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Copies in `dtype`, in the memory formats of the originals."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)


def casts_together(precision: str, device: torch.device, ranks: int) -> bool:
    """Whether a training casts its weights so: one process on a GPU.

    Several ranks could not exchange a gradient before all are there.
    """
    return device.type == "cuda" and ranks == 1 and precision in LOW_PRECISION


class CastWeights:
    """The float32 weights of a network's convolutions and linear layers, by name, in `dtype`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._weights = {
            f"{name}.{own}" if name else own: parameter
            for name, module in network.named_modules()
            if type(module).forward in _PRODUCTS
            for own, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad and parameter.dtype == torch.float32
        }

    def __call__(self) -> dict[str, torch.Tensor]:
        """Cast them; gradients of the copies go to the weights."""
        return dict(
            zip(self._weights, _Cast.apply(self._dtype, *self._weights.values()), strict=True)
        )
