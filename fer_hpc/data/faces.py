"""From a picture file to a face of fixed size: decode, crop box, resize, gray."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

LARGE_SIDE = 96  # from here on, bilinear when shrinking by less than 2: a quarter of the time
MARGIN = 0.15  # of the box's width and height, added on each side

# Copied into the manifest and from there into checkpoints: at inference, photos are cut likewise.
# The text is a part of the plan's hash: another text makes old folders of shards unusable.
RECIPE = {
    "box": "tight around 68 landmarks or as the table says, else the whole image",
    "margin": MARGIN,
    "shape": "resized to a square, aspect not kept",
    "resampler": "area average when shrinking (JPEG: the decoder halves first where both sides "
    "allow), bilinear when enlarging, or when shrinking by less than 2 to 96 pixels or more",
    "color": "RGB; gray is ITU-R BT.601 luma; upright by EXIF",
}

# left, top, right, bottom in pixels; right and bottom are outside
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Found:
    """A face that a finder has found."""

    box: Box  # tight, without margin
    score: float  # of the finder; those of two finders do not compare
    landmarks: NDArray[np.float32] | None = None  # [68, 2] x, y in pixels

    @property
    def area(self) -> float:
        """In pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


# Without turning BGR round, from OpenCV 4.11 on.
_RGB: int = getattr(cv2, "IMREAD_COLOR_RGB", -1)
_REDUCED = {
    (1, 1): cv2.IMREAD_GRAYSCALE,
    (2, 1): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (4, 1): cv2.IMREAD_REDUCED_GRAYSCALE_4,
    (8, 1): cv2.IMREAD_REDUCED_GRAYSCALE_8,
    (1, 3): cv2.IMREAD_COLOR if _RGB < 0 else _RGB,
    (2, 3): cv2.IMREAD_REDUCED_COLOR_2,
    (4, 3): cv2.IMREAD_REDUCED_COLOR_4,
    (8, 3): cv2.IMREAD_REDUCED_COLOR_8,
}


class Reject(Exception):
    """This face cannot be used; the message is the reason that goes to rejects.csv."""


def add_margin(box: Box) -> Box:
    """The box with MARGIN of its width and height added on each side; not yet clipped."""
    left, top, right, bottom = box
    x, y = MARGIN * (right - left), MARGIN * (bottom - top)
    return left - x, top - y, right + x, bottom + y


def landmark_box(landmarks: NDArray[np.float32]) -> Box:
    """The tight box of landmarks [68, 2], with the margin."""
    left, top = np.minimum.reduce(landmarks).tolist()
    right, bottom = np.maximum.reduce(landmarks).tolist()
    return add_margin((left, top, right, bottom))


def decode_scale(box: Box | None, size: int) -> int:
    """1, 2, 4 or 8: the most that a decoder may shrink a picture and leave `size` pixels a side."""
    side = 0.0 if box is None else min(box[2] - box[0], box[3] - box[1])
    return next((f for f in (8, 4, 2) if side >= f * size), 1)


def decode(data: bytes, channels: int, reduced: int = 1) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG file's bytes to [H, W] luma or [H, W, 3] RGB.

    The picture is upright by its EXIF orientation, each side divided by `reduced`.
    Raises Reject for anything that is not a whole picture.
    """
    if not data:
        raise Reject("empty file")
    # of a picture without its end, the decoder would fill the rest with gray
    if data[:3] == b"\xff\xd8\xff" and not _has_jpeg_end(data):
        raise Reject("truncated JPEG")
    if data[:4] == b"\x89PNG" and not _has_png_end(data):
        raise Reject("truncated PNG")
    try:
        flags = _REDUCED[reduced, channels]
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        too_large = "IO_MAX_IMAGE" in str(error)
        why = "picture too large" if too_large else f"not decodable: {error.err}"
        raise Reject(why) from None
    if image is None:
        raise Reject(_why_no_image(data))
    if channels == 1 or flags == _RGB:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _why_no_image(data: bytes) -> str:
    """Why the decoder gives no picture: a TIFF's pixels may be of a kind that it does not turn."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if image is not None and image.dtype.itemsize > 2:
                kind = "float" if image.dtype.kind == "f" else "integer"
                return f"{8 * image.dtype.itemsize}-bit {kind} pixels, wanted 8 or 16 bits"
    return "not an image"


def _has_png_end(data: bytes) -> bool:
    """Whether a PNG's chunks lead to its end; for one of 2 GB the decoder would take the memory."""
    at = 8
    while at + 8 <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False


def _has_jpeg_end(data: bytes) -> bool:
    """Whether a JPEG's end marker comes after its first scan; other bytes may follow it.

    Thumbnails in the segments before the scan have end markers too.
    """
    if b"\xff\xd9" in data[-64:]:
        return True
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xDA:  # start of scan
            return data.find(b"\xff\xd9", at) >= 0
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by a JPEG's header, before it is turned upright; None for other data."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        if marker == 0xDA:
            return None
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def pixel_fault(pixels: NDArray[Any]) -> str:
    """Why an array's values are not those of pixels; "" for uint8, and for floats in [0, 1]."""
    if pixels.dtype == np.uint8:
        return ""
    if pixels.dtype.kind != "f":
        return f"of type {pixels.dtype}; wanted uint8, or floats in [0, 1]"
    if not (pixels.size and pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN as well
        return "of floats outside [0, 1]; divide by 255, or give uint8"
    return ""


def with_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Pixels [H, W] or [H, W, 3] RGB as [H, W] luma or [H, W, 3] RGB."""
    if channels == 1 and pixels.ndim == 3:
        return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    if channels == 1:
        return pixels
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)


def crop_and_resize(
    image: NDArray[np.uint8], box: Box | None, size: int, reduced: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.float64], bool]:
    """Crop `box`, clipped to the image (None: all of it), and resize to [size, size, C].

    The box is in pixels before the decoder's reduction. Gives the face, the map from unreduced
    image to face pixels as (scale x, scale y, shift x, shift y), and whether the box was empty, so
    that the face is the whole image.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    empty = False
    if box is not None:
        low = max(0, math.floor(box[0] / reduced)), max(0, math.floor(box[1] / reduced))
        high = min(width, math.ceil(box[2] / reduced)), min(height, math.ceil(box[3] / reduced))
        empty = high[0] - low[0] < 2 or high[1] - low[1] < 2
        if not empty:
            (left, top), (right, bottom) = low, high
    part = image[top:bottom, left:right]
    scale = size / (right - left), size / (bottom - top)
    if part.shape[:2] != (size, size):
        shrinks = max(scale) <= 1
        slightly = size >= LARGE_SIDE and min(scale) > 0.5
        method = cv2.INTER_AREA if shrinks and not slightly else cv2.INTER_LINEAR
        part = cv2.resize(part, (size, size), interpolation=method)
    # pixel centres stay pixel centres, through the decoder's reduction as through the crop
    shift = (0.5 / reduced - left) * scale[0] - 0.5, (0.5 / reduced - top) * scale[1] - 0.5
    to_crop = np.array([scale[0] / reduced, scale[1] / reduced, *shift])
    return part.reshape(size, size, -1), to_crop, empty
