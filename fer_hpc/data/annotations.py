"""The rows and faces that every source gives, and what its readers share.

A source is opened once for its `Rows` (ids, labels, splits: what is needed to divide the data).
Then single faces are read by their locators, in any order and from any process.
The readers are in readers/; sources.py lists them.
"""

from __future__ import annotations

import array
import collections
import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.data.classes import ClassMap
from fer_hpc.data.faces import Box, Reject
from fer_hpc.data.pictures import printable
from fer_hpc.data.tally import Tally

TWO_LABELS = "two labels"  # why a face is a reject


@dataclass(frozen=True)
class Rows:
    """All usable faces of a source, one entry a face in every list."""

    source_id: list[str]  # unique text
    label: NDArray[np.int64]  # index into the source's classes
    split: list[str]  # train, val or test where the source has splits, else ""
    # group (person: a name, or a number from 0), synthetic (0 or 1), targets (shares of the
    # classes, which sum to 1), and further columns to store
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    # (source_id, reason) of annotations that cannot be used
    rejects: list[tuple[str, str]] = field(default_factory=list)
    fingerprint: str = ""  # changes with the list of faces or labels; "": computed from the lists
    notes: list[str] = field(default_factory=list)  # for the summary and the manifest
    # what `Source.face` needs to find each face: a path, an offset, a number; (): the source_id
    locators: Sequence[Any] = ()
    class_map: ClassMap | None = None  # which class each label in the data was read as
    ignored: Tally = field(default_factory=Tally)  # what else lies in the input
    # equal for rows of one picture, and of one face in it; 0: the picture has no other row
    picture: NDArray[np.int64] | None = None
    face: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Face:
    """One face as the source has it: encoded bytes or pixels, and its annotations."""

    encoded: bytes | None = None  # a JPEG or PNG file's content
    # [H, W] luma or [H, W, 3] RGB, uint8; of a plugin also floats in [0, 1]
    pixels: NDArray[Any] | None = None
    landmarks: NDArray[np.float32] | None = None  # [68, 2] x, y in image pixels
    box: Box | None = None  # of the face without margin, where there are no landmarks
    valence: float = float("nan")  # -1 .. 1
    arousal: float = float("nan")  # -1 .. 1
    box_in_shares: bool = False  # the box is in shares of the picture's sides, not in pixels


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
        self._ids: list[str] = []
        self._labels: list[str | Reject] = []
        self._splits: list[str] = []
        self._locators: list[Any] = []
        self._groups: dict[int, str] = {}  # by place in the lists
        self._targets: dict[int, Sequence[float]] = {}
        self._pictures, self._faces = array.array("q"), array.array("q")  # 8 bytes a row
        self._identity = hashlib.sha256()

    def add(
        self,
        source_id: str,
        label: str | Reject,
        split: str = "",
        locator: Any = None,
        *,
        stamp: object = "",
        group: str = "",
        targets: Sequence[float] | None = None,
        picture: str = "",
        box: Hashable = None,
    ) -> None:
        """Take in a face with its label as the data states it, or the reason why it has none.

        `stamp` changes with the picture's bytes (size and time); `group` is the person;
        `targets` are shares of the classes, in the order of `ClassMap.classes`. `picture` is wanted
        where a picture may have several rows, and `box` is what tells its faces apart.
        """
        if group:
            self._groups[len(self._ids)] = group
        if targets is not None:
            self._targets[len(self._ids)] = targets
        self._ids.append(printable(source_id))
        self._labels.append(label)
        self._splits.append(split)
        self._locators.append(locator)
        self._pictures.append(hash(picture) if picture else 0)
        self._faces.append(hash((picture, box)) if picture else 0)
        entry = repr((self._ids[-1], str(label), split, str(stamp), group, targets))
        self._identity.update(entry.encode("utf-8", "backslashreplace"))

    def labels(self) -> dict[str, int]:
        """How many faces each label has, in order of appearance."""
        return dict(collections.Counter(x for x in self._labels if isinstance(x, str)))

    def rows(
        self,
        path: Path,
        class_map: ClassMap,
        extra: str = "",
        notes: Sequence[str] = (),
        ignored: Tally | None = None,
    ) -> Rows:
        """The rows of `path`; UserError where there is none. `extra` joins the fingerprint."""
        known: dict[str, int] = {}
        contradicted: set[str] = set()
        kept: list[int] = []
        labels: list[int] = []
        rejects: list[tuple[str, str]] = []
        for place, (source_id, label) in enumerate(zip(self._ids, self._labels, strict=True)):
            index = str(label) if isinstance(label, Reject) else class_map.label(label)
            if isinstance(index, str):
                rejects.append((source_id, index))
            elif source_id not in known:
                known[source_id] = index
                kept.append(place)
                labels.append(index)
            elif known[source_id] == index or self._targets:
                rejects.append((source_id, "duplicate id"))
            else:
                contradicted.add(source_id)
                rejects.append((source_id, TWO_LABELS))
        if contradicted:  # of such a face no label is known
            rejects += [(name, TWO_LABELS) for name in sorted(contradicted)]
            which = [i for i, k in enumerate(kept) if self._ids[k] not in contradicted]
            kept, labels = [kept[i] for i in which], [labels[i] for i in which]
        if not kept:
            why = first_reject(rejects) or ": there are none in it"
            raise UserError(f"--input {path}: no usable faces{why}")
        columns: dict[str, NDArray[Any]] = {}
        if self._groups:
            names = [self._groups.get(i, "") for i in kept]
            columns["group"] = np.array(names, dtype=object)
        if self._targets:
            columns["targets"] = np.array([self._targets[i] for i in kept], np.float32)
        self._identity.update(repr((class_map.class_of, class_map.classes, extra)).encode())
        return Rows(
            [self._ids[i] for i in kept],
            np.array(labels),
            [self._splits[i] for i in kept],
            columns,
            rejects=rejects,
            fingerprint=self._identity.hexdigest(),
            notes=list(notes),
            locators=[self._locators[i] for i in kept],
            class_map=class_map,
            ignored=ignored or Tally(),
            picture=np.array(self._pictures, np.int64)[kept] if any(self._pictures) else None,
            face=np.array(self._faces, np.int64)[kept] if any(self._pictures) else None,
        )


def first_reject(rejects: list[tuple[str, str]]) -> str:
    """How many rows cannot be used, and the first of them; "" without any."""
    if not rejects:
        return ""
    (source_id, reason), *rest = rejects
    more = f", and {len(rest):,} more" if rest else ""
    return f"; not usable: {source_id} ({reason}){more}"


def affect(value: float) -> float:
    """Valence or arousal; AffectNet's -2 (none) and anything else outside [-1, 1] is NaN."""
    return value if -1 <= value <= 1 else float("nan")


def check_box(sides: Sequence[float], in_shares: bool = False) -> None:
    """Reject a box that cannot be one of a picture, in pixels or in shares of its sides."""
    if not np.isfinite(sides).all():
        raise Reject("box is not finite")
    if max(sides) <= 1 and not in_shares:
        raise Reject("box is in shares of the picture, wanted pixels")
    if max(map(abs, sides)) > 1e6:
        raise Reject("box is not in pixels of a picture")


def landmarks_of(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """136 numbers as 68 points; raises Reject."""
    if numbers.size != 136:
        raise Reject(f"{numbers.size} landmark numbers, wanted 136 (68 points)")
    if not (np.abs(numbers) < 1e9).all():  # false for NaN as well
        raise Reject("landmarks are not finite")
    return numbers.reshape(68, 2).astype(np.float32)
