"""From a picture file to a face of fixed size: decode, crop box, resize, gray."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

MARGIN = 0.15  # the landmark box is widened by this share of its width and height on each side

# Copied into the manifest and from there into checkpoints: a photo given at inference is cut in the same way.
RECIPE = {
    "box": "tight around 68 landmarks, else the whole image",
    "margin": MARGIN,
    "shape": "resized to a square, aspect not kept",
    "resampler": "area average when shrinking, bilinear when enlarging",
    "color": "RGB; gray is ITU-R BT.601 luma",
}

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside


class Reject(Exception):
    """This face cannot be used; the message is the reason that goes to rejects.csv."""


def decode(data: bytes, channels: int) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG file's bytes to [H, W] luma or [H, W, 3] RGB, upright by its EXIF orientation.

    Raises Reject for anything that is not a whole picture.
    """
    if not data:
        raise Reject("empty file")
    if data[:3] == b"\xff\xd8\xff" and b"\xff\xd9" not in data[-64:]:  # the decoder would fill the rest with gray
        raise Reject("truncated JPEG")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise Reject(f"not decodable: {error.err}") from None
    if image is None:
        raise Reject("not an image")
    return image


def landmark_box(landmarks: NDArray[np.float32], width: int, height: int) -> Box:
    """The face's box from landmarks [68, 2]: tight, widened by MARGIN, clipped to the image; may come out empty."""
    low, high = landmarks.min(0), landmarks.max(0)
    margin = MARGIN * (high - low)
    left, top = np.maximum(np.floor(low - margin), 0).astype(int)
    right, bottom = np.minimum(np.ceil(high + margin), (width, height)).astype(int)
    return int(left), int(top), int(right), int(bottom)


def cut(image: NDArray[np.uint8], box: Box | None, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float64], bool]:
    """Crop `box` (None: all) and resize to [size, size, C].

    Gives the face, the map from image to face pixels as (scale x, scale y, shift x, shift y), and whether an empty box
    fell back to the whole image.
    """
    height, width = image.shape[:2]
    empty = box is not None and (box[2] - box[0] < 2 or box[3] - box[1] < 2)
    left, top, right, bottom = (0, 0, width, height) if box is None or empty else box
    part = image[top:bottom, left:right]
    scale = np.array([size / (right - left), size / (bottom - top)])
    if part.shape[:2] != (size, size):
        part = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if (scale <= 1).all() else cv2.INTER_LINEAR)
    shift = (0.5 - np.array([left, top])) * scale - 0.5  # pixel centres stay pixel centres
    return part.reshape(size, size, -1), np.concatenate([scale, shift]), empty
