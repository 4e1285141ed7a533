"""Load the generator of a GAN run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from fer_hpc.config import UserError
from fer_hpc.config.aliases import current_value
from fer_hpc.files import sha256
from fer_hpc.models.gan import Generator
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import list_checkpoints, outcome_file, read_run_config
from fer_hpc.run.outcome import check_history


def mode_of(science: dict[str, Any]) -> str:
    """`improved` or `paper`, from the stored science fields of a GAN run of any version."""
    return str(current_value("mode", science["mode"]))


def load_generator(run: Path, device: torch.device) -> tuple[Generator, tuple[int, int, int], str]:
    """The generator of a GAN run in evaluation mode, its face shape (H, W, C), its file's SHA-256.

    A finished run has its final weights; an unfinished one those of its last checkpoint. Raises
    UserError where there are none, or where they do not fit this version's generator.
    """
    stored = read_run_config(run)
    height, width, channels = stored["data"]["image_shape"]
    improved = mode_of(stored["science"]) == "improved"
    generator = Generator(channels, height, len(stored["data"]["classes"]) if improved else 0)
    weights, path = _newest_weights(run)
    try:
        generator.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"--run {run}: the layers in {path.name} differ from this version's generator; "
            "train the GAN again in another --run folder"
        ) from None
    return generator.to(device).eval(), (height, width, channels), sha256(path)


def _newest_weights(run: Path) -> tuple[dict[str, Any], Path]:
    """The generator's newest readable state dict, and the file that holds it."""
    check_history(run)
    final = outcome_file(run, "final.pt")
    checkpoints = [path for _, _, path in list_checkpoints(run)]
    for path in [*([final] if final else []), *checkpoints]:
        try:
            saved = checkpoint.load(path)
        except checkpoint.DamagedCheckpoint as damage:
            print(f"warning: {damage}; using the checkpoint before it", file=sys.stderr)
            continue
        if path == final:
            return dict(saved["model"]), path
        if "ema" not in saved:
            return dict(saved["generator"]), path
        prefix = "module."  # AveragedModel's; its other entry is a counter
        ema = saved["ema"].items()
        return {k.removeprefix(prefix): v for k, v in ema if k.startswith(prefix)}, path
    raise UserError(f"--run {run} holds no weights that can be read; train it first")
