"""Tables of pictures: AffectNet's CSV files, and `path,label[,split][,box][,group]`."""

from __future__ import annotations

import ast
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, UserError
from fer_hpc.config.errors import counted
from fer_hpc.data.annotations import Collector, Face, Rows, affect, check_box, landmarks_of
from fer_hpc.data.classes import NO_CLASSES, Numbering, StatedClasses, label_key, map_classes
from fer_hpc.data.faces import Box, Reject
from fer_hpc.data.pictures import is_picture
from fer_hpc.data.readers.affectnet import NUMBERING, whole_label
from fer_hpc.data.readers.folder_labels import LABELS, PATHS, first_of
from fer_hpc.data.sequences import persons, sequence_note
from fer_hpc.data.split_names import split_of
from fer_hpc.data.table_paths import Prefix, find_prefix, split_path
from fer_hpc.data.tables import CsvTable, Line
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import Tree
from fer_hpc.files import sha256

BOX = ("x_min", "y_min", "x_max", "y_max")
POINTS = ("facial_landmarks", "landmarks")
GROUPS = ("group", "person", "subject", "identity", "subject_id", "person_id")
SPLITS = ("split", "usage", "set", "subset", "partition")
FEW = 50  # faces of which none is neutral, by accident


class PictureTable:
    """CSV tables of picture paths, one row a face, with pictures below `root`.

    All paths of a table lead below `root` in the same way: as they are, or without one prefix of
    another machine. A picture may have several rows; a row that occurs again is a reject, and so
    are all rows of a face with two labels.
    `tables` are (table, split or ""); `path` and `label` are the names of their columns.
    """

    def __init__(
        self,
        tables: Sequence[tuple[CsvTable, str]],
        tree: Tree,
        path: str,
        label: str,
        stated: StatedClasses = NO_CLASSES,
        numbering: Numbering | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        self.tables, self.tree, self.stated = list(tables), tree, stated
        self.table, self.shown = tables[0][0], tables[0][0].shown
        self._path, self._label, self._numbering = path, label, numbering
        self.classes = self._fixed = classes
        names = self.table.names
        meant = _meant(names)
        self._points, self._split, self._group = meant["points"], meant["split"], meant["group"]
        self._has_box = bool(meant["box"])
        self._cut_by = (self._points,) if self._points else BOX if self._has_box else ()
        for table, _ in tables:
            table.require(path, label, *(BOX if self._has_box else ()))
            for known, own in zip(meant.values(), _meant(table.names).values(), strict=True):
                if own != known:
                    raise UserError(
                        f"--input {table.shown}: {own or 'no column'} where {self.shown} has "
                        f"{known or 'no column'}; give both tables the same columns"
                    )
        some = [name for name in BOX if name in names]
        if some and not self._has_box and not self._points:
            raise UserError(f"--input {self.shown}: {', '.join(some)} without the rest of a box")

    def rows(self) -> Rows:
        """List the rows of the tables; every picture is looked up in the listing of its folder."""
        collector, used = Collector(), dict[str, dict[str, int]]()
        notes: list[str] = []
        for number, (table, split) in enumerate(self.tables):
            prefix = find_prefix(table, self._path, self.tree)
            notes += filter(None, [table.note, prefix.note])
            self._list(number, table, split, prefix, collector, used)
        labels = collector.labels()
        class_map = map_classes(
            labels, self.stated, f"--input {self.shown}", self._numbering, self._fixed
        )
        self._check_numbers(labels)
        self.classes = class_map.classes
        ignored = self._not_mentioned(used)
        identity = repr([sha256(table.path) for table, _ in self.tables])
        rows = collector.rows(self.shown, class_map, identity, notes, ignored)
        if "group" not in rows.columns:
            form, people = persons(rows.source_id)
            if form:
                rows.columns["group"] = np.array(people, dtype=object)
                rows.notes.append(f"persons (group) are those in {form}'s file names")
            elif note := sequence_note(rows.source_id):
                rows.notes.append(note)
        without = rows.split.count("")
        if self._split and 0 < without < len(rows.split):
            rows.notes.append(
                f"{counted(without, 'row')} with an empty {self._split}: counted as train"
            )
        return rows

    def _list(
        self,
        number: int,
        table: CsvTable,
        split: str,
        prefix: Prefix,
        collector: Collector,
        used: dict[str, dict[str, int]],
    ) -> None:
        """Add the rows of one table; `used` gets folder -> picture -> checksum of its first row."""
        for offset, line in table:
            if isinstance(line, str):
                collector.add(f"{table.shown.name} byte {offset}", Reject(line))
                continue
            text = line[self._path]
            source_id, own_split = text, split
            label: str | Reject = self._label_of(line)
            picture = ""
            name = prefix.name(text)
            stamp = name if isinstance(name, Reject) else self.tree.stamp(name)
            if isinstance(stamp, Reject):
                label = stamp if isinstance(label, Reject) or label_is_used(label) else label
            else:
                assert isinstance(name, str)
                picture = name
                folder, _, last = name.rpartition("/")
                rows, checksum = used.setdefault(folder, {}), zlib.crc32(repr(line).encode())
                if last not in rows:
                    rows[last] = checksum << 20
                elif rows[last] >> 20 == checksum:
                    label = Reject("duplicate row")
                else:
                    rows[last] += 1
                    source_id = f"{text}#{(rows[last] & 0xFFFFF) + 1}"
            if self._split and (cell := line[self._split]):
                own_split = split_of(cell) or own_split
                if not split_of(cell):
                    label = Reject(f"{self._split} {cell[:20]!r}, wanted train, val or test")
            group = line[self._group] if self._group else ""
            locator = (number, offset, prefix.length)
            collector.add(
                source_id,
                label,
                own_split,
                locator,
                stamp=stamp,
                group=group,
                picture=picture,
                box=tuple(line[column] for column in self._cut_by),
            )

    def _label_of(self, line: Line) -> str | Reject:
        return label_key(line[self._label]) or Reject("no label")

    def _check_numbers(self, labels: dict[str, int]) -> None:
        """UserError for numbers that are those of another data set."""

    def _not_mentioned(self, used: dict[str, dict[str, int]]) -> Tally:
        """Pictures without a row, in the folders that the tables lead to."""
        ignored = Tally()
        for folder, mentioned in used.items():
            others = (n for n in self.tree.folder(folder) if is_picture(n) and n not in mentioned)
            for name in others:
                ignored.add("pictures without a row in the table", f"{folder}/{name}".lstrip("/"))
        return ignored

    def face(self, locator: tuple[int, int, int]) -> Face:
        """Read the picture and the annotations of a row."""
        number, offset, length = locator
        line = self.tables[number][0].line(offset)
        valence, arousal = (affect(_number(line.get(n, ""), n)) for n in ("valence", "arousal"))
        landmarks = points_of(line[self._points]) if self._points else None
        box = box_of(line) if self._has_box else None
        picture = self.tree.picture("/".join(split_path(line[self._path])[length:]))
        return Face(picture, landmarks=landmarks, box=box, valence=valence, arousal=arousal)

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()


class AffectNetCsv(PictureTable):
    """AffectNet's numbers in a table; the header decides the form.

    The report's (image_path, expression, valence, arousal, landmarks as a list of [x, y]), its box
    form (image_path, x_min, y_min, x_max, y_max, expression), and AffectNet's own
    (subDirectory_filePath, face_x, face_y, face_width, face_height, facial_landmarks "x;y;...",
    expression, valence, arousal). A folder holds `training.csv` and `validation.csv`: the second is
    the test split.
    """

    def __init__(
        self,
        path: Path | Sequence[tuple[CsvTable, str]],
        root: Path | Tree | None = None,
        stated: StatedClasses = NO_CLASSES,
    ) -> None:
        tables = [(open_table(path), "")] if isinstance(path, Path) else path
        shown = tables[0][0].shown
        tree = root if isinstance(root, Tree) else image_tree(root, shown)
        names = tables[0][0].names
        own = "subdirectory_filepath"
        self._is_own = own in names
        picture = own if self._is_own else "image_path"
        super().__init__(tables, tree, picture, "expression", stated, NUMBERING, CLASSES)
        if not self._points and not self._has_box:
            raise UserError(
                f"--input {shown}: neither landmarks nor x_min, y_min, x_max, y_max "
                f"among {', '.join(names)[:120]}; faces that are cut already: --source table"
            )

    def _label_of(self, line: Line) -> str | Reject:
        return whole_label(line["expression"])

    def _check_numbers(self, labels: dict[str, int]) -> None:
        counts = {k: n for k, n in labels.items() if k.isdecimal()}
        if self._is_own or self.stated or "0" in counts or sum(counts.values()) < FEW:
            return
        if "1" in counts:
            raise UserError(
                f"--input {self.shown}: none of its {sum(counts.values()):,} numbers is 0, "
                "AffectNet's Neutral, so they may be another data set's; state whose they are: "
                "--classes affectnet, --classes rafdb, or --classes FILE.csv (number,class name)"
            )


def _meant(names: Sequence[str]) -> dict[str, str]:
    """The columns that decide how rows are read, by their meaning; "" where there is none."""
    points = first_of(names, POINTS)
    return {
        "points": points,
        "box": "" if points or not set(BOX) <= set(names) else ", ".join(BOX),
        "split": first_of(names, SPLITS),
        "group": first_of(names, GROUPS),
    }


def generic_table(
    tables: Sequence[tuple[CsvTable, str]], tree: Tree, stated: StatedClasses
) -> PictureTable:
    """`path,label[,split][,x_min,y_min,x_max,y_max][,group]`; numbers need --classes."""
    table = tables[0][0]
    path, label = first_of(table.names, PATHS), first_of(table.names, LABELS)
    if not path or not label:
        table.require(path or "path", label or "label")
    return PictureTable(tables, tree, path, label, stated)


def open_table(path: Path) -> CsvTable:
    """A CSV file; UserError where it is none."""
    if not path.is_file():
        raise UserError(f"--input {path}: no such file; wanted a CSV of paths and annotations")
    return CsvTable(path)


def image_tree(root: Path | None, table: Path) -> Tree:
    """The pictures of a table: below --image-root, else beside it."""
    if root is not None and not root.is_dir():
        raise UserError(f"--image-root {root}: no such folder")
    return Tree(root or table.parent)


def label_is_used(label: str) -> bool:
    """Whether a label is not one of those that AffectNet calls no class."""
    return label not in {str(number) for number in NUMBERING.unused}


def _number(text: str, name: str) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        raise Reject(f"{name} {text[:20]!r} is not a number") from None


def points_of(text: str) -> NDArray[np.float32] | None:
    """Landmarks as `x;y;x;y...` or as a list of pairs; None where the cell is empty."""
    if not text:
        return None
    try:
        if text.startswith("["):
            values = json.loads(text) if "(" not in text else ast.literal_eval(text)
            return landmarks_of(np.array(values, dtype=np.float64).ravel())
        return landmarks_of(np.array(text.split(";"), dtype=np.float64))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError):
        raise Reject("landmarks are not a list of points") from None


def box_of(line: Line, names: Sequence[str] = BOX) -> Box | None:
    """The box of a row, in pixels; None where all its cells are empty; raises Reject."""
    if not any(line[n] for n in names):
        return None
    sides = [_number(line[n], n) for n in names]
    check_box(sides)
    left, top, right, bottom = sides
    return int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))
