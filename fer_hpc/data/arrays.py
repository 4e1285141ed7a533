"""The source report's own arrays: X_train.npy ... y_test.npy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.faces import Reject


class Arrays:
    """`X_<split>.npy` [N, H, W] or [N, H, W, C], floats in [0, 1] or bytes, with one-hot `y_<split>.npy` [N, classes].

    X_val may be absent: val is then cut from train. The arrays are mapped, never loaded whole.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(
                f"--input {folder}: no such folder; wanted X_train.npy, y_train.npy, ..."
            )
        self.folder = folder
        self._open()
        if "train" not in self._arrays:
            raise UserError(f"--input {folder}: no X_train.npy in it")
        width = self._arrays["train"][1].shape[-1]
        for split, (x, y) in self._arrays.items():
            if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
                raise UserError(
                    f"--input {folder}: X_{split}.npy has shape {x.shape}, wanted (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
                )
            if y.ndim != 2 or y.shape != (len(x), width):
                raise UserError(
                    f"--input {folder}: y_{split}.npy has shape {y.shape}, wanted ({len(x)}, {width}): one-hot, a row a face"
                )
        if width not in (7, 8):
            raise UserError(
                f"--input {folder}: {width} classes, wanted 8 (AffectNet's) or 7 (without Contempt)"
            )
        self.classes: tuple[str, ...] = CLASSES[:width]

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
        found = Collector()
        for split, (_, y) in self._arrays.items():
            labels = np.asarray(y)
            hot = ((labels == 0) | (labels == 1)).all(1) & (labels.sum(1) == 1)
            for i, (label, good) in enumerate(
                zip(labels.argmax(1).tolist(), hot.tolist(), strict=True)
            ):
                found.add(
                    f"{split}/{i}", label if good else "label is not one-hot", split, (split, i)
                )
        sizes = [(s, x.shape, str(x.dtype)) for s, (x, _) in self._arrays.items()]
        return found.rows(self.folder, repr(sizes))

    def face(self, locator: tuple[str, int]) -> Face:
        split, i = locator
        values = np.asarray(self._arrays[split][0][i])
        if values.dtype != np.uint8:
            if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
                raise Reject("pixel values outside 0 to 1")
            values = np.round(values * 255).astype(np.uint8)
        return Face(
            pixels=values.squeeze(2) if values.ndim == 3 and values.shape[2] == 1 else values
        )


def _load(folder: Path, name: str) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"--input {folder}: {name}.npy is missing") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"--input {path}: not an array of numbers ({error}); arrays of objects are never unpickled"
        ) from None
