"""A photograph: decoded no larger than needed, its faces found, and cut as training faces are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.faces import (
    Box,
    Found,
    crop_and_resize,
    decode,
    decode_scale,
    jpeg_size,
    with_channels,
)
from fer_hpc.data.finder import FinderName, face_finder

FIND_SIDE = 1280  # pixels: a longer side of this to twice this is enough to find faces

Pixels = NDArray[np.uint8]


class Photo:
    """A picture file's content, or its pixels [H, W (, 3)]; each decoding is done once."""

    def __init__(self, content: bytes | Pixels) -> None:
        self._encoded = content if isinstance(content, bytes) else None
        self._decoded: dict[tuple[int, int], Pixels] = {}  # (reduction, channels) -> pixels
        if not isinstance(content, bytes):
            self._decoded[1, content.shape[2] if content.ndim == 3 else 1] = content

    def pixels(self, channels: int, reduced: int = 1) -> Pixels:
        """[H, W] luma or [H, W, 3] RGB, upright, each side divided by `reduced`; raises Reject."""
        pixels = self._decoded.get((reduced, channels))
        if pixels is None:
            other = self._decoded.get((reduced, 4 - channels))
            if other is not None and (channels == 1 or self._encoded is None):
                pixels = with_channels(other, channels)
            else:
                assert self._encoded is not None
                pixels = decode(self._encoded, channels, reduced)
            self._decoded[reduced, channels] = pixels
        return pixels

    def find(self, finder: FinderName | None = None) -> list[Found]:
        """The faces, the largest first, in pixels of the whole picture; raises Reject.

        They are looked for in a JPEG that the decoder has shrunk to FIND_SIDE pixels or more.
        """
        size = jpeg_size(self._encoded) if self._encoded is not None else None
        longer = max(size) if size else 0
        reduced = next((f for f in (8, 4, 2) if longer >= f * FIND_SIDE), 1)
        faces = face_finder(finder).find(self.pixels(3, reduced))
        return [_enlarged(face, reduced) for face in faces]

    def crop(
        self, box: Box | None, size: int, channels: int
    ) -> tuple[Pixels, NDArray[np.float64], bool]:
        """`box` (None: all) as a face [size, size, C]; see `crop_and_resize`. Raises Reject.

        A decoding that is there already is used where it is fine enough; else the file is decoded
        as small as the face allows.
        """
        wanted = decode_scale(box, size) if self._encoded is not None else 1
        reduced = max((r for r, _ in self._decoded if r <= wanted), default=wanted)
        return crop_and_resize(self.pixels(channels, reduced), box, size, reduced)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole picture, upright; valid once something was decoded."""
        picture, reduced = self.shown
        height, width = picture.shape[:2]
        header = jpeg_size(self._encoded) if self._encoded is not None and reduced > 1 else None
        if header is None:
            return width * reduced, height * reduced
        return header if (header[0] > header[1]) == (width > height) else header[::-1]

    @property
    def shown(self) -> tuple[Pixels, int]:
        """A decoded form for display, in colour if there is one, and its reduction."""
        reduced, channels = max(self._decoded, key=lambda key: (key[1], key[0]))
        return self._decoded[reduced, channels], reduced


def cut_box(to_crop: NDArray[np.float64], size: int) -> Box:
    """The part of a picture that became a face [size, size, C], from `crop_and_resize`'s map."""
    scale, shift = to_crop[:2], to_crop[2:]
    left, top = ((-0.5 - shift) / scale + 0.5).tolist()
    right, bottom = ((size - 0.5 - shift) / scale + 0.5).tolist()
    return left, top, right, bottom


def _enlarged(face: Found, factor: int) -> Found:
    """A face that was found in a picture whose sides were divided by `factor`."""
    if factor == 1:
        return face
    left, top, right, bottom = (edge * factor for edge in face.box)
    points = None if face.landmarks is None else (face.landmarks + 0.5) * factor - 0.5
    return replace(face, box=(left, top, right, bottom), landmarks=points)
