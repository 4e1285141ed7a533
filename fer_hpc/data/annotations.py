"""What the labels say: the rows and faces that every reader gives, and what readers share.

A source is opened once for its `Rows` (ids, labels, splits: what is needed to divide the data), then asked for single
faces by row number, in any order and from any process. Readers: affectnet.py, fer2013.py, folders.py, arrays.py.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.faces import Box, Reject

ALIASES = {
    "neutral": "Neutral",
    "happy": "Happiness",
    "sad": "Sadness",
    "surprised": "Surprise",
    "fearful": "Fear",
    "afraid": "Fear",
    "disgusted": "Disgust",
    "angry": "Anger",
    **{name.lower(): name for name in CLASSES},
}


@dataclass(frozen=True)
class Rows:
    """All usable faces of a source, one entry a face in every list."""

    source_id: list[str]
    label: NDArray[np.int64]  # index into the source's classes
    split: list[str]  # train | val | test where the source says so, else ""
    columns: dict[str, NDArray[Any]] = field(
        default_factory=dict
    )  # group, synthetic and whatever a column file holds
    rejects: list[tuple[str, str]] = field(
        default_factory=list
    )  # (source_id, reason) of unusable annotations
    fingerprint: str = ""  # changes when the source's list of faces or labels changes
    notes: list[str] = field(default_factory=list)  # what a reader of the manifest should know
    locators: Sequence[
        Any
    ] = ()  # what the source's `face` needs to find each: a path, an offset, a number


@dataclass(frozen=True)
class Face:
    """One face as the source has it: encoded bytes or pixels, and what is known about it."""

    encoded: bytes | None = None  # a JPEG or PNG file's content
    pixels: NDArray[np.uint8] | None = None  # [H, W] luma or [H, W, 3] RGB
    landmarks: NDArray[np.float32] | None = None  # [68, 2] x, y in image pixels
    box: Box | None = None  # of the face without margin, where there are no landmarks
    valence: float = float("nan")
    arousal: float = float("nan")


class Source(Protocol):
    classes: tuple[str, ...]

    def rows(self) -> Rows: ...

    def face(self, locator: Any) -> Face:
        """Read one face, given its entry of `Rows.locators`; raises Reject with the reason where it cannot be used.

        Called in other processes, on a copy of the source that was made before `rows`.
        """
        ...


class Collector:
    """Gathers rows while a reader walks its input, refusing an id that has come before."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.labels: list[int] = []
        self.splits: list[str] = []
        self.locators: list[Any] = []
        self.rejects: list[tuple[str, str]] = []
        self._known: set[str] = set()

    def add(self, source_id: str, label: int | str, split: str = "", locator: Any = None) -> None:
        """Take a face in, or list it as rejected: `label` is its class, or the reason why it has none."""
        if source_id in self._known:
            self.rejects.append((source_id, "duplicate id"))
        elif isinstance(label, str):
            self.rejects.append((source_id, label))
        else:
            self._known.add(source_id)
            self.ids.append(source_id)
            self.labels.append(label)
            self.splits.append(split)
            self.locators.append(locator)

    def rows(self, where: Path, extra: str = "", notes: list[str] | None = None) -> Rows:
        """The rows; UserError where there is not one. `extra` joins the fingerprint."""
        if not self.ids:
            why = (
                f"; the first of {len(self.rejects):,} bad ones: {self.rejects[0]}"
                if self.rejects
                else ": there are none in it"
            )
            raise UserError(f"--input {where}: no usable faces{why}")
        digest = hashlib.sha256(
            repr((self.ids, self.labels, self.splits, self.rejects, extra)).encode()
        ).hexdigest()
        return Rows(
            self.ids,
            np.array(self.labels),
            self.splits,
            {},
            self.rejects,
            digest,
            notes or [],
            self.locators,
        )


AFFECTNET_UNUSED = {8: "none", 9: "uncertain", 10: "no face"}


def affectnet_label(text: str) -> int | str:
    """A class number of AffectNet's, or why it is none."""
    try:
        value = float(text)
    except ValueError:
        return f"label {text[:20]!r} is not a number"
    if not value.is_integer():
        return f"label {text[:20]!r} is not a whole number"
    label = int(value)
    if label in AFFECTNET_UNUSED:
        return f"label {label} ({AFFECTNET_UNUSED[label]})"
    return label if 0 <= label < len(CLASSES) else f"label {label}, wanted 0 to {len(CLASSES) - 1}"


def affect(value: float) -> float:
    """Valence or arousal; AffectNet's -2 (none) and anything else outside [-1, 1] is NaN."""
    return value if -1 <= value <= 1 else float("nan")


def landmarks_of(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """136 numbers as 68 points; raises Reject."""
    if numbers.size != 136:
        raise Reject(f"{numbers.size} landmark numbers, wanted 136 (68 points)")
    if not np.isfinite(numbers).all():
        raise Reject("landmarks are not finite")
    return numbers.reshape(68, 2).astype(np.float32)


def natural_sort_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts 2 before 10."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


# ---- CSV files -------------------------------------------------------------------------------------------------------


class CsvTable:
    """A CSV file of any size, read line by line and again from any line; a line break within quotes is not supported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as f:
            header = f.readline()
            self._start = f.tell()
        self.names = [n.strip().lower() for n in _cells(header.removeprefix(b"\xef\xbb\xbf"))]
        self.empty = not header.strip()

    def require(self, *names: str) -> None:
        missing = [n for n in names if n.lower() not in self.names]
        if missing:
            got = (
                "the file is empty"
                if self.empty
                else f"its first line has {', '.join(self.names)[:60]}"
            )
            raise UserError(
                f"--input {self.path}: no column {missing[0]!r}: {got}; wanted {', '.join(names)}"
            )

    def __iter__(self) -> Iterator[tuple[int, dict[str, str] | str]]:
        """(byte offset, cells by column name) of every line that is not blank; a str says what is wrong with it."""
        with self.path.open("rb") as f:
            f.seek(self._start)
            offset = self._start
            for line in f:
                if line.strip():
                    cells = _cells(line)
                    good = len(cells) == len(self.names)
                    wrong = f"{len(cells)} columns, wanted {len(self.names)}"
                    yield offset, dict(zip(self.names, cells, strict=True)) if good else wrong
                offset += len(line)

    def line(self, offset: int) -> dict[str, str]:
        with self.path.open("rb") as f:
            f.seek(offset)
            return dict(zip(self.names, _cells(f.readline()), strict=True))


def _cells(line: bytes) -> list[str]:
    csv.field_size_limit(1 << 24)
    return [
        c.strip()
        for c in next(csv.reader([line.decode("utf-8", "replace")], skipinitialspace=True), [])
    ]


def read_columns(path: Path, ids: list[str]) -> dict[str, NDArray[Any]]:
    """Columns of a CSV file joined to `ids` by its source_id: int64 (absent: -1), float32 (NaN) or text ("")."""
    if not path.is_file():
        raise UserError(f"--columns {path}: no such file; wanted a CSV with a column source_id")
    with path.open(newline="", encoding="utf-8-sig") as f:
        table = csv.DictReader(f)
        names = [n for n in table.fieldnames or [] if n != "source_id"]
        if "source_id" not in (table.fieldnames or []):
            raise UserError(f"{path}: no column source_id in its header ({', '.join(names)[:120]})")
        by_id = {line["source_id"]: line for line in table}
    known = sum(i in by_id for i in ids)
    if not known:
        raise UserError(
            f"{path}: none of its source_id values is one of this source's; these look like {ids[0]!r}"
        )
    return {
        name: _typed([(by_id[i][name] or "") if i in by_id else "" for i in ids]) for name in names
    }


def _typed(texts: list[str]) -> NDArray[Any]:
    for kind, absent in ((np.int64, "-1"), (np.float32, "nan")):
        try:
            return np.array([t or absent for t in texts]).astype(kind)
        except ValueError:
            continue
    return np.array(texts, dtype=object)


# ---- picture files below a root --------------------------------------------------------------------------------------


def resolve_inside(root: Path, text: str) -> Path:
    """The file that a path in a table means: below `root`, or Reject.

    A path of another machine (absolute, either separator, also with a drive letter) is taken by its longest suffix that
    exists below the root. Whatever it is, it must end up inside the root, links followed.
    """
    parts = [p for p in re.split(r"[/\\]+", text.strip()) if p not in ("", ".")]
    if not parts or ".." in parts:
        raise Reject("path leaves the image root" if parts else "empty path")
    for first in range(len(parts)):
        candidate = root.joinpath(*parts[first:])
        if candidate.exists():
            if not candidate.resolve().is_relative_to(root.resolve()):
                raise Reject("path leaves the image root")
            return candidate
    raise Reject("missing image")


def read_file(path: Path | str, most: int = 1 << 40) -> bytes:
    """A file's first `most` bytes by plain system calls: open() takes as long again, and there are five files a face."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = min(os.fstat(descriptor).st_size, most)
        data = os.read(descriptor, size)
        while len(data) < size and (
            more := os.read(descriptor, size - len(data))
        ):  # one call is enough up to 2 GB
            data += more
        return data
    finally:
        os.close(descriptor)


def read_picture(path: Path | str) -> bytes:
    """A picture file's bytes; raises Reject."""
    try:
        return read_file(path)
    except FileNotFoundError:
        raise Reject("missing image") from None
    except OSError as error:
        raise Reject(f"unreadable image: {error.strerror}") from None
