"""Which networks there are: one ModelSpec each, built in or registered by a plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fer_hpc.config import UserError, unknown_name_error
from fer_hpc.config.plugins import (
    Origin,
    check_name_free,
    describe,
    error_line,
    origin_of_caller,
)
from fer_hpc.models.cnn import cnn_baseline, cnn_improved
from fer_hpc.models.resnet import resnet_baseline, resnet_small
from fer_hpc.models.vgg import vgg

Builder = Callable[[int, int, int], nn.Module]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ModelSpec:
    """A network that `--model NAME` trains.

    `build(outputs, channels, side)` gives a module from faces [B, channels, side, side] in [0, 1]
    to [B, outputs]; `sides` are the smallest and the largest side it takes, in pixels; `face` is
    the (side, channels) it was made for. `mean` and `std` (one value a channel) normalise the faces
    before the network sees them; None leaves them in [0, 1].

    The module may have a method `starting_weights(tensors)`: it gives the tensors of a file, or for
    None the published ones, by the module's own names and shapes (--init-from, --pretrained).
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


# Dense layers over what is left of the face grow with its area: their networks take up to 128
# pixels.
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
    _check_two_numbers(name, "sides", sides, "the smallest and the largest, in pixels")
    _check_two_numbers(name, "face", face, "the side in pixels and the channels")

    def register(build: Builder) -> Builder:
        if not callable(build):
            raise UserError(
                f"register_model({name!r}) stands above {build!r}: wanted a function "
                "(outputs, channels, side) that gives the network"
            )
        spec = ModelSpec(name, build, sides, face, mean, std, origin_of_caller())
        check_name_free("model", name, spec.origin, MODELS.get(name))
        MODELS[name] = spec
        return build

    return register


def _check_two_numbers(name: str, argument: str, value: object, meaning: str) -> None:
    if not (isinstance(value, tuple) and list(map(type, value)) == [int, int] and min(value) > 0):
        raise UserError(
            f"register_model({name!r}, {argument}={value!r}): wanted two whole numbers, {meaning}"
        )


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
    network = spec.build(_outputs(science, classes), channels, side)
    if spec.mean is None:
        return network
    std = spec.std or (1.0,) * len(spec.mean)
    return Normalized(network, _per_channel(spec.mean, channels), _per_channel(std, channels))


def _outputs(science: dict[str, Any], classes: int) -> int:
    return classes + (2 if science.get("va_weight") else 0)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Values of a network's channels for faces of `channels`: gray takes the average."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


class Normalized(nn.Module):
    """A network behind (x - mean) / std, so that every caller hands it faces in [0, 1]."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network((faces - self.mean) / self.std)
        return output


def inner_network(model: nn.Module) -> tuple[str, nn.Module]:
    """The network within Normalized, and the prefix of its names in the model's state dict."""
    return ("network.", model.network) if isinstance(model, Normalized) else ("", model)


def head_names(model: nn.Module) -> list[str]:
    """Names in the state dict of what gives the outputs: a new set of classes trains it anew.

    That is the module (or the several) of a method `get_classifier()`, as timm's networks have it,
    else the last module that has weights of its own.
    """
    prefix, network = inner_network(model)
    heads: Any = getattr(network, "get_classifier", lambda: None)()
    if heads is None:
        heads = [m for m in network.modules() if any(True for _ in m.parameters(recurse=False))][-1]
    wanted = {id(m) for m in (heads if isinstance(heads, tuple | list) else [heads])}
    places = [name for name, module in network.named_modules() if id(module) in wanted]
    return [
        prefix + name
        for name in network.state_dict()
        if any(name.startswith(f"{place}." if place else "") for place in places)
    ]


def check_network(science: dict[str, Any], classes: int, image_shape: tuple[int, int, int]) -> None:
    """Try a plugin's or timm's network with two faces; a UserError where it does not take them."""
    side, _, channels = image_shape
    spec = model_spec(science["model"])
    if spec.origin is None and not spec.name.startswith("timm:"):
        return
    outputs = _outputs(science, classes)
    try:
        model = build_network(science, classes, image_shape).eval()
        with torch.no_grad():
            result = model(torch.zeros(2, channels, side, side))
    except UserError:
        raise
    except Exception as error:
        line = error_line(error, spec.origin.path) if spec.origin else ""
        where = f"{spec.origin.path}, {line}" if spec.origin and line else ""
        raise UserError(
            f"--model {spec.name} does not take {side}x{side}x{channels} faces: {where}"
            f"{describe(error)}; correct it, or preprocess with "
            f"--size {spec.face[0]} --channels {spec.face[1]}"
        ) from error
    shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    if shape != (2, outputs):
        raise UserError(
            f"--model {spec.name} gives {shape} for 2 faces: wanted a tensor of shape "
            f"(2, {outputs}), one value for each of the `outputs` it is built with"
        )
