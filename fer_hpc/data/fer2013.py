"""FER2013 as one CSV file of pixels."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, CsvTable, Face, Rows
from fer_hpc.data.faces import Reject
from fer_hpc.files import sha256

ORDER = (
    "Anger",
    "Disgust",
    "Fear",
    "Happiness",
    "Sadness",
    "Surprise",
    "Neutral",
)  # Kaggle's numbers
USAGE = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
SIZE = 48
FER2013_CLASSES: tuple[str, ...] = tuple(c for c in CLASSES if c in ORDER)


class Fer2013Csv:
    """Kaggle's `emotion,pixels,Usage` in any order of columns (also icml_face_data.csv), plain or .gz.

    A .gz is unpacked beside the output first, since it cannot be read from the middle.
    """

    classes = FER2013_CLASSES

    def __init__(self, path: Path, unpacked: Path) -> None:
        if not path.is_file():
            raise UserError(
                f"--input {path}: no such file; wanted FER2013's CSV (emotion, pixels, Usage) or its folders"
            )
        self._temporary = path.suffix == ".gz"
        if self._temporary:
            try:
                with gzip.open(path) as packed, unpacked.open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
            except (OSError, EOFError) as error:
                unpacked.unlink(missing_ok=True)
                raise UserError(
                    f"--input {path}: cannot be unpacked ({error}); is the download whole?"
                ) from None
        self.path, self.table = path, CsvTable(unpacked if self._temporary else path)
        self.table.require("emotion", "pixels")

    def close(self) -> None:
        if self._temporary:
            self.table.path.unlink(missing_ok=True)

    def rows(self) -> Rows:
        found = Collector()
        for number, (offset, line) in enumerate(self.table):
            if isinstance(line, str):
                found.add(str(number), line)
                continue
            usage = line.get("usage", "")
            label: int | str = f"emotion {line['emotion'][:20]!r}, wanted 0 to 6"
            if line["emotion"].isdecimal() and int(line["emotion"]) < len(ORDER):
                label = self.classes.index(ORDER[int(line["emotion"])])
            if usage and usage not in USAGE:
                label = f"Usage {usage[:20]!r}, wanted {', '.join(USAGE)}"
            found.add(str(number), label, USAGE.get(usage, ""), offset)
        return found.rows(self.path, sha256(self.table.path))

    def face(self, locator: int) -> Face:
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
