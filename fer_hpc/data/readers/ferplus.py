"""FER+: the votes of ten people for every face of FER2013 (Barsoum et al., 2016)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import ORDERS, ClassMap
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import is_picture, kind_of, printable
from fer_hpc.data.readers.fer2013 import USAGE, parse_pixels
from fer_hpc.data.split_names import named_split
from fer_hpc.data.tables import CsvTable
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import Tree
from fer_hpc.files import sha256

ORDER = ORDERS["ferplus"]
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
COLUMNS = (*VOTES, "unknown", "nf")
NO_CLASS = {"unknown": "the votes agree on no class", "no face": "most votes: not a face"}
TABLE, LIST = "fer2013new.csv", "label.csv"


def decide(votes: list[float], distribution: bool) -> tuple[str, list[float]]:
    """(class name, or a key of NO_CLASS; shares of the eight classes in FER+'s order) of ten votes.

    The rules of the authors' own code: single votes are dropped; the majority needs more than half
    of the rest; a distribution takes classes from the top until they hold three quarters of the
    rest, at most three, and more than half.
    """
    kept = [v if v > 1 else 0.0 for v in votes]
    total = sum(kept)
    top = kept.index(max(kept))
    if not total:
        return "unknown", []
    if not distribution:
        if kept[top] <= total / 2 or top == len(VOTES):
            return "unknown", []
        return (ORDER[top], []) if top < len(VOTES) else ("no face", [])
    shares, left, count = [0.0] * len(VOTES), list(kept), 0
    while sum(shares) < 0.75 * total and count < 3:
        highest = max(left)
        tied = [i for i, v in enumerate(left) if v == highest and v]
        for i in tied:
            if i < len(VOTES):
                shares[i], left[i], count = highest, 0.0, count + 1
            elif not sum(shares):
                return ("unknown" if i == len(VOTES) else "no face"), []
        if not tied or tied[-1] >= len(VOTES):
            break
    if sum(shares) <= total / 2 or count > 3:
        return "unknown", []
    whole = sum(shares)
    shares = [share / whole for share in shares]
    return ORDER[shares.index(max(shares))], shares


class FerPlus:
    """`fer2013new.csv` (Usage, Image name, ten columns of votes) beside `fer2013.csv`, row by row;
    or `FER2013Train`, `FER2013Valid`, `FER2013Test` with PNGs and a `label.csv` in each.

    `distribution` stores the shares of the votes as targets of the training; the label is the class
    with the most.
    """

    classes = CLASSES

    def __init__(self, tree: Tree, distribution: bool = False) -> None:
        self.tree, self._distribution = tree, distribution
        names = {n.rpartition("/")[2].lower(): n for n, _ in tree.files()}
        self._table = CsvTable(tree.local(names[TABLE])) if TABLE in names else None
        pixels = [n for n in names if n in ("fer2013.csv", "icml_face_data.csv")]
        self._pixels = CsvTable(tree.local(names[pixels[0]])) if pixels else None
        if self._table:
            self._table.require("usage", "image name", *COLUMNS)
        if self._pixels:
            self._pixels.require("emotion", "pixels")
        self._lists = [n for n, _ in tree.files() if n.rpartition("/")[2] == LIST]
        self._in_folders = any(named_split(n.split("/")[-2]) for n in self._pictures())
        if not (self._table and (self._pixels or self._in_folders)) and not self._lists:
            raise UserError(
                f"--input {tree.root}: wanted {TABLE} beside fer2013.csv, or FER2013Train, "
                f"FER2013Valid, FER2013Test with pictures and {LIST} or {TABLE}"
            )

    def _pictures(self) -> Iterator[str]:
        return (n for n, _ in self.tree.files() if is_picture(n) and "/" in n)

    def rows(self) -> Rows:
        """List the faces that have votes."""
        collector, ignored = Collector(), Tally()
        if self._table and self._pixels:
            self._by_row(self._table, self._pixels, collector)
        else:
            self._by_name(collector, ignored)
        rule = "distribution (cross-entropy against it)" if self._distribution else "majority"
        source = f"FER+'s votes, {rule}"
        names = {name: name for name in CLASSES}
        class_map = ClassMap(CLASSES, names, NO_CLASS, source=source)
        ignored.update(self.tree.ignored)
        notes = [table.note for table in (self._table, self._pixels) if table and table.note]
        return collector.rows(self.tree.root, class_map, source, notes, ignored)

    def _add(
        self,
        collector: Collector,
        source_id: str,
        cells: list[str],
        split: str,
        locator: Any,
        stamp: Any,
    ) -> None:
        """Add a face with its ten votes."""
        try:
            votes = [float(cell) for cell in cells]
            if len(votes) != len(COLUMNS) or not all(0 <= v < 1e6 for v in votes):
                raise ValueError
        except ValueError:
            reason = f"wanted {len(COLUMNS)} numbers of votes"
            collector.add(source_id, Reject(reason), split)
            return
        name, shares = decide(votes, self._distribution)
        targets = None
        if self._distribution:
            by_name = dict(zip(ORDER, shares or [0.0] * 8, strict=True))
            targets = [by_name[c] for c in CLASSES]
        label = stamp if isinstance(stamp, Reject) else name
        collector.add(source_id, label, split, locator, stamp=(stamp, cells), targets=targets)

    def _by_row(self, table: CsvTable, pixels: CsvTable, collector: Collector) -> None:
        """The same line of both tables is the same face; UserError where they do not fit."""
        other = iter(pixels)
        stamp = sha256(pixels.path)
        n = 0
        for n, (_, line) in enumerate(table, 1):
            offset, face = next(other, (0, None))
            if face is None:
                raise UserError(
                    f"{pixels.shown} has {n - 1:,} faces, {table.shown} has more rows; they belong "
                    "together row by row"
                )
            if isinstance(line, str) or isinstance(face, str):
                collector.add(str(n - 1), Reject(line if isinstance(line, str) else str(face)))
                continue
            usage = line["usage"].lower()
            if "usage" in face and face["usage"].lower() != usage:
                raise UserError(
                    f"row {n} is {line['usage']!r} in {table.shown}, {face['usage']!r} in "
                    f"{pixels.shown}: the tables belong together row by row; take both unchanged"
                )
            cells = [line[c] for c in COLUMNS]
            if not line["image name"]:
                collector.add(str(n - 1), "no face", USAGE.get(usage, ""))
            elif usage not in USAGE:
                wanted = "Training, PublicTest, PrivateTest"
                collector.add(str(n - 1), Reject(f"Usage {usage[:20]!r}, wanted {wanted}"))
            else:
                self._add(
                    collector, str(n - 1), cells, USAGE[usage], offset, stamp if n == 1 else 0
                )
        if next(other, None) is not None:
            raise UserError(
                f"{pixels.shown} has more faces than {table.shown} has rows ({n:,}); they belong "
                "together row by row"
            )

    def _by_name(self, collector: Collector, ignored: Tally) -> None:
        """Pictures in FER2013Train and so on, by name in a list of votes."""
        files, used = dict(self.tree.files()), set(self._lists)
        for folder, name, cells in self._votes():
            picture = f"{folder}/{name}" if folder else name
            split = named_split(folder.rpartition("/")[2])
            stamp = files.get(picture, Reject("missing image"))
            used.add(picture)
            self._add(collector, picture, cells, split, picture, stamp)
        for name in files:
            if name not in used:
                left = is_picture(name)
                kind = "pictures without votes" if left else f"{kind_of(name)} files"
                ignored.add(kind, printable(name), limited=left)

    def _votes(self) -> Iterator[tuple[str, str, list[str]]]:
        """(folder, picture, cells of votes) of every line of the lists."""
        if self._lists:
            for path in self._lists:
                folder = path.rpartition("/")[0]
                text = self.tree.read(path, 1 << 28).decode("utf-8", "replace")
                for cells in csv.reader(text.splitlines()):
                    if cells:
                        yield folder, cells[0].strip(), [c.strip() for c in cells[-10:]]
            return
        assert self._table
        folders = {split: f for f in self.tree.folders() if (split := named_split(f))}
        for _, line in self._table:
            if not isinstance(line, str) and line["image name"]:
                folder = folders.get(USAGE.get(line["usage"].lower(), ""), "")
                yield folder, line["image name"], [line[c] for c in COLUMNS]

    def face(self, locator: str | int) -> Face:
        """Read a picture, or the pixels of a line."""
        if isinstance(locator, str):
            return Face(self.tree.picture(locator))
        assert self._pixels
        return Face(pixels=parse_pixels(self._pixels.line(locator)["pixels"]))

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()
