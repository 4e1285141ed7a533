"""The shard format: contiguous uint8 images in HDF5, memory-mapped. The only user of h5py.

    DIR/manifest.json      shape, classes, splits with their shards, counts and checksums, source
    DIR/<split>-00000.h5   images [N, H, W, C] uint8, and one row per face in every other data set

A contiguous, unfiltered data set is one range of bytes in its file, so numpy maps it: no HDF5
handle stays open, nothing is locked, and the processes on a node share the page cache.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.data.manifest import (
    FORMAT,
    SPLITS,
    Manifest,
    check_folder,
    fingerprint,
    read_manifest,
    write_manifest,
)
from fer_hpc.files import replacement

__all__ = (
    "COLUMNS",
    "FORMAT",
    "SPLITS",
    "TARGETS",
    "Columns",
    "Manifest",
    "Split",
    "check_folder",
    "fingerprint",
    "image_hash",
    "open_split",
    "read_manifest",
    "read_shard",
    "write_manifest",
    "write_shard",
)

AGAIN = "copy it again, or delete it and preprocess again"
# What h5py raises for bytes that are not as it wrote them.
BAD_HDF5 = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError)
TARGETS = "columns/targets"  # float32 [N, classes], in sets whose labels are distributions

# Every shard's data sets: dtype and shape of one row. Absent values: NaN, -1 for group.
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "labels": ("int64", ()),  # index into the manifest's classes
    "valence": ("float32", ()),  # -1 .. 1
    "arousal": ("float32", ()),
    "landmarks": ("float32", (68, 2)),  # x, y in pixels of the stored image
    "group": ("int64", ()),  # person
    "synthetic": ("uint8", ()),  # 1: drawn or generated
    "image_hash": ("S32", ()),  # BLAKE2b-128 of the stored pixels, hexadecimal
}


def image_hash(image: NDArray[np.uint8]) -> bytes:
    """BLAKE2b-128 of the pixels, 32 hexadecimal digits."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest().encode()


def write_shard(
    path: Path, columns: dict[str, Any], extra: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """Write one shard, whole or not at all; gives its manifest entry {file, n, bytes, sha256}.

    `columns` holds source_id (str), everything in COLUMNS, and images: [N, H, W, C], or a list of
    such parts, of which no copy is made; `extra` goes to columns/<name>. The bytes depend on the
    content alone. Raises OSError with the file's name.
    """
    images = columns["images"]
    parts: list[NDArray[np.uint8]] = images if isinstance(images, list) else [images]
    parts = [part for part in parts if len(part)] or parts[:1]
    n = sum(map(len, parts))
    others = {**columns, **{f"columns/{k}": v for k, v in extra.items()}}
    try:
        head, tail = _around_images(path.name, others, (n, *parts[0].shape[1:]), parts[-1][-1:])
    except OSError as error:  # of HDF5, which writes no file here
        raise MemoryError(str(error)) from None
    digest = hashlib.sha256()
    with replacement(path) as f:
        contents: list[Any] = [head, *map(np.ascontiguousarray, parts), tail]
        for data in contents:
            f.write(data)
            digest.update(data)
        size = f.tell()
    return {"file": path.name, "n": n, "bytes": size, "sha256": digest.hexdigest()}


def _around_images(
    name: str, columns: dict[str, Any], shape: tuple[int, ...], last: NDArray[np.uint8]
) -> tuple[bytes, bytes]:
    """What a shard's file holds before its images and after them.

    HDF5 makes the file in memory, with a hole for the images, and Python writes it: no lock is
    needed (some file systems refuse them), and a full disk is an ordinary error instead of a
    half-open HDF5 file. `last`: the last image [1, H, W, C], which makes room for all of them.
    """
    with h5py.File(name, "w", driver="core", backing_store=False, libver=("earliest", "v110")) as f:
        for key, values in columns.items():
            if key != "images" and len(values) != shape[0]:
                raise ValueError(f"{name}: {key} has {len(values)} rows, images {shape[0]}")
            if key == "images" and len(last):
                f.create_dataset(key, shape, np.uint8, track_times=False)[-1:] = last
            else:
                stored = last if key == "images" else _storable(values)
                f.create_dataset(key, data=stored, track_times=False)
        f.flush()
        data = f.id.get_file_image()
        begin = f["images"].id.get_offset() or len(data)  # none where there is no image
    return data[:begin], data[begin + math.prod(shape) :]


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    """Text as UTF-8 of a fixed length (what is none, as in files' names, becomes `\\udcXX`)."""
    if values.dtype.kind not in "OU":
        return values
    encoded = [str(v).encode("utf-8", "backslashreplace") for v in values]
    longest = max(map(len, encoded), default=0) or 1
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", longest))


def read_shard(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """A shard's data sets in memory, and those below columns/: the arguments of write_shard."""
    with h5py.File(path, "r", locking=False) as f:
        columns = {name: f[name][()] for name in ("images", *COLUMNS, "source_id")}
        extra = {name: f["columns"][name][()] for name in f["columns"]} if "columns" in f else {}
    return columns, extra


class Columns(dict[str, NDArray[Any]]):
    """A split's columns by name, over all its shards, each read at its first use.

    Training needs the labels, but not the 544 bytes of landmarks of each face.
    """

    def __init__(self, paths: list[Path]) -> None:
        super().__init__()
        self.paths = paths

    def __missing__(self, name: str) -> NDArray[Any]:
        parts = []
        for path in self.paths:
            try:
                with h5py.File(path, "r", locking=False) as f:
                    parts.append(_plain(f[name][()]))
            except BAD_HDF5 as error:
                raise UserError(f"shard {path} is damaged ({name}: {error}); {AGAIN}") from None
        self[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self[name]

    def extra(self) -> list[str]:
        """The names below columns/, which the source or --columns has added, in order."""
        try:
            with h5py.File(self.paths[0], "r", locking=False) as f:
                return sorted(f["columns"]) if "columns" in f else []
        except BAD_HDF5 as error:
            raise UserError(
                f"shard {self.paths[0]} is damaged (columns: {error}); {AGAIN}"
            ) from None


@dataclass(frozen=True)
class Split:
    """One split: images memory-mapped shard by shard, columns read at their first use."""

    name: str
    images: list[NDArray[np.uint8]]  # per shard [n, H, W, C], private mappings of the file
    starts: NDArray[np.int64]  # first row of each shard, and the end: [shards + 1]
    columns: Columns | dict[str, NDArray[Any]]
    has_targets: bool = False

    def __len__(self) -> int:
        return int(self.starts[-1])

    @functools.cached_property
    def targets(self) -> NDArray[np.float32] | None:
        """Shares of the classes [n, classes] where faces have distributions as labels."""
        return self.columns[TARGETS] if self.has_targets else None

    def describe_row(self, row: int) -> str:
        """A row as text, for messages."""
        return f"row {row} (source_id {self.columns['source_id'][row].decode()!r})"


def open_split(manifest: Manifest, split: str) -> Split:
    """Map a split's shards.

    Raises UserError for an absent split and for a shard that is missing, damaged, of another size
    than the manifest states, or not one contiguous block of bytes.
    """
    if not manifest.n(split):
        present = ", ".join(f"{s} {manifest.n(s):,}" for s in SPLITS if manifest.n(s))
        raise UserError(
            f"{manifest.folder} has no {split} split (it has {present or 'no face'}); "
            "give a data folder that holds one"
        )
    entries = manifest.content["splits"][split]["shards"]
    paths = [manifest.folder / entry["file"] for entry in entries]
    pairs = zip(paths, entries, strict=True)
    mapped = [_map_images(path, entry, manifest) for path, entry in pairs]
    columns = Columns(paths)
    counts = np.bincount(columns["labels"], minlength=len(manifest.classes)).tolist()
    if sum(map(len, mapped)) != manifest.n(split) or counts != manifest.class_counts(split):
        raise UserError(
            f"{manifest.folder}: the {split} shards have other numbers of faces than manifest.json "
            f"states (classes {counts}); preprocess again, or restore the file from a copy"
        )
    starts = np.cumsum([0, *(len(m) for m in mapped)])
    return Split(split, mapped, starts, columns, manifest.has_targets)


def _map_images(path: Path, entry: dict[str, Any], manifest: Manifest) -> NDArray[np.uint8]:
    """A private mapping of a shard's images [n, H, W, C], once all its data sets are as stated."""
    shape = (entry["n"], *manifest.image_shape)
    size = path.stat().st_size if path.exists() else -1
    if size != entry["bytes"]:
        difference = f"has {size:,} bytes, the manifest states {entry['bytes']:,}"
        raise UserError(f"shard {path} {'is missing' if size < 0 else difference}; {AGAIN}")
    try:
        with h5py.File(path, "r", locking=False) as f:
            offset = _check_images(f, shape, size)
            _check_columns(f, entry["n"], len(manifest.classes), manifest.has_targets)
    except BAD_HDF5 as error:
        raise UserError(f"shard {path} is damaged ({error}); {AGAIN}") from None
    if not entry["n"]:
        return np.zeros(shape, np.uint8)  # an empty data set has no place in the file
    return np.memmap(path, np.uint8, "c", offset, shape)


def _check_images(f: h5py.File, shape: tuple[int, ...], size: int) -> int:
    """Where the images begin in a file of `size` bytes; ValueError unless they are one block."""
    images = _own_data_set(f, "images")
    if images.dtype != np.uint8 or images.shape != shape:
        raise ValueError(
            f"its images are {images.dtype} {list(images.shape)}; "
            f"wanted one contiguous block of uint8 {list(shape)}"
        )
    offset = images.id.get_offset()
    if shape[0] and offset is None:  # HDF5 knows one only of a contiguous block in this file
        raise ValueError(
            "its images are chunked, compressed, virtual or in another file; "
            f"wanted one contiguous block of uint8 {list(shape)}"
        )
    if int(offset or 0) + math.prod(shape) > size:
        raise ValueError("its images end after the file")
    return int(offset or 0)


def _check_columns(f: h5py.File, n: int, classes: int, has_targets: bool) -> None:
    """ValueError unless the columns have n rows of the stated types, and labels are classes."""
    targets = {TARGETS: ("float32", (classes,))} if has_targets else {}
    for name, (kind, shape) in {**COLUMNS, **targets}.items():
        column = _own_data_set(f, name)
        if column.dtype != np.dtype(kind) or column.shape != (n, *shape):
            stored_shape, stated_shape = list(column.shape), [n, *shape]
            raise ValueError(
                f"its {name} are {column.dtype} {stored_shape}, wanted {kind} {stated_shape}"
            )
    if len(_own_data_set(f, "source_id")) != n:
        raise ValueError(f"its source_id has not {n} rows")
    labels = f["labels"][()]
    if n and not 0 <= labels.min() <= labels.max() < classes:
        low, high = labels.min(), labels.max()
        raise ValueError(f"its labels are {low} to {high}, wanted 0 to {classes - 1}")


def _own_data_set(f: h5py.File, name: str) -> h5py.Dataset:
    """A data set of this very file; links may lead into another one."""
    link = f.get(name, getlink=True)
    column = f[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(column, h5py.Dataset):
        raise ValueError(f"its {name} are missing, or a link")
    return column


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Without h5py's remark on the text encoding in the dtype, which .npy files cannot keep."""
    return values.view(np.dtype(values.dtype.str))
