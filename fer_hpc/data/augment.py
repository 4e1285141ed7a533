"""Augmentation of whole batches, with parameters drawn per image.

Everything about an image at position p of the order is a function of the 16 random numbers of p,
one column each: to switch one augmentation on does not change the draws of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

DRAWS = 16  # random numbers per position
(
    FLIP,
    ROTATE,
    SHIFT_X,
    SHIFT_Y,
    SCALE,
    ERASE,
    ERASE_AREA,
    ERASE_ASPECT,
    ERASE_X,
    ERASE_Y,
    BRIGHTNESS,
    CONTRAST,
    GAMMA,
    MIX_WEIGHT,
    MIX_PARTNER,
) = range(15)

# Zhong et al. 2020, with half their largest area
ERASED_AREA, ERASED_ASPECT = (0.02, 0.2), (0.3, 3.3)
GRAY = 0.5


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image; zero is off. TrainConfig describes the fields."""

    flip: bool = False
    rotate: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    erase: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    mixup: float = 0.0

    @property
    def warps(self) -> bool:
        return bool(self.rotate or self.shift or self.scale)


def mirrored(a: Augmentation, u: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which images of a batch are mirrored; u [B, DRAWS]."""
    return (u[:, FLIP] < 0.5) & a.flip


def warp(images: torch.Tensor, a: Augmentation, u: NDArray[np.float64]) -> torch.Tensor:
    """Mirror, rotate, scale and shift images [B, C, H, W] in one bilinear sampling.

    Outside of the image its border repeats.
    """
    angle = np.radians(a.rotate) * (2 * u[:, ROTATE] - 1)
    # from output to input coordinates, hence the inverse
    zoom = 1 / (1 + a.scale * (2 * u[:, SCALE] - 1))
    side = np.where(mirrored(a, u), -1.0, 1.0)
    shift_x, shift_y = (2 * a.shift * (2 * u[:, k] - 1) for k in (SHIFT_X, SHIFT_Y))
    cos, sin = np.cos(angle), np.sin(angle)
    theta = np.empty((len(u), 2, 3), np.float32)
    theta[:, 0] = np.stack([side * zoom * cos, -zoom * sin, shift_x], 1)
    theta[:, 1] = np.stack([side * zoom * sin, zoom * cos, shift_y], 1)
    on_device = torch.from_numpy(theta).to(images.device, non_blocking=True)
    grid = functional.affine_grid(on_device, list(images.shape), align_corners=False)
    warped = functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return warped.contiguous(memory_format=torch.channels_last)


def relight(images: torch.Tensor, a: Augmentation, u: NDArray[np.float64]) -> torch.Tensor:
    """Gamma, then contrast around mid-gray and brightness, in place; images in [0, 1]."""

    def column(values: NDArray[np.float64]) -> torch.Tensor:
        on_device = torch.from_numpy(values.astype(np.float32)).to(images.device, non_blocking=True)
        return on_device.view(-1, 1, 1, 1)

    if a.gamma:
        images.pow_(column((1 + a.gamma) ** (2 * u[:, GAMMA] - 1)))
    if a.contrast or a.brightness:
        slope = 1 + a.contrast * (2 * u[:, CONTRAST] - 1)
        offset = a.brightness * (2 * u[:, BRIGHTNESS] - 1)
        images.mul_(column(slope)).add_(column(GRAY * (1 - slope) + offset)).clamp_(0, 1)
    return images


def erase(images: torch.Tensor, a: Augmentation, u: NDArray[np.float64]) -> torch.Tensor:
    """Gray out a rectangle in a share of the images, in place."""
    height, width = images.shape[2:]
    area = ERASED_AREA[0] + u[:, ERASE_AREA] * (ERASED_AREA[1] - ERASED_AREA[0])
    narrow, wide = ERASED_ASPECT
    aspect = np.exp(np.log(narrow) + u[:, ERASE_ASPECT] * np.log(wide / narrow))
    h = np.minimum(np.round(height * np.sqrt(area * aspect)), height)
    w = np.minimum(np.round(width * np.sqrt(area / aspect)), width)
    top = np.floor(u[:, ERASE_Y] * (height - h + 1))
    left = np.floor(u[:, ERASE_X] * (width - w + 1))
    y, x = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    top, left, h, w = (v[:, None, None] for v in (top, left, h, w))
    inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
    erased = torch.from_numpy(inside & (u[:, ERASE] < a.erase)[:, None, None])
    return images.masked_fill_(erased.to(images.device, non_blocking=True)[:, None], GRAY)


def mix_weights(a: Augmentation, u: NDArray[np.float64]) -> NDArray[np.float32]:
    """Each image's share in the mix with its partner: Beta(mixup, mixup) (Zhang et al. 2018)."""
    from scipy.special import betaincinv  # a tenth of a training's start, and only mixup needs it

    return betaincinv(a.mixup, a.mixup, u[:, MIX_WEIGHT]).astype(np.float32)


def partner_offset(u_first: NDArray[np.float64], batch_size: int) -> int:
    """The offset of a batch: its image j is mixed with image (j + offset) mod batch_size.

    It is drawn with the batch's first position, `u_first` [DRAWS].
    """
    return 1 + int(u_first[MIX_PARTNER] * (batch_size - 1)) if batch_size > 1 else 0
