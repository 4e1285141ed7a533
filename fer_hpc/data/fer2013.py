"""FER2013 as one CSV file of pixels."""

from __future__ import annotations

import errno
import gzip
import shutil
from pathlib import Path

import numpy as np

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import Numbering, StatedClasses, label_key, map_classes
from fer_hpc.data.faces import Reject
from fer_hpc.data.tables import CsvTable
from fer_hpc.files import sha256

ORDER = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")  # Kaggle's
NUMBERING = Numbering("FER2013", ORDER, refusal="emotion {label!r}, wanted 0 to {last}")
USAGE = {"training": "train", "publictest": "val", "privatetest": "test"}
SIZE = 48
FER2013_CLASSES: tuple[str, ...] = tuple(c for c in CLASSES if c in ORDER)


class Fer2013Csv:
    """Kaggle's `emotion,pixels,Usage` in any order of columns (icml_face_data.csv too), or its .gz.

    A .gz is unpacked to the file `unpacked` first, since it cannot be read from the middle.
    """

    def __init__(self, path: Path, unpacked: Path, stated: StatedClasses | None = None) -> None:
        if not path.is_file():
            raise UserError(
                f"--input {path}: no such file; "
                "wanted FER2013's CSV (emotion, pixels, Usage) or its folders"
            )
        self.path, self.stated = path, stated or StatedClasses()
        self.classes = FER2013_CLASSES
        self._temporary = unpacked if path.suffix == ".gz" else None
        try:
            if self._temporary:
                _unpack(path, self._temporary)
            self.table = CsvTable(self._temporary or path, path)
            self.table.require("emotion", "pixels")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the unpacked copy."""
        if self._temporary:
            self._temporary.unlink(missing_ok=True)

    def rows(self) -> Rows:
        """List the lines; their numbers are the ids."""
        found = Collector()
        without_usage = 0
        for number, (offset, line) in enumerate(self.table):
            if isinstance(line, str):
                found.add(str(number), Reject(line))
                continue
            usage = line.get("usage", "")
            label: str | Reject = label_key(line["emotion"])
            if usage and usage.lower() not in USAGE:
                wanted = "Training, PublicTest, PrivateTest"
                label = Reject(f"Usage {usage[:20]!r}, wanted {wanted}")
            without_usage += "usage" in line and not usage
            found.add(str(number), label, USAGE.get(usage.lower(), ""), offset)
        class_map = map_classes(
            found.labels(), self.stated, f"--input {self.path}", NUMBERING, FER2013_CLASSES
        )
        self.classes = class_map.classes
        notes = [f"{without_usage:,} rows have an empty Usage: they count as Training"]
        identity = sha256(self.table.path)
        return found.rows(self.path, class_map, identity, notes if without_usage else [])

    def face(self, locator: int) -> Face:
        """Parse the pixels of a line."""
        text = self.table.line(locator)["pixels"]
        try:
            pixels = np.array(text.split(), dtype=np.int64)
        except (ValueError, OverflowError):
            raise Reject("pixels are not whole numbers") from None
        if pixels.size != SIZE**2:
            raise Reject(f"{pixels.size} pixels, wanted {SIZE**2} ({SIZE} x {SIZE})")
        if pixels.min() < 0 or pixels.max() > 255:
            raise Reject("pixel values outside 0 to 255")
        return Face(pixels=pixels.astype(np.uint8).reshape(SIZE, SIZE))


def _unpack(packed: Path, target: Path) -> None:
    try:
        with gzip.open(packed) as source, target.open("wb") as plain:
            shutil.copyfileobj(source, plain, 1 << 20)
    except (OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = str(target)
            raise
        raise UserError(
            f"--input {packed}: cannot be unpacked ({error}); is the download whole?"
        ) from None
