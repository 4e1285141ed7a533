"""Transfer an expression from one photo to another: python -m fer_hpc.transfer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.commands import TransferConfig
from fer_hpc.data.faces import Box, Reject, with_channels
from fer_hpc.data.finder import CASCADE_ADVICE, best_finder, training_box
from fer_hpc.data.photos import Photo
from fer_hpc.data.pictures import signature, signed
from fer_hpc.files import check_output, read_file, write_bytes
from fer_hpc.gan.weights import load_generator
from fer_hpc.parallel.device import inference, pick_device

MIN_FACE_SIDE = 48  # pixels of the photo; the finder takes other things for faces below that
SMALL_SHARE = 0.15  # of the picture; a smaller box is often a part of a cut-out face
VIEW_SIDE = 256  # pixels; smaller outputs are enlarged at least to this
STRIP_SIDE = 384  # pixels of each picture in a strip
TITLES, TITLE_HEIGHT = ("neutral", "expression", "output"), 28

Image = NDArray[np.uint8]  # [H, W] gray or [H, W, C] RGB


@dataclass(frozen=True)
class FacePhoto:
    """A photo, and what is cut from it for the face; None: the whole picture is the face."""

    path: Path
    photo: Photo
    box: Box | None  # in pixels, with the margin

    def describe(self) -> str:
        """The photo's size and the box, as text."""
        height, width = self.size
        size = f"{self.path} ({width}x{height})"
        if self.box is None:
            return f"{size}: the whole picture (--whole)"
        left, top, right, bottom = map(round, self.box)
        return (
            f"{size}: face at left {left}, top {top}, width {right - left}, height {bottom - top} "
            f"({self.share:.0%} of the picture)"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        picture, reduced = self.photo.shown
        return reduced * picture.shape[0], reduced * picture.shape[1]

    @property
    def share(self) -> float:
        """The part of the picture's area that the box covers."""
        height, width = self.size
        left, top, right, bottom = self.box or (0.0, 0.0, float(width), float(height))
        return (right - left) * (bottom - top) / (height * width)


def transfer(config: TransferConfig) -> str:
    """Write `config.out`: the neutral person with the other's expression; gives a summary as text.

    The output is enlarged `config.scale` times; with 0, at least to VIEW_SIDE. With `config.strip`
    both photos stand beside it, with the box that was cut, each at least STRIP_SIDE wide.
    """
    check_output(config.out, signature("transfer"), inputs=(config.neutral, config.expression))
    device = pick_device(config.device)
    generator, shape, _ = load_generator(config.run, device)
    photos = [read_photo(path, config.whole) for path in (config.neutral, config.expression)]
    if best_finder() == "cascade" and not config.whole:
        print(f"note: {CASCADE_ADVICE}", file=sys.stderr)
    faces = [each.photo.crop(each.box, shape[0], shape[2])[0] for each in photos]
    with inference("fp32", device):
        inputs = [
            torch.from_numpy(face).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
            for face in faces
        ]
        result = generator(*inputs)[0].permute(1, 2, 0).cpu().numpy()
    output = np.clip(np.round((result + 1) * 127.5), 0, 255).astype(np.uint8)
    scale = config.scale or -(-(STRIP_SIDE if config.strip else VIEW_SIDE) // shape[0])
    side = scale * shape[0]
    picture = _enlarged(output, side)
    if config.strip:
        panels = [_with_box(photo, side) for photo in photos]
        panels.append(np.broadcast_to(picture, (side, side, 3)))
        picture = np.concatenate([_titled(*each) for each in zip(TITLES, panels, strict=True)], 1)
    _write_png(config.out, picture)
    content = " | ".join(TITLES) if config.strip else "output"
    method = f", {scale} times the GAN's {shape[0]} pixels (bicubic)" if scale > 1 else ""
    return "\n".join(
        [
            *(photo.describe() for photo in photos),
            f"{config.out}: {content}, {picture.shape[1]}x{picture.shape[0]} pixels{method}",
        ]
    )


def read_photo(path: Path, whole: bool) -> FacePhoto:
    """Decode a photo and find its largest face; `whole`: take the whole picture as the face.

    Raises UserError where it is no picture, or no face of a sensible size is found. Warns on stderr
    where the box is a small part of the picture.
    """
    photo = Photo(read_file(path))
    try:
        if whole:
            photo.pixels(3)
            return FacePhoto(path, photo, None)
        faces = photo.find()
    except Reject as reason:
        raise UserError(f"{path}: {reason}; give a JPEG or PNG photo") from None
    if not faces:
        height, width = photo.shown[0].shape[:2]
        raise UserError(
            f"{path} ({width}x{height}): no face found; give a photo of an upright face, or "
            "--whole if both pictures are cut-out faces"
        )
    result = FacePhoto(path, photo, training_box(faces[0]))
    left, top, right, bottom = faces[0].box
    if min(right - left, bottom - top) < MIN_FACE_SIDE:
        raise UserError(
            f"{result.describe()}: wanted a face of at least {MIN_FACE_SIDE} pixels, smaller finds "
            "are often no faces; give a larger photo, or --whole if both pictures are cut-out faces"
        )
    if result.share < SMALL_SHARE:
        print(
            f"warning: {result.describe()}: check with --strip that this is the face; give --whole "
            "if both pictures are cut-out faces",
            file=sys.stderr,
        )
    return result


def _enlarged(image: Image, side: int) -> Image:
    """A square picture enlarged to [side, side, C]."""
    if image.shape[0] == side:
        return image
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    return resized.reshape(side, side, -1).astype(np.uint8)


def _with_box(face: FacePhoto, side: int) -> Image:
    """The photo in the middle of a square [side, side, 3], with the box that was cut."""
    picture, reduced = face.photo.shown
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(with_channels(picture, 3), size, interpolation=method)
    if face.box is not None:
        left, top, right, bottom = (round(scale * edge / reduced) for edge in face.box)
        line = max(1, side // 128)
        # White on black is visible on any picture, also a gray one.
        cv2.rectangle(small, (left, top), (right, bottom), (0, 0, 0), 3 * line)
        cv2.rectangle(small, (left, top), (right, bottom), (255, 255, 255), line)
    square = np.zeros((side, side, 3), np.uint8)
    x, y = (side - size[0]) // 2, (side - size[1]) // 2
    square[y : y + size[1], x : x + size[0]] = small
    return square


def _titled(title: str, panel: Image) -> Image:
    """A panel [H, W, 3] under its title."""
    strip = np.full((TITLE_HEIGHT, panel.shape[1], 3), 255, np.uint8)
    where = 6, TITLE_HEIGHT - 8
    cv2.putText(strip, title, where, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, panel])


def _write_png(path: Path, picture: Image) -> None:
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.shape[2] == 3 else picture
    encoded, png = cv2.imencode(".png", pixels)
    if not encoded:
        raise UserError(f"--out {path}: the picture could not be encoded as PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, signed(png.tobytes(), "transfer"))
