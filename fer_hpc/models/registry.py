"""Which networks there are: one ModelSpec each, built in or registered by a plugin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fer_hpc.config import UserError, unknown_name_error
from fer_hpc.config.errors import counted
from fer_hpc.config.plugins import (
    MISTAKES,
    check_name,
    check_name_free,
    defined_at,
    describe,
    origin_of_caller,
    raised_at,
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
    network = spec.build(output_count(science, classes), channels, side)
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        with torch.no_grad():  # here, so that the seed decides these weights too
            network.eval()(torch.zeros(1, channels, side, side))
        network.train()
    network = use_quick_convolutions(network)
    if spec.mean is None:
        return network
    std = spec.std or (1.0,) * len(spec.mean)
    return Normalized(network, _per_channel(spec.mean, channels), _per_channel(std, channels))


def output_count(science: dict[str, Any], classes: int) -> int:
    """How many outputs a network has for each face."""
    return classes + (2 if science.get("va_weight") else 0)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Values of a network's channels for faces of `channels`: gray takes the average."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def check_network(
    science: dict[str, Any], classes: int, image_shape: tuple[int, int, int], faces: int = 2
) -> None:
    """Try a plugin's or timm's network: `faces` without gradients, then 3 in training mode.

    UserError where it does not take them, or where nothing of it would be trained.
    """
    side, _, channels = image_shape
    spec, outputs = model_spec(science["model"]), output_count(science, classes)
    if is_built_in(spec.name):
        return
    advice = f", or preprocess with --size {spec.face[0]} --channels {spec.face[1]}"
    wrong = f"does not take {side}x{side}x{channels} faces"
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_network(science, classes, image_shape)
            with torch.no_grad():
                result = model.eval()(torch.zeros(faces, channels, side, side))
            check_outputs(spec, outputs, faces, result)
            advice, wrong = "", "cannot be copied, which --ema needs"
            if science.get("ema"):
                copy.deepcopy(build_network(science, classes, image_shape))
            wrong = "fails in training mode"
            result = model.train()(torch.rand(3, channels, side, side))
            check_outputs(spec, outputs, 3, result)
            if fault := _untrainable(model, result):
                place = defined_at(spec.build, spec.origin)
                raise UserError(f"--model {spec.name}: {place}{fault}; correct it")
            result.sum().backward()
    except UserError:
        raise
    except MISTAKES as error:
        raise UserError(
            f"--model {spec.name} {wrong}: {raised_at(error, spec.build, spec.origin)}"
            f"{describe(error)}; correct it{advice}"
        ) from error


def check_outputs(spec: ModelSpec, outputs: int, faces: int, result: object) -> None:
    """UserError where a network's `result` is no tensor [faces, outputs]."""
    shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    if shape != (faces, outputs):
        raise UserError(
            f"--model {spec.name}: {defined_at(spec.build, spec.origin)}it gives {shape} for "
            f"{counted(faces, 'face')}: wanted a tensor of shape ({faces}, {outputs}), one value "
            "for each of the `outputs` it is built with"
        )


def _untrainable(model: nn.Module, result: torch.Tensor) -> str:
    """Why no training step could change a network that gave `result`; "" where one can."""
    parameters = list(model.parameters())
    if not parameters:
        return "the network has no parameters, so there is nothing to train"
    if any(map(is_lazy, parameters)):
        return "a lazy layer has no shape, because `forward` does not use it"
    if not any(p.requires_grad for p in parameters):
        return "all parameters are frozen (requires_grad is False), so nothing would be trained"
    if not result.requires_grad:
        return "its outputs have no gradient (detach, no_grad), so nothing would be trained"
    return ""


def has_unused_parameters(
    science: dict[str, Any], classes: int, image_shape: tuple[int, int, int]
) -> bool:
    """Whether a training step leaves some of the network's parameters without a gradient."""
    side, _, channels = image_shape
    with torch.random.fork_rng(devices=[]):
        model = build_network(science, classes, image_shape).train()
        model(torch.rand(2, channels, side, side)).sum().backward()
    return any(p.requires_grad and p.grad is None for p in model.parameters())
