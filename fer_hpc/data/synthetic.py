"""Drawn faces with known expressions: a stand-in for AffectNet where no face data may be had.

Each face is a 3-D set of 68 landmarks (plus forehead, ears and neck) deformed by identity and by the facial action
units (Ekman & Friesen, FACS 1978) of its expression, turned to a pose, projected, and painted. Everything about face
`index` is a pure function of (seed, index), so any number of processes draws the same faces in any order.

    python -m fer_hpc.data.synthetic --out DIR --count 6000     # AffectNet's own on-disk layout
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from fer_hpc.cli import main

    sys.exit(main(["synthetic", *sys.argv[1:]]))

import csv
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, SyntheticConfig, UserError
from fer_hpc.data.annotations import Face, Rows
from fer_hpc.rundir import read_json, write_json

FloatArray = NDArray[np.float64]
Color = tuple[float, float, float]

# AffectNet's class counts in the source report (its Table 1), in the order of CLASSES.
CLASS_COUNTS = (74874, 134414, 25459, 14090, 6378, 3803, 24882, 3750)
PHOTOS_PER_PERSON = 6
VERSION = 1  # raise it when the same (seed, index) gives another picture

# Action units of each expression with their weights; _l and _r move one side of the face.
EXPRESSIONS: dict[str, dict[str, float]] = {
    "Neutral": {},
    "Happiness": {"AU6": 0.8, "AU12": 1.0, "AU25": 0.6},
    "Sadness": {"AU1": 1.0, "AU4": 0.5, "AU15": 1.0, "AU17": 0.5, "AU43": 0.3},
    "Surprise": {"AU1": 1.0, "AU2": 1.0, "AU5": 0.8, "AU25": 0.5, "AU26": 1.0},
    "Fear": {"AU1": 1.0, "AU2": 0.5, "AU4": 0.6, "AU5": 1.0, "AU20": 1.0, "AU25": 0.7, "AU26": 0.25},
    "Disgust": {"AU4": 0.4, "AU7": 0.6, "AU9": 1.0, "AU10": 1.0, "AU15": 0.4, "AU25": 0.3},
    "Anger": {"AU4": 1.0, "AU5": 0.3, "AU7": 0.7, "AU23": 1.0, "AU17": 0.4},
    "Contempt": {"AU12_l": 0.8, "AU14_l": 1.0},
}
# Where full intensity lies in the valence/arousal plane (Russell's circumplex), in the order of CLASSES.
CIRCUMPLEX = ((0, 0), (0.85, 0.4), (-0.75, -0.35), (0.25, 0.85), (-0.55, 0.8), (-0.75, 0.45), (-0.6, 0.75), (-0.6, 0.3))


@dataclass(frozen=True)
class SyntheticFace:
    image: NDArray[np.uint8]  # [H, W, 3] RGB
    label: int  # index into CLASSES
    valence: float  # -1 .. 1
    arousal: float  # -1 .. 1
    landmarks: NDArray[np.float32]  # [68, 2] x, y in pixels
    person: int


# ---- the face at rest: x to the right, y down, z towards the viewer; the face is about 2 wide -----------------------

JAW, BROW_L, BROW_R = slice(0, 17), slice(17, 22), slice(22, 27)
BRIDGE, NOSTRILS = slice(27, 31), slice(31, 36)
EYE_L, EYE_R, LIPS, INNER_LIPS = slice(36, 42), slice(42, 48), slice(48, 60), slice(60, 68)
FOREHEAD, EAR_L, EAR_R, NECK, CHEEKS = slice(68, 81), slice(81, 86), slice(86, 91), slice(91, 95), slice(95, 97)
POINTS = 97


def _rest() -> FloatArray:
    p = np.zeros((POINTS, 3))
    t = np.linspace(-1, 1, 17) * np.radians(97)
    p[JAW] = np.stack([0.97 * np.sin(t), -0.12 + 1.22 * np.cos(t), 0.15 * np.cos(t) - 0.45 * np.sin(t) ** 4], 1)
    brow = np.array(
        [[-0.80, -0.47, 0.05], [-0.67, -0.57, 0.15], [-0.52, -0.60, 0.22], [-0.37, -0.58, 0.27], [-0.21, -0.53, 0.3]]
    )
    p[BROW_L], p[BROW_R] = brow, (brow * [-1, 1, 1])[::-1]
    p[BRIDGE] = [[0, -0.30, 0.30], [0, -0.14, 0.38], [0, 0.02, 0.48], [0, 0.18, 0.56]]
    p[NOSTRILS] = [[-0.19, 0.27, 0.28], [-0.1, 0.31, 0.36], [0, 0.335, 0.42], [0.1, 0.31, 0.36], [0.19, 0.27, 0.28]]
    eye = np.array([[-0.61, -0.27, 0.08], [-0.50, -0.345, 0.17], [-0.36, -0.345, 0.19], [-0.24, -0.255, 0.17],
                    [-0.36, -0.205, 0.18], [-0.50, -0.21, 0.16]])  # fmt: skip
    p[EYE_L], p[EYE_R] = eye, (eye * [-1, 1, 1])[[3, 2, 1, 0, 5, 4]]
    p[LIPS] = [[-0.36, 0.64, 0.18], [-0.23, 0.585, 0.28], [-0.09, 0.555, 0.35], [0, 0.57, 0.36], [0.09, 0.555, 0.35],
               [0.23, 0.585, 0.28], [0.36, 0.64, 0.18], [0.23, 0.71, 0.28], [0.1, 0.745, 0.33], [0, 0.75, 0.34],
               [-0.1, 0.745, 0.33], [-0.23, 0.71, 0.28]]  # fmt: skip
    p[INNER_LIPS] = [[-0.32, 0.64, 0.2], [-0.1, 0.633, 0.33], [0, 0.638, 0.34], [0.1, 0.633, 0.33], [0.32, 0.64, 0.2],
                     [0.1, 0.648, 0.33], [0, 0.652, 0.33], [-0.1, 0.648, 0.33]]  # fmt: skip
    a = np.linspace(np.radians(187), np.radians(353), 13)
    p[FOREHEAD] = np.stack([1.0 * np.cos(a), -0.16 + 1.12 * np.sin(a), -0.1 - 0.3 * np.abs(np.cos(a))], 1)
    ear = np.array([[-0.96, -0.25, -0.4], [-1.1, -0.32, -0.5], [-1.14, -0.1, -0.5], [-1.07, 0.14, -0.45], [-0.95, 0.2, -0.4]])
    p[EAR_L], p[EAR_R] = ear, ear * [-1, 1, 1]
    p[NECK] = [[-0.55, 0.6, -0.4], [0.55, 0.6, -0.4], [0.62, 2.2, -0.4], [-0.62, 2.2, -0.4]]
    p[CHEEKS] = [[-0.55, 0.2, 0.2], [0.55, 0.2, 0.2]]
    return p


def _action_units() -> dict[str, FloatArray]:
    """Displacement of every point at full strength of each action unit, [POINTS, 3]."""
    units: dict[str, FloatArray] = {}

    def unit(name: str, moves: dict[int, tuple[float, float]]) -> None:
        """`moves`: x (outwards from the middle) and y of points on the image's left; the right is mirrored."""
        left = np.zeros((POINTS, 3))
        for i, (out, down) in moves.items():
            left[i] = (-out, down, 0)
        units[f"{name}_l"], units[f"{name}_r"] = left, (left * [-1, 1, 1])[MIRROR]
        both = units[f"{name}_l"] + units[f"{name}_r"]
        middle = [i for i in range(POINTS) if MIRROR[i] == i]
        both[middle] /= 2
        units[name] = both

    lower_lip = {56: 1.0, 57: 1.0, 58: 1.0, 59: 0.75, 65: 1.0, 66: 1.0, 67: 1.0}
    unit("AU1", {21: (0, -0.17), 20: (0, -0.12), 19: (0, -0.05)})  # inner brow raiser
    unit("AU2", {17: (0, -0.11), 18: (0, -0.15), 19: (0, -0.13), 20: (0, -0.06)})  # outer brow raiser
    unit("AU4", {21: (-0.07, 0.13), 20: (-0.06, 0.1), 19: (-0.03, 0.06), 18: (0, 0.03)})  # brow lowerer
    unit("AU5", {37: (0, -0.06), 38: (0, -0.06)})  # upper lid raiser
    unit("AU6", {40: (0, -0.035), 41: (0, -0.04), 95: (0.02, -0.1)})  # cheek raiser
    unit("AU7", {37: (0, 0.035), 38: (0, 0.035), 40: (0, -0.025), 41: (0, -0.025)})  # lid tightener
    unit("AU9", {31: (0.02, -0.07), 32: (0, -0.06), 33: (0, -0.04), 30: (0, -0.04), 21: (-0.02, 0.06), 49: (0, -0.04)})
    unit("AU10", {49: (0.01, -0.08), 50: (0, -0.1), 51: (0, -0.09), 61: (0, -0.07), 62: (0, -0.07), 31: (0.03, -0.02)})
    unit(
        "AU12",
        {
            48: (0.13, -0.14),
            60: (0.12, -0.12),
            49: (0.07, -0.05),
            59: (0.07, -0.03),
            95: (0.04, -0.05),
            50: (0.02, 0.01),
            61: (0.03, 0.01),
            67: (0.03, 0.02),
            57: (0, 0.01),
        },
    )  # fmt: skip  lip corner puller
    unit("AU14", {48: (0.07, -0.03), 60: (0.08, -0.03), 49: (0.02, 0.02), 59: (0.02, -0.03)})  # dimpler
    unit("AU15", {48: (0.02, 0.13), 60: (0.02, 0.11), 49: (0, 0.04), 59: (0.02, 0.05)})  # lip corner depressor
    unit("AU17", {57: (0, -0.06), 58: (0, -0.06), 66: (0, -0.02), 8: (0, -0.05), 7: (0, -0.04)})  # chin raiser
    unit("AU20", {48: (0.17, 0.05), 60: (0.16, 0.05), 49: (0.1, 0.03), 59: (0.1, 0.03)})  # lip stretcher
    unit(
        "AU23",
        {
            48: (-0.08, 0),
            60: (-0.07, 0),
            50: (0, 0.045),
            51: (0, 0.04),
            49: (-0.04, 0.03),
            57: (0, -0.05),
            58: (0, -0.05),
            59: (-0.04, -0.03),
        },
    )  # fmt: skip  lip tightener
    unit("AU25", {i: (0, 0.1 * w) for i, w in lower_lip.items() if i not in (56, 65)})  # lips part
    unit(
        "AU26",
        {
            **{i: (0, 0.3 * w) for i, w in lower_lip.items() if i not in (56, 65)},
            48: (-0.07, 0.09),
            60: (-0.08, 0.1),
            5: (0, 0.12),
            6: (0, 0.2),
            7: (0, 0.25),
            8: (0, 0.27),
            4: (0, 0.06),
        },
    )  # fmt: skip  jaw drop
    unit("AU43", {37: (0, 0.06), 38: (0, 0.06)})  # lids droop
    return units


def _mirror() -> NDArray[np.int64]:
    """Index of each point's counterpart on the other side."""
    rest = _rest()
    distance = np.linalg.norm(rest[:, None] - rest[None] * [-1, 1, 1], axis=2)
    return distance.argmin(1)


MIRROR = _mirror()
REST = _rest()
ACTION_UNITS = _action_units()


# ---- who, what, how: the random choices ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Person:
    shape: FloatArray  # [POINTS, 3]
    skin: Color
    hair: Color
    lips: Color
    iris: Color
    brow_weight: float
    hair_style: int  # 0 bald, 1 short, 2 fringe, 3 long
    beard: float
    glasses: bool
    resting: dict[str, float]  # action units this person shows at rest


def _person(seed: int, number: int) -> _Person:
    rng = np.random.default_rng([seed, 1, number])
    n = lambda scale: float(np.clip(rng.normal(0, scale), -2 * scale, 2 * scale))  # noqa: E731
    p = REST.copy()
    p[:, 0] *= 1 + n(0.07)  # width of the face
    lower = p[:, 1] > 0
    p[lower, 1] *= 1 + n(0.06)  # length of the lower face
    p[JAW, 0] *= 1 + n(0.1) * np.cos(np.linspace(-1, 1, 17) * np.pi / 2)  # pointed or square jaw
    for eye, side in ((EYE_L, -1), (EYE_R, 1)):
        center = p[eye].mean(0)
        size, narrow, slant = 1 + n(0.08), 1 + n(0.13), 0.0
        p[eye] = center + (p[eye] - center) * [size, size * narrow, 1] + [0, slant * side, 0]
    spacing, brow_y, tilt = n(0.03), n(0.035), n(0.03)
    for part, side in ((EYE_L, -1), (EYE_R, 1), (BROW_L, -1), (BROW_R, 1)):
        p[part, 0] += spacing * side
    for part in (BROW_L, BROW_R):
        p[part, 1] += brow_y + tilt * (np.abs(p[part, 0]) - 0.5)
    p[NOSTRILS, 0] *= 1 + n(0.15)
    p[27:36, 1] = -0.3 + (p[27:36, 1] + 0.3) * (1 + n(0.08))
    mouth = slice(48, 68)
    p[mouth, 0] *= 1 + n(0.09)
    p[mouth, 1] += n(0.025)
    full = 1 + n(0.2)
    p[LIPS, 1] = 0.642 + (p[LIPS, 1] - 0.642) * full
    tone = rng.beta(2, 1.6)  # dark to light skin
    skin = (88 + 150 * tone, 58 + 136 * tone, 42 + 128 * tone)
    hairs = ((32, 26, 24), (70, 46, 32), (120, 84, 50), (186, 150, 96), (130, 130, 130), (110, 52, 30))
    hair = hairs[rng.choice(6, p=[0.34, 0.28, 0.14, 0.1, 0.09, 0.05])]
    male = rng.random() < 0.5
    return _Person(
        shape=p,
        skin=(skin[0] + n(6), skin[1] + n(6), skin[2] + n(6)),
        hair=hair,
        lips=(skin[0] * 0.85 + 12, skin[1] * (0.62 + n(0.05)), skin[2] * 0.66),
        iris=((70, 45, 28), (60, 90, 130), (80, 105, 70), (40, 30, 24))[rng.integers(4)],
        brow_weight=0.05 + 0.02 * male + abs(n(0.012)),
        hair_style=int(rng.choice(4, p=[0.12, 0.5, 0.28, 0.1] if male else [0.01, 0.14, 0.35, 0.5])),
        beard=float(male and rng.random() < 0.35) * rng.uniform(0.25, 0.9),
        glasses=bool(rng.random() < 0.18),
        resting={u: float(rng.uniform(0, 0.3)) for u in ("AU1", "AU2", "AU4", "AU7", "AU12", "AU15", "AU25", "AU43")
                 if rng.random() < 0.3},
    )  # fmt: skip


def label_of(index: int, seed: int = 0) -> int:
    """The class of face `index`, without drawing it."""
    return _label(np.random.default_rng([seed, 2, index]))


def _label(rng: np.random.Generator) -> int:
    return int(rng.choice(len(CLASSES), p=np.array(CLASS_COUNTS) / sum(CLASS_COUNTS)))


def draw_face(index: int, seed: int = 0) -> SyntheticFace:
    """Face number `index` of the endless set `seed`: picture, label, valence/arousal, landmarks and person."""
    number = index // PHOTOS_PER_PERSON
    person = _person(seed, number)
    rng = np.random.default_rng([seed, 2, index])
    label = _label(rng)
    intensity = float(0.3 + 0.7 * rng.beta(1.8, 1.2)) if label else 0.0

    strength = dict(person.resting)
    for name, weight in EXPRESSIONS[CLASSES[label]].items():
        side = name if label != 7 or rng.random() < 0.5 else name.replace("_l", "_r")
        strength[side] = strength.get(side, 0) + weight * intensity * float(rng.uniform(0.6, 1.15))
    for name in ("AU1", "AU2", "AU4", "AU5", "AU12", "AU15", "AU17", "AU20", "AU25"):  # speech, squint, half a smile
        if rng.random() < 0.2:
            strength[name] = strength.get(name, 0) + float(rng.uniform(0, 0.4))
    shape = person.shape + sum((ACTION_UNITS[u] * s for u, s in strength.items()), np.zeros((POINTS, 3)))
    # lids and lips cannot pass through each other
    for top, bottom in ((37, 41), (38, 40), (43, 47), (44, 46), (61, 67), (62, 66), (63, 65)):
        shape[top, 1] = min(shape[top, 1], shape[bottom, 1] - 0.012)

    height = int(rng.integers(180, 400))
    width = int(height * rng.uniform(0.85, 1.15))
    yaw, pitch, roll = np.radians(np.clip(rng.normal(0, (15, 8, 7)), (-38, -20, -20), (38, 20, 20)))
    points = _project(shape, yaw, pitch, roll, height * rng.uniform(0.27, 0.34))
    points += np.array([width, height]) * (0.5 + rng.uniform(-0.05, 0.05, 2))
    image = _paint(points, height, width, person, strength, rng)

    target = np.array(CIRCUMPLEX[label]) * intensity + rng.normal(0, 0.06, 2)
    valence, arousal = np.clip(target, -1, 1)
    return SyntheticFace(image, label, float(valence), float(arousal), points[:68].astype(np.float32), number)


def _project(shape: FloatArray, yaw: float, pitch: float, roll: float, scale: float) -> FloatArray:
    """Rotate and project with mild perspective: [POINTS, 3] to [POINTS, 2] pixels about the origin."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]).T @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]).T
    q = shape @ turn @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]).T
    return q[:, :2] * (6 / (6 - q[:, 2:])) * scale


# ---- painting --------------------------------------------------------------------------------------------------------

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

    def ellipse(self, center: FloatArray, rx: float, ry: float, color: Color, thick: int = -1) -> None:
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
        _blend(patch, np.array(color, np.float32), cv2.stackBlur(mask, (reach, reach)), min(strength, 1))


def _blend(patch: NDArray[np.uint8], color: NDArray[Any], mask: NDArray[np.uint8], strength: float = 1.0) -> None:
    """Move `patch` [H, W, 3] towards `color` by mask / 255 * strength, in place."""
    alpha = mask[..., None] * np.float32(strength / 255)
    patch += ((color - patch) * alpha).astype(np.int16).astype(np.uint8)  # modulo 256, which the sum undoes


def _tone(color: Color, factor: float) -> Color:
    r, g, b = (min(255.0, c * factor) for c in color)
    return r, g, b


_T = np.arange(4)[:, None] / 4
_CATMULL_ROM = 0.5 * np.hstack([-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, _T**3 - _T**2])


def _curve(points: FloatArray, closed: bool = False) -> FloatArray:
    """A smooth curve through the points (Catmull-Rom, 4 pieces a span)."""
    p = np.concatenate([points[-1:], points, points[:2]] if closed else [points[:1], points, points[-1:]])
    spans = np.stack([p[:-3], p[1:-2], p[2:-1], p[3:]])  # [4, spans, 2]
    curve = np.tensordot(_CATMULL_ROM, spans, 1).swapaxes(0, 1).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


def _paint(
    q: FloatArray, height: int, width: int, who: _Person, strength: dict[str, float], rng: np.random.Generator
) -> NDArray[np.uint8]:
    canvas = _Canvas(_background(height, width, rng), unit=float(np.linalg.norm(q[16] - q[0])) / 1.94)
    unit = canvas.unit
    up = (q[27] - q[8]) / np.linalg.norm(q[27] - q[8])
    side = np.array([-up[1], up[0]])
    dark = _tone(who.skin, 0.62)

    # hair behind, neck, shoulders
    crown = q[FOREHEAD].mean(0)
    if who.hair_style == 3:
        canvas.fill(_curve(np.stack([q[0] - side * 0.3 * unit - up * 1.1 * unit, q[FOREHEAD][0] - side * 0.3 * unit,
            crown + up * 0.75 * unit, q[FOREHEAD][-1] + side * 0.3 * unit, q[16] + side * 0.3 * unit - up * 1.1 * unit]), True),
            _tone(who.hair, 0.8))  # fmt: skip
    canvas.fill(q[NECK], _tone(who.skin, 0.78))
    cloth: Color = tuple(rng.uniform(20, 170) + rng.uniform(0, 70, 3))
    base = q[NECK][2:].mean(0)
    canvas.fill(np.stack([base + side * 2.6 * unit - up * 2 * unit, base + side * 2.0 * unit + up * 0.25 * unit,
        base + side * 0.7 * unit + up * 0.75 * unit, base + up * 0.5 * unit, base - side * 0.7 * unit + up * 0.75 * unit,
        base - side * 2.0 * unit + up * 0.25 * unit, base - side * 2.6 * unit - up * 2 * unit]), cloth)  # fmt: skip
    for ear in (EAR_L, EAR_R):
        canvas.fill(_curve(q[ear], True), _tone(who.skin, 0.88))

    # the face and its large shadows
    outline = _curve(np.concatenate([q[JAW][::-1], q[FOREHEAD]]), True)
    canvas.fill(outline, who.skin)
    canvas.shade(_curve(q[JAW]), dark, 0.55, 0.1)
    for eye, brow in ((EYE_L, BROW_L), (EYE_R, BROW_R)):
        canvas.shade(_curve(0.5 * (q[eye][[0, 1, 2, 3]] + q[brow][[0, 2, 3, 4]][:: 1 if eye is EYE_L else -1])), dark, 0.3, 0.1)
    for cheek in q[CHEEKS]:
        canvas.shade(np.stack([cheek, cheek + up * 0.06 * unit]), _tone(who.skin, 1.12), 0.5, 0.22)
    if who.beard:
        stubble = _tone(who.hair, 1.1)
        canvas.shade(_curve(q[JAW][3:14] * 0.9 + q[57] * 0.1), stubble, who.beard, 0.24)
        canvas.shade(
            _curve(np.stack([q[48], q[50] + (q[33] - q[51]) * 0.35, q[52] + (q[33] - q[51]) * 0.35, q[54]])),
            stubble,
            who.beard,
            0.07,
        )

    _paint_creases(canvas, q, who, strength, up, side)
    _paint_nose(canvas, q, dark)
    _paint_eyes(canvas, q, who, rng)
    for brow in (BROW_L, BROW_R):
        spine = _curve(q[brow])
        taper = np.linspace(0.35, 1, len(spine)) if brow is BROW_L else np.linspace(1, 0.35, len(spine))
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
        cv2.rectangle(small, (x, y), (x + int(rng.integers(3, 16)), y + int(rng.integers(3, 20))), color, -1)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def _paint_creases(
    canvas: _Canvas, q: FloatArray, who: _Person, strength: dict[str, float], up: FloatArray, side: FloatArray
) -> None:
    """The folds that action units press into the skin."""
    s = lambda *names: sum(strength.get(n, 0) for n in names)  # noqa: E731
    unit, dark = canvas.unit, _tone(who.skin, 0.5)
    for nostril, corner, eye, out in ((31, 48, 36, -1), (35, 54, 45, 1)):
        suffix = "_l" if out < 0 else "_r"
        fold = s("AU12", f"AU12{suffix}") * 0.8 + s("AU10") * 0.7 + s("AU9") * 0.5
        path = np.stack([q[nostril] + side * out * 0.05 * unit, (q[nostril] + q[corner]) / 2 + side * out * 0.13 * unit,
                         q[corner] + side * out * 0.09 * unit])  # fmt: skip
        canvas.shade(_curve(path), dark, 0.12 + 0.55 * fold, 0.035)
        dimple = q[corner] + side * out * 0.08 * unit
        canvas.shade(np.stack([dimple + up * 0.06 * unit, dimple - up * 0.05 * unit]), dark, s(f"AU14{suffix}"), 0.04)
        for spread in (-0.07, 0.0, 0.07):  # crow's feet
            start = q[eye] + side * out * 0.06 * unit
            canvas.shade(np.stack([start, start + side * out * 0.13 * unit + up * spread * unit]), dark, 0.5 * s("AU6"), 0.012)
        bag = q[[41, 40]] if out < 0 else q[[47, 46]]
        canvas.shade(bag - up * 0.09 * unit, dark, 0.15 + 0.35 * s("AU6", "AU7"), 0.025)
    for level in (0.3, 0.42, 0.54):
        brow = (q[19:25:5] + up * level * unit)[[0, 1]]
        bend = np.stack([brow[0], brow.mean(0) + up * 0.04 * unit, brow[1]])
        canvas.shade(_curve(bend), dark, 0.45 * (s("AU1") + s("AU2")) - 0.15, 0.018)
    for x in (-0.055, 0.055):  # between the brows
        foot = q[27] + side * x * unit
        canvas.shade(np.stack([foot + up * 0.1 * unit, foot + up * 0.32 * unit]), dark, 0.7 * s("AU4") - 0.1, 0.022)
    for level in (0.0, 0.08, 0.16):  # on the nose's root
        root = q[27] - up * level * unit
        canvas.shade(np.stack([root - side * 0.1 * unit, root + side * 0.1 * unit]), dark, 0.6 * s("AU9"), 0.016)
    chin = q[8] + up * 0.22 * unit
    canvas.shade(
        _curve(np.stack([chin - side * 0.13 * unit, chin + up * 0.05 * unit, chin + side * 0.13 * unit])),
        dark,
        0.1 + 0.6 * s("AU17"),
        0.03,
    )


def _paint_nose(canvas: _Canvas, q: FloatArray, dark: Color) -> None:
    unit = canvas.unit
    shadow = _curve(np.stack([0.6 * q[27] + 0.4 * q[39], 0.5 * (q[29] + q[31]), q[31]]))
    canvas.shade(shadow, dark, 0.4, 0.05)
    canvas.shade(_curve(np.stack([0.6 * q[27] + 0.4 * q[42], 0.5 * (q[29] + q[35]), q[35]])), dark, 0.25, 0.05)
    canvas.shade(_curve(q[NOSTRILS]), _tone(dark, 0.7), 0.55, 0.03)
    for i in (32, 34):
        canvas.ellipse(q[i], 0.045 * unit, 0.025 * unit, _tone(dark, 0.45))
    canvas.shade(q[28:31], _tone(dark, 2.0), 0.25, 0.05)


def _paint_eyes(canvas: _Canvas, q: FloatArray, who: _Person, rng: np.random.Generator) -> None:
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


def _paint_mouth(canvas: _Canvas, q: FloatArray, who: _Person, up: FloatArray) -> None:
    unit = canvas.unit
    inner = q[INNER_LIPS]
    canvas.fill(_curve(q[LIPS], True), who.lips)
    canvas.shade(_curve(q[[59, 58, 57, 56, 55]]), _tone(who.skin, 0.6), 0.45, 0.04)
    gap = float(np.linalg.norm(inner[2] - inner[6]))
    if gap > 0.03 * unit:
        canvas.fill(_curve(inner, True), (52, 18, 20))
        depth = min(gap * 0.55, 0.1 * unit)
        teeth = np.concatenate([inner[:5] * 0.94 + inner.mean(0) * 0.06, (inner[1:4] - up * depth)[::-1]])
        canvas.fill(teeth, (226, 220, 208))
        if gap > 0.2 * unit:
            canvas.ellipse(inner[6] + up * 0.05 * unit, 0.13 * unit, 0.07 * unit, (150, 70, 74))
    else:
        canvas.line(_curve(inner[:5]), _tone(who.lips, 0.45), 0.022)


def _paint_hair(canvas: _Canvas, q: FloatArray, who: _Person, up: FloatArray, side: FloatArray) -> None:
    if not who.hair_style:
        return
    unit, arc = canvas.unit, q[FOREHEAD]
    outside = arc + up * 0.2 * unit + (arc - arc.mean(0)) * 0.12
    drop = {1: 0.12, 2: 0.34, 3: 0.22}[who.hair_style]
    inside = arc[1:-1] - up * drop * unit * np.sin(np.linspace(0.35, np.pi - 0.35, 11))[:, None]
    if who.hair_style == 2:  # a fringe swept to one side
        inside = inside - up * unit * np.linspace(0, 0.2, 11)[:, None]
    lock = np.concatenate([outside, arc[-1:] - up * 0.25 * unit, inside[::-1], arc[:1] - up * 0.25 * unit])
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
    ramp = np.cos(angle) * np.linspace(-1, 1, width)[None] + np.sin(angle) * np.linspace(-1, 1, height)[:, None]
    light = (rng.uniform(0.65, 1.2) * (1 + contrast * ramp)).astype(np.float32)
    tint = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    reach = 2 * int(rng.uniform(0.5, 3.2) * height / 300) + 1
    picture = cv2.stackBlur(image, (reach, reach)) * (light[..., None] * tint)
    noise = np.empty((height, width), np.float32)
    cv2.setRNGSeed(int(rng.integers(2**31)))
    cv2.randn(noise, 0, float(rng.uniform(1, 7)))
    picture += noise[..., None]
    return cv2.convertScaleAbs(np.maximum(picture, 0, out=picture))


# ---- as a source -----------------------------------------------------------------------------------------------------


class Synthetic:
    """Faces 0 .. count-1 straight from the generator, without a detour over picture files."""

    classes: tuple[str, ...] = CLASSES

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise UserError("--source synthetic: --count says how many faces to draw; wanted at least 1")
        self.count, self.seed = count, seed

    def rows(self) -> Rows:
        numbers = np.arange(self.count)
        label = np.array([label_of(i, self.seed) for i in range(self.count)])
        columns: dict[str, NDArray[Any]] = {"group": numbers // PHOTOS_PER_PERSON, "synthetic": np.ones(self.count, np.uint8)}
        fingerprint = f"synthetic {VERSION} {self.seed} {self.count}"
        return Rows([str(i) for i in range(self.count)], label, [""] * self.count, columns, [], fingerprint)

    def face(self, row: int) -> Face:
        face = draw_face(row, self.seed)
        return Face(pixels=face.image, landmarks=face.landmarks, valence=face.valence, arousal=face.arousal)


# ---- AffectNet's layout on disk --------------------------------------------------------------------------------------


def write_affectnet(config: SyntheticConfig) -> str:
    """Write faces 0 .. count-1 as AffectNet's annotations folder: `train_set/images/<id>.jpg` and
    `train_set/annotations/<id>_{exp,val,aro,lnd}.npy`, with `columns.csv` (source_id, group, synthetic) beside them.

    Gives what was done, in words; a folder that is complete is left as it is.
    """
    out, count, began = config.out, config.count, time.monotonic()
    marker, wanted = out / "synthetic.json", {"version": VERSION, "count": count, "seed": config.seed}
    found = read_json(marker)
    if found == wanted:
        return f"{out}: {count:,} faces are there, nothing to do"
    if found is not None:
        raise UserError(f"--out {out} holds other synthetic faces ({found}); give another --out, or delete that folder")
    for folder in ("images", "annotations"):
        (out / "train_set" / folder).mkdir(parents=True, exist_ok=True)
    blocks = [(out, config.seed, first, min(first + 100, count)) for first in range(0, count, 100)]
    workers = config.workers or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(_write_block, blocks))
    with (out / "columns.csv").open("w", newline="") as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(["source_id", "group", "synthetic"])
        table.writerows((f"train_set/{i}", i // PHOTOS_PER_PERSON, 1) for i in range(count))
    write_json(marker, wanted)
    return f"{out}: drew {count:,} faces in {time.monotonic() - began:.1f} s"


def _write_block(block: tuple[Path, int, int, int]) -> None:
    out, seed, start, stop = block
    cv2.setNumThreads(1)
    for i in range(start, stop):
        face = draw_face(i, seed)
        quality = int(np.random.default_rng([seed, 3, i]).integers(70, 97))
        bgr = cv2.cvtColor(face.image, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        (out / "train_set" / "images" / f"{i}.jpg").write_bytes(jpeg.tobytes())
        annotations = out / "train_set" / "annotations"
        np.save(annotations / f"{i}_exp.npy", np.array(str(face.label)))
        np.save(annotations / f"{i}_val.npy", np.array(f"{face.valence:.6f}"))
        np.save(annotations / f"{i}_aro.npy", np.array(f"{face.arousal:.6f}"))
        np.save(annotations / f"{i}_lnd.npy", face.landmarks.astype(np.float64).ravel())
