"""AffectNet as a folder of pictures and one file for each annotation."""

from __future__ import annotations

import functools
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows, affect, landmarks_of
from fer_hpc.data.classes import NO_CLASSES, Numbering, StatedClasses, label_key, map_classes
from fer_hpc.data.faces import Reject
from fer_hpc.data.npy import BAD_ARRAY, small_array
from fer_hpc.data.pictures import PICTURES, kind_of, natural_sort_key, printable
from fer_hpc.data.tables import read_columns
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import DAMAGED, Tree

NUMBERING = Numbering("AffectNet", CLASSES, {8: "none", 9: "uncertain", 10: "no face"})
MAX_ANNOTATION_BYTES = 1 << 16  # 68 points as text take a tenth
SLOW_READ_S = 1e-4
UNUSED = {str(number) for number in NUMBERING.unused}
SETS = ("train_set", "val_set", "test_set")
KINDS = ("exp", "val", "aro", "lnd")


class AffectNetFolder:
    """`train_set/annotations/<id>_{exp,val,aro,lnd}.npy`, `train_set/images/<id>.{jpg,png,jpeg}`.

    `val_set` beside it becomes the test split; with a `test_set` it is val. A file `columns.csv` in
    the root, if there is one, adds columns by source_id (`train_set/<id>`).
    """

    def __init__(self, root: Path | Tree, stated: StatedClasses = NO_CLASSES) -> None:
        self.tree = root if isinstance(root, Tree) else Tree(root)
        self.root, self.stated = self.tree.root, stated
        self.classes: tuple[str, ...] = CLASSES
        folders = self.tree.folders()
        self.parts = [p for p in SETS if f"{p}/annotations" in self.tree.folders(p)]
        if not self.parts:
            raise UserError(
                f"--input {self.root}: no train_set/annotations or val_set/annotations in it"
            )
        for other in sorted(set(folders) - set(self.parts)):
            inside = {name.rpartition("/")[2] for name in self.tree.folders(other)}
            if inside & {"annotations", "images"} or other.endswith("_set"):
                raise UserError(
                    f"--input {self.root}: {printable(other)}/ is no part of AffectNet that is "
                    f"read ({', '.join(SETS)} with images/ and annotations/); move it away"
                )

    def rows(self) -> Rows:
        """List the annotations; a label that is missing or has no picture is a reject."""
        collector, ignored, splits = Collector(), Tally(), self._splits()
        for part in self.parts:
            self._list_part(part, splits[part], collector, ignored)
        for name in self.tree.folder():
            if name != "columns.csv":
                ignored.add(f"{kind_of(name)} files", printable(name))
        for other in sorted(set(self.tree.folders()) - set(self.parts)):
            ignored.add("other folders", printable(other))
        class_map = map_classes(
            collector.labels(), self.stated, f"--input {self.root}", NUMBERING, CLASSES
        )
        self.classes = class_map.classes
        ignored.update(self.tree.ignored)
        notes = [", ".join(f"{p} is {s}" for p, s in splits.items() if s)]
        rows = collector.rows(self.root, class_map, "", list(filter(None, notes)), ignored)
        if self.tree.has("columns.csv"):
            table = self.tree.local("columns.csv")
            rows.columns.update(read_columns(table, rows.source_id, rows.notes))
        return rows

    def _splits(self) -> dict[str, str]:
        """The split of each part; "" where there is only one part to cut."""
        if "test_set" in self.parts:
            return {part: part.removesuffix("_set") for part in self.parts}
        if "val_set" not in self.parts:
            return dict.fromkeys(self.parts, "")
        return {part: "test" if part == "val_set" else "train" for part in self.parts}

    def _list_part(self, part: str, split: str, collector: Collector, ignored: Tally) -> None:
        images, folder = f"{part}/images", f"{part}/annotations"
        if images not in self.tree.folders(part):
            raise UserError(
                f"--input {self.root}: {part}/annotations is there, but not {part}/images"
            )
        pictures, notes = self.tree.folder(images), self.tree.folder(folder)
        by_stem = {}
        for name in pictures:
            if name.lower().endswith(PICTURES):
                by_stem[name.rpartition(".")[0]] = name
            else:
                ignored.add(f"{kind_of(name)} files", f"{images}/{printable(name)}", limited=True)
        end = "_exp.npy"
        stems = [name.removesuffix(end) for name in notes if name.endswith(end)]
        decimal = all(stem.isdecimal() and len(stem) < 19 for stem in stems)
        stems.sort(key=int if decimal else natural_sort_key)
        labels = _read_all_labels(self.tree, [f"{folder}/{stem}{end}" for stem in stems])
        for stem, label in zip(stems, labels, strict=True):
            picture = by_stem.get(stem, "")
            stamps = [pictures.get(picture), *(notes.get(f"{stem}_{kind}.npy") for kind in KINDS)]
            if not isinstance(label, Reject) and label not in UNUSED:
                label = Reject("missing image") if not picture else label
                label = next((s for s in stamps if isinstance(s, Reject)), label)
            locator = (f"{images}/{picture}", f"{folder}/{stem}")
            collector.add(f"{part}/{stem}", label, split, locator, stamp=stamps)
        for stem in sorted(by_stem.keys() - set(stems), key=natural_sort_key):
            collector.add(f"{part}/{stem}", Reject("no label"))

    def face(self, locator: tuple[str, str]) -> Face:
        """Read a picture and the annotations beside it."""
        picture, stem = locator
        points = _npy(self.tree, f"{stem}_lnd.npy")
        values = [_npy(self.tree, f"{stem}_{kind}.npy") for kind in ("val", "aro")]
        valence, arousal = (
            float("nan") if v is None or v.size != 1 else affect(v.item()) for v in values
        )
        landmarks = None if points is None else landmarks_of(points)
        encoded = self.tree.picture(picture)
        return Face(encoded, landmarks=landmarks, valence=valence, arousal=arousal)

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()


_USUAL_HEADER = re.compile(
    rb"\{'descr': '([<|=]?[fiuUS]\d+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \}\s*"
)


def _npy(tree: Tree, name: str) -> NDArray[np.float64] | None:
    """The numbers in a small .npy file (numbers, or text that is one); None where there is no file.

    The usual header is read here, ten times as fast as by numpy (there are four such files a face);
    numpy reads the rest. Raises Reject.
    """
    try:
        data = tree.read(name, MAX_ANNOTATION_BYTES)
        begin = 10 + int.from_bytes(data[8:10], "little")
        dtype = _dtype(data[:begin])
        if dtype:
            return np.frombuffer(data, dtype, offset=begin).astype(np.float64)
        return small_array(data).astype(np.float64)
    except FileNotFoundError:
        return None
    except (*BAD_ARRAY, *DAMAGED):
        raise Reject(f"unreadable {name.rpartition('_')[2]} annotation") from None


@functools.cache  # the same few headers come again and again
def _dtype(header: bytes) -> np.dtype[Any] | None:
    """The dtype that a usual .npy header states; None for any other header."""
    match = _USUAL_HEADER.fullmatch(header, 10) if header[:7] == b"\x93NUMPY\x01" else None
    return np.dtype(match[1].decode()) if match else None


def _read_all_labels(tree: Tree, paths: list[str]) -> list[str | Reject]:
    """The labels in many files.

    In threads where the file system is slow: it answers many at a time. Where the page cache
    answers, threads would triple the time.
    """
    labels: list[str | Reject] = []
    while len(labels) < len(paths):
        start = time.perf_counter()
        block = _read_labels(tree, paths[len(labels) : len(labels) + 256])
        labels += block
        if time.perf_counter() - start > SLOW_READ_S * len(block):
            break
    rest = paths[len(labels) :]
    threads = 16 if type(tree) is Tree else 1  # an archive is read by one at a time
    with ThreadPoolExecutor(threads) as pool:
        read = functools.partial(_read_labels, tree)
        blocks = pool.map(read, [rest[i : i + 256] for i in range(0, len(rest), 256)])
        return labels + [label for block in blocks for label in block]


def _read_labels(tree: Tree, paths: list[str]) -> list[str | Reject]:
    """Labels, or why there is none. Files of equal content, a dozen kinds, are parsed once."""
    known: dict[bytes, str | Reject] = {}
    labels: list[str | Reject] = []
    for path in paths:
        try:
            content = tree.read(path, MAX_ANNOTATION_BYTES)
        except DAMAGED:
            content = b""
        if content not in known:
            known[content] = _read_label(tree, path)
        labels.append(known[content])
    return labels


def _read_label(tree: Tree, path: str) -> str | Reject:
    try:
        value = _npy(tree, path)
    except Reject as reject:
        return reject
    if value is None or value.size != 1:
        return Reject("label is not one number")
    return whole_label(str(value.item()))


def whole_label(text: str) -> str | Reject:
    """A label, or why it is none: AffectNet's numbers are whole."""
    key = label_key(text)
    try:
        float(key)
    except ValueError:
        return key  # a name
    return (
        key if key.lstrip("-").isdecimal() else Reject(f"label {key[:20]!r} is not a whole number")
    )
