"""The source report's own arrays: X_train.npy ... y_test.npy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import Numbering, StatedClasses, map_classes
from fer_hpc.data.faces import Reject


class Arrays:
    """`X_<split>.npy` [N, H, W] or [N, H, W, C] and one-hot `y_<split>.npy` [N, classes].

    Pixels are floats in [0, 1] or bytes. Without --classes, 8 columns are AffectNet's classes in
    AffectNet's order, 7 the same without Contempt. X_val may be absent: val is then cut from train.
    The arrays are mapped, never loaded whole.
    """

    def __init__(self, folder: Path, stated: StatedClasses | None = None) -> None:
        self.folder, self.stated = folder, stated or StatedClasses()
        if not folder.is_dir():
            raise UserError(
                f"--input {folder}: no such folder; wanted X_train.npy, y_train.npy, ..."
            )
        self._open()
        if "train" not in self._arrays:
            raise UserError(f"--input {folder}: no X_train.npy in it")
        self._check()

    def _check(self) -> None:
        """UserError for arrays of other shapes, and for columns without a class."""
        self.width = self._arrays["train"][1].shape[-1] if self._arrays["train"][1].ndim else 0
        for split, (x, y) in self._arrays.items():
            if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
                raise UserError(
                    f"--input {self.folder}: X_{split}.npy has shape {x.shape}, "
                    "wanted (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
                )
            if y.ndim != 2 or y.shape != (len(x), self.width):
                raise UserError(
                    f"--input {self.folder}: y_{split}.npy has shape {y.shape}, "
                    f"wanted ({len(x)}, {self.width}): one-hot, a row a face"
                )
        names = self.stated.names
        if names and len(names) != self.width:
            raise UserError(f"--classes: {len(names)} names for {self.width} one-hot columns")
        if not self.stated and self.width not in (7, 8):
            columns = ",".join(f"NAME_OF_{i}" for i in range(self.width))
            raise UserError(
                f"--input {self.folder}: {self.width} classes, not AffectNet's 8 (or 7 without "
                f"Contempt); name them in the order of the columns: --classes {columns}"
            )
        self.classes = CLASSES[: self.width]

    def _open(self) -> None:
        present = [s for s in ("train", "val", "test") if (self.folder / f"X_{s}.npy").exists()]
        self._arrays = {
            s: (_load(self.folder, f"X_{s}"), _load(self.folder, f"y_{s}")) for s in present
        }

    def __getstate__(self) -> dict[str, Any]:  # to a worker process go paths, not arrays
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def rows(self) -> Rows:
        """List the rows of all splits; a label that is not one-hot is a reject."""
        found = Collector()
        for split, (_, y) in self._arrays.items():
            labels = np.asarray(y)
            one_hot = ((labels == 0) | (labels == 1)).all(1) & (labels.sum(1) == 1)
            columns = zip(labels.argmax(1).tolist(), one_hot.tolist(), strict=True)
            for i, (column, good) in enumerate(columns):
                label = str(column) if good else Reject("label is not one-hot")
                found.add(f"{split}/{i}", label, split, (split, i))
        numbering = Numbering("AffectNet", CLASSES[: self.width])
        class_map = map_classes(
            found.labels(), self.stated, f"--input {self.folder}", numbering, self.classes
        )
        self.classes = class_map.classes
        sizes = [(s, x.shape, str(x.dtype)) for s, (x, _) in self._arrays.items()]
        return found.rows(self.folder, class_map, repr(sizes))

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


def _load(folder: Path, name: str) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"--input {folder}: {name}.npy is missing") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"--input {path}: not an array of numbers ({error}); "
            "arrays of objects are never unpickled"
        ) from None
