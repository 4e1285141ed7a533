"""Paint a projected face: background, head, features, and what a camera adds."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.synthetic.canvas import Canvas, curve, tone
from fer_hpc.data.synthetic.facemodel import (
    BROW_L,
    BROW_R,
    CHEEKS,
    EAR_L,
    EAR_R,
    EYE_L,
    EYE_R,
    FOREHEAD,
    JAW,
    NECK,
    Color,
    FloatArray,
    Person,
)
from fer_hpc.data.synthetic.features import (
    paint_brows,
    paint_creases,
    paint_eyes,
    paint_glasses,
    paint_hair,
    paint_mouth,
    paint_nose,
)


def paint(
    q: FloatArray,
    height: int,
    width: int,
    who: Person,
    strength: dict[str, float],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """A picture [H, W, 3] RGB of a person; `q` [POINTS, 2] are the projected points in pixels.

    `strength` holds the action units, which crease the skin. The order of the calls is the order
    in which `rng` is used: it is part of what a face looks like.
    """
    image = background(height, width, rng)
    paint_person(image, q, who, strength, rng)
    return photograph(image, rng)


def paint_person(
    image: NDArray[np.uint8],
    q: FloatArray,
    who: Person,
    strength: dict[str, float],
    rng: np.random.Generator,
) -> None:
    """Paint head and shoulders into a picture [H, W, 3] RGB, in place; see `paint`."""
    canvas = Canvas(image, float(np.linalg.norm(q[16] - q[0])) / 1.94)
    up = (q[27] - q[8]) / np.linalg.norm(q[27] - q[8])
    side = np.array([-up[1], up[0]])
    dark = tone(who.skin, 0.62)
    _paint_body(canvas, q, who, up, side, rng)
    _paint_skin(canvas, q, who, up, dark)
    paint_creases(canvas, q, who, strength, up, side)
    paint_nose(canvas, q, dark)
    paint_eyes(canvas, q, who, rng)
    paint_brows(canvas, q, who, up)
    paint_mouth(canvas, q, who, up)
    paint_hair(canvas, q, who, up, side)
    if who.glasses:
        paint_glasses(canvas, q, rng)


def _paint_body(
    canvas: Canvas,
    q: FloatArray,
    who: Person,
    up: FloatArray,
    side: FloatArray,
    rng: np.random.Generator,
) -> None:
    """Hair behind the head, neck, shoulders, ears."""
    unit = canvas.unit
    crown = q[FOREHEAD].mean(0)
    if who.hair_style == 3:
        behind = [
            q[0] - side * 0.3 * unit - up * 1.1 * unit,
            q[FOREHEAD][0] - side * 0.3 * unit,
            crown + up * 0.75 * unit,
            q[FOREHEAD][-1] + side * 0.3 * unit,
            q[16] + side * 0.3 * unit - up * 1.1 * unit,
        ]
        canvas.fill(curve(np.stack(behind), True), tone(who.hair, 0.8))
    canvas.fill(q[NECK], tone(who.skin, 0.78))
    cloth: Color = tuple(rng.uniform(20, 170) + rng.uniform(0, 70, 3))
    base = q[NECK][2:].mean(0)
    shoulders = [
        base + side * 2.6 * unit - up * 2 * unit,
        base + side * 2.0 * unit + up * 0.25 * unit,
        base + side * 0.7 * unit + up * 0.75 * unit,
        base + up * 0.5 * unit,
        base - side * 0.7 * unit + up * 0.75 * unit,
        base - side * 2.0 * unit + up * 0.25 * unit,
        base - side * 2.6 * unit - up * 2 * unit,
    ]
    canvas.fill(np.stack(shoulders), cloth)
    for ear in (EAR_L, EAR_R):
        canvas.fill(curve(q[ear], True), tone(who.skin, 0.88))


def _paint_skin(canvas: Canvas, q: FloatArray, who: Person, up: FloatArray, dark: Color) -> None:
    """The face, its large shadows, and the beard."""
    unit = canvas.unit
    outline = curve(np.concatenate([q[JAW][::-1], q[FOREHEAD]]), True)
    canvas.fill(outline, who.skin)
    canvas.shade(curve(q[JAW]), dark, 0.55, 0.1)
    for eye, brow in ((EYE_L, BROW_L), (EYE_R, BROW_R)):
        lid, above = q[eye][[0, 1, 2, 3]], q[brow][[0, 2, 3, 4]][:: 1 if eye is EYE_L else -1]
        canvas.shade(curve(0.5 * (lid + above)), dark, 0.3, 0.1)
    for cheek in q[CHEEKS]:
        canvas.shade(np.stack([cheek, cheek + up * 0.06 * unit]), tone(who.skin, 1.12), 0.5, 0.22)
    if who.beard:
        stubble = tone(who.hair, 1.1)
        canvas.shade(curve(q[JAW][3:14] * 0.9 + q[57] * 0.1), stubble, who.beard, 0.24)
        below = (q[33] - q[51]) * 0.35
        mustache = np.stack([q[48], q[50] + below, q[52] + below, q[54]])
        canvas.shade(curve(mustache), stubble, who.beard, 0.07)


def background(height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A blurred room: a colour gradient with a few rectangles."""
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


def photograph(
    image: NDArray[np.uint8], rng: np.random.Generator, portrait: float = 0
) -> NDArray[np.uint8]:
    """Directed light, exposure, focus and sensor noise.

    portrait: height in pixels that a picture of one face of this size would have, which the blur is
    in proportion to; 0: this picture's
    """
    height, width = image.shape[:2]
    angle, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.45)
    ramp = (
        np.cos(angle) * np.linspace(-1, 1, width)[None]
        + np.sin(angle) * np.linspace(-1, 1, height)[:, None]
    )
    light = (rng.uniform(0.65, 1.2) * (1 + contrast * ramp)).astype(np.float32)
    tint = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    reach = 2 * int(rng.uniform(0.5, 3.2) * (portrait or height) / 300) + 1
    picture = cv2.stackBlur(image, (reach, reach)) * (light[..., None] * tint)
    noise = np.empty((height, width), np.float32)
    cv2.setRNGSeed(int(rng.integers(2**31)))
    cv2.randn(noise, 0, float(rng.uniform(1, 7)))
    picture += noise[..., None]
    return cv2.convertScaleAbs(np.maximum(picture, 0, out=picture))
