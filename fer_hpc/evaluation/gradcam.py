"""Which part of a face speaks for a class: class activation maps on a convolution.

The maps are HiResCAM's (Draelos and Carin 2020): activation times gradient at every place, summed
over channels, positive part. Where global average pooling follows the convolution this is Grad-CAM
(Selvaraju et al. 2017), and CAM. Most networks here flatten instead, and there Grad-CAM, which
averages the gradient over the picture first, may point to places that the class score does not
depend on.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

MIN_MAP = 5  # cells a side; a coarser map covers the whole face


def class_maps(
    model: nn.Module, images: torch.Tensor, classes: torch.Tensor
) -> NDArray[np.float32] | None:
    """Maps [B, H, W] in [0, 1] of images [B, C, H, W], for one class [B] each; a map's peak is 1.

    Of the last convolution that runs and whose map has MIN_MAP cells a side, else of the one with
    the most cells; None for networks without a convolution.
    """
    maps: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda *arguments: maps.append(arguments[2]))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    model.eval()
    try:
        with torch.enable_grad():
            outputs = model(images.detach().requires_grad_())
            usable = [m for m in maps if min(m.shape[2:]) > 1]
            if not usable:
                return None
            large = [m for m in usable if min(m.shape[2:]) >= MIN_MAP]
            features = large[-1] if large else max(usable, key=lambda m: m.shape[2])
            score = outputs.gather(1, classes[:, None]).sum()
            gradient = torch.autograd.grad(score, features)[0]
    finally:
        for hook in hooks:
            hook.remove()
    heat_maps = (gradient * features).sum(1, keepdim=True).relu().detach().float()
    heat_maps = interpolate(heat_maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    peak = heat_maps.amax((1, 2), keepdim=True)
    return np.asarray((heat_maps / peak.clamp_min(1e-12)).cpu().numpy(), np.float32)
