"""Initial weights: of another run, a file of weights, a Keras model file, or published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fer_hpc.config import UserError
from fer_hpc.models.spec import Tensors, head_names, inner_network
from fer_hpc.run import checkpoint
from fer_hpc.training.keras import keras_weights


def init_from(model: nn.Module, path: Path, classes: Sequence[str]) -> str:
    """Copy the weights of a file into `model`, whose outputs are `classes`; gives one line on it.

    Everything but the last layer must fit. The last layer is copied where its shape is the same,
    and its classes too as far as the file names them; else it keeps its random weights.
    """
    head = head_names(model)
    tensors: Tensors
    theirs: list[str] | None = None
    if path.suffix in (".h5", ".hdf5"):
        tensors = keras_weights(model, path)
    elif path.suffix != ".safetensors" and checkpoint.has_checksum(path):
        tensors, theirs = _ours(path)
    else:
        tensors = _renamed(model, _plain(path), f"--init-from {path}")
    if theirs not in (None, list(classes)):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    return f"{path}: {_copy(model, tensors, head, f'--init-from {path}')}"


def load_pretrained(model: nn.Module, name: str) -> str:
    """Copy the published weights of `--model name` into it, but for its last layer.

    Gives one line on it. A UserError where there are none, or where they cannot be reached.
    """
    if not hasattr(inner_network(model)[1], "starting_weights"):
        raise UserError(
            f"--pretrained: {name} has no published weights; leave it out, or give --init-from FILE"
        )
    head = head_names(model)
    tensors = _renamed(model, None, "--pretrained")
    body = {name: tensor for name, tensor in tensors.items() if name not in head}
    return f"published weights of {name}: {_copy(model, body, head, '--pretrained')}"


def _copy(model: nn.Module, tensors: Tensors, head: Sequence[str], source: str) -> str:
    """Copy tensors by name into `model`; those of `head` may be missing, or of another shape."""
    own = model.state_dict()
    fits = {
        name: tensors[name]
        for name in own
        if name in tensors and tensors[name].shape == own[name].shape
    }
    missing = [
        name
        for name in own
        if name not in head and name not in fits and not name.endswith("num_batches_tracked")
    ]
    if missing:
        have = "absent" if missing[0] not in tensors else list(tensors[missing[0]].shape)
        raise UserError(
            f"{source}: weights of another network: {missing[0]} is {have} there, "
            f"{list(own[missing[0]].shape)} here ({len(missing)} of {len(own)} differ); "
            "give a file of the same --model and input"
        )
    model.load_state_dict({**own, **fits})
    replaced = [name for name in head if name not in fits]
    new_layer = f", the last layer is new ({', '.join(replaced)})" if replaced else ""
    return f"{len(fits)} tensors copied{new_layer}"


def _renamed(model: nn.Module, tensors: Tensors | None, source: str) -> Tensors:
    """A plain file's tensors (None: the published ones) by the names that `model` has for them."""
    prefix, network = inner_network(model)
    convert = getattr(network, "starting_weights", None)
    if convert:
        try:
            tensors = convert(tensors)
        except UserError:
            raise
        except Exception as error:  # a library's error for a file that does not fit
            why = " ".join(str(error).split())[:300]
            raise UserError(f"{source}: weights of another network or size: {why}") from error
    return {prefix + name: tensor for name, tensor in (tensors or {}).items()}


def _ours(path: Path) -> tuple[Tensors, list[str] | None]:
    """The weights in a file that a run wrote, and the classes of its last layer."""
    try:
        saved = checkpoint.load(path)
    except checkpoint.DamagedCheckpoint as error:
        raise UserError(f"--init-from: {error}; give another file, or a run folder") from None
    weights, data = saved.get("model"), saved.get("data")
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise UserError(
            f"--init-from {path}: holds no weights of a model; "
            "give best.pt or final.pt of a run, or the run folder"
        )
    return weights, data.get("classes") if isinstance(data, dict) else None


def _why(error: Exception) -> str:
    """What may be said of an error of torch.load; most name only its own inner steps."""
    if "weights_only" in str(error) and "GLOBAL" in str(error):
        return " alone: it holds other Python objects, which are not unpickled"
    return ""


def _plain(path: Path) -> Tensors:
    """The tensors of a state dict that torch or safetensors saved; never unpickles objects."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise UserError(
            f"--init-from {path}: reading it needs safetensors; pip install safetensors"
        ) from None
    except Exception as error:  # a damaged file raises anything from KeyError to RuntimeError
        raise UserError(
            f"--init-from {path}: not a file of weights{_why(error)}; "
            "give a run folder, its best.pt or final.pt, a state dict (.pth, .safetensors) "
            "or the .h5 of a Keras model"
        ) from None
    for key in ("state_dict", "model"):  # as training scripts nest it
        saved = saved.get(key, saved) if isinstance(saved, dict) else saved
    if not isinstance(saved, dict) or not all(isinstance(t, torch.Tensor) for t in saved.values()):
        raise UserError(f"--init-from {path}: wanted a state dict, names with a tensor each")
    return {str(name).removeprefix("module."): tensor for name, tensor in saved.items()}
