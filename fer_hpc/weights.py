"""Weights to begin with: of another run, or a file of ours."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from fer_hpc import checkpoint, rundir
from fer_hpc.config import UserError


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


def file_hash(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def init_from(model: nn.Module, path: Path) -> str:
    """Copy the weights that fit into `model`; gives one line on what was taken.

    Everything but the last layer must fit; the last layer is taken where its shape is the same, else it stays as drawn.
    """
    own = model.state_dict()
    found = _ours(path)
    head = list(own)[-2:]  # weight and bias of the last layer
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


def _ours(path: Path) -> dict[str, torch.Tensor]:
    try:
        saved = checkpoint.load(path)
    except checkpoint.DamagedCheckpoint as error:
        raise UserError(f"--init-from: {error}") from None
    weights = saved.get("model")
    if not isinstance(weights, dict):
        raise UserError(f"--init-from {path}: holds no model; give best.pt or final.pt of a run, or the run folder")
    return weights
