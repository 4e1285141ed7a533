"""Which photos are looked at, and where their faces are if a table says so."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.deploy import PredictConfig
from fer_hpc.data.faces import Box, Found, Reject
from fer_hpc.data.pictures import is_picture, kind_of, natural_sort_key, printable
from fer_hpc.data.readers.folder_labels import PATHS, first_of
from fer_hpc.data.readers.table import BOX, box_of, points_of
from fer_hpc.data.tables import CsvTable
from fer_hpc.data.tally import Tally

BOX_NAMES = (("left", "top", "right", "bottom"), BOX)
POINT_NAMES = ("landmarks", "facial_landmarks")
PHOTO_NAMES = ("photo", *PATHS)


@dataclass(frozen=True)
class Task:
    """A photo to look at; `faces` None: find them."""

    path: Path
    faces: list[Found] | None = None
    problem: str = ""  # why it is not looked at


@dataclass(frozen=True)
class Tasks:
    """All photos, in order, and what else lies in their folders or table."""

    photos: list[Task]
    ignored: Tally = field(default_factory=Tally)


def list_tasks(config: PredictConfig) -> Tasks:
    """The photos of a command; UserError where there is none, or where --out holds them."""
    out = config.out.resolve() if config.out else None
    if out in [path.resolve() for path in config.photos]:
        raise UserError(f"--out {config.out} is the folder of the photos; give another one")
    if config.boxes:
        return list_boxes(config.boxes, config.photos)
    tasks = list_photos(config.photos, out)
    if all(task.problem for task in tasks.photos):
        shown = ", ".join(map(str, config.photos[:3]))
        why = tasks.photos[0].problem if tasks.photos else "no picture there (JPEG, PNG, ...)"
        raise UserError(f"{shown}: {why}; give photos or their folder")
    return tasks


def list_photos(paths: Sequence[Path], out: Path | None = None) -> Tasks:
    """The photos that files, folders and patterns name, each once.

    Of a folder, all pictures in it and below, in natural order, but for those in `out`; its other
    files are counted. A path that leads nowhere is a photo with a problem.
    """
    tasks: dict[Path, Task] = {}
    ignored = Tally()
    for path in paths:
        for each in _files_of(path, ignored, out):
            tasks.setdefault(each, Task(each))
        if path.is_dir() or path in tasks:
            continue
        if not _matches(path):
            why = "no file matches the pattern" if glob.has_magic(str(path)) else "no such file"
            tasks.setdefault(path, Task(path, problem=why))
    return Tasks(list(tasks.values()), ignored)


def _matches(path: Path) -> list[Path]:
    """The files and folders of a pattern; the path itself where there is such a file."""
    if os.path.lexists(path):
        return [path]
    # for Path.glob, the pattern would have to be split at its first special character
    matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207
    return [Path(each) for each in sorted(matches, key=natural_sort_key)]


def _files_of(path: Path, ignored: Tally, out: Path | None) -> Iterable[Path]:
    for match in _matches(path):
        if not match.is_dir():
            yield match
            continue
        for folder, folders, names in os.walk(match):
            if out and Path(folder).resolve() == out:
                ignored.add("files in --out", printable(folder), len(names))
                folders.clear()
                continue
            folders.sort(key=natural_sort_key)
            for name in sorted(names, key=natural_sort_key):
                each = Path(folder, name)
                if is_picture(name):
                    yield each
                else:
                    ignored.add(f"{kind_of(name)} files", printable(str(each)))


def list_boxes(table_path: Path, paths: Sequence[Path]) -> Tasks:
    """The photos of a CSV with their faces: path, and a box or 68 landmarks, a row a face.

    Boxes are left,top,right,bottom (also x_min,y_min,x_max,y_max) in pixels, without margin, as
    predictions.csv has them. Paths are relative to the table's folder, or to the current one. With
    `paths`, only these photos; one that the table does not have is a photo with a problem.
    """
    if not table_path.is_file():
        raise UserError(f"--boxes {table_path}: no such file; wanted a CSV of paths and boxes")
    table = CsvTable(table_path, flag="--boxes")
    if table.note:
        print(f"--boxes: {table.note}", file=sys.stderr)
    names = _columns(table)
    task_by_path: dict[Path, Task] = {}
    ignored = Tally()
    for _, line in table:
        if isinstance(line, str):
            ignored.add(f"rows of the table: {line}", table_path.name)
            continue
        path = _resolve(line[names.path], table_path.parent)
        task = task_by_path.setdefault(path, Task(path, []))
        assert task.faces is not None
        try:
            face = names.face(line)
        except Reject as reason:
            ignored.add(f"rows of the table: {reason}", line[names.path])
            continue
        if face:
            task.faces.append(face)
    if not task_by_path:
        raise UserError(f"--boxes {table_path}: there is no row in it")
    return Tasks(
        _chosen(task_by_path, paths, ignored) if paths else list(task_by_path.values()), ignored
    )


def _chosen(task_by_path: dict[Path, Task], paths: Sequence[Path], ignored: Tally) -> list[Task]:
    """The tasks of `paths`, in their order; other rows are counted."""
    listed = list_photos(paths)
    ignored.update(listed.ignored)
    of = {path.resolve(): task for path, task in task_by_path.items()}
    tasks = []
    for task in listed.photos:
        match = of.pop(task.path.resolve(), None)
        tasks.append(match or Task(task.path, [], task.problem))
    for rest in of.values():
        ignored.add("photos of the table that were not asked for", printable(str(rest.path)))
    return tasks


@dataclass(frozen=True)
class _Columns:
    """The names of a table's columns."""

    path: str
    points: str
    box: tuple[str, ...]

    def face(self, line: dict[str, str]) -> Found | None:
        """The face of a row; None where its cells are empty; raises Reject."""
        points: NDArray[np.float32] | None = points_of(line[self.points]) if self.points else None
        if points is not None:
            left, top = points.min(0).tolist()
            right, bottom = points.max(0).tolist()
            return Found((left, top, right, bottom), 1.0, points)
        box: Box | None = box_of(line, self.box) if self.box else None
        if box and (box[0] >= box[2] or box[1] >= box[3]):
            raise Reject(f"box is empty or turned around ({', '.join(self.box)}: {box})")
        return Found(box, 1.0) if box else None


def _columns(table: CsvTable) -> _Columns:
    path, points = first_of(table.names, PHOTO_NAMES), first_of(table.names, POINT_NAMES)
    box = next((names for names in BOX_NAMES if set(names) <= set(table.names)), ())
    table.require(path or "path")
    if not box and not points:
        table.require(*BOX_NAMES[0])
    return _Columns(path, points, tuple(box))


def _resolve(text: str, folder: Path) -> Path:
    # os.path: Path.exists raises for too long a name
    is_below, is_here = os.path.exists(folder / text), os.path.exists(text)  # noqa: PTH110
    return Path(text) if is_here and not is_below else folder / text
