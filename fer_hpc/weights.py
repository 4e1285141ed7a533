"""Weights to begin with: of another run, a file of ours, or a Keras model as the source report's code saved it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fer_hpc import checkpoint, rundir
from fer_hpc.config import UserError
from fer_hpc.data.shards import read_keras


def weights_file(path: Path) -> Path:
    """The file that --init-from means: a run folder's best.pt, or the file itself."""
    if path.is_dir():
        best = rundir.outcome(path, "best.pt")
        if best is None:
            raise UserError(f"--init-from {path}: no finished run in it (no best.pt); finish it, or give a file of weights")
        return best
    if not path.is_file():
        raise UserError(f"--init-from {path}: no such file or run folder")
    return path


def init_from(model: nn.Module, path: Path, classes: Sequence[str]) -> str:
    """Copy the weights that fit into `model`, which tells `classes`; gives one line on what was taken.

    Everything but the last layer must fit; the last layer is taken where its shape is the same, and its classes as far as the
    file names them, else it stays as drawn.
    """
    own = model.state_dict()
    found, theirs = (_keras(model, path), None) if path.suffix in (".h5", ".hdf5") else _ours(path)
    head = list(own)[-2:]  # weight and bias of the last layer
    if theirs not in (None, list(classes)):
        found = {name: tensor for name, tensor in found.items() if name not in head}
    missing = [name for name in own if name not in head and (name not in found or found[name].shape != own[name].shape)]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        have = "absent" if missing[0] not in found else list(found[missing[0]].shape)
        raise UserError(
            f"--init-from {path}: weights of another network: {missing[0]} is {have} there, {list(own[missing[0]].shape)} here "
            f"({len(missing)} of {len(own)} differ); give a file of the same --model and input"
        )
    fits = {name: found[name] for name in own if name in found and found[name].shape == own[name].shape}
    model.load_state_dict({**own, **fits})
    replaced = [name for name in head if name not in fits]
    return f"{path}: {len(fits)} tensors taken" + (f", the last layer is new ({', '.join(replaced)})" if replaced else "")


def _ours(path: Path) -> tuple[dict[str, torch.Tensor], list[str] | None]:
    """A file's weights, and the classes of its last layer."""
    try:
        saved = checkpoint.load(path)
    except checkpoint.DamagedCheckpoint as error:
        raise UserError(
            f"--init-from: {error}; give a run folder, its best.pt or final.pt, or the .h5 of a Keras model"
        ) from None
    weights = saved.get("model")
    if not isinstance(weights, dict):
        raise UserError(f"--init-from {path}: holds no model; give best.pt or final.pt of a run, or the run folder")
    return weights, saved.get("data", {}).get("classes")


BATCH_NORM = nn.modules.batchnorm._BatchNorm
_NORM_NAMES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def _keras(model: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """A Keras file's arrays under the names of `model`.

    Convolutions and dense layers are matched by shape in the order of the graph, batch norms by the layer they follow.
    """
    try:
        architecture, arrays = read_keras(path)
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
        before = {layer["config"]["name"]: _mentioned(layer.get("inbound_nodes"), set(names)) for layer in layers}
    kernels = [name for name in _in_order(names, before) if "kernel" in arrays.get(name, {})]

    found: dict[str, torch.Tensor] = {}
    twin: dict[str, str] = {}  # our layer -> theirs
    last, channels = "", 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for theirs in kernels:
                kernel = torch.from_numpy(arrays[theirs]["kernel"])
                weight = _turned(kernel, channels)
                if weight.shape == module.weight.shape and (module.bias is not None) == ("bias" in arrays[theirs]):
                    break
            else:
                raise UserError(f"--init-from {path}: no layer there fits {name} {list(module.weight.shape)}; another network")
            kernels.remove(theirs)
            found[f"{name}.weight"], twin[name], last = weight, theirs, name
            if module.bias is not None:
                found[f"{name}.bias"] = torch.from_numpy(arrays[theirs]["bias"])
            channels = len(weight) if isinstance(module, nn.Conv2d) else 1
        elif isinstance(module, BATCH_NORM):
            follows = twin.get(last)
            theirs = next(
                (n for n in names if "gamma" in arrays.get(n, {}) and _kernel_before(n, before, arrays) == follows), ""
            )
            if not theirs:
                raise UserError(f"--init-from {path}: no batch norm there follows {follows or 'the input'}; another network")
            found |= {f"{name}.{own}": torch.from_numpy(arrays[theirs][key]) for own, key in _NORM_NAMES.items()}
    return found


def _turned(kernel: torch.Tensor, channels: int) -> torch.Tensor:
    """Keras' [h, w, in, out] as [out, in, h, w]; its dense [in, out] as [out, in], with the inputs of a flattened picture
    of `channels` channels in our order (channel, row, column) instead of its own (row, column, channel)."""
    if kernel.ndim == 4:
        return kernel.permute(3, 2, 0, 1).contiguous()
    inputs, outputs = kernel.shape
    side = round((inputs / max(channels, 1)) ** 0.5)
    if channels > 1 and side * side * channels == inputs:
        kernel = kernel.view(side, side, channels, outputs).permute(2, 0, 1, 3).reshape(inputs, outputs)
    return kernel.T.contiguous()


def _mentioned(value: Any, names: set[str]) -> set[str]:
    """Layers that a Keras layer's inbound nodes name, in the form of any Keras version: [name, number, number, ...]."""
    if isinstance(value, dict):
        return set().union(*(_mentioned(v, names) for v in value.values())) if value else set()
    if isinstance(value, list):
        if len(value) >= 3 and value[0] in names and all(isinstance(v, int) for v in value[1:3]):
            return {value[0]}
        return set().union(*(_mentioned(v, names) for v in value)) if value else set()
    return set()


def _in_order(names: list[str], before: dict[str, set[str]]) -> list[str]:
    """The layers so that each comes after those it takes its inputs from."""
    done: list[str] = []
    while len(done) < len(names):
        ready = [n for n in names if n not in done and before.get(n, set()) <= set(done)]
        done += ready or [n for n in names if n not in done]
    return done


def _kernel_before(name: str, before: dict[str, set[str]], arrays: dict[str, dict[str, Any]]) -> str | None:
    """The nearest layer with a kernel that a layer's input comes from, None where it is the picture itself."""
    here = before.get(name, set())
    while here:
        with_kernel = [n for n in here if "kernel" in arrays.get(n, {})]
        if with_kernel:
            return with_kernel[0]
        here = set().union(*(before.get(n, set()) for n in here))
    return None
