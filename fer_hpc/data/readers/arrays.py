"""Faces as numpy arrays: X_train.npy ... y_test.npy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import NO_CLASSES, Numbering, StatedClasses, map_classes
from fer_hpc.data.faces import Reject
from fer_hpc.data.npy import BAD_ARRAY, mapped_array
from fer_hpc.data.pictures import kind_of, printable
from fer_hpc.data.tree import Tree

PARTS = ("train", "val", "test")
KNOWN_ORDERS = "--classes affectnet (0 Neutral, 1 Happiness, ...), --classes fer2013 (0 angry, ...)"


class Arrays:
    """`X_<split>.npy` [N, H, W] or [N, H, W, C], and `y_<split>.npy`: one-hot [N, classes] or
    numbers [N].

    Pixels are floats in [0, 1] or bytes. --classes names the columns or numbers in their order:
    public code uses several. Where there is only X_test, the set is for evaluation; where X_val is
    absent, val is cut from train. The arrays are mapped, never loaded whole.
    """

    def __init__(self, root: Path | Tree, stated: StatedClasses = NO_CLASSES) -> None:
        self.tree = root if isinstance(root, Tree) else Tree(root)
        self.folder, self.stated = self.tree.root, stated
        self._paths = {
            name: self.tree.local(f"{name}.npy")
            for split in PARTS
            for name in (f"X_{split}", f"y_{split}")
            if self.tree.has(f"{name}.npy")
        }
        self._open()
        if not self._arrays:
            raise UserError(f"--input {self.folder}: no X_train.npy in it")
        self._check()

    def _check(self) -> None:
        """UserError for arrays of other shapes, and for labels without a class."""
        for split, (x, y) in self._arrays.items():
            if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)) or 0 in x.shape:
                raise UserError(
                    f"--input {self.folder}: X_{split}.npy has shape {x.shape}, "
                    "wanted (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
                )
            if y.ndim not in (1, 2) or len(y) != len(x) or 0 in y.shape:
                raise UserError(
                    f"--input {self.folder}: y_{split}.npy has shape {y.shape}, "
                    f"wanted ({len(x)}, classes), one-hot, or ({len(x)},): a row a face"
                )
        widths = {y.shape[1:] for _, y in self._arrays.values()}
        if len(widths) > 1:
            raise UserError(f"--input {self.folder}: y_*.npy have rows of different widths")
        width = next(iter(widths))
        self.width = width[0] if width else 0
        names = self.stated.names
        if names and self.width and self.stated.order == "affectnet" and self.width == 7:
            names = names[:7]  # the same without Contempt
            self.stated = StatedClasses(names=names, order="affectnet")
        if names and self.width and len(names) != self.width:
            raise UserError(f"--classes: {len(names)} names for {self.width} one-hot columns")
        if not self.stated:
            what = f"{self.width} columns" if self.width else "numbers"
            columns = ",".join(f"NAME_OF_{i}" for i in range(self.width)) or "NAME_OF_0,NAME_OF_1"
            raise UserError(
                f"--input {self.folder}: y has {what} without names, and their order is another in "
                f"every code; name them: {KNOWN_ORDERS}, or --classes {columns}"
            )
        self.classes = names

    def _open(self) -> None:
        present = [s for s in PARTS if f"X_{s}" in self._paths]
        missing = [s for s in present if f"y_{s}" not in self._paths]
        if missing:
            raise UserError(f"--input {self.folder}: y_{missing[0]}.npy is missing")
        self._arrays = {
            s: (_load(self._paths[f"X_{s}"]), _load(self._paths[f"y_{s}"])) for s in present
        }

    def __getstate__(self) -> dict[str, Any]:  # to a worker process go paths, not arrays
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def rows(self) -> Rows:
        """List the rows of all splits; a label that is not one-hot is a reject."""
        collector = Collector()
        for split, (_, y) in self._arrays.items():
            stamps = [self.tree.stamp(f"{name}_{split}.npy") for name in "Xy"]
            for i, label in enumerate(_labels(np.asarray(y))):
                collector.add(f"{split}/{i}", label, split, (split, i), stamp="" if i else stamps)
        place = f"--input {self.folder}"
        numbering = Numbering("y", self.stated.names) if self.stated.names else None
        class_map = map_classes(collector.labels(), self.stated, place, numbering)
        self.classes = class_map.classes
        sizes = [(s, x.shape, str(x.dtype)) for s, (x, _) in self._arrays.items()]
        ignored = self.tree.ignored
        for name, _ in self.tree.files():
            if name.removesuffix(".npy") not in self._paths:
                ignored.add(f"{kind_of(name)} files", printable(name))
        return collector.rows(self.folder, class_map, repr(sizes), [], ignored)

    def face(self, locator: tuple[str, int]) -> Face:
        """Read one face's pixels."""
        split, i = locator
        values = np.asarray(self._arrays[split][0][i])
        if values.dtype != np.uint8:
            if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
                raise Reject("pixel values outside 0 to 1")
            values = np.round(values * 255).astype(np.uint8)
        gray = values.ndim == 3 and values.shape[2] == 1
        return Face(pixels=values.squeeze(2) if gray else values)

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()


def _labels(y: NDArray[Any]) -> list[str | Reject]:
    """The number of each row's class, or why it has none."""
    if y.ndim == 1:
        whole = np.isfinite(y) & (y == np.floor(y)) & (np.abs(y) < 1e9)
        none = Reject("label is not a whole number")
        return [
            str(int(v)) if ok else none for v, ok in zip(y.tolist(), whole.tolist(), strict=True)
        ]
    one_hot = ((y == 0) | (y == 1)).all(1) & (y.sum(1) == 1)
    none = Reject("label is not one-hot")
    columns = zip(y.argmax(1).tolist(), one_hot.tolist(), strict=True)
    return [str(column) if good else none for column, good in columns]


def _load(path: Path) -> NDArray[Any]:
    try:
        return mapped_array(path)
    except BAD_ARRAY as error:
        raise UserError(
            f"--input {path}: not an array of numbers ({str(error)[:120]}); "
            "arrays of objects are never unpickled"
        ) from None
