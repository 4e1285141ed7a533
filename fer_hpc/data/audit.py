"""What in the faces themselves makes a score look better than it is, or a label meaningless."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config.errors import one_line
from fer_hpc.data.near import hashes, near_pairs
from fer_hpc.data.shards import Manifest, Split

PAIRS = 24  # kept of each finding


@dataclass(frozen=True)
class Place:
    """One face, as a message or a sheet names it."""

    split: str
    row: int  # of the split
    source_id: str
    file: str
    file_row: int
    label: str  # class name

    def __str__(self) -> str:
        where = f"{self.label}, {self.file} row {self.file_row}"
        return one_line(f"{self.split} {self.source_id} ({where})")


@dataclass(frozen=True)
class Finding:
    """One kind of finding."""

    what: str
    count: int
    rows: list[tuple[str, int]]  # (split, row) that --fix drops because of it
    places: list[Place] = field(default_factory=list)  # the first of them, where they have no pair
    pairs: list[tuple[Place, Place]] = field(default_factory=list)  # the first ones, both sides
    texts: list[list[str]] = field(default_factory=list)  # of each of `places`, beside its face

    def examples(self, most: int) -> list[str]:
        """The first ones as text, with both sides of a pair."""
        if self.texts:
            both = zip(self.places[:most], self.texts, strict=False)
            return [f"{place}: {' '.join(text)}" for place, text in both]
        pairs = [f"{a} = {b}" for a, b in self.pairs[:most]]
        return pairs or [str(place) for place in self.places[:most]]


def place_of(manifest: Manifest, split: Split, row: int) -> Place:
    """Where a row of a split is."""
    shard = int(np.searchsorted(split.starts, row, side="right")) - 1
    return Place(
        split.name,
        row,
        split.columns["source_id"][row].decode("utf-8", "replace"),
        manifest.content["splits"][split.name]["shards"][shard]["file"],
        row - int(split.starts[shard]),
        manifest.classes[split.columns["labels"][row]],
    )


class _Faces:
    """The rows of all splits behind each other."""

    def __init__(self, manifest: Manifest, splits: dict[str, Split]) -> None:
        self.manifest, self.splits, self.names = manifest, splits, list(splits)
        lengths = [len(split) for split in splits.values()]
        self.part = np.repeat(np.arange(len(lengths)), lengths)  # in the order train, val, test
        self.row = np.concatenate([np.arange(n) for n in lengths])
        self.columns = {
            name: np.concatenate([s.columns[name] for s in splits.values()])
            for name in ("image_hash", "labels", "group", "source_id")
        }
        # equal pictures have equal numbers
        _, self.image = np.unique(self.columns["image_hash"], return_inverse=True)

    def place(self, i: int) -> Place:
        split = self.splits[self.names[self.part[i]]]
        return place_of(self.manifest, split, int(self.row[i]))

    def finding(
        self,
        what: str,
        dropped: NDArray[np.bool_],
        partner: NDArray[np.int64] | None = None,
        count: int | None = None,
    ) -> Finding:
        """A finding that drops some rows; `partner` [n] is the other side of each, or -1."""
        indices = np.flatnonzero(dropped)
        rows = [(self.names[self.part[i]], int(self.row[i])) for i in indices]
        number = len(indices) if count is None else count
        if partner is None:
            return Finding(what, number, rows, [self.place(int(i)) for i in indices[:PAIRS]])
        sides = [(int(i), int(partner[i])) for i in indices if partner[i] >= 0][:PAIRS]
        pairs = [(self.place(a), self.place(b)) for a, b in sides]
        return Finding(what, number, rows, [], pairs)


def audit(manifest: Manifest, splits: dict[str, Split]) -> list[Finding]:
    """All kinds of findings, also those with a count of 0."""
    faces = _Faces(manifest, splits)
    blank = np.concatenate([_blank(split) for split in splits.values()])
    findings = [faces.finding("blank images (all pixels alike)", blank), _conflicts(faces)]
    everything = np.ones(len(faces.part), bool)
    for i, name in enumerate(faces.names):
        mine = faces.part == i
        first = _first_with(faces.image, faces.image, mine)
        repeats = mine & (first != np.arange(len(first)))
        what = f"{name} images that repeat an earlier one of {name}"
        findings.append(faces.finding(what, repeats, first))
    findings += _shared(faces, faces.image, everything, "images")
    findings += _nearly_shared(faces)
    known = faces.columns["group"] >= 0
    if not known.any():  # no finding, rather than a reassuring 0
        return findings
    return findings + _shared(faces, faces.columns["group"], known, "people")


def _conflicts(faces: _Faces) -> Finding:
    """Equal images with different labels; all of them are dropped."""
    labels, image = faces.columns["labels"], faces.image
    low = np.full(image.max() + 1, np.iinfo(np.int64).max)
    high = np.full(image.max() + 1, -1)
    np.minimum.at(low, image, labels)
    np.maximum.at(high, image, labels)
    conflicting = low != high  # per picture
    first = _first_with(image, image, np.ones(len(image), bool))
    other = labels != labels[first]
    partner = np.where(other, first, -1)
    what = "groups of equal images with different labels"
    return faces.finding(what, conflicting[image], partner, int(conflicting.sum()))


def _shared(
    faces: _Faces, key: NDArray[np.int64], known: NDArray[np.bool_], what: str
) -> list[Finding]:
    """Keys that two splits share. The earlier split loses its rows."""
    findings = []
    for i, early in enumerate(faces.names):
        for j, late in list(enumerate(faces.names))[i + 1 :]:
            one, other = (faces.part == i) & known, (faces.part == j) & known
            common = np.intersect1d(key[one], key[other])
            dropped = one & np.isin(key, common)
            if what == "images":
                count = int((other & np.isin(key, common)).sum())
                text = f"{late} images that are also in {early}"
            else:
                count, text = len(common), f"people in both {early} and {late}"
            findings.append(faces.finding(text, dropped, _first_with(key, key, other), count))
    return findings


def _nearly_shared(faces: _Faces) -> list[Finding]:
    """Nearly equal images in two splits, but not equal ones. The earlier split loses its rows."""
    if len(faces.names) < 2:
        return []
    findings = []
    known = {name: hashes(split) for name, split in faces.splits.items()}
    first_row = {name: int(np.argmax(faces.part == i)) for i, name in enumerate(faces.names)}
    for i, early in enumerate(faces.names):
        for late in faces.names[i + 1 :]:
            partner = np.full(len(faces.part), -1)
            others = set()
            for turned in known[late]:
                pairs = near_pairs(faces.splits[early], faces.splits[late], known[early][0], turned)
                for mine, theirs in pairs:
                    a, b = first_row[early] + mine, first_row[late] + theirs
                    if faces.image[a] != faces.image[b]:
                        partner[a] = b
                        others.add(b)
            what = f"{late} images that are nearly the same as one of {early}"
            findings.append(faces.finding(what, partner >= 0, partner, len(others)))
    return findings


def _first_with(
    wanted: NDArray[np.int64], key: NDArray[np.int64], among: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For each of `wanted` [n], the first place `among` [n] with that key, or -1."""
    places = np.flatnonzero(among)
    keys, first = np.unique(key[places], return_index=True)
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, places[first[at]], -1)


def _blank(split: Split) -> NDArray[np.bool_]:
    return np.concatenate(
        [
            part.reshape(len(part), -1).min(1) == part.reshape(len(part), -1).max(1)
            for part in split.images
        ]
    )
