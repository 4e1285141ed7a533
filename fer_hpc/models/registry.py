"""Which networks there are: one ModelSpec each, built in or registered by a plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fer_hpc.config import UserError, unknown_name_error
from fer_hpc.config.plugins import (
    MISTAKES,
    check_name,
    check_name_free,
    describe,
    error_line,
    origin_of_caller,
)
from fer_hpc.config.presets import SIDES
from fer_hpc.models.cnn import cnn_baseline, cnn_improved
from fer_hpc.models.gpu_convolutions import use_quick_convolutions
from fer_hpc.models.resnet import resnet_baseline, resnet_small
from fer_hpc.models.spec import Builder, ModelSpec, Normalized
from fer_hpc.models.vgg import vgg


def _resnet_improved(outputs: int, channels: int, side: int) -> nn.Module:
    from fer_hpc.models.seresnet import resnet_improved  # torchvision takes seconds to import

    return resnet_improved(outputs, channels, side)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("cnn_baseline", cnn_baseline, SIDES["cnn_baseline"]),
        ModelSpec("cnn_improved", cnn_improved, SIDES["cnn_improved"]),
        ModelSpec("resnet_baseline", resnet_baseline, SIDES["resnet_baseline"]),
        ModelSpec("resnet_improved", _resnet_improved, SIDES["resnet_improved"], face=(224, 3)),
        ModelSpec("resnet_small", resnet_small, SIDES["resnet_small"]),
        ModelSpec("vgg", vgg, SIDES["vgg"]),
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
    check_name("model", name)
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


def is_built_in(name: str) -> bool:
    """Whether `--model NAME` is a network of this package."""
    return name in MODELS and MODELS[name].origin is None


def build_network(
    science: dict[str, Any], classes: int, image_shape: tuple[int, int, int]
) -> nn.Module:
    """The network of a configuration's science fields for faces of `image_shape` (H, W, C).

    Gives [B, classes], and two more outputs where there is a valence/arousal head.
    """
    side, _, channels = image_shape
    spec = model_spec(science["model"])
    network = use_quick_convolutions(spec.build(_outputs(science, classes), channels, side))
    if spec.mean is None:
        return network
    std = spec.std or (1.0,) * len(spec.mean)
    return Normalized(network, _per_channel(spec.mean, channels), _per_channel(std, channels))


def _outputs(science: dict[str, Any], classes: int) -> int:
    return classes + (2 if science.get("va_weight") else 0)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Values of a network's channels for faces of `channels`: gray takes the average."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def check_network(science: dict[str, Any], classes: int, image_shape: tuple[int, int, int]) -> None:
    """Try a plugin's or timm's network with two faces; a UserError where it does not take them."""
    side, _, channels = image_shape
    spec = model_spec(science["model"])
    if is_built_in(spec.name):
        return
    outputs = _outputs(science, classes)
    try:
        model = build_network(science, classes, image_shape).eval()
        with torch.no_grad():
            result = model(torch.zeros(2, channels, side, side))
    except UserError:
        raise
    except MISTAKES as error:
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
