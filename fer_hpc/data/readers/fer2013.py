"""FER2013 as one CSV file of pixels."""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, UserError
from fer_hpc.config.errors import counted
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import (
    NO_CLASSES,
    ORDERS,
    Numbering,
    StatedClasses,
    label_key,
    map_classes,
)
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import kind_of, printable
from fer_hpc.data.tables import CsvTable
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import Tree, copy_stream
from fer_hpc.files import sha256

ORDER = ORDERS["fer2013"]
NUMBERING = Numbering("FER2013", ORDER, refusal="emotion {label!r}, wanted 0 to {last}")
USAGE = {"training": "train", "publictest": "val", "privatetest": "test"}
SIZE = 48
FER2013_CLASSES: tuple[str, ...] = tuple(c for c in CLASSES if c in ORDER)


class Fer2013Csv:
    """Kaggle's `emotion,pixels,Usage` in any order of columns (icml_face_data.csv too), or its .gz.

    A .gz is unpacked into the folder `scratch` first, since it cannot be read from the middle.
    """

    def __init__(
        self,
        path: Path,
        scratch: Path,
        stated: StatedClasses = NO_CLASSES,
        tree: Tree | None = None,
    ) -> None:
        if not path.is_file():
            raise UserError(
                f"--input {path}: no such file; "
                "wanted FER2013's CSV (emotion, pixels, Usage) or its folders"
            )
        self.path, self.stated, self._scratch, self._tree = path, stated, scratch, tree
        self.classes = FER2013_CLASSES
        plain = path
        try:
            if path.suffix == ".gz":
                scratch.mkdir(parents=True, exist_ok=True)
                plain = scratch / "plain.csv"
                _unpack(path, plain)
            self.table = CsvTable(plain, path)
            if "nf" in self.table.names and "image name" in self.table.names:
                raise UserError(f"--input {path}: these are FER+'s votes; use --source ferplus")
            self.table.require("emotion", "pixels")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove what was unpacked."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def rows(self) -> Rows:
        """List the lines; their numbers are the ids."""
        collector = Collector()
        without_usage = 0
        for number, (offset, line) in enumerate(self.table):
            if isinstance(line, str):
                collector.add(str(number), Reject(line))
                continue
            usage = line.get("usage", "")
            label: str | Reject = label_key(line["emotion"])
            if usage and usage.lower() not in USAGE:
                wanted = "Training, PublicTest, PrivateTest"
                label = Reject(f"Usage {usage[:20]!r}, wanted {wanted}")
            without_usage += "usage" in line and not usage
            collector.add(str(number), label, USAGE.get(usage.lower(), ""), offset)
        class_map = map_classes(
            collector.labels(), self.stated, f"--input {self.path}", NUMBERING, FER2013_CLASSES
        )
        self.classes = class_map.classes
        notes = [self.table.note] if self.table.note else []
        if without_usage:
            rows = counted(without_usage, "row")
            notes.append(f"{rows} with an empty Usage: counted as Training")
        identity = sha256(self.table.path)
        ignored = Tally()
        for name, _ in self._tree.files() if self._tree else ():
            if self._tree and self._tree.local(name) != self.path:
                ignored.add(f"{kind_of(name)} files", printable(name))
        return collector.rows(self.path, class_map, identity, notes, ignored)

    def face(self, locator: int) -> Face:
        """Parse the pixels of a line."""
        return Face(pixels=parse_pixels(self.table.line(locator)["pixels"]))


def parse_pixels(text: str) -> NDArray[np.uint8]:
    """[48, 48] pixels, from numbers with spaces between them; raises Reject."""
    try:
        pixels = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise Reject("pixels are not whole numbers") from None
    if pixels.size != SIZE**2:
        raise Reject(f"{pixels.size} pixels, wanted {SIZE**2} ({SIZE} x {SIZE})")
    if pixels.min() < 0 or pixels.max() > 255:
        raise Reject("pixel values outside 0 to 255")
    return pixels.astype(np.uint8).reshape(SIZE, SIZE)


def _unpack(packed: Path, target: Path) -> None:
    try:
        with gzip.open(packed) as source, target.open("wb") as plain:
            copy_stream(source, plain, target)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(
            f"--input {packed}: cannot be unpacked ({error}); is the download whole?"
        ) from None
