"""Weights of Keras model files under the names of our networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fer_hpc.config import UserError


def read_keras_file(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, NDArray[np.float32]]]]:
    """A Keras model file (.h5 of `model.save`): its architecture, and each layer's arrays by their names in it.

    Raises OSError where the file is no HDF5, KeyError where it holds no architecture.
    """
    layers: dict[str, dict[str, NDArray[np.float32]]] = {}
    with h5py.File(path, "r", locking=False) as f:
        architecture = json.loads(f.attrs["model_config"])
        for layer, group in f["model_weights"].items():
            found: list[str] = []
            group.visit(found.append)
            arrays = [name for name in found if isinstance(group[name], h5py.Dataset)]
            layers[layer] = {
                n.rpartition("/")[2].partition(":")[0]: group[n][()].astype(np.float32)
                for n in arrays
            }
    return architecture, layers


BATCH_NORM = nn.modules.batchnorm._BatchNorm

_NORM_NAMES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def keras_weights(model: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """A Keras file's arrays under the names of `model`.

    Convolutions and dense layers are matched by shape in the order of the graph, batch norms by the layer they follow.
    """
    try:
        architecture, arrays = read_keras_file(path)
        layers = architecture["config"]["layers"]
        names = [layer["config"]["name"] for layer in layers]
        sequential = architecture["class_name"] == "Sequential"
    except (OSError, KeyError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"--init-from {path}: not a Keras model file; wanted the .h5 of model.save(), with its architecture"
        ) from None
    if sequential:
        before = {name: {previous} for previous, name in zip(names, names[1:], strict=False)}
    else:
        before = {
            layer["config"]["name"]: inbound_layers(layer.get("inbound_nodes"), set(names))
            for layer in layers
        }
    kernels = [
        name for name in topological_order(names, before) if "kernel" in arrays.get(name, {})
    ]

    found: dict[str, torch.Tensor] = {}
    twin: dict[str, str] = {}  # our layer -> theirs
    last, channels = "", 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for theirs in kernels:
                kernel = torch.from_numpy(arrays[theirs]["kernel"])
                weight = to_torch_layout(kernel, channels)
                if weight.shape == module.weight.shape and (module.bias is not None) == (
                    "bias" in arrays[theirs]
                ):
                    break
            else:
                raise UserError(
                    f"--init-from {path}: no layer there fits {name} {list(module.weight.shape)}; another network"
                )
            kernels.remove(theirs)
            found[f"{name}.weight"], twin[name], last = weight, theirs, name
            if module.bias is not None:
                found[f"{name}.bias"] = torch.from_numpy(arrays[theirs]["bias"])
            channels = len(weight) if isinstance(module, nn.Conv2d) else 1
        elif isinstance(module, BATCH_NORM):
            follows = twin.get(last)
            theirs = next(
                (
                    n
                    for n in names
                    if "gamma" in arrays.get(n, {}) and _kernel_before(n, before, arrays) == follows
                ),
                "",
            )
            if not theirs:
                raise UserError(
                    f"--init-from {path}: no batch norm there follows {follows or 'the input'}; another network"
                )
            found |= {
                f"{name}.{own}": torch.from_numpy(arrays[theirs][key])
                for own, key in _NORM_NAMES.items()
            }
    return found


def to_torch_layout(kernel: torch.Tensor, channels: int) -> torch.Tensor:
    """Keras' [h, w, in, out] as [out, in, h, w]; its dense [in, out] as [out, in], with the inputs of a flattened picture
    of `channels` channels in our order (channel, row, column) instead of its own (row, column, channel)."""
    if kernel.ndim == 4:
        return kernel.permute(3, 2, 0, 1).contiguous()
    inputs, outputs = kernel.shape
    side = round((inputs / max(channels, 1)) ** 0.5)
    if channels > 1 and side * side * channels == inputs:
        kernel = (
            kernel.view(side, side, channels, outputs).permute(2, 0, 1, 3).reshape(inputs, outputs)
        )
    return kernel.T.contiguous()


def inbound_layers(value: Any, names: set[str]) -> set[str]:
    """Layers that a Keras layer's inbound nodes name, in the form of any Keras version: [name, number, number, ...]."""
    if isinstance(value, dict):
        return set().union(*(inbound_layers(v, names) for v in value.values())) if value else set()
    if isinstance(value, list):
        if len(value) >= 3 and value[0] in names and all(isinstance(v, int) for v in value[1:3]):
            return {value[0]}
        return set().union(*(inbound_layers(v, names) for v in value)) if value else set()
    return set()


def topological_order(names: list[str], before: dict[str, set[str]]) -> list[str]:
    """The layers so that each comes after those it takes its inputs from."""
    done: list[str] = []
    while len(done) < len(names):
        ready = [n for n in names if n not in done and before.get(n, set()) <= set(done)]
        done += ready or [n for n in names if n not in done]
    return done


def _kernel_before(
    name: str, before: dict[str, set[str]], arrays: dict[str, dict[str, Any]]
) -> str | None:
    """The nearest layer with a kernel that a layer's input comes from, None where it is the picture itself."""
    here = before.get(name, set())
    while here:
        with_kernel = [n for n in here if "kernel" in arrays.get(n, {})]
        if with_kernel:
            return with_kernel[0]
        here = set().union(*(before.get(n, set()) for n in here))
    return None
