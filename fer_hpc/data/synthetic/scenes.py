"""Drawn photographs of one to five people, whose faces' places and expressions are known.

Scene `index` is a pure function of (seed, index). For trying and measuring what works on whole
photographs: finding faces, predict.

    python -m fer_hpc.data.synthetic --out DIR --count 12 --scenes
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES
from fer_hpc.config.commands import SyntheticConfig
from fer_hpc.data.faces import Box
from fer_hpc.data.pictures import signature, signed
from fer_hpc.data.synthetic.facemodel import project, random_person
from fer_hpc.data.synthetic.faces import expressive_shape, random_pose
from fer_hpc.data.synthetic.painting import background, paint_person, photograph
from fer_hpc.files import check_output, write_bytes, write_text

HEIGHTS, WIDTHS = (480, 960), (640, 1280)  # pixels
UNITS = 0.03, 0.13  # half the width of a face, as a share of the height
PORTRAIT = 3.3  # height of a picture of one face, in halves of the face's width
MOST_PEOPLE = 5
QUALITY = 90  # of the JPEGs
HEADING = "path", "left", "top", "right", "bottom", "expression"  # of boxes.csv


@dataclass(frozen=True)
class SceneFace:
    """A face in a drawn photograph."""

    box: Box  # tight around the landmarks
    landmarks: NDArray[np.float32]  # [68, 2] x, y in pixels
    label: int  # index into CLASSES


@dataclass(frozen=True)
class Scene:
    """A drawn photograph and everything that is known about it."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    faces: list[SceneFace]  # from left to right


def draw_scene(index: int, seed: int = 0) -> Scene:
    """Scene number `index` of the endless set `seed`; faces are 5 to 30 % of its height wide."""
    rng = np.random.default_rng([seed, 4, index])
    height, width = int(rng.integers(*HEIGHTS)), int(rng.integers(*WIDTHS))
    image = background(height, width, rng)
    people = int(rng.integers(1, MOST_PEOPLE + 1))
    slot = width / people
    # half the width of a head; neighbours overlap by their shoulders only
    distance = np.exp(rng.uniform(*np.log(UNITS)))
    units = np.minimum(height * distance * rng.uniform(0.8, 1.25, people), slot / 2.8)
    labels = rng.integers(0, len(CLASSES), people)
    faces: dict[int, SceneFace] = {}
    for k in np.argsort(units).tolist():  # the smaller stand behind
        person = random_person(seed, 1_000_000 + MOST_PEOPLE * index + k)
        shape, strength, _ = expressive_shape(person, int(labels[k]), rng)
        points = project(shape, *random_pose(rng), float(units[k]))
        room = max(0.0, slot / 2 - 1.4 * float(units[k]))
        x = (k + 0.5) * slot + rng.uniform(-1, 1) * room
        points += np.array([x, height * rng.uniform(0.35, 0.6)])
        paint_person(image, points, person, strength, rng)
        landmarks = points[:68].astype(np.float32)
        low, high = landmarks.min(0).tolist(), landmarks.max(0).tolist()
        faces[k] = SceneFace((*low, *high), landmarks, int(labels[k]))
    portrait = PORTRAIT * float(units.max())
    return Scene(photograph(image, rng, portrait), [faces[k] for k in sorted(faces)])


def write_scenes(config: SyntheticConfig) -> str:
    """Write scenes 0 .. count-1 as JPEGs with boxes.csv: path,left,top,right,bottom,expression."""
    names = [f"scene-{index:03d}.jpg" for index in range(config.count)]
    check_output(config.out / "boxes.csv", ",".join(HEADING))
    for name in names:
        check_output(config.out / name, signature("synthetic"))
    config.out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADING)
    for index, name in enumerate(names):
        scene = draw_scene(index, config.seed)
        pixels = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
        write_bytes(config.out / name, signed(jpeg.tobytes(), "synthetic"))
        for face in scene.faces:
            box = [round(edge, 1) for edge in face.box]
            table.writerow([name, *box, CLASSES[face.label]])
    write_text(config.out / "boxes.csv", text.getvalue())
    return f"{config.out}: drew {config.count:,} photographs; their faces are in boxes.csv"
