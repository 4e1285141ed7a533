"""Yaw and pitch of a face from its 68 landmarks. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.synthetic.facemodel import REST

# Nose and corners of the eyes: expressions hardly move them, and the nose gives depth.
RIGID = (*range(27, 36), 36, 39, 42, 45)
YAW_EDGES, PITCH_EDGES = (-30.0, -15.0, 15.0, 30.0), (-10.0, 10.0)  # degrees


def yaw_and_pitch(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Degrees [n, 2] of landmarks [n, 68, 2]; NaN where landmarks are absent.

    Positive yaw: the nose points to the right side of the picture; positive pitch: it points up.
    An affine camera is fitted to a mean head by least squares. Each of its two rows is a row of the
    rotation, times the scale of that axis: a face that was resized without its aspect, as the crop
    of preprocess does, gives the same angles.
    """
    model = REST[list(RIGID)]
    model = model - model.mean(0)  # [points, 3]
    points = landmarks[:, list(RIGID)].astype(np.float64)
    points = points - points.mean(1, keepdims=True)  # [n, points, 2]
    rows = np.einsum("npk,pd->nkd", points, np.linalg.pinv(model).T)  # [n, 2, 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    right, down = rows[:, 0], rows[:, 1]  # the picture's axes, in the head's coordinates
    head = np.stack([right, down, np.cross(right, down)], 1)  # [n, 3, 3] rotation of the head
    roll = np.arctan2(-head[:, 0, 1], head[:, 1, 1])  # of the head's vertical
    x, y, z = head[:, 0, 2], head[:, 1, 2], head[:, 2, 2]  # where the nose points
    x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
    return np.degrees(np.stack([np.arctan2(x, np.hypot(y, z)), np.arctan2(-y, z)], 1))
