"""What a network is to the rest of the package: a ModelSpec, its normalisation, its head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fer_hpc.config.plugins import Origin

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
    """Names in the state dict of the layer that gives the outputs; other classes need a new one.

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
