"""What the labels say: one reader per on-disk form, all giving the same rows.

A source is opened once for its `Rows` (ids, labels, splits - what is needed to divide the data), then asked for single
faces by row number, in any order and from any process.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data import faces
from fer_hpc.data.faces import Reject

AFFECTNET_UNUSED = {8: "none", 9: "uncertain", 10: "no face"}
FER2013 = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")  # Kaggle's order of numbers
FER2013_USAGE = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
FER2013_SIZE = 48


@dataclass(frozen=True)
class Rows:
    """All usable faces of a source, one entry a face in every list."""

    source_id: list[str]
    label: NDArray[np.int64]  # index into the source's classes
    split: list[str]  # train | val | test where the source says so, else ""
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)  # group, synthetic and whatever columns.csv holds
    rejects: list[tuple[str, str]] = field(default_factory=list)  # (source_id, reason) of unusable annotations
    fingerprint: str = ""  # changes when the source's list of faces or labels changes

    def __len__(self) -> int:
        return len(self.source_id)


@dataclass(frozen=True)
class Face:
    image: NDArray[np.uint8]  # [H, W] luma or [H, W, 3] RGB
    landmarks: NDArray[np.float32] | None = None  # [68, 2] x, y in image pixels
    valence: float = float("nan")
    arousal: float = float("nan")


class Source(Protocol):
    classes: tuple[str, ...]

    def rows(self) -> Rows: ...

    def face(self, row: int, channels: int) -> Face:
        """Read one face; raises Reject with the reason where it cannot be used."""
        ...


# ---- AffectNet's annotations folder ----------------------------------------------------------------------------------


class AffectNetFolder:
    """`train_set/annotations/<id>_{exp,val,aro,lnd}.npy` with `train_set/images/<id>.{jpg,png,jpeg}`; also `val_set`.

    A file `columns.csv` in the root, if there is one, adds columns by source_id (`train_set/<id>`).
    """

    classes: tuple[str, ...] = CLASSES

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts = [p for p in ("train_set", "val_set") if (root / p / "annotations").is_dir()]
        if not self.parts:
            raise UserError(
                f"--input {root}: no train_set/annotations or val_set/annotations in it"
                if root.is_dir() else f"--input {root}: no such folder"
            )  # fmt: skip
        self._files: list[tuple[Path, Path]] = []  # per row: image, stem of the annotations

    def rows(self) -> Rows:
        ids, labels, splits, rejects = [], [], [], []
        for part in self.parts:
            images = {
                p.stem: p for p in (self.root / part / "images").iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png")
            }
            folder = self.root / part / "annotations"
            stems = sorted((p.name[: -len("_exp.npy")] for p in folder.glob("*_exp.npy")), key=_natural)
            with ThreadPoolExecutor(16) as pool:  # many small reads: a shared file system answers them side by side
                found = list(pool.map(lambda stem, folder=folder: _label(folder / f"{stem}_exp.npy"), stems))
            for stem, label in zip(stems, found, strict=True):
                name = f"{part}/{stem}"
                if isinstance(label, str):
                    rejects.append((name, label))
                elif stem not in images:
                    rejects.append((name, "missing image"))
                else:
                    ids.append(name)
                    labels.append(label)
                    splits.append("test" if part == "val_set" else "train")
                    self._files.append((images[stem], folder / stem))
            rejects += [(f"{part}/{stem}", "no label") for stem in sorted(images.keys() - set(stems), key=_natural)]
        if not ids:
            raise UserError(f"--input {self.root}: no usable face among {len(rejects)} annotations; the first: {rejects[:1]}")
        digest = hashlib.sha256(repr((ids, labels, rejects)).encode()).hexdigest()
        if "val_set" not in self.parts:  # then the source says nothing about splits
            splits = [""] * len(ids)
        return Rows(ids, np.array(labels), splits, read_columns(self.root / "columns.csv", ids), rejects, digest)

    def face(self, row: int, channels: int) -> Face:
        path, stem = self._files[row]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Reject(f"unreadable image: {error.strerror}") from None
        points, landmarks = _npy(stem.with_name(f"{stem.name}_lnd.npy")), None
        if points is not None:
            if points.size != 136:
                raise Reject(f"{points.size} landmark numbers, wanted 136 (68 points)")
            landmarks = points.reshape(68, 2).astype(np.float32)
            if not np.isfinite(landmarks).all():
                raise Reject("landmarks are not finite")
        values = [_npy(stem.with_name(f"{stem.name}_{kind}.npy")) for kind in ("val", "aro")]
        valence, arousal = (float("nan") if v is None or not -1 <= v.item() <= 1 else v.item() for v in values)
        return Face(faces.decode(data, channels), landmarks, valence, arousal)


def _natural(stem: str) -> tuple[int, int, str]:
    return (0, int(stem), stem) if stem.isdecimal() else (1, 0, stem)


def _npy(path: Path) -> NDArray[np.float64] | None:
    """The numbers in a small .npy file (numbers, or a string that holds one); None where there is no file."""
    try:
        return np.load(path, allow_pickle=False).astype(np.float64)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        raise Reject(f"unreadable {path.name}") from None


def _label(path: Path) -> int | str:
    """A class number, or why it is none."""
    try:
        value = _npy(path)
    except Reject as reject:
        return str(reject)
    if value is None or value.size != 1 or not float(value.item()).is_integer():
        return "label is not one whole number"
    label = int(value.item())
    if label in AFFECTNET_UNUSED:
        return f"label {label} ({AFFECTNET_UNUSED[label]})"
    return label if 0 <= label < len(CLASSES) else f"label {label}, wanted 0 to {len(CLASSES) - 1}"


def read_columns(path: Path, ids: list[str]) -> dict[str, NDArray[Any]]:
    """Columns of a CSV file joined to `ids` by its `source_id`: whole numbers (absent: -1), numbers (NaN) or text ("")."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as f:
        table = csv.DictReader(f)
        if "source_id" not in (table.fieldnames or []):
            raise UserError(f"{path}: no column source_id in its header ({', '.join(table.fieldnames or [])})")
        by_id = {line["source_id"]: line for line in table}
        names = [n for n in table.fieldnames or [] if n != "source_id"]
    columns: dict[str, NDArray[Any]] = {}
    for name in names:
        texts = [by_id[i][name] if i in by_id else "" for i in ids]
        columns[name] = _typed(texts)
    return columns


def _typed(texts: list[str]) -> NDArray[Any]:
    for kind, absent in ((np.int64, "-1"), (np.float32, "nan")):
        try:
            return np.array([t or absent for t in texts]).astype(kind)
        except ValueError:
            continue
    return np.array(texts, dtype=object)


# ---- FER2013 as one CSV file -----------------------------------------------------------------------------------------


class Fer2013Csv:
    """Kaggle's `emotion,pixels,Usage` in any order of columns, plain or .gz; 48x48 gray values as text.

    A .gz is unpacked beside the output first, since it cannot be read from the middle.
    """

    classes: tuple[str, ...] = tuple(c for c in CLASSES if c in FER2013)

    def __init__(self, path: Path, scratch: Path) -> None:
        if not path.is_file():
            raise UserError(f"--input {path}: no such file; wanted FER2013's CSV (columns emotion, pixels, Usage)")
        self.path = path
        if path.suffix == ".gz":
            self.path = scratch / f".{path.stem}.tmp"
            try:
                with gzip.open(path) as packed, self.path.open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
            except (OSError, EOFError) as error:
                self.path.unlink(missing_ok=True)
                raise UserError(f"--input {path}: cannot be unpacked ({error}); is the download whole?") from None
        self._offsets: list[int] = []
        self._column: dict[str, int] = {}

    def close(self) -> None:
        if self.path.name.startswith("."):
            self.path.unlink(missing_ok=True)

    def rows(self) -> Rows:
        ids, labels, splits, rejects = [], [], [], []
        digest = hashlib.sha256()
        to_class = [self.classes.index(name) for name in FER2013]
        with self.path.open("rb") as f:
            header = f.readline()
            digest.update(header)
            names = [n.strip().strip('"').lower() for n in header.decode("utf-8-sig", "replace").split(",")]
            for wanted in ("emotion", "pixels"):
                if wanted not in names:
                    got = "the file is empty" if not header.strip() else f"its header has {', '.join(names[:6])[:80]}"
                    raise UserError(f"--input {self.path}: no column {wanted!r}: {got}; wanted emotion, pixels, Usage")
            self._column = {n: names.index(n) for n in names}
            for number, (offset, line) in enumerate(_lines(f)):
                digest.update(line)
                cells = _cells(line)
                label = cells[self._column["emotion"]] if len(cells) == len(names) else ""
                usage = cells[self._column["usage"]] if len(cells) == len(names) and "usage" in names else ""
                if len(cells) != len(names):
                    rejects.append((str(number), f"{len(cells)} columns, wanted {len(names)}"))
                elif not label.isdecimal() or int(label) >= len(FER2013):
                    rejects.append((str(number), f"emotion {label[:20]!r}, wanted 0 to 6"))
                elif usage and usage not in FER2013_USAGE:
                    rejects.append((str(number), f"Usage {usage[:20]!r}, wanted {', '.join(FER2013_USAGE)}"))
                else:
                    ids.append(str(number))
                    labels.append(to_class[int(label)])
                    splits.append(FER2013_USAGE.get(usage, ""))
                    self._offsets.append(offset)
        if not ids:
            why = f"; the first of {len(rejects)} bad rows: {rejects[0]}" if rejects else ": there are no rows after the header"
            raise UserError(f"--input {self.path}: no usable row{why}")
        return Rows(ids, np.array(labels), splits, {}, rejects, digest.hexdigest())

    def face(self, row: int, channels: int) -> Face:
        with self.path.open("rb") as f:
            f.seek(self._offsets[row])
            text = _cells(f.readline())[self._column["pixels"]]
        try:
            pixels = np.array(text.split(), dtype=np.int64)
        except (ValueError, OverflowError):
            raise Reject("pixels are not whole numbers") from None
        if pixels.size != FER2013_SIZE**2:
            raise Reject(f"{pixels.size} pixels, wanted {FER2013_SIZE**2} ({FER2013_SIZE} x {FER2013_SIZE})")
        if pixels.min() < 0 or pixels.max() > 255:
            raise Reject("pixel values outside 0 to 255")
        image = pixels.astype(np.uint8).reshape(FER2013_SIZE, FER2013_SIZE)
        return Face(image if channels == 1 else np.repeat(image[..., None], 3, 2))


def _lines(f: Any) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of every line that is not blank."""
    offset = f.tell()
    for line in f:
        if line.strip():
            yield offset, line
        offset += len(line)


def _cells(line: bytes) -> list[str]:
    return [c.strip() for c in next(csv.reader([line.decode("utf-8", "replace")]))]


# ---- drawn faces, straight from the generator ------------------------------------------------------------------------


class Synthetic:
    """Faces 0 .. count-1 of the generator, without a detour over picture files."""

    classes: tuple[str, ...] = CLASSES

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise UserError("--source synthetic: --count says how many faces to draw; wanted at least 1")
        self.count, self.seed = count, seed

    def rows(self) -> Rows:
        from fer_hpc.data import synthetic

        label = np.array([synthetic.label_of(i, self.seed) for i in range(self.count)])
        columns: dict[str, NDArray[Any]] = {
            "group": np.arange(self.count) // synthetic.PHOTOS_PER_PERSON,
            "synthetic": np.ones(self.count, np.uint8),
        }
        ids = [str(i) for i in range(self.count)]
        return Rows(ids, label, [""] * self.count, columns, [], f"synthetic {synthetic.VERSION} {self.seed} {self.count}")

    def face(self, row: int, channels: int) -> Face:
        import cv2

        from fer_hpc.data import synthetic

        face = synthetic.draw_face(row, self.seed)
        image = face.image if channels == 3 else cv2.cvtColor(face.image, cv2.COLOR_RGB2GRAY)
        return Face(image.astype(np.uint8), face.landmarks, face.valence, face.arousal)
