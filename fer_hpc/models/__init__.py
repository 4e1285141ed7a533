"""Networks: numbers in, tensors out. No files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fer_hpc.models.cnn import cnn_baseline, cnn_improved
from fer_hpc.models.resnet import resnet_baseline, resnet_small
from fer_hpc.models.vgg import vgg


def resnet_improved(classes: int, channels: int = 3, size: int = 224) -> nn.Module:
    """See fer_hpc.models.seresnet; loaded when it is wanted, because torchvision takes seconds to import."""
    from fer_hpc.models.seresnet import resnet_improved

    return resnet_improved(classes, channels, size)


# name -> constructor(outputs, channels, size)
MODELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn_baseline": cnn_baseline,
    "cnn_improved": cnn_improved,
    "resnet_baseline": resnet_baseline,
    "resnet_improved": resnet_improved,
    "resnet_small": resnet_small,
    "vgg": vgg,
}

# Height and width that a network takes, from and to; and the (size, channels) that it was made for.
SIZES = {
    name: (32, 128) for name in MODELS
} | {  # dense layers over what is left of the face grow with its area
    "resnet_baseline": (32, 1024),
    "resnet_small": (32, 1024),
    "resnet_improved": (64, 1024),
}
USUAL = {name: (48, 1) for name in MODELS} | {"resnet_improved": (224, 3)}


def network(science: dict[str, Any], classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network of a configuration's science fields, with two more outputs where it has a valence/arousal head."""
    height, _, channels = image_shape
    return MODELS[science["model"]](
        classes + (2 if science.get("va_weight") else 0), channels, height
    )
