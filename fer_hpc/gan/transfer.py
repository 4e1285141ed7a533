"""Two photos and a GAN's run to a picture: python -m fer_hpc.transfer NEUTRAL EXPRESSION --run RUN --out PNG."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.commands import TransferConfig
from fer_hpc.data.faces import Reject, add_margin, crop_and_resize, decode, find_face
from fer_hpc.files import sha256, write_bytes
from fer_hpc.models.gan import Generator
from fer_hpc.parallel.device import pick_device
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import list_checkpoints, outcome_file, read_run_config


def transfer(config: TransferConfig) -> Path:
    """Write the neutral person with the other's expression to `config.out`, a PNG of the GAN's own size; gives its path."""
    device = pick_device(config.device)
    generator, shape, _ = load_generator(config.run, device)
    faces = [face_of(path, shape, config.whole) for path in (config.neutral, config.expression)]
    with torch.inference_mode():
        inputs = [
            torch.from_numpy(face).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
            for face in faces
        ]
        made = generator(*inputs)[0].permute(1, 2, 0).cpu().numpy()
    output = np.clip(np.round((made + 1) * 127.5), 0, 255).astype(np.uint8)
    picture = np.concatenate([*faces, output], 1) if config.strip else output
    encoded, png = cv2.imencode(
        ".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if shape[2] == 3 else picture
    )
    if not encoded:
        raise UserError(f"--out {config.out}: the picture could not be encoded")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(config.out, png.tobytes())
    return config.out


def load_generator(run: Path, device: torch.device) -> tuple[Generator, tuple[int, int, int], str]:
    """The generator of a GAN's run, ready to use, the shape of its faces, and the SHA-256 of its file; of an unfinished run, as
    last saved."""
    stored = read_run_config(run)
    height, width, channels = stored["data"]["image_shape"]
    generator = Generator(
        channels,
        height,
        len(stored["data"]["classes"]) if stored["science"]["mode"] == "improved" else 0,
    )
    weights, path = _weights(run)
    try:
        generator.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"--run {run}: its generator has other layers than this version's; train it anew in another folder"
        ) from None
    return generator.to(device).eval(), (height, width, channels), sha256(path)


def _weights(run: Path) -> tuple[dict[str, Any], Path]:
    """The newest weights that can be read, and the file that they are from."""
    final = outcome_file(run, "final.pt")
    for path in [*([final] if final else []), *(path for _, _, path in list_checkpoints(run))]:
        try:
            saved = checkpoint.load(path)
        except checkpoint.DamagedCheckpoint as damage:
            print(f"warning: {damage}; taking the one before", file=sys.stderr)
            continue
        if path == final:
            return dict(saved["model"]), path
        if "ema" not in saved:
            return dict(saved["generator"]), path
        return {
            k.removeprefix("module."): v for k, v in saved["ema"].items() if k.startswith("module.")
        }, path
    raise UserError(f"{run} holds no weights that can be read; train it first")


def face_of(path: Path, shape: tuple[int, int, int], whole: bool) -> NDArray[np.uint8]:
    """The face on a photo, as AffectNet's are cut: a box around it and 15 % on each side; or `whole`; [H, W, C]."""
    size, _, channels = shape
    try:
        image = decode(path.read_bytes(), channels)
    except Reject as why:
        raise UserError(f"{path}: {why}; give a JPEG or PNG photo") from None
    box = None if whole else find_face(image)
    if box is None and not whole:
        height, width = image.shape[:2]
        raise UserError(
            f"{path} ({width}x{height}): no face found; give a photo of an upright face, or --whole if it is a cut-out face"
        )
    return crop_and_resize(image, box and add_margin(box), size)[0]
