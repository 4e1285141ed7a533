"""The rows and faces that every source gives, and what its readers share.

A source is opened once for its `Rows` (ids, labels, splits: what is needed to divide the data).
Then single faces are read by their locators, in any order and from any process.
Readers: affectnet.py, fer2013.py, folders.py, arrays.py; sources.py lists them.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.data.classes import ClassMap
from fer_hpc.data.faces import Box, Reject
from fer_hpc.data.pictures import printable


@dataclass(frozen=True)
class Rows:
    """All usable faces of a source, one entry a face in every list."""

    source_id: list[str]  # unique text
    label: NDArray[np.int64]  # index into the source's classes
    split: list[str]  # train, val or test where the source has splits, else ""
    # group (person), synthetic, and further columns to store
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    # (source_id, reason) of annotations that cannot be used
    rejects: list[tuple[str, str]] = field(default_factory=list)
    fingerprint: str = ""  # changes with the list of faces or labels; "": computed from the lists
    notes: list[str] = field(default_factory=list)  # for the summary and the manifest
    # what `Source.face` needs to find each face: a path, an offset, a number; (): the source_id
    locators: Sequence[Any] = ()
    class_map: ClassMap | None = None  # which class each label in the data was read as


@dataclass(frozen=True)
class Face:
    """One face as the source has it: encoded bytes or pixels, and its annotations."""

    encoded: bytes | None = None  # a JPEG or PNG file's content
    pixels: NDArray[np.uint8] | None = None  # [H, W] luma or [H, W, 3] RGB
    landmarks: NDArray[np.float32] | None = None  # [68, 2] x, y in image pixels
    box: Box | None = None  # of the face without margin, where there are no landmarks
    valence: float = float("nan")  # -1 .. 1
    arousal: float = float("nan")  # -1 .. 1


class Source(Protocol):
    """What preprocess reads; `classes` are the class names that labels index."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; valid once `rows` was called."""
        ...

    def rows(self) -> Rows:
        """List the faces; called once, before any face is read."""
        ...

    def face(self, locator: Any) -> Face:
        """Read the face of one entry of `Rows.locators`; raises Reject with the reason.

        Called in other processes, on a copy of the source that was made before `rows`.
        """
        ...


class Collector:
    """Gathers rows while a reader walks its input; refuses an id that occurs again."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str | Reject, str, Any]] = []

    def add(
        self, source_id: str, label: str | Reject, split: str = "", locator: Any = None
    ) -> None:
        """Take in a face with its label as the data states it, or the reason why it has none."""
        self._found.append((printable(source_id), label, split, locator))

    def labels(self) -> dict[str, int]:
        """How many faces each label has, in order of appearance."""
        return dict(collections.Counter(f[1] for f in self._found if isinstance(f[1], str)))

    def rows(
        self, path: Path, class_map: ClassMap, extra: str = "", notes: Sequence[str] = ()
    ) -> Rows:
        """The rows of `path`; UserError where there is none. `extra` joins the fingerprint."""
        known: set[str] = set()
        usable: list[tuple[str, int, str, Any]] = []
        rejects: list[tuple[str, str]] = []
        for source_id, label, split, locator in self._found:
            index = str(label) if isinstance(label, Reject) else class_map.label(label)
            if source_id in known:
                rejects.append((source_id, "duplicate id"))
            elif isinstance(index, str):
                rejects.append((source_id, index))
            else:
                known.add(source_id)
                usable.append((source_id, index, split, locator))
        if not usable:
            first = f"; the first of {len(rejects):,} bad ones: {rejects[0]}" if rejects else ""
            why = first or ": there are none in it"
            raise UserError(f"--input {path}: no usable faces{why}")
        ids, labels, splits, locators = (list(column) for column in zip(*usable, strict=True))
        identity = repr((ids, labels, splits, rejects, extra))
        return Rows(
            ids,
            np.array(labels),
            splits,
            rejects=rejects,
            fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
            notes=list(notes),
            locators=locators,
            class_map=class_map,
        )


def affect(value: float) -> float:
    """Valence or arousal; AffectNet's -2 (none) and anything else outside [-1, 1] is NaN."""
    return value if -1 <= value <= 1 else float("nan")


def landmarks_of(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """136 numbers as 68 points; raises Reject."""
    if numbers.size != 136:
        raise Reject(f"{numbers.size} landmark numbers, wanted 136 (68 points)")
    if not (np.abs(numbers) < 1e9).all():  # false for NaN as well
        raise Reject("landmarks are not finite")
    return numbers.reshape(68, 2).astype(np.float32)
