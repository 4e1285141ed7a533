"""Soft and antialiased shapes on an RGB picture."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.synthetic.facemodel import Color, FloatArray

FRACTION_BITS = 4  # of drawn coordinates


class Canvas:
    """An RGB picture to draw on; `unit` is the length in pixels of 1 in face coordinates."""

    def __init__(self, image: NDArray[np.uint8], unit: float) -> None:
        self.image, self.unit = image, unit

    @staticmethod
    def fixed_point(points: FloatArray) -> NDArray[np.int32]:
        return np.round(points * (1 << FRACTION_BITS)).astype(np.int32).reshape(-1, 1, 2)

    def fill(self, points: FloatArray, color: Color) -> None:
        cv2.fillPoly(self.image, [self.fixed_point(points)], color, cv2.LINE_AA, FRACTION_BITS)

    def line(self, points: FloatArray, color: Color, width: float, closed: bool = False) -> None:
        thick = max(1, round(width * self.unit))
        cv2.polylines(
            self.image, [self.fixed_point(points)], closed, color, thick, cv2.LINE_AA, FRACTION_BITS
        )

    def ellipse(
        self, center: FloatArray, rx: float, ry: float, color: Color, thick: int = -1
    ) -> None:
        a = np.linspace(0, 2 * np.pi, 28)
        ring = center + np.stack([rx * np.cos(a), ry * np.sin(a)], 1)
        self.fill(ring, color) if thick < 0 else self.line(ring, color, thick / self.unit, True)

    def shade(self, points: FloatArray, color: Color, strength: float, width: float) -> None:
        """A soft line: the colour blends in with `strength` and fades over about `width`."""
        if strength < 0.04:
            return
        reach = int(3 * width * self.unit) + 2
        low = np.maximum(np.floor(points.min(0)).astype(int) - reach, 0)
        high = np.ceil(points.max(0)).astype(int) + reach
        patch = self.image[low[1] : high[1], low[0] : high[0]]
        if patch.size == 0:
            return
        mask = np.zeros(patch.shape[:2], np.uint8)
        thick = max(1, round(width * self.unit))
        cv2.polylines(
            mask, [self.fixed_point(points - low)], False, 255, thick, cv2.LINE_AA, FRACTION_BITS
        )
        reach = 2 * round(1.1 * width * self.unit + 0.5) + 1
        blend(
            patch,
            np.array(color, np.float32),
            cv2.stackBlur(mask, (reach, reach)),
            min(strength, 1),
        )


def blend(
    patch: NDArray[np.uint8], color: NDArray[Any], mask: NDArray[np.uint8], strength: float = 1.0
) -> None:
    """Move `patch` [H, W, 3] towards `color` by mask / 255 * strength, in place."""
    alpha = mask[..., None] * np.float32(strength / 255)
    patch += (
        ((color - patch) * alpha).astype(np.int16).astype(np.uint8)
    )  # modulo 256, which the sum undoes


def tone(color: Color, factor: float) -> Color:
    r, g, b = (min(255.0, c * factor) for c in color)
    return r, g, b


_T = np.arange(4)[:, None] / 4
_CATMULL_ROM = 0.5 * np.hstack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, _T**3 - _T**2]
)


def curve(points: FloatArray, closed: bool = False) -> FloatArray:
    """A smooth curve through the points (Catmull-Rom, 4 pieces a span)."""
    p = np.concatenate(
        [points[-1:], points, points[:2]] if closed else [points[:1], points, points[-1:]]
    )
    spans = np.stack([p[:-3], p[1:-2], p[2:-1], p[3:]])  # [4, spans, 2]
    curve = np.tensordot(_CATMULL_ROM, spans, 1).swapaxes(0, 1).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])
