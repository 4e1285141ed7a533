"""The shape of a drawn face: 68 landmarks, forehead, ears and neck in three dimensions.

Identity and action units deform it. The action units are those of Ekman and Friesen's Facial
Action Coding System (1978).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Color = tuple[float, float, float]

# x points to the right, y down, z towards the viewer; the face is about 2 wide.

JAW, BROW_L, BROW_R = slice(0, 17), slice(17, 22), slice(22, 27)
BRIDGE, NOSTRILS = slice(27, 31), slice(31, 36)
EYE_L, EYE_R, LIPS, INNER_LIPS = slice(36, 42), slice(42, 48), slice(48, 60), slice(60, 68)
FOREHEAD, EAR_L, EAR_R, NECK, CHEEKS = (
    slice(68, 81),
    slice(81, 86),
    slice(86, 91),
    slice(91, 95),
    slice(95, 97),
)
POINTS = 97


def _rest() -> FloatArray:
    """The face at rest, [POINTS, 3]."""
    p = np.zeros((POINTS, 3))
    t = np.linspace(-1, 1, 17) * np.radians(97)
    p[JAW] = np.stack(
        [0.97 * np.sin(t), -0.12 + 1.22 * np.cos(t), 0.15 * np.cos(t) - 0.45 * np.sin(t) ** 4], 1
    )
    brow = np.array(
        [
            [-0.80, -0.47, 0.05],
            [-0.67, -0.57, 0.15],
            [-0.52, -0.60, 0.22],
            [-0.37, -0.58, 0.27],
            [-0.21, -0.53, 0.3],
        ]
    )
    p[BROW_L], p[BROW_R] = brow, (brow * [-1, 1, 1])[::-1]
    p[BRIDGE] = [[0, -0.30, 0.30], [0, -0.14, 0.38], [0, 0.02, 0.48], [0, 0.18, 0.56]]
    p[NOSTRILS] = [
        [-0.19, 0.27, 0.28],
        [-0.1, 0.31, 0.36],
        [0, 0.335, 0.42],
        [0.1, 0.31, 0.36],
        [0.19, 0.27, 0.28],
    ]
    eye = np.array(
        [
            [-0.61, -0.27, 0.08],
            [-0.50, -0.345, 0.17],
            [-0.36, -0.345, 0.19],
            [-0.24, -0.255, 0.17],
            [-0.36, -0.205, 0.18],
            [-0.50, -0.21, 0.16],
        ]
    )
    p[EYE_L], p[EYE_R] = eye, (eye * [-1, 1, 1])[[3, 2, 1, 0, 5, 4]]
    p[LIPS] = [
        [-0.36, 0.64, 0.18],
        [-0.23, 0.585, 0.28],
        [-0.09, 0.555, 0.35],
        [0, 0.57, 0.36],
        [0.09, 0.555, 0.35],
        [0.23, 0.585, 0.28],
        [0.36, 0.64, 0.18],
        [0.23, 0.71, 0.28],
        [0.1, 0.745, 0.33],
        [0, 0.75, 0.34],
        [-0.1, 0.745, 0.33],
        [-0.23, 0.71, 0.28],
    ]
    p[INNER_LIPS] = [
        [-0.32, 0.64, 0.2],
        [-0.1, 0.633, 0.33],
        [0, 0.638, 0.34],
        [0.1, 0.633, 0.33],
        [0.32, 0.64, 0.2],
        [0.1, 0.648, 0.33],
        [0, 0.652, 0.33],
        [-0.1, 0.648, 0.33],
    ]
    a = np.linspace(np.radians(187), np.radians(353), 13)
    p[FOREHEAD] = np.stack(
        [1.0 * np.cos(a), -0.16 + 1.12 * np.sin(a), -0.1 - 0.3 * np.abs(np.cos(a))], 1
    )
    ear = np.array(
        [
            [-0.96, -0.25, -0.4],
            [-1.1, -0.32, -0.5],
            [-1.14, -0.1, -0.5],
            [-1.07, 0.14, -0.45],
            [-0.95, 0.2, -0.4],
        ]
    )
    p[EAR_L], p[EAR_R] = ear, ear * [-1, 1, 1]
    p[NECK] = [[-0.55, 0.6, -0.4], [0.55, 0.6, -0.4], [0.62, 2.2, -0.4], [-0.62, 2.2, -0.4]]
    p[CHEEKS] = [[-0.55, 0.2, 0.2], [0.55, 0.2, 0.2]]
    return p


_LOWER_LIP = {57: 1.0, 58: 1.0, 59: 0.75, 66: 1.0, 67: 1.0}

# At full strength: x (outwards from the middle) and y of points on the image's left.
MOVES: dict[str, dict[int, tuple[float, float]]] = {
    # inner brow raiser, outer brow raiser, brow lowerer
    "AU1": {21: (0, -0.17), 20: (0, -0.12), 19: (0, -0.05)},
    "AU2": {17: (0, -0.11), 18: (0, -0.15), 19: (0, -0.13), 20: (0, -0.06)},
    "AU4": {21: (-0.07, 0.13), 20: (-0.06, 0.1), 19: (-0.03, 0.06), 18: (0, 0.03)},
    # upper lid raiser, cheek raiser, lid tightener
    "AU5": {37: (0, -0.06), 38: (0, -0.06)},
    "AU6": {40: (0, -0.035), 41: (0, -0.04), 95: (0.02, -0.1)},
    "AU7": {37: (0, 0.035), 38: (0, 0.035), 40: (0, -0.025), 41: (0, -0.025)},
    # nose wrinkler, upper lip raiser
    "AU9": {31: (0.02, -0.07), 32: (0, -0.06), 33: (0, -0.04), 30: (0, -0.04)}
    | {21: (-0.02, 0.06), 49: (0, -0.04)},
    "AU10": {49: (0.01, -0.08), 50: (0, -0.1), 51: (0, -0.09), 61: (0, -0.07)}
    | {62: (0, -0.07), 31: (0.03, -0.02)},
    # lip corner puller, dimpler, lip corner depressor
    "AU12": {48: (0.13, -0.14), 60: (0.12, -0.12), 49: (0.07, -0.05), 59: (0.07, -0.03)}
    | {95: (0.04, -0.05), 50: (0.02, 0.01), 61: (0.03, 0.01), 67: (0.03, 0.02), 57: (0, 0.01)},
    "AU14": {48: (0.07, -0.03), 60: (0.08, -0.03), 49: (0.02, 0.02), 59: (0.02, -0.03)},
    "AU15": {48: (0.02, 0.13), 60: (0.02, 0.11), 49: (0, 0.04), 59: (0.02, 0.05)},
    # chin raiser, lip stretcher, lip tightener
    "AU17": {57: (0, -0.06), 58: (0, -0.06), 66: (0, -0.02), 8: (0, -0.05), 7: (0, -0.04)},
    "AU20": {48: (0.17, 0.05), 60: (0.16, 0.05), 49: (0.1, 0.03), 59: (0.1, 0.03)},
    "AU23": {48: (-0.08, 0), 60: (-0.07, 0), 50: (0, 0.045), 51: (0, 0.04), 49: (-0.04, 0.03)}
    | {57: (0, -0.05), 58: (0, -0.05), 59: (-0.04, -0.03)},
    # lips part, jaw drop, lids droop
    "AU25": {i: (0, 0.1 * w) for i, w in _LOWER_LIP.items()},
    "AU26": {i: (0, 0.3 * w) for i, w in _LOWER_LIP.items()}
    | {48: (-0.07, 0.09), 60: (-0.08, 0.1)}
    | {4: (0, 0.06), 5: (0, 0.12), 6: (0, 0.2), 7: (0, 0.25), 8: (0, 0.27)},
    "AU43": {37: (0, 0.06), 38: (0, 0.06)},
}


def _action_units() -> dict[str, FloatArray]:
    """Displacement of every point at full strength, [POINTS, 3]; `_l` and `_r` move one side."""
    units: dict[str, FloatArray] = {}
    middle = [i for i in range(POINTS) if MIRROR[i] == i]
    for name, moves in MOVES.items():
        left = np.zeros((POINTS, 3))
        for i, (out, down) in moves.items():
            left[i] = (-out, down, 0)
        units[f"{name}_l"], units[f"{name}_r"] = left, (left * [-1, 1, 1])[MIRROR]
        units[name] = units[f"{name}_l"] + units[f"{name}_r"]
        units[name][middle] /= 2
    return units


def _mirror() -> NDArray[np.int64]:
    """Index of each point's counterpart on the other side."""
    rest = _rest()
    distance = np.linalg.norm(rest[:, None] - rest[None] * [-1, 1, 1], axis=2)
    return distance.argmin(1)


MIRROR = _mirror()
REST = _rest()
ACTION_UNITS = _action_units()


@dataclass(frozen=True)
class Person:
    """What makes one person's pictures look alike."""

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


def random_person(seed: int, number: int) -> Person:
    """Person `number` of the endless set `seed`."""
    rng = np.random.default_rng([seed, 1, number])

    def n(scale: float) -> float:
        return float(np.clip(rng.normal(0, scale), -2 * scale, 2 * scale))

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
    hairs = (
        (32, 26, 24),
        (70, 46, 32),
        (120, 84, 50),
        (186, 150, 96),
        (130, 130, 130),
        (110, 52, 30),
    )
    hair = hairs[rng.choice(6, p=[0.34, 0.28, 0.14, 0.1, 0.09, 0.05])]
    male = rng.random() < 0.5
    return Person(
        shape=p,
        skin=(skin[0] + n(6), skin[1] + n(6), skin[2] + n(6)),
        hair=hair,
        lips=(skin[0] * 0.85 + 12, skin[1] * (0.62 + n(0.05)), skin[2] * 0.66),
        iris=((70, 45, 28), (60, 90, 130), (80, 105, 70), (40, 30, 24))[rng.integers(4)],
        brow_weight=0.05 + 0.02 * male + abs(n(0.012)),
        hair_style=int(
            rng.choice(4, p=[0.12, 0.5, 0.28, 0.1] if male else [0.01, 0.14, 0.35, 0.5])
        ),
        beard=float(male and rng.random() < 0.35) * rng.uniform(0.25, 0.9),
        glasses=bool(rng.random() < 0.18),
        resting={
            u: float(rng.uniform(0, 0.3))
            for u in ("AU1", "AU2", "AU4", "AU7", "AU12", "AU15", "AU25", "AU43")
            if rng.random() < 0.3
        },
    )


def project(shape: FloatArray, yaw: float, pitch: float, roll: float, scale: float) -> FloatArray:
    """Rotate and project with mild perspective; gives [POINTS, 2] pixels about the origin."""
    cy, sy = np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]).T
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]).T
    q = shape @ (about_y @ about_x) @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]).T
    return q[:, :2] * (6 / (6 - q[:, 2:])) * scale
