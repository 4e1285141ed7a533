"""Reading the newest good checkpoint of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from fer_hpc.config import UserError, format_flag
from fer_hpc.config.aliases import current_science
from fer_hpc.parallel.collectives import on_rank_0
from fer_hpc.parallel.world import World
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import damage_of, find_run_config, list_checkpoints
from fer_hpc.run.state import TrainState


def restore(state: TrainState, run: Path, world: World) -> tuple[int, int, Path] | None:
    """Load the newest good checkpoint of the run's history into every rank's `state`.

    Gives (attempt, images seen, file) of it, or None at a first start. A damaged file, one of
    another experiment or one with unexpected content costs a warning, and the next older one is
    tried. UserError where none can be used and one is whole: then the network is another one.
    """

    def newest_good() -> tuple[int, int, str] | None:
        stored = find_run_config(run) or {}
        for line in damage_of(run):
            _warn(line)
        misfit: _Misfit | None = None
        for number, images_seen, path in list_checkpoints(run):
            try:
                saved = checkpoint.load(path)
                check_origin(path, saved, stored)
                _load(state, saved, path, images_seen)
            except (checkpoint.DamagedCheckpoint, OSError) as damage:
                if isinstance(damage, _Misfit):
                    misfit = misfit or damage
                _warn(f"{damage}; falling back to the checkpoint before it")
                continue
            return number, images_seen, str(path)
        if misfit:  # to begin again would replace a training that can go on
            raise UserError(
                f"{run}: no checkpoint fits the network that the code builds now "
                f"({misfit.reason}): restore the code that it was trained with, its plugin and "
                "what that imports, the versions of fer_hpc and timm, or give another --run folder"
            )
        return None

    newest = on_rank_0(world, newest_good)
    if newest and world.rank:
        state.load_state_dict(checkpoint.load(Path(newest[2])), world.rank)
    return (newest[0], newest[1], Path(newest[2])) if newest else None


class _Misfit(checkpoint.DamagedCheckpoint):
    """A whole checkpoint whose content does not fit what is to be loaded."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} has unexpected content ({reason})")
        self.reason = reason


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def check_origin(path: Path, saved: dict[str, Any], stored: dict[str, Any]) -> None:
    """DamagedCheckpoint where a checkpoint is not of the experiment that config.json describes."""
    now = dict(stored.get("science", {}), data=stored.get("data", {}).get("fingerprint"))
    try:
        then = current_science(saved.get("science", {}))
        then["data"] = saved.get("data", {}).get("fingerprint", now["data"])
        json.dumps(then)  # a tensor has no truth value to compare
    except (TypeError, AttributeError):
        raise checkpoint.DamagedCheckpoint(f"{path} has no settings of a run") from None
    # Epochs may grow; a field that one of both lacks is younger, and at its default.
    names = [k for k in then if k != "epochs" and k in now and then[k] != now[k]]
    if names:
        differ = ", ".join(f"{format_flag(k, then[k])}, not {now[k]}" for k in names)
        raise checkpoint.DamagedCheckpoint(f"{path} is of another experiment ({differ})")


def _load(state: TrainState, saved: dict[str, Any], path: Path, images_seen: int) -> None:
    """Load a checkpoint's content; DamagedCheckpoint where it is not what this run saves."""
    try:
        if saved["images_seen"] != images_seen:
            raise checkpoint.DamagedCheckpoint(
                f"{path} has unexpected content ({saved['images_seen']!r} images seen)"
            )
        if saved["sums"].shape != state.sums.shape:
            raise ValueError("another number of sums")
        state.load_state_dict(saved, rank=0)
        for part in state.parts.values():
            if isinstance(part, torch.optim.Optimizer):
                _check_shapes(part)
    except checkpoint.DamagedCheckpoint:
        raise
    except Exception as error:  # whatever torch raises for other names, types and shapes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise _Misfit(path, reason) from None


def _check_shapes(optimizer: torch.optim.Optimizer) -> None:
    """ValueError where a moment has another shape than its weight, which torch does not check."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} {list(value.shape)} of weights {list(parameter.shape)}")
