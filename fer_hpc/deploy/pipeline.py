"""From photos to faces with probabilities, in order.

Threads decode photos, find and cut their faces, while the main thread runs the network.
"""

from __future__ import annotations

import collections
import itertools
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config.deploy import PredictConfig
from fer_hpc.data.faces import Box, Found, Reject
from fer_hpc.data.finder import (
    CASCADE_ADVICE,
    WHOLE,
    FinderName,
    best_finder,
    finder_of,
    training_box,
)
from fer_hpc.data.photos import Photo, cut_box
from fer_hpc.deploy.inputs import Task
from fer_hpc.deploy.model import About, FaceModel
from fer_hpc.files import read_file

AHEAD = 64  # photos that are read before the network has seen them, at least
THUMBNAIL = 320, 240  # width and height in pixels, at most
NO_FACE, NO_ROW = "no face found", "no face in the table"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PhotoFace:
    """A face of a photo."""

    found: Found
    cut: Box  # what the network saw of the photo
    pixels: Pixels  # [H, W, C], as the network sees them
    probabilities: NDArray[np.float64]  # [K]
    affect: NDArray[np.float64] | None  # [2] valence and arousal


@dataclass(frozen=True)
class SeenPhoto:
    """A photo that was looked at."""

    task: Task
    width: int  # in pixels; 0 where it could not be read
    height: int
    faces: list[PhotoFace]
    thumbnail: Pixels  # [H, W, 3] RGB
    scale: float  # from pixels of the photo to those of the thumbnail
    problem: str  # "": none
    failed: bool  # whether it could not be read; no face in it is no failure


@dataclass(frozen=True)
class How:
    """How photos are read and cut."""

    about: About
    finder: FinderName
    whole: bool  # every picture is a face
    largest: bool  # only the largest face of a photo


def see(
    tasks: Iterable[Task], model: FaceModel, how: How, workers: int, batch_size: int
) -> Iterator[SeenPhoto]:
    """The photos in order, with their faces' probabilities."""
    ahead = max(AHEAD, 4 * workers)
    with _one_thread_each(), ThreadPoolExecutor(workers, "photos") as pool:
        pending: collections.deque[Future[SeenPhoto]] = collections.deque()
        group: list[SeenPhoto] = []
        for task in itertools.chain(tasks, [None]):
            if task is not None:
                pending.append(pool.submit(read_photo, task, how))
            while pending and (task is None or len(pending) > ahead or pending[0].done()):
                group.append(pending.popleft().result())
                if sum(len(photo.faces) for photo in group) >= batch_size or len(group) >= ahead:
                    yield from _with_outputs(group, model, batch_size)
                    group = []
        yield from _with_outputs(group, model, batch_size)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """OpenCV without threads of its own: there is a photo for each core."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _with_outputs(
    photos: list[SeenPhoto], model: FaceModel, batch_size: int
) -> Iterator[SeenPhoto]:
    """The photos with what the network says about their faces."""
    crops = [face.pixels for photo in photos for face in photo.faces]
    outputs = [model(np.stack(crops[i : i + batch_size])) for i in range(0, len(crops), batch_size)]
    shares = iter([row for part in outputs for row in part.probabilities])
    affect = iter([row for part in outputs if part.affect is not None for row in part.affect])
    for photo in photos:
        faces = [
            replace(face, probabilities=next(shares), affect=next(affect, None))
            for face in photo.faces
        ]
        yield replace(photo, faces=faces)


def read_photo(task: Task, how: How) -> SeenPhoto:
    """Decode a photo, find and cut its faces, in any thread; the network has not seen them yet."""
    nothing = SeenPhoto(task, 0, 0, [], np.zeros((1, 1, 3), np.uint8), 1.0, task.problem, True)
    if task.problem:
        return nothing
    try:
        return _read(task, how)
    except Reject as reason:
        return replace(nothing, problem=str(reason))
    except OSError as error:
        return replace(nothing, problem=(error.strerror or str(error)).lower())
    except (cv2.error, MemoryError) as error:
        what = str(getattr(error, "err", "")) or "not enough memory for it"
        return replace(nothing, problem=what.splitlines()[0])


def _read(task: Task, how: How) -> SeenPhoto:
    photo = Photo(read_file(task.path))
    size, _, channels = how.about.image_shape
    detections, problem = task.faces, ""
    if how.whole:
        picture = photo.pixels(channels)
        height, width = picture.shape[:2]
        detections = [Found((0.0, 0.0, float(width), float(height)), 1.0)]
    elif detections is None:
        detections = photo.find(how.finder)
        problem = "" if detections else NO_FACE
    elif not detections:
        photo.pixels(channels)
        problem = NO_ROW
    if how.largest:
        detections = sorted(detections, key=lambda face: -face.area)[:1]
    faces = []
    for each in detections:
        box = None if how.whole else training_box(each)
        pixels, to_crop, empty = photo.crop(box, size, channels)
        if empty:
            problem = "a box of the table lies outside the photo"
            continue
        if task.faces is not None and _is_outside(each.box, photo.size):
            problem = "half of a box of the table or more lies outside the photo"
            continue
        cut = cut_box(to_crop, size)
        faces.append(PhotoFace(each, cut, pixels, np.zeros(len(how.about.classes)), None))
    picture, reduced = photo.shown
    width, height = photo.size
    scale = min(THUMBNAIL[0] / width, THUMBNAIL[1] / height, 2.0)
    shown = max(1, round(scale * width)), max(1, round(scale * height))
    method = cv2.INTER_AREA if scale * reduced < 1 else cv2.INTER_LINEAR
    thumbnail = cv2.resize(picture, shown, interpolation=method)
    if thumbnail.ndim == 2:
        thumbnail = cv2.cvtColor(thumbnail, cv2.COLOR_GRAY2RGB)
    return SeenPhoto(task, width, height, faces, thumbnail, scale, problem, False)


def _is_outside(box: Box, size: tuple[int, int]) -> bool:
    """Whether at most half of a box, which has an area, is in a photo of (width, height)."""
    left, top, right, bottom = box
    inside = max(0.0, min(right, size[0]) - max(left, 0)) * max(
        0.0, min(bottom, size[1]) - max(top, 0)
    )
    return inside <= 0.5 * (right - left) * (bottom - top)


def how_to_cut(config: PredictConfig, about: About) -> How:
    """How faces are found and cut: as the training faces were. Says on stderr what differs."""
    wanted, best = finder_of(about.faces) or best_finder(), best_finder()
    finder = wanted if wanted == "cascade" else best
    notes = []
    if config.crop == "auto" and not config.boxes:
        if finder != wanted:
            notes.append(f"the training faces were cut {about.faces['box']}; here {CASCADE_ADVICE}")
        elif best == "cascade":
            notes.append(CASCADE_ADVICE)
        elif finder == "cascade":
            notes.append("faces are found by OpenCV's cascade, as in training: frontal ones only")
    if config.crop == "auto" and about.faces.get("box") == WHOLE:
        notes.append(
            f"{about.run} was trained on whole pictures; here faces are cut by their box and a "
            "margin of 15 %: give --crop none if the pictures are cut-out faces"
        )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return How(about, finder, config.crop == "none", config.faces == "largest")
