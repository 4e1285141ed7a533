"""The parts of a painted face: creases, nose, eyes, brows, mouth, hair, glasses."""

from __future__ import annotations

import cv2
import numpy as np

from fer_hpc.data.synthetic.canvas import FRACTION_BITS, Canvas, blend, curve, tone
from fer_hpc.data.synthetic.facemodel import (
    BROW_L,
    BROW_R,
    EYE_L,
    EYE_R,
    FOREHEAD,
    INNER_LIPS,
    LIPS,
    NOSTRILS,
    Color,
    FloatArray,
    Person,
)


def paint_creases(
    canvas: Canvas,
    q: FloatArray,
    who: Person,
    strength: dict[str, float],
    up: FloatArray,
    side: FloatArray,
) -> None:
    """The folds that action units press into the skin."""

    def s(*names: str) -> float:
        return sum(strength.get(n, 0) for n in names)

    unit, dark = canvas.unit, tone(who.skin, 0.5)
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
        canvas.shade(curve(path), dark, 0.12 + 0.55 * fold, 0.035)
        dimple = q[corner] + side * out * 0.08 * unit
        ends = np.stack([dimple + up * 0.06 * unit, dimple - up * 0.05 * unit])
        canvas.shade(ends, dark, s(f"AU14{suffix}"), 0.04)
        for spread in (-0.07, 0.0, 0.07):  # crow's feet
            start = q[eye] + side * out * 0.06 * unit
            end = start + side * out * 0.13 * unit + up * spread * unit
            canvas.shade(np.stack([start, end]), dark, 0.5 * s("AU6"), 0.012)
        bag = q[[41, 40]] if out < 0 else q[[47, 46]]
        canvas.shade(bag - up * 0.09 * unit, dark, 0.15 + 0.35 * s("AU6", "AU7"), 0.025)
    for level in (0.3, 0.42, 0.54):
        brow = (q[19:25:5] + up * level * unit)[[0, 1]]
        bend = np.stack([brow[0], brow.mean(0) + up * 0.04 * unit, brow[1]])
        canvas.shade(curve(bend), dark, 0.45 * (s("AU1") + s("AU2")) - 0.15, 0.018)
    for x in (-0.055, 0.055):  # between the brows
        foot = q[27] + side * x * unit
        frown = np.stack([foot + up * 0.1 * unit, foot + up * 0.32 * unit])
        canvas.shade(frown, dark, 0.7 * s("AU4") - 0.1, 0.022)
    for level in (0.0, 0.08, 0.16):  # on the nose's root
        root = q[27] - up * level * unit
        wrinkle = np.stack([root - side * 0.1 * unit, root + side * 0.1 * unit])
        canvas.shade(wrinkle, dark, 0.6 * s("AU9"), 0.016)
    chin = q[8] + up * 0.22 * unit
    arc = [chin - side * 0.13 * unit, chin + up * 0.05 * unit, chin + side * 0.13 * unit]
    canvas.shade(curve(np.stack(arc)), dark, 0.1 + 0.6 * s("AU17"), 0.03)


def paint_nose(canvas: Canvas, q: FloatArray, dark: Color) -> None:
    """Shadows on both sides, nostrils, the bridge's highlight."""
    unit = canvas.unit
    for eye, nostril, strength in ((39, 31, 0.4), (42, 35, 0.25)):
        edge = [0.6 * q[27] + 0.4 * q[eye], 0.5 * (q[29] + q[nostril]), q[nostril]]
        canvas.shade(curve(np.stack(edge)), dark, strength, 0.05)
    canvas.shade(curve(q[NOSTRILS]), tone(dark, 0.7), 0.55, 0.03)
    for i in (32, 34):
        canvas.ellipse(q[i], 0.045 * unit, 0.025 * unit, tone(dark, 0.45))
    canvas.shade(q[28:31], tone(dark, 2.0), 0.25, 0.05)


def paint_eyes(canvas: Canvas, q: FloatArray, who: Person, rng: np.random.Generator) -> None:
    """Eyeballs within the lids, looking a little aside."""
    unit = canvas.unit
    gaze = rng.uniform(-0.05, 0.05, 2) * unit
    for eye in (EYE_L, EYE_R):
        rim = q[eye]
        shape = curve(rim, True)
        low, high = np.floor(shape.min(0)).astype(int) - 3, np.ceil(shape.max(0)).astype(int) + 4
        low = np.maximum(low, 0)
        patch = canvas.image[low[1] : high[1], low[0] : high[0]]
        if patch.size == 0:
            continue
        mask = np.zeros(patch.shape[:2], np.uint8)
        cv2.fillPoly(mask, [Canvas.fixed_point(shape - low)], 255, cv2.LINE_AA, FRACTION_BITS)
        ball = Canvas(np.full_like(patch, 0), unit)
        ball.image[:] = (228, 224, 220)
        center = 0.5 * (rim[0] + rim[3]) + gaze - low - [0, 0.012 * unit]
        ball.ellipse(center, 0.088 * unit, 0.088 * unit, who.iris)
        ball.ellipse(center, 0.042 * unit, 0.042 * unit, (12, 10, 10))
        ball.ellipse(center - 0.03 * unit, 0.016 * unit, 0.016 * unit, (250, 250, 250))
        blend(patch, ball.image.astype(np.float32), mask)
        upper = curve(rim[[0, 1, 2, 3]])
        canvas.line(upper, tone(who.skin, 0.28), 0.028)
        canvas.shade(upper - [0, 0.06 * unit], tone(who.skin, 0.5), 0.5, 0.018)
        canvas.line(curve(rim[[3, 4, 5, 0]]), tone(who.skin, 0.6), 0.012)


def paint_brows(canvas: Canvas, q: FloatArray, who: Person, up: FloatArray) -> None:
    """Two brows, tapered outwards."""
    for brow in (BROW_L, BROW_R):
        spine = curve(q[brow])
        first, last = (0.35, 1.0) if brow is BROW_L else (1.0, 0.35)
        half = np.linspace(first, last, len(spine))[:, None] * up * who.brow_weight * canvas.unit
        canvas.fill(np.concatenate([spine + half, (spine - half)[::-1]]), tone(who.hair, 0.9))


def paint_mouth(canvas: Canvas, q: FloatArray, who: Person, up: FloatArray) -> None:
    """Lips; teeth and tongue where the mouth is open."""
    unit = canvas.unit
    inner = q[INNER_LIPS]
    canvas.fill(curve(q[LIPS], True), who.lips)
    canvas.shade(curve(q[[59, 58, 57, 56, 55]]), tone(who.skin, 0.6), 0.45, 0.04)
    gap = float(np.linalg.norm(inner[2] - inner[6]))
    if gap > 0.03 * unit:
        canvas.fill(curve(inner, True), (52, 18, 20))
        depth = min(gap * 0.55, 0.1 * unit)
        teeth = np.concatenate(
            [inner[:5] * 0.94 + inner.mean(0) * 0.06, (inner[1:4] - up * depth)[::-1]]
        )
        canvas.fill(teeth, (226, 220, 208))
        if gap > 0.2 * unit:
            canvas.ellipse(inner[6] + up * 0.05 * unit, 0.13 * unit, 0.07 * unit, (150, 70, 74))
    else:
        canvas.line(curve(inner[:5]), tone(who.lips, 0.45), 0.022)


def paint_hair(
    canvas: Canvas, q: FloatArray, who: Person, up: FloatArray, side: FloatArray
) -> None:
    """Hair above the forehead, and at both sides where it is long."""
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
    canvas.fill(curve(lock, True), who.hair)
    canvas.shade(curve(outside[2:-2] - up * 0.12 * unit), tone(who.hair, 1.5), 0.35, 0.06)
    if who.hair_style == 3:
        for end, out in ((0, -1), (-1, 1)):
            strand = np.stack(
                [
                    arc[end],
                    arc[end] + side * out * 0.12 * unit - up * 0.5 * unit,
                    arc[end] + side * out * 0.15 * unit - up * 1.2 * unit,
                ]
            )
            canvas.line(curve(strand), who.hair, 0.18)


def paint_glasses(canvas: Canvas, q: FloatArray, rng: np.random.Generator) -> None:
    """Two round glasses, their bridge and both arms."""
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
