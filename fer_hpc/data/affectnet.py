"""AffectNet as a folder of annotations, and as each of three CSV tables."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows, affect, landmarks_of
from fer_hpc.data.classes import Numbering, StatedClasses, label_key, map_classes
from fer_hpc.data.faces import Box, Reject
from fer_hpc.data.pictures import (
    PICTURES,
    natural_sort_key,
    read_file,
    read_picture,
    resolve_inside,
)
from fer_hpc.data.tables import CsvTable, read_columns

NUMBERING = Numbering("AffectNet", CLASSES, {8: "none", 9: "uncertain", 10: "no face"})
MAX_ANNOTATION_BYTES = 1 << 16  # 68 points as text take a tenth
SLOW_READ_S = 1e-4
NO_CLASSES = StatedClasses()
UNUSED = {str(number) for number in NUMBERING.unused}


class AffectNetFolder:
    """`train_set/annotations/<id>_{exp,val,aro,lnd}.npy`, `train_set/images/<id>.{jpg,png,jpeg}`.

    `val_set` beside it becomes the test split. A file `columns.csv` in the root, if there is one,
    adds columns by source_id (`train_set/<id>`).
    """

    def __init__(self, root: Path, stated: StatedClasses = NO_CLASSES) -> None:
        self.root, self.stated = root, stated
        self.classes: tuple[str, ...] = CLASSES
        self.parts = [p for p in ("train_set", "val_set") if (root / p / "annotations").is_dir()]
        if not self.parts:
            wanted = "no train_set/annotations or val_set/annotations in it"
            raise UserError(f"--input {root}: {wanted if root.is_dir() else 'no such folder'}")

    def rows(self) -> Rows:
        """List the annotations; a label that is missing or has no picture is a reject."""
        found = Collector()
        for part in self.parts:
            images, folder = self.root / part / "images", self.root / part / "annotations"
            if not images.is_dir():
                raise UserError(
                    f"--input {self.root}: {part}/annotations is there, but not {part}/images"
                )
            names = [name for name in _names(images) if name.lower().endswith(PICTURES)]
            pictures = {name.rpartition(".")[0]: name for name in names}
            end = "_exp.npy"
            stems = [name.removesuffix(end) for name in _names(folder) if name.endswith(end)]
            stems.sort(key=int if all(map(str.isdecimal, stems)) else natural_sort_key)
            labels = _read_all_labels([f"{folder}/{stem}{end}" for stem in stems])
            split = "" if "val_set" not in self.parts else "test" if part == "val_set" else "train"
            for stem, label in zip(stems, labels, strict=True):
                usable = stem in pictures or isinstance(label, Reject) or label in UNUSED
                locator = (f"{images}/{pictures.get(stem)}", f"{folder}/{stem}")
                label = label if usable else Reject("missing image")
                found.add(f"{part}/{stem}", label, split, locator)
            for stem in sorted(pictures.keys() - set(stems), key=natural_sort_key):
                found.add(f"{part}/{stem}", Reject("no label"))
        class_map = map_classes(
            found.labels(), self.stated, f"--input {self.root}", NUMBERING, CLASSES
        )
        self.classes = class_map.classes
        rows = found.rows(self.root, class_map)
        if (self.root / "columns.csv").exists():
            rows.columns.update(read_columns(self.root / "columns.csv", rows.source_id))
        return rows

    def face(self, locator: tuple[str, str]) -> Face:
        """Read a picture and the annotations beside it."""
        picture, stem = locator
        points = _npy(f"{stem}_lnd.npy")
        values = [_npy(f"{stem}_{kind}.npy") for kind in ("val", "aro")]
        valence, arousal = (
            float("nan") if v is None or v.size != 1 else affect(v.item()) for v in values
        )
        landmarks = None if points is None else landmarks_of(points)
        return Face(read_picture(picture), landmarks=landmarks, valence=valence, arousal=arousal)


_USUAL_HEADER = re.compile(
    rb"\{'descr': '([<|=]?[fiuUS]\d+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \}\s*"
)


def _npy(path: str) -> NDArray[np.float64] | None:
    """The numbers in a small .npy file (numbers, or text that is one); None where there is no file.

    The usual header is read here, ten times as fast as by numpy (there are four such files a face);
    numpy reads the rest. Raises Reject.
    """
    try:
        data = read_file(path, MAX_ANNOTATION_BYTES)
        begin = 10 + int.from_bytes(data[8:10], "little")
        dtype = _dtype(data[:begin])
        if dtype:
            return np.frombuffer(data, dtype, offset=begin).astype(np.float64)
        return np.load(path, allow_pickle=False).astype(np.float64)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, MemoryError):
        raise Reject(f"unreadable {path.rpartition('_')[2]} annotation") from None


def _names(folder: Path) -> list[str]:
    return os.listdir(folder)  # noqa: PTH208  a Path for each of a million files costs seconds


@functools.cache  # the same few headers come again and again
def _dtype(header: bytes) -> np.dtype[Any] | None:
    """The dtype that a usual .npy header states; None for any other header."""
    found = _USUAL_HEADER.fullmatch(header, 10) if header[:7] == b"\x93NUMPY\x01" else None
    return np.dtype(found[1].decode()) if found else None


def _read_all_labels(paths: list[str]) -> list[str | Reject]:
    """The labels in many files.

    In threads where the file system is slow: it answers many at a time. Where the page cache
    answers, threads would triple the time.
    """
    labels: list[str | Reject] = []
    while len(labels) < len(paths):
        start = time.perf_counter()
        block = _read_labels(paths[len(labels) : len(labels) + 256])
        labels += block
        if time.perf_counter() - start > SLOW_READ_S * len(block):
            break
    rest = paths[len(labels) :]
    with ThreadPoolExecutor(16) as pool:
        blocks = pool.map(_read_labels, [rest[i : i + 256] for i in range(0, len(rest), 256)])
        return labels + [label for block in blocks for label in block]


def _read_labels(paths: list[str]) -> list[str | Reject]:
    """Labels, or why there is none. Files of equal content, a dozen kinds, are parsed once."""
    known: dict[bytes, str | Reject] = {}
    labels: list[str | Reject] = []
    for path in paths:
        try:
            content = read_file(path, MAX_ANNOTATION_BYTES)
        except OSError:
            content = b""
        if content not in known:
            known[content] = _read_label(path)
        labels.append(known[content])
    return labels


def _read_label(path: str) -> str | Reject:
    try:
        value = _npy(path)
    except Reject as reject:
        return reject
    if value is None or value.size != 1:
        return Reject("label is not one number")
    return _whole(str(value.item()))


def _whole(text: str) -> str | Reject:
    """A label, or why it is none: AffectNet's numbers are whole."""
    key = label_key(text)
    try:
        float(key)
    except ValueError:
        return key  # a name
    return (
        key if key.lstrip("-").isdecimal() else Reject(f"label {key[:20]!r} is not a whole number")
    )


class AffectNetCsv:
    """A table of paths and annotations, with pictures below `root`; the header decides the form.

    The report's (image_path, expression, valence, arousal, landmarks as a list of [x, y]), its box
    form (image_path, x_min, y_min, x_max, y_max, expression), and AffectNet's own
    (subDirectory_filePath, face_x, face_y, face_width, face_height, facial_landmarks "x;y;...",
    expression, valence, arousal).
    """

    def __init__(
        self, path: Path, root: Path | None = None, stated: StatedClasses = NO_CLASSES
    ) -> None:
        if not path.is_file():
            raise UserError(f"--input {path}: no such file; wanted a CSV of paths and annotations")
        self.root, self.stated = root or path.parent, stated
        self.classes: tuple[str, ...] = CLASSES
        if not self.root.is_dir():
            raise UserError(f"--image-root {self.root}: no such folder")
        self.table = CsvTable(path)
        names = self.table.names
        self._path = "subdirectory_filepath" if "subdirectory_filepath" in names else "image_path"
        self._points = next((n for n in ("facial_landmarks", "landmarks") if n in names), None)
        self.table.require(self._path, "expression")
        if self._points is None and not {"x_min", "y_min", "x_max", "y_max"} <= set(names):
            raise UserError(
                f"--input {path}: neither landmarks nor x_min, y_min, x_max, y_max "
                f"among {', '.join(names)[:120]}"
            )

    def rows(self) -> Rows:
        """List the lines of the table; the pictures are looked for when they are read."""
        found = Collector()
        for offset, line in self.table:
            if isinstance(line, str):
                found.add(f"byte {offset}", Reject(line))
            else:
                found.add(line[self._path], _whole(line["expression"]), locator=offset)
        class_map = map_classes(
            found.labels(), self.stated, f"--input {self.table.path}", NUMBERING, CLASSES
        )
        self.classes = class_map.classes
        return found.rows(self.table.path, class_map, repr(self.table.path.stat().st_size))

    def face(self, locator: int) -> Face:
        """Read the picture and the annotations of a line."""
        line = self.table.line(locator)
        valence, arousal = (affect(_number(line.get(n, ""), n)) for n in ("valence", "arousal"))
        landmarks = None if self._points is None else _points(line[self._points])
        box = _box(line) if self._points is None else None
        picture = read_picture(resolve_inside(self.root, line[self._path]))
        return Face(picture, landmarks=landmarks, box=box, valence=valence, arousal=arousal)


def _number(text: str, name: str) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        raise Reject(f"{name} {text[:20]!r} is not a number") from None


def _points(text: str) -> NDArray[np.float32] | None:
    """Landmarks as `x;y;x;y...` or as a list of pairs; None where the cell is empty."""
    if not text:
        return None
    try:
        if text.startswith("["):
            values = json.loads(text) if "(" not in text else ast.literal_eval(text)
            return landmarks_of(np.array(values, dtype=np.float64).ravel())
        return landmarks_of(np.array(text.split(";"), dtype=np.float64))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise Reject("landmarks are not a list of points") from None


def _box(line: dict[str, str]) -> Box:
    sides = [_number(line[n], n) for n in ("x_min", "y_min", "x_max", "y_max")]
    if not np.isfinite(sides).all():
        raise Reject("box is not finite")
    if max(sides) <= 1:
        raise Reject("box is in shares of the picture, wanted pixels")
    left, top, right, bottom = sides
    return int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))
