"""Which networks there are: one ModelSpec each, built in or registered by a plugin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fer_hpc.config import UserError, unknown_name_error
from fer_hpc.config.plugins import Origin, origin_of_caller
from fer_hpc.models.cnn import cnn_baseline, cnn_improved
from fer_hpc.models.resnet import resnet_baseline, resnet_small
from fer_hpc.models.vgg import vgg

Builder = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True)
class ModelSpec:
    """A network that `--model NAME` trains.

    `build(outputs, channels, side)` gives a module from faces [B, channels, side, side] in [0, 1] to
    [B, outputs]; `sides` are the smallest and the largest side it takes, in pixels; `face` is the
    (side, channels) it was made for. `mean` and `std` (one value a channel) normalise the faces
    before the network sees them; None leaves them in [0, 1].
    """

    name: str
    build: Builder
    sides: tuple[int, int] = (32, 128)
    face: tuple[int, int] = (48, 1)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    origin: Origin | None = None  # the plugin that registered it; None: built in


def _resnet_improved(outputs: int, channels: int, side: int) -> nn.Module:
    from fer_hpc.models.seresnet import resnet_improved  # torchvision takes seconds to import

    return resnet_improved(outputs, channels, side)


# Dense layers over what is left of the face grow with its area: their networks take up to 128 pixels.
MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("cnn_baseline", cnn_baseline),
        ModelSpec("cnn_improved", cnn_improved),
        ModelSpec("resnet_baseline", resnet_baseline, sides=(32, 1024)),
        ModelSpec("resnet_improved", _resnet_improved, sides=(64, 1024), face=(224, 3)),
        ModelSpec("resnet_small", resnet_small, sides=(32, 1024)),
        ModelSpec("vgg", vgg),
    )
}


def register_model(
    name: str,
    *,
    sides: tuple[int, int] = (32, 128),
    face: tuple[int, int] = (48, 1),
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Callable[[Builder], Builder]:
    """Decorator: make a function (outputs, channels, side) -> nn.Module known as `--model NAME`.

    See ModelSpec for the arguments. Raises UserError where the name is taken by something else.
    """

    def register(build: Builder) -> Builder:
        spec = ModelSpec(name, build, sides, face, mean, std, origin_of_caller(build))
        known = MODELS.get(name)
        if known and known.origin != spec.origin:
            raise UserError(f"register_model({name!r}): that name is taken; choose another")
        MODELS[name] = spec
        return build

    return register


def model_spec(name: str) -> ModelSpec:
    """The spec of `--model NAME`; a UserError with the known names where there is none."""
    if name.startswith("timm:") and name not in MODELS:
        from fer_hpc.models.timm_models import timm_spec

        return timm_spec(name)
    if name not in MODELS:
        raise unknown_name_error("model", name, list(MODELS))
    return MODELS[name]


def build_network(
    science: dict[str, Any], classes: int, image_shape: tuple[int, int, int]
) -> nn.Module:
    """The network of a configuration's science fields for faces of `image_shape` (H, W, C).

    Gives [B, classes], and two more outputs where there is a valence/arousal head.
    """
    side, _, channels = image_shape
    spec = model_spec(science["model"])
    network = spec.build(classes + (2 if science.get("va_weight") else 0), channels, side)
    return network if spec.mean is None else Normalized(network, spec.mean, spec.std)


class Normalized(nn.Module):
    """A network behind (x - mean) / std, so that every caller hands it faces in [0, 1]."""

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...] | None
    ) -> None:
        super().__init__()
        import torch

        self.network = network
        self.mean: torch.Tensor
        self.std: torch.Tensor
        scale = std or (1.0,) * len(mean)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(scale).view(1, -1, 1, 1), persistent=False)

    def forward(self, faces: Any) -> Any:
        return self.network((faces - self.mean) / self.std)
