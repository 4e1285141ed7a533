"""Paint a projected face: skin, creases, eyes, mouth, hair, glasses, background and the camera's faults."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.synthetic.facemodel import (
    BROW_L,
    BROW_R,
    CHEEKS,
    EAR_L,
    EAR_R,
    EYE_L,
    EYE_R,
    FOREHEAD,
    INNER_LIPS,
    JAW,
    LIPS,
    NECK,
    NOSTRILS,
    Color,
    FloatArray,
    Person,
)

_SHIFT = 4  # fractional bits of drawn coordinates


class _Canvas:
    """An RGB picture with antialiased shapes; `unit` is the drawn length of 1 in face coordinates."""

    def __init__(self, image: NDArray[np.uint8], unit: float) -> None:
        self.image, self.unit = image, unit

    @staticmethod
    def _fixed(points: FloatArray) -> NDArray[np.int32]:
        return np.round(points * (1 << _SHIFT)).astype(np.int32).reshape(-1, 1, 2)

    def fill(self, points: FloatArray, color: Color) -> None:
        cv2.fillPoly(self.image, [self._fixed(points)], color, cv2.LINE_AA, _SHIFT)

    def line(self, points: FloatArray, color: Color, width: float, closed: bool = False) -> None:
        thick = max(1, round(width * self.unit))
        cv2.polylines(self.image, [self._fixed(points)], closed, color, thick, cv2.LINE_AA, _SHIFT)

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
        cv2.polylines(mask, [self._fixed(points - low)], False, 255, thick, cv2.LINE_AA, _SHIFT)
        reach = 2 * round(1.1 * width * self.unit + 0.5) + 1
        _blend(
            patch,
            np.array(color, np.float32),
            cv2.stackBlur(mask, (reach, reach)),
            min(strength, 1),
        )


def _blend(
    patch: NDArray[np.uint8], color: NDArray[Any], mask: NDArray[np.uint8], strength: float = 1.0
) -> None:
    """Move `patch` [H, W, 3] towards `color` by mask / 255 * strength, in place."""
    alpha = mask[..., None] * np.float32(strength / 255)
    patch += (
        ((color - patch) * alpha).astype(np.int16).astype(np.uint8)
    )  # modulo 256, which the sum undoes


def _tone(color: Color, factor: float) -> Color:
    r, g, b = (min(255.0, c * factor) for c in color)
    return r, g, b


_T = np.arange(4)[:, None] / 4
_CATMULL_ROM = 0.5 * np.hstack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, _T**3 - _T**2]
)


def _curve(points: FloatArray, closed: bool = False) -> FloatArray:
    """A smooth curve through the points (Catmull-Rom, 4 pieces a span)."""
    p = np.concatenate(
        [points[-1:], points, points[:2]] if closed else [points[:1], points, points[-1:]]
    )
    spans = np.stack([p[:-3], p[1:-2], p[2:-1], p[3:]])  # [4, spans, 2]
    curve = np.tensordot(_CATMULL_ROM, spans, 1).swapaxes(0, 1).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


def paint(
    q: FloatArray,
    height: int,
    width: int,
    who: Person,
    strength: dict[str, float],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    canvas = _Canvas(
        _background(height, width, rng), unit=float(np.linalg.norm(q[16] - q[0])) / 1.94
    )
    unit = canvas.unit
    up = (q[27] - q[8]) / np.linalg.norm(q[27] - q[8])
    side = np.array([-up[1], up[0]])
    dark = _tone(who.skin, 0.62)

    # hair behind, neck, shoulders
    crown = q[FOREHEAD].mean(0)
    if who.hair_style == 3:
        canvas.fill(
            _curve(
                np.stack(
                    [
                        q[0] - side * 0.3 * unit - up * 1.1 * unit,
                        q[FOREHEAD][0] - side * 0.3 * unit,
                        crown + up * 0.75 * unit,
                        q[FOREHEAD][-1] + side * 0.3 * unit,
                        q[16] + side * 0.3 * unit - up * 1.1 * unit,
                    ]
                ),
                True,
            ),
            _tone(who.hair, 0.8),
        )
    canvas.fill(q[NECK], _tone(who.skin, 0.78))
    cloth: Color = tuple(rng.uniform(20, 170) + rng.uniform(0, 70, 3))
    base = q[NECK][2:].mean(0)
    canvas.fill(
        np.stack(
            [
                base + side * 2.6 * unit - up * 2 * unit,
                base + side * 2.0 * unit + up * 0.25 * unit,
                base + side * 0.7 * unit + up * 0.75 * unit,
                base + up * 0.5 * unit,
                base - side * 0.7 * unit + up * 0.75 * unit,
                base - side * 2.0 * unit + up * 0.25 * unit,
                base - side * 2.6 * unit - up * 2 * unit,
            ]
        ),
        cloth,
    )
    for ear in (EAR_L, EAR_R):
        canvas.fill(_curve(q[ear], True), _tone(who.skin, 0.88))

    # the face and its large shadows
    outline = _curve(np.concatenate([q[JAW][::-1], q[FOREHEAD]]), True)
    canvas.fill(outline, who.skin)
    canvas.shade(_curve(q[JAW]), dark, 0.55, 0.1)
    for eye, brow in ((EYE_L, BROW_L), (EYE_R, BROW_R)):
        canvas.shade(
            _curve(
                0.5 * (q[eye][[0, 1, 2, 3]] + q[brow][[0, 2, 3, 4]][:: 1 if eye is EYE_L else -1])
            ),
            dark,
            0.3,
            0.1,
        )
    for cheek in q[CHEEKS]:
        canvas.shade(np.stack([cheek, cheek + up * 0.06 * unit]), _tone(who.skin, 1.12), 0.5, 0.22)
    if who.beard:
        stubble = _tone(who.hair, 1.1)
        canvas.shade(_curve(q[JAW][3:14] * 0.9 + q[57] * 0.1), stubble, who.beard, 0.24)
        canvas.shade(
            _curve(
                np.stack(
                    [q[48], q[50] + (q[33] - q[51]) * 0.35, q[52] + (q[33] - q[51]) * 0.35, q[54]]
                )
            ),
            stubble,
            who.beard,
            0.07,
        )

    _paint_creases(canvas, q, who, strength, up, side)
    _paint_nose(canvas, q, dark)
    _paint_eyes(canvas, q, who, rng)
    for brow in (BROW_L, BROW_R):
        spine = _curve(q[brow])
        taper = (
            np.linspace(0.35, 1, len(spine)) if brow is BROW_L else np.linspace(1, 0.35, len(spine))
        )
        half = taper[:, None] * up * who.brow_weight * unit
        canvas.fill(np.concatenate([spine + half, (spine - half)[::-1]]), _tone(who.hair, 0.9))
    _paint_mouth(canvas, q, who, up)
    _paint_hair(canvas, q, who, up, side)
    if who.glasses:
        _paint_glasses(canvas, q, rng)
    return _photograph(canvas.image, rng)


def _background(height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    corners = (rng.uniform(30, 200, (2, 2, 1)) + rng.uniform(0, 50, (2, 2, 3))).astype(np.float32)
    small = cv2.resize(corners, (32, 32))
    for _ in range(rng.integers(2, 6)):
        x, y = (int(v) for v in rng.integers(0, 32, 2))
        color = tuple(rng.uniform(10, 190) + rng.uniform(0, 60, 3))
        cv2.rectangle(
            small, (x, y), (x + int(rng.integers(3, 16)), y + int(rng.integers(3, 20))), color, -1
        )
    return (
        cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        .clip(0, 255)
        .astype(np.uint8)
    )


def _paint_creases(
    canvas: _Canvas,
    q: FloatArray,
    who: Person,
    strength: dict[str, float],
    up: FloatArray,
    side: FloatArray,
) -> None:
    """The folds that action units press into the skin."""
    s = lambda *names: sum(strength.get(n, 0) for n in names)  # noqa: E731
    unit, dark = canvas.unit, _tone(who.skin, 0.5)
    for nostril, corner, eye, out in ((31, 48, 36, -1), (35, 54, 45, 1)):
        suffix = "_l" if out < 0 else "_r"
        fold = s("AU12", f"AU12{suffix}") * 0.8 + s("AU10") * 0.7 + s("AU9") * 0.5
        path = np.stack(
            [
                q[nostril] + side * out * 0.05 * unit,
                (q[nostril] + q[corner]) / 2 + side * out * 0.13 * unit,
                q[corner] + side * out * 0.09 * unit,
            ]
        )
        canvas.shade(_curve(path), dark, 0.12 + 0.55 * fold, 0.035)
        dimple = q[corner] + side * out * 0.08 * unit
        canvas.shade(
            np.stack([dimple + up * 0.06 * unit, dimple - up * 0.05 * unit]),
            dark,
            s(f"AU14{suffix}"),
            0.04,
        )
        for spread in (-0.07, 0.0, 0.07):  # crow's feet
            start = q[eye] + side * out * 0.06 * unit
            canvas.shade(
                np.stack([start, start + side * out * 0.13 * unit + up * spread * unit]),
                dark,
                0.5 * s("AU6"),
                0.012,
            )
        bag = q[[41, 40]] if out < 0 else q[[47, 46]]
        canvas.shade(bag - up * 0.09 * unit, dark, 0.15 + 0.35 * s("AU6", "AU7"), 0.025)
    for level in (0.3, 0.42, 0.54):
        brow = (q[19:25:5] + up * level * unit)[[0, 1]]
        bend = np.stack([brow[0], brow.mean(0) + up * 0.04 * unit, brow[1]])
        canvas.shade(_curve(bend), dark, 0.45 * (s("AU1") + s("AU2")) - 0.15, 0.018)
    for x in (-0.055, 0.055):  # between the brows
        foot = q[27] + side * x * unit
        canvas.shade(
            np.stack([foot + up * 0.1 * unit, foot + up * 0.32 * unit]),
            dark,
            0.7 * s("AU4") - 0.1,
            0.022,
        )
    for level in (0.0, 0.08, 0.16):  # on the nose's root
        root = q[27] - up * level * unit
        canvas.shade(
            np.stack([root - side * 0.1 * unit, root + side * 0.1 * unit]),
            dark,
            0.6 * s("AU9"),
            0.016,
        )
    chin = q[8] + up * 0.22 * unit
    canvas.shade(
        _curve(
            np.stack(
                [chin - side * 0.13 * unit, chin + up * 0.05 * unit, chin + side * 0.13 * unit]
            )
        ),
        dark,
        0.1 + 0.6 * s("AU17"),
        0.03,
    )


def _paint_nose(canvas: _Canvas, q: FloatArray, dark: Color) -> None:
    unit = canvas.unit
    shadow = _curve(np.stack([0.6 * q[27] + 0.4 * q[39], 0.5 * (q[29] + q[31]), q[31]]))
    canvas.shade(shadow, dark, 0.4, 0.05)
    canvas.shade(
        _curve(np.stack([0.6 * q[27] + 0.4 * q[42], 0.5 * (q[29] + q[35]), q[35]])),
        dark,
        0.25,
        0.05,
    )
    canvas.shade(_curve(q[NOSTRILS]), _tone(dark, 0.7), 0.55, 0.03)
    for i in (32, 34):
        canvas.ellipse(q[i], 0.045 * unit, 0.025 * unit, _tone(dark, 0.45))
    canvas.shade(q[28:31], _tone(dark, 2.0), 0.25, 0.05)


def _paint_eyes(canvas: _Canvas, q: FloatArray, who: Person, rng: np.random.Generator) -> None:
    unit = canvas.unit
    gaze = rng.uniform(-0.05, 0.05, 2) * unit
    for eye in (EYE_L, EYE_R):
        rim = q[eye]
        shape = _curve(rim, True)
        low, high = np.floor(shape.min(0)).astype(int) - 3, np.ceil(shape.max(0)).astype(int) + 4
        low = np.maximum(low, 0)
        patch = canvas.image[low[1] : high[1], low[0] : high[0]]
        if patch.size == 0:
            continue
        mask = np.zeros(patch.shape[:2], np.uint8)
        cv2.fillPoly(mask, [_Canvas._fixed(shape - low)], 255, cv2.LINE_AA, _SHIFT)
        ball = _Canvas(np.full_like(patch, 0), unit)
        ball.image[:] = (228, 224, 220)
        center = 0.5 * (rim[0] + rim[3]) + gaze - low - [0, 0.012 * unit]
        ball.ellipse(center, 0.088 * unit, 0.088 * unit, who.iris)
        ball.ellipse(center, 0.042 * unit, 0.042 * unit, (12, 10, 10))
        ball.ellipse(center - 0.03 * unit, 0.016 * unit, 0.016 * unit, (250, 250, 250))
        _blend(patch, ball.image.astype(np.float32), mask)
        upper = _curve(rim[[0, 1, 2, 3]])
        canvas.line(upper, _tone(who.skin, 0.28), 0.028)
        canvas.shade(upper - [0, 0.06 * unit], _tone(who.skin, 0.5), 0.5, 0.018)
        canvas.line(_curve(rim[[3, 4, 5, 0]]), _tone(who.skin, 0.6), 0.012)


def _paint_mouth(canvas: _Canvas, q: FloatArray, who: Person, up: FloatArray) -> None:
    unit = canvas.unit
    inner = q[INNER_LIPS]
    canvas.fill(_curve(q[LIPS], True), who.lips)
    canvas.shade(_curve(q[[59, 58, 57, 56, 55]]), _tone(who.skin, 0.6), 0.45, 0.04)
    gap = float(np.linalg.norm(inner[2] - inner[6]))
    if gap > 0.03 * unit:
        canvas.fill(_curve(inner, True), (52, 18, 20))
        depth = min(gap * 0.55, 0.1 * unit)
        teeth = np.concatenate(
            [inner[:5] * 0.94 + inner.mean(0) * 0.06, (inner[1:4] - up * depth)[::-1]]
        )
        canvas.fill(teeth, (226, 220, 208))
        if gap > 0.2 * unit:
            canvas.ellipse(inner[6] + up * 0.05 * unit, 0.13 * unit, 0.07 * unit, (150, 70, 74))
    else:
        canvas.line(_curve(inner[:5]), _tone(who.lips, 0.45), 0.022)


def _paint_hair(
    canvas: _Canvas, q: FloatArray, who: Person, up: FloatArray, side: FloatArray
) -> None:
    if not who.hair_style:
        return
    unit, arc = canvas.unit, q[FOREHEAD]
    outside = arc + up * 0.2 * unit + (arc - arc.mean(0)) * 0.12
    drop = {1: 0.12, 2: 0.34, 3: 0.22}[who.hair_style]
    inside = arc[1:-1] - up * drop * unit * np.sin(np.linspace(0.35, np.pi - 0.35, 11))[:, None]
    if who.hair_style == 2:  # a fringe swept to one side
        inside = inside - up * unit * np.linspace(0, 0.2, 11)[:, None]
    lock = np.concatenate(
        [outside, arc[-1:] - up * 0.25 * unit, inside[::-1], arc[:1] - up * 0.25 * unit]
    )
    canvas.fill(_curve(lock, True), who.hair)
    canvas.shade(_curve(outside[2:-2] - up * 0.12 * unit), _tone(who.hair, 1.5), 0.35, 0.06)
    if who.hair_style == 3:
        for end, out in ((0, -1), (-1, 1)):
            strand = np.stack(
                [
                    arc[end],
                    arc[end] + side * out * 0.12 * unit - up * 0.5 * unit,
                    arc[end] + side * out * 0.15 * unit - up * 1.2 * unit,
                ]
            )
            canvas.line(_curve(strand), who.hair, 0.18)


def _paint_glasses(canvas: _Canvas, q: FloatArray, rng: np.random.Generator) -> None:
    unit = canvas.unit
    color: Color = tuple(rng.uniform(10, 80, 3))
    rx, ry = rng.uniform(0.25, 0.31) * unit, rng.uniform(0.18, 0.27) * unit
    centers = [q[eye].mean(0) for eye in (EYE_L, EYE_R)]
    for center in centers:
        canvas.ellipse(center, rx, ry, color, thick=max(1, round(0.035 * unit)))
    bridge = (centers[1] - centers[0]) / np.linalg.norm(centers[1] - centers[0]) * rx
    canvas.line(np.stack([centers[0] + bridge, centers[1] - bridge]), color, 0.035)
    canvas.line(np.stack([centers[0] - bridge, q[0]]), color, 0.03)
    canvas.line(np.stack([centers[1] + bridge, q[16]]), color, 0.03)


def _photograph(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Directed light, exposure, focus and sensor noise."""
    height, width = image.shape[:2]
    angle, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.45)
    ramp = (
        np.cos(angle) * np.linspace(-1, 1, width)[None]
        + np.sin(angle) * np.linspace(-1, 1, height)[:, None]
    )
    light = (rng.uniform(0.65, 1.2) * (1 + contrast * ramp)).astype(np.float32)
    tint = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    reach = 2 * int(rng.uniform(0.5, 3.2) * height / 300) + 1
    picture = cv2.stackBlur(image, (reach, reach)) * (light[..., None] * tint)
    noise = np.empty((height, width), np.float32)
    cv2.setRNGSeed(int(rng.integers(2**31)))
    cv2.randn(noise, 0, float(rng.uniform(1, 7)))
    picture += noise[..., None]
    return cv2.convertScaleAbs(np.maximum(picture, 0, out=picture))
