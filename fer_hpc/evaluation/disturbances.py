"""Disturbances of a face at five strengths: light, sharpness, angle, masks, dark glasses. No torch.

Everything random about a picture follows from its place in the split alone, not from its strength:
a stronger disturbance is the same one, only more of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.synthetic.facemodel import REST

Pixels = NDArray[np.uint8]  # [H, W, C]
LEVELS = 5
MARGIN = 0.15  # of the landmarks' box on each side, as preprocess cuts faces


@dataclass(frozen=True)
class Face:
    """A face to disturb."""

    pixels: Pixels
    landmarks: NDArray[np.float64]  # [68, 2] x, y in pixels; those of a mean face where unknown
    random: NDArray[np.float64]  # [4] in [0, 1), of its place in the split
    place: int


@dataclass(frozen=True)
class Disturbance:
    """One kind: its five strengths, mild to strong, their unit, and what it does."""

    title: str
    strengths: tuple[float, float, float, float, float]
    unit: str
    apply: Callable[[Face, float], Pixels]


def face_at(
    pixels: Pixels, landmarks: NDArray[np.float32] | None, place: int, number: int = 0
) -> Face:
    """A face of a split with its random numbers; number: of the disturbance."""
    known = landmarks is not None and bool(np.isfinite(landmarks).all())
    points = landmarks if known else mean_landmarks(*pixels.shape[:2])
    random = np.random.default_rng([number, place]).random(4)
    return Face(pixels, np.asarray(points, np.float64), random, place)


def mean_landmarks(height: int, width: int) -> NDArray[np.float64]:
    """The 68 landmarks of a mean frontal face that is cut with preprocess's margin."""
    points = REST[:68, :2]
    low, high = points.min(0), points.max(0)
    share = (MARGIN + (points - low) / (high - low)) / (1 + 2 * MARGIN)
    return share * (width, height)


def _sign(face: Face) -> int:
    """One of two directions, as brighter or darker, left or right."""
    return 1 if face.random[0] < 0.5 else -1


def _to_bytes(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _channels(pixels: NDArray[np.uint8], like: Pixels) -> Pixels:
    """OpenCV drops the axis of a single channel."""
    return pixels.reshape(like.shape)


# ---- sharpness and light ------------------------------------------------------------------------


def blur(face: Face, strength: float) -> Pixels:
    sigma = strength * len(face.pixels)
    return _channels(cv2.GaussianBlur(face.pixels, (0, 0), sigma), face.pixels)


def noise(face: Face, strength: float) -> Pixels:
    drawn = np.random.default_rng([99, face.place]).standard_normal(face.pixels.shape, np.float32)
    return _to_bytes(face.pixels + 255 * strength * drawn)


def jpeg(face: Face, strength: float) -> Pixels:
    flags = [cv2.IMWRITE_JPEG_QUALITY, int(strength)]
    data = cv2.imencode(".jpg", face.pixels[..., ::-1], flags)[1]  # OpenCV takes BGR
    pixels = np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint8)
    return np.ascontiguousarray(_channels(pixels, face.pixels)[..., ::-1])


def low_resolution(face: Face, strength: float) -> Pixels:
    size = len(face.pixels)
    small = max(2, round(size / strength))
    shrunk = cv2.resize(face.pixels, (small, small), interpolation=cv2.INTER_AREA)
    return _channels(cv2.resize(shrunk, (size, size), interpolation=cv2.INTER_LINEAR), face.pixels)


def brightness(face: Face, strength: float) -> Pixels:
    return _to_bytes(face.pixels + 255.0 * strength * _sign(face))


def gamma(face: Face, strength: float) -> Pixels:
    return _to_bytes(255 * (face.pixels / 255.0) ** (strength ** _sign(face)))


def side_light(face: Face, strength: float) -> Pixels:
    """One half of the face becomes brighter, the other darker, smoothly."""
    ramp = np.linspace(-1, 1, face.pixels.shape[1]) * _sign(face)
    factor = 1 + np.where(ramp < 0, ramp * strength, 0.6 * ramp * strength)
    return _to_bytes(face.pixels * factor[None, :, None])


def rotation(face: Face, strength: float) -> Pixels:
    height, width = face.pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), strength * _sign(face), 1)
    turned = cv2.warpAffine(face.pixels, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return _channels(turned, face.pixels)


# ---- things in front of the face ----------------------------------------------------------------

MASK_COLORS = ((176, 201, 221), (235, 235, 235), (35, 35, 38), (110, 135, 170))  # RGB
LENS, FRAME = (22, 22, 26), (10, 10, 10)
SUPERSAMPLE = 4  # outlines are drawn larger and shrunk: small faces have soft edges, too


def mask(face: Face, strength: float) -> Pixels:
    """A face mask whose upper edge rises from the chin to the eyes; strength: share of the way.

    At 0.5 it ends between mouth and nose, at 1 it covers most of the nose.
    """
    p = face.landmarks
    chin, root = p[8], p[28]
    top = chin + strength * (root - chin)
    jaw = p[:17]
    down = (chin - root) / max(np.linalg.norm(chin - root), 1e-6)
    below = (jaw - top) @ down > -0.08 * np.linalg.norm(chin - root)
    contour = jaw[below] if below.sum() >= 3 else jaw[7:10]
    contour = contour + 0.04 * (contour - p.mean(0))  # a mask lies outside of the skin
    middle = top + 0.06 * (top - chin)
    outline = np.concatenate([contour, middle[None]])
    color = MASK_COLORS[int(face.random[1] * len(MASK_COLORS))]
    return _paint(face.pixels, [(outline, color, 1.0)])


def glasses(face: Face, strength: float) -> Pixels:
    """Dark glasses; strength: opacity of the lenses, which also grow."""
    p = face.landmarks
    left, right = p[36:42].mean(0), p[42:48].mean(0)
    between = right - left
    distance = max(float(np.linalg.norm(between)), 1e-6)
    across = between / distance
    upright = np.array([-across[1], across[0]])
    grow = 0.8 + 0.35 * strength
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    shapes = []
    for eye in (left, right):
        middle = eye + 0.05 * distance * upright
        outline = (
            middle
            + 0.40 * distance * grow * np.cos(turn)[:, None] * across
            + 0.32 * distance * grow * np.sin(turn)[:, None] * upright
        )
        shapes.append((outline, LENS, strength))
    lift = -0.05 * distance * upright
    bar = 0.035 * distance * upright
    bars = (left, -0.95, -0.3), (left, 0.3, 0.7), (right, 0.3, 0.95)  # temple, bridge, temple
    for eye, start, end in bars:
        a, b = eye + start * between, eye + end * between
        shapes.append((np.stack([a - bar, b - bar, b + bar, a + bar]) + lift, FRAME, 1.0))
    return _paint(face.pixels, shapes)


def _paint(
    pixels: Pixels, shapes: list[tuple[NDArray[np.float64], tuple[int, int, int], float]]
) -> Pixels:
    """Filled polygons (x, y in pixels; RGB; opacity) over the picture."""
    height, width, channels = pixels.shape
    painted = pixels.astype(np.float64)
    for outline, color, opacity in shapes:
        cover = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
        points = np.rint((outline + 0.5) * SUPERSAMPLE).astype(np.int32)
        cv2.fillPoly(cover, [points], 255)
        share = cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA)[..., None] / 255
        rgb = np.array(color, np.float64)
        if channels == 1:
            rgb = np.array([rgb @ (0.299, 0.587, 0.114)])
        painted += opacity * share * (rgb - painted)
    return _to_bytes(painted)


DISTURBANCES: dict[str, Disturbance] = {
    "blur": Disturbance("blur", (0.01, 0.02, 0.03, 0.045, 0.06), "sigma / side", blur),
    "noise": Disturbance("noise", (0.02, 0.05, 0.1, 0.15, 0.25), "sd, of 1", noise),
    "jpeg": Disturbance("JPEG", (70, 45, 25, 12, 6), "quality", jpeg),
    "brightness": Disturbance("brightness", (0.1, 0.2, 0.3, 0.4, 0.5), "+ or -, of 1", brightness),
    "gamma": Disturbance("gamma", (1.25, 1.6, 2.0, 2.6, 3.5), "exponent or 1 / it", gamma),
    "side_light": Disturbance("side light", (0.2, 0.4, 0.6, 0.8, 1.0), "share", side_light),
    "low_resolution": Disturbance(
        "low resolution", (1.5, 2.0, 3.0, 4.0, 6.0), "times smaller", low_resolution
    ),
    "rotation": Disturbance("rotation", (5, 10, 20, 30, 45), "degrees, + or -", rotation),
    "mask": Disturbance("mask", (0.3, 0.45, 0.6, 0.8, 1.0), "chin to eyes", mask),
    "glasses": Disturbance("dark glasses", (0.4, 0.55, 0.7, 0.85, 1.0), "opacity", glasses),
}
