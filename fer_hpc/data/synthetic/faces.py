"""Drawn faces with known expressions: a replacement for AffectNet where no face data is at hand.

Each face is a shape (facemodel.py) that its expression deforms; it is turned to a pose, projected,
and painted (painting.py). Face `index` is a pure function of (seed, index), so any number of
processes draws the same faces in any order.

    python -m fer_hpc.data.synthetic --out DIR --count 6000     # AffectNet's layout on disk
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES
from fer_hpc.data.synthetic.facemodel import (
    ACTION_UNITS,
    POINTS,
    FloatArray,
    Person,
    project,
    random_person,
)
from fer_hpc.data.synthetic.painting import paint

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
    "Fear": {
        "AU1": 1.0,
        "AU2": 0.5,
        "AU4": 0.6,
        "AU5": 1.0,
        "AU20": 1.0,
        "AU25": 0.7,
        "AU26": 0.25,
    },
    "Disgust": {"AU4": 0.4, "AU7": 0.6, "AU9": 1.0, "AU10": 1.0, "AU15": 0.4, "AU25": 0.3},
    "Anger": {"AU4": 1.0, "AU5": 0.3, "AU7": 0.7, "AU23": 1.0, "AU17": 0.4},
    "Contempt": {"AU12_l": 0.8, "AU14_l": 1.0},
}
# Speech, squint, half a smile: they come with any expression.
OTHER_MOVEMENTS = ("AU1", "AU2", "AU4", "AU5", "AU12", "AU15", "AU17", "AU20", "AU25")
# Valence and arousal at full intensity (Russell's circumplex), in the order of CLASSES.
CIRCUMPLEX = (
    (0, 0),
    (0.85, 0.4),
    (-0.75, -0.35),
    (0.25, 0.85),
    (-0.55, 0.8),
    (-0.75, 0.45),
    (-0.6, 0.75),
    (-0.6, 0.3),
)


@dataclass(frozen=True)
class SyntheticFace:
    """One drawn face and everything that is known about it."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    label: int  # index into CLASSES
    valence: float  # -1 .. 1
    arousal: float  # -1 .. 1
    landmarks: NDArray[np.float32]  # [68, 2] x, y in pixels
    person: int


def label_of(index: int, seed: int = 0) -> int:
    """The class of face `index`, without drawing it."""
    return _label(np.random.default_rng([seed, 2, index]))


def _label(rng: np.random.Generator) -> int:
    return int(rng.choice(len(CLASSES), p=np.array(CLASS_COUNTS) / sum(CLASS_COUNTS)))


def expressive_shape(
    person: Person, label: int, rng: np.random.Generator
) -> tuple[FloatArray, dict[str, float], float]:
    """A person's face with expression `label`, its action units, and the intensity in [0, 1]."""
    intensity = float(0.3 + 0.7 * rng.beta(1.8, 1.2)) if label else 0.0

    strength = dict(person.resting)
    for name, weight in EXPRESSIONS[CLASSES[label]].items():
        side = name if label != 7 or rng.random() < 0.5 else name.replace("_l", "_r")
        strength[side] = strength.get(side, 0) + weight * intensity * float(rng.uniform(0.6, 1.15))
    for name in OTHER_MOVEMENTS:
        if rng.random() < 0.2:
            strength[name] = strength.get(name, 0) + float(rng.uniform(0, 0.4))
    shape = person.shape + sum(
        (ACTION_UNITS[u] * s for u, s in strength.items()), np.zeros((POINTS, 3))
    )
    # lids and lips cannot pass through each other
    for top, bottom in ((37, 41), (38, 40), (43, 47), (44, 46), (61, 67), (62, 66), (63, 65)):
        shape[top, 1] = min(shape[top, 1], shape[bottom, 1] - 0.012)
    return shape, strength, intensity


def random_pose(rng: np.random.Generator) -> tuple[float, float, float]:
    """Yaw, pitch and roll of a head, in radians."""
    angles = np.clip(rng.normal(0, (15, 8, 7)), (-38, -20, -20), (38, 20, 20))
    yaw, pitch, roll = np.radians(angles).tolist()
    return yaw, pitch, roll


def draw_face(index: int, seed: int = 0) -> SyntheticFace:
    """Face number `index` of the endless set `seed`."""
    number = index // PHOTOS_PER_PERSON
    person = random_person(seed, number)
    rng = np.random.default_rng([seed, 2, index])
    label = _label(rng)
    shape, strength, intensity = expressive_shape(person, label, rng)

    height = int(rng.integers(180, 400))
    width = int(height * rng.uniform(0.85, 1.15))
    points = project(shape, *random_pose(rng), height * rng.uniform(0.27, 0.34))
    points += np.array([width, height]) * (0.5 + rng.uniform(-0.05, 0.05, 2))
    image = paint(points, height, width, person, strength, rng)

    target = np.array(CIRCUMPLEX[label]) * intensity + rng.normal(0, 0.06, 2)
    valence, arousal = np.clip(target, -1, 1)
    return SyntheticFace(
        image, label, float(valence), float(arousal), points[:68].astype(np.float32), number
    )
