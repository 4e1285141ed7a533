"""Weights of Keras model files under the names of our networks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fer_hpc.config import UserError


def read_keras_file(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, NDArray[np.float32]]]]:
    """A Keras model file (.h5 of `model.save`): its architecture, and each layer's arrays by name.

    Raises OSError where the file is no HDF5, KeyError where it holds no architecture.
    """
    layers: dict[str, dict[str, NDArray[np.float32]]] = {}
    with h5py.File(path, "r", locking=False) as f:
        architecture = json.loads(f.attrs["model_config"])
        for layer, group in f["model_weights"].items():
            names: list[str] = []
            group.visit(names.append)
            arrays = [name for name in names if isinstance(group[name], h5py.Dataset)]
            layers[layer] = {
                n.rpartition("/")[2].partition(":")[0]: group[n][()].astype(np.float32)
                for n in arrays
            }
    return architecture, layers


BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORM_NAMES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


@dataclass(frozen=True)
class KerasGraph:
    """The layers of a Keras model: names, the layers that each takes its input from, arrays."""

    names: list[str]
    inputs: dict[str, set[str]]
    arrays: dict[str, dict[str, NDArray[np.float32]]]

    def has(self, layer: str, array: str) -> bool:
        return array in self.arrays.get(layer, {})

    def array(self, layer: str, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[layer][name])

    def in_order(self) -> list[str]:
        """The layers so that each comes after its inputs."""
        done: list[str] = []
        while len(done) < len(self.names):
            rest = [n for n in self.names if n not in done]
            done += [n for n in rest if self.inputs.get(n, set()) <= set(done)] or rest
        return done

    def kernel_before(self, layer: str) -> str | None:
        """The nearest layer with a kernel before `layer`; None where that is the picture itself."""
        current, seen = self.inputs.get(layer, set()), {layer}
        while current:
            for name in current:
                if self.has(name, "kernel"):
                    return name
            seen |= current
            current = set().union(*(self.inputs.get(n, set()) for n in current)) - seen
        return None


def read_graph(path: Path) -> KerasGraph:
    """The layers of a Keras model file; UserError where it is none."""
    try:
        architecture, arrays = read_keras_file(path)
        layers = architecture["config"]["layers"]
        names = [layer["config"]["name"] for layer in layers]
        if architecture["class_name"] == "Sequential":
            inputs = {name: {previous} for previous, name in zip(names, names[1:], strict=False)}
        else:
            inputs = {
                layer["config"]["name"]: inbound_layers(layer.get("inbound_nodes"), set(names))
                for layer in layers
            }
    except Exception:  # HDF5 has errors of many kinds for bytes that are not as written
        raise UserError(
            f"--init-from {path}: not a Keras model file; "
            "wanted the .h5 of model.save(), with its architecture"
        ) from None
    return KerasGraph(names, inputs, arrays)


def keras_weights(model: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """A Keras file's arrays under the names of `model`; UserError where they do not fit."""
    graph = read_graph(path)
    try:
        return _matched(model, graph, path)
    except (ValueError, RuntimeError, LookupError, TypeError) as error:  # of arrays' shapes
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--init-from {path}: its arrays cannot be used: {reason}") from None


def _matched(model: nn.Module, graph: KerasGraph, path: Path) -> dict[str, torch.Tensor]:
    """Convolutions and dense layers are matched by shape in the order of the graph, batch norms by
    the layer that they follow.
    """
    kernels = [name for name in graph.in_order() if graph.has(name, "kernel")]
    tensors: dict[str, torch.Tensor] = {}
    matched_layer: dict[str, str] = {}  # our layer -> theirs
    last, channels = "", 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            shape, has_bias = module.weight.shape, module.bias is not None
            for layer in kernels:
                weight = to_torch_layout(graph.array(layer, "kernel"), channels)
                if weight.shape == shape and graph.has(layer, "bias") == has_bias:
                    break
            else:
                raise UserError(
                    f"--init-from {path}: no layer there fits {name} {list(shape)}; another network"
                )
            kernels.remove(layer)
            tensors[f"{name}.weight"], matched_layer[name], last = weight, layer, name
            if has_bias:
                tensors[f"{name}.bias"] = graph.array(layer, "bias")
            channels = len(weight) if isinstance(module, nn.Conv2d) else 1
        elif isinstance(module, BATCH_NORM):
            follows = matched_layer.get(last)
            norms = (n for n in graph.names if graph.has(n, "gamma"))
            norm = next((n for n in norms if graph.kernel_before(n) == follows), "")
            if not norm:
                raise UserError(
                    f"--init-from {path}: no batch norm there follows {follows or 'the input'}; "
                    "another network"
                )
            tensors |= {f"{name}.{own}": graph.array(norm, key) for own, key in NORM_NAMES.items()}
    return tensors


def to_torch_layout(kernel: torch.Tensor, channels: int) -> torch.Tensor:
    """A kernel of Keras, [h, w, in, out] or dense [in, out], as [out, in, h, w] or [out, in].

    The inputs of a dense layer after a flattened picture of `channels` channels go from Keras'
    order (row, column, channel) to ours (channel, row, column).
    """
    if kernel.ndim == 4:
        return kernel.permute(3, 2, 0, 1).contiguous()
    inputs, outputs = kernel.shape
    side = round((inputs / max(channels, 1)) ** 0.5)
    if channels > 1 and side * side * channels == inputs:
        picture = kernel.view(side, side, channels, outputs)
        kernel = picture.permute(2, 0, 1, 3).reshape(inputs, outputs)
    return kernel.T.contiguous()


def inbound_layers(value: Any, names: set[str]) -> set[str]:
    """Layers that a Keras layer's inbound nodes name, in the form of any Keras version.

    Each is a list [name, number, number, ...] somewhere within `value`.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return set()
    numbers = len(value) >= 3 and all(isinstance(v, int) for v in value[1:3])
    if numbers and isinstance(value[0], str) and value[0] in names:
        return {value[0]}
    return set().union(*(inbound_layers(v, names) for v in value))
