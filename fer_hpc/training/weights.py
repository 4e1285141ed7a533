"""Initial weights: of another run, a file of ours, or a Keras model file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fer_hpc.config import UserError
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import outcome_file
from fer_hpc.training.keras import keras_weights


def weights_file(path: Path) -> Path:
    """The file that --init-from means: a run folder's best.pt, or the file itself."""
    if path.is_dir():
        best = outcome_file(path, "best.pt")
        if best is None:
            raise UserError(
                f"--init-from {path}: no finished run in it (no best.pt); "
                "finish it, or give a file of weights"
            )
        return best
    if not path.is_file():
        raise UserError(f"--init-from {path}: no such file or run folder")
    return path


def init_from(model: nn.Module, path: Path, classes: Sequence[str]) -> str:
    """Copy the weights of a file into `model`, whose outputs are `classes`; gives one line on it.

    Everything but the last layer must fit. The last layer is copied where its shape is the same,
    and its classes too as far as the file names them; else it keeps its random weights.
    """
    own = model.state_dict()
    found, theirs = (
        (keras_weights(model, path), None) if path.suffix in (".h5", ".hdf5") else _ours(path)
    )
    head = list(own)[-2:]  # weight and bias of the last layer
    if theirs not in (None, list(classes)):
        found = {name: tensor for name, tensor in found.items() if name not in head}
    missing = [
        name
        for name in own
        if name not in head and (name not in found or found[name].shape != own[name].shape)
    ]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        have = "absent" if missing[0] not in found else list(found[missing[0]].shape)
        raise UserError(
            f"--init-from {path}: weights of another network: {missing[0]} is {have} there, "
            f"{list(own[missing[0]].shape)} here ({len(missing)} of {len(own)} differ); "
            "give a file of the same --model and input"
        )
    fits = {
        name: found[name] for name in own if name in found and found[name].shape == own[name].shape
    }
    model.load_state_dict({**own, **fits})
    replaced = [name for name in head if name not in fits]
    new_layer = f", the last layer is new ({', '.join(replaced)})" if replaced else ""
    return f"{path}: {len(fits)} tensors copied{new_layer}"


def load_pretrained(model: nn.Module, name: str) -> str:
    """Copy published weights into the network of `--model name`; gives one line on it."""
    raise UserError(f"--pretrained: {name} has no published weights; leave it out")


def _ours(path: Path) -> tuple[dict[str, torch.Tensor], list[str] | None]:
    """A file's weights, and the classes of its last layer."""
    try:
        saved = checkpoint.load(path)
    except checkpoint.DamagedCheckpoint as error:
        raise UserError(
            f"--init-from: {error}; give a run folder, its best.pt or final.pt, "
            "or the .h5 of a Keras model"
        ) from None
    weights = saved.get("model")
    if not isinstance(weights, dict):
        raise UserError(
            f"--init-from {path}: holds no model; "
            "give best.pt or final.pt of a run, or the run folder"
        )
    return weights, saved.get("data", {}).get("classes")
