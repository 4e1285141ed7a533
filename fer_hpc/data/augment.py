"""Augmentation of whole batches, with parameters drawn per image.

The host computes the parameters (`parameters`), the device uses them (`augment`), so that a GPU can
run a step alone. Everything about an image at position p of the order is a function of the 16
random numbers of p, one column each: to switch one augmentation on does not change the draws of the
others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


# ---- on the host: parameters of images, from their random numbers u [n, DRAWS] ------------------


def parameters(
    a: Augmentation, u: NDArray[np.float64], height: int, width: int
) -> dict[str, NDArray[Any]]:
    """What `augment` and mixup need to know of n images; nothing for what is switched off.

    flip [n] bool, unless the warp mirrors; theta [n, 2, 3], gamma, slope, offset [n] float32;
    box [n, 4] int32 (top, left, bottom, right); kept [n] float32, an image's share in its mix.
    """
    inputs: dict[str, NDArray[Any]] = {}
    if a.warps:
        inputs["theta"] = _warp_matrices(a, u)
    elif a.flip:
        inputs["flip"] = mirrored(a, u)
    if a.gamma:
        inputs["gamma"] = ((1 + a.gamma) ** (2 * u[:, GAMMA] - 1)).astype(np.float32)
    if a.contrast or a.brightness:
        slope = 1 + a.contrast * (2 * u[:, CONTRAST] - 1)
        shift = a.brightness * (2 * u[:, BRIGHTNESS] - 1)
        inputs["slope"] = slope.astype(np.float32)
        inputs["offset"] = (GRAY * (1 - slope) + shift).astype(np.float32)
    if a.erase:
        inputs["box"] = _erased_boxes(a, u, height, width)
    if a.mixup:
        inputs["kept"] = mix_weights(a, u)
    return inputs


def mirrored(a: Augmentation, u: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of n images are mirrored."""
    return (u[:, FLIP] < 0.5) & a.flip


def _warp_matrices(a: Augmentation, u: NDArray[np.float64]) -> NDArray[np.float32]:
    """Affine maps [n, 2, 3] from output to input coordinates: mirror, rotate, scale, shift."""
    angle = np.radians(a.rotate) * (2 * u[:, ROTATE] - 1)
    # from output to input coordinates, hence the inverse
    zoom = 1 / (1 + a.scale * (2 * u[:, SCALE] - 1))
    side = np.where(mirrored(a, u), -1.0, 1.0)
    shift_x, shift_y = (2 * a.shift * (2 * u[:, k] - 1) for k in (SHIFT_X, SHIFT_Y))
    cos, sin = np.cos(angle), np.sin(angle)
    theta = np.empty((len(u), 2, 3), np.float32)
    theta[:, 0] = np.stack([side * zoom * cos, -zoom * sin, shift_x], 1)
    theta[:, 1] = np.stack([side * zoom * sin, zoom * cos, shift_y], 1)
    return theta


def _erased_boxes(
    a: Augmentation, u: NDArray[np.float64], height: int, width: int
) -> NDArray[np.int32]:
    """The rectangle [n, 4] (top, left, bottom, right) that is erased; empty in most images."""
    area = ERASED_AREA[0] + u[:, ERASE_AREA] * (ERASED_AREA[1] - ERASED_AREA[0])
    narrow, wide = ERASED_ASPECT
    aspect = np.exp(np.log(narrow) + u[:, ERASE_ASPECT] * np.log(wide / narrow))
    h = np.minimum(np.round(height * np.sqrt(area * aspect)), height)
    w = np.minimum(np.round(width * np.sqrt(area / aspect)), width)
    top = np.floor(u[:, ERASE_Y] * (height - h + 1))
    left = np.floor(u[:, ERASE_X] * (width - w + 1))
    box = np.stack([top, left, top + h, left + w], 1).astype(np.int32)
    return np.where((u[:, ERASE] < a.erase)[:, None], box, np.int32(0))


def mix_weights(a: Augmentation, u: NDArray[np.float64]) -> NDArray[np.float32]:
    """Each image's share in the mix with its partner: Beta(mixup, mixup) (Zhang et al. 2018)."""
    from scipy.special import betaincinv  # a tenth of a training's start, and only mixup needs it

    return betaincinv(a.mixup, a.mixup, u[:, MIX_WEIGHT]).astype(np.float32)


def partner_offset(u_first: NDArray[np.float64], batch_size: int) -> int:
    """The offset of a batch: its image j is mixed with image (j + offset) mod batch_size.

    It is drawn with the batch's first position, `u_first` [DRAWS].
    """
    return 1 + int(u_first[MIX_PARTNER] * (batch_size - 1)) if batch_size > 1 else 0


# ---- on the device: images [B, C, H, W] in [0, 1], parameters as tensors -------------------------


def augment(
    images: torch.Tensor, inputs: Mapping[str, torch.Tensor], places: torch.Tensor
) -> torch.Tensor:
    """Do to each image what its `parameters` say (mirroring without a warp, and mixup, apart).

    Changes `images` in place where it can. `places` are `pixel_places`, which a warp uses.
    """
    if "theta" in inputs:
        images = warp(images, inputs["theta"], places)
    if "gamma" in inputs:
        images.pow_(_column(inputs["gamma"]))
    if "slope" in inputs:  # contrast around mid-gray, and brightness
        images.mul_(_column(inputs["slope"])).add_(_column(inputs["offset"])).clamp_(0, 1)
    if "box" in inputs:
        images.masked_fill_(_inside(inputs["box"], *images.shape[2:]), GRAY)
    return images


def pixel_places(height: int, width: int) -> torch.Tensor:
    """The centres (x, y, 1) of all pixels, [H W, 3]; x and y in [-1, 1], the image's borders.

    As torch's affine_grid makes them anew for each image of each batch.
    """
    x, y = (torch.linspace(-1, 1, n) * (n - 1) / n for n in (width, height))
    ones = torch.ones(height, width)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width), ones], 2).view(
        -1, 3
    )


def warp(images: torch.Tensor, theta: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Sample images bilinearly at `theta` [B, 2, 3]; outside of an image its border repeats.

    `places` are the `pixel_places` of the images.
    """
    count, _, height, width = images.shape
    grid = torch.bmm(places.expand(count, -1, -1), theta.transpose(1, 2))
    grid = grid.view(count, height, width, 2)
    warped = functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return warped.contiguous(memory_format=torch.channels_last)


def mix(images: torch.Tensor, others: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Mixup in place: each image keeps its share `kept` [B]."""
    share = _column(kept)
    return images.mul_(share).add_(others * (1 - share))


def _column(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


def _inside(box: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Which pixels lie in the boxes [B, 4]; [B, 1, H, W]."""
    top, left, bottom, right = box[:, :, None, None, None].unbind(1)
    y = torch.arange(height, device=box.device)[:, None]
    x = torch.arange(width, device=box.device)
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)
