"""The shard format: contiguous uint8 images in HDF5, memory-mapped. The only user of h5py.

    DIR/manifest.json      shape, classes, splits with their shards, counts and checksums, source
    DIR/<split>-00000.h5   images [N, H, W, C] uint8, and one row per face in every other data set

A contiguous, unfiltered data set is one range of bytes in its file, so numpy maps it: no HDF5
handle stays open, nothing is locked, and the processes on a node share the page cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.files import read_stored, sha256, write_bytes, write_json

FORMAT = 1
AGAIN = "copy it again, or delete it and preprocess again"
# What h5py raises for bytes that are not as it wrote them.
BAD_HDF5 = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError)
TARGETS = "columns/targets"  # float32 [N, classes], in sets whose labels are distributions
SPLITS = ("train", "val", "test")

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
    path: Path, columns: dict[str, NDArray[Any]], extra: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """Write one shard, whole or not at all; gives its manifest entry {file, n, bytes, sha256}.

    `columns` holds images, source_id (str) and everything in COLUMNS; `extra` goes to
    columns/<name>. The bytes depend on the content alone. Raises OSError with the file's name.
    """
    # HDF5 builds the file in memory and Python writes it: no lock is needed (some file systems
    # refuse them), and a full disk is an ordinary error instead of a half-open HDF5 file.
    with h5py.File(
        path.name, "w", driver="core", backing_store=False, libver=("earliest", "v110")
    ) as f:
        for name, values in {**columns, **{f"columns/{k}": v for k, v in extra.items()}}.items():
            if len(values) != len(columns["images"]):
                n = len(columns["images"])
                raise ValueError(f"{path.name}: {name} has {len(values)} rows, images {n}")
            f.create_dataset(name, data=_storable(values), track_times=False)
        f.flush()
        data = f.id.get_file_image()
    write_bytes(path, data)
    return {
        "file": path.name,
        "n": len(columns["images"]),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    """Text as UTF-8 of a fixed length, everything else as it is."""
    if values.dtype.kind not in "OU":
        return values
    encoded = [str(v).encode() for v in values]
    longest = max(map(len, encoded), default=0) or 1
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", longest))


def read_shard(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """A shard's data sets in memory, and those below columns/: the arguments of write_shard."""
    with h5py.File(path, "r", locking=False) as f:
        columns = {name: f[name][()] for name in ("images", *COLUMNS, "source_id")}
        extra = {name: f["columns"][name][()] for name in f["columns"]} if "columns" in f else {}
    return columns, extra


def fingerprint(manifest: dict[str, Any]) -> str:
    """Identity of the images, labels and splits, 16 hexadecimal digits; independent of paths."""
    shards = {
        split: [s["sha256"] for s in entry["shards"]] for split, entry in manifest["splits"].items()
    }
    text = json.dumps(
        [manifest["format"], manifest["image_shape"], manifest["classes"], shards], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the data's fingerprint."""
    write_json(folder / "manifest.json", {**manifest, "fingerprint": fingerprint(manifest)})


@dataclass(frozen=True)
class Manifest:
    """A folder of shards: what its manifest.json contains."""

    folder: Path
    image_shape: tuple[int, int, int]  # H, W, C
    classes: tuple[str, ...]
    fingerprint: str
    content: dict[str, Any]  # the whole file

    def n(self, split: str) -> int:
        """Faces of a split; 0 where there is no such split."""
        return int(self.content["splits"][split]["n"]) if split in self.content["splits"] else 0

    def class_counts(self, split: str) -> list[int]:
        """Faces of each class in a split."""
        return [int(self.content["splits"][split]["class_counts"][c]) for c in self.classes]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards; UserError where there is none or it cannot be read."""
    content = read_stored(folder / "manifest.json")
    if content is None:
        absent = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder}: not a folder of shards: it "
            f"{'has no manifest.json' if folder.is_dir() else absent}; "
            "make one with python -m fer_hpc.preprocess"
        )
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise UserError(
            f"{folder}: shard format {version}, this version reads {FORMAT}; preprocess again"
        )
    wrong = _wrong_in(content)
    if wrong:
        raise UserError(
            f"{folder / 'manifest.json'} is not a manifest of shards ({wrong}); preprocess again"
        )
    height, width, channels = content["image_shape"]
    shape, classes = (height, width, channels), tuple(content["classes"])
    return Manifest(folder, shape, classes, content["fingerprint"], content)


def _wrong_in(content: dict[str, Any]) -> str:
    """What is not as a manifest has it; "" if nothing. Files are bare names, so that no command
    that copies, repairs or stages shards reads or writes elsewhere."""
    keys = ("image_shape", "classes", "splits")
    shape, classes, splits = (content.get(k) for k in keys)  # type: Any, Any, Any
    if not (_is_list(shape, int) and len(shape) == 3 and min(shape) > 0):
        return "image_shape"
    if not (_is_list(classes, str) and classes and len(set(classes)) == len(classes)):
        return "classes"
    if not isinstance(content.get("fingerprint"), str) or not _is_hex(content["fingerprint"], 16):
        return "fingerprint"
    if not isinstance(splits, dict) or not set(splits) <= set(SPLITS):
        return "splits"
    if not isinstance(content.get("notes", []), list):
        return "notes"
    for name, entry in splits.items():
        counts = entry.get("class_counts") if isinstance(entry, dict) else None
        if not isinstance(counts, dict) or set(counts) != set(classes):
            return f"class_counts of {name}"
        if not _is_list([entry.get("n"), *counts.values()], int):
            return f"the counts of {name}"
        if not _is_list(entry.get("shards"), dict):
            return f"shards of {name}"
        for shard in entry["shards"]:
            if not _is_list([shard.get("n"), shard.get("bytes")], int):
                return f"the counts of a shard of {name}"
            if not re.fullmatch(r"\w[\w.-]{0,200}", str(shard.get("file"))):
                return f"the file name of a shard of {name}"
            if not _is_hex(str(shard.get("sha256")), 64):
                return f"the checksum of a shard of {name}"
    return ""


def _is_list(value: Any, kind: type) -> bool:
    """Whether a value is a list of values of a kind; numbers are whole and not negative."""
    return isinstance(value, list) and all(
        isinstance(v, kind) and not (isinstance(v, int) and (v is True or not 0 <= v < 1 << 53))
        for v in value
    )


def _is_hex(text: str, digits: int) -> bool:
    return re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is not None


def staged(manifest: Manifest, folder: Path) -> Manifest:
    """A verified copy of the data in `folder`/<fingerprint>, made at the first use.

    Gives the copy's manifest. Any number of processes may do this at once: each file appears whole.
    """
    copy = folder / manifest.fingerprint
    entries = [entry for split in manifest.content["splits"].values() for entry in split["shards"]]
    try:
        copy.mkdir(parents=True, exist_ok=True)
        missing = [e for e in entries if _size(copy / e["file"]) != e["bytes"]]
        need, free = sum(e["bytes"] for e in missing), shutil.disk_usage(copy).free
        if need > free:
            raise UserError(
                f"--stage {folder}: {need / 1e9:.1f} GB to copy, {free / 1e9:.1f} GB free; "
                "give another folder or none"
            )
        for entry in missing:
            temporary = copy / f".{entry['file']}.{os.getpid()}.tmp"
            shutil.copyfile(manifest.folder / entry["file"], temporary)
            if sha256(temporary) != entry["sha256"]:
                temporary.unlink()
                raise UserError(
                    f"shard {manifest.folder / entry['file']} does not have the checksum in the "
                    "manifest; copy or make it again"
                )
            temporary.replace(copy / entry["file"])
        write_json(copy / "manifest.json", manifest.content)
    except OSError as error:
        raise UserError(
            f"--stage {folder}: {error.strerror or error}; give another folder or none"
        ) from None
    return read_manifest(copy)


def _size(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    return path.stat().st_size if path.exists() else -1


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
            f"{manifest.folder} has no {split} split (it has {present}); "
            "give a data folder that holds one"
        )
    entries = manifest.content["splits"][split]["shards"]
    paths = [manifest.folder / entry["file"] for entry in entries]
    mapped = [
        _map_images(path, entry, manifest.image_shape)
        for path, entry in zip(paths, entries, strict=True)
    ]
    starts = np.cumsum([0, *(len(m) for m in mapped)])
    has_targets = manifest.content.get("labels") == "distribution"
    return Split(split, mapped, starts, Columns(paths), has_targets)


def _map_images(
    path: Path, entry: dict[str, Any], image_shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """A private mapping of a shard's images [n, H, W, C]."""
    size = _size(path)
    if size != entry["bytes"]:
        difference = f"has {size:,} bytes, the manifest states {entry['bytes']:,}"
        raise UserError(f"shard {path} {'is missing' if size < 0 else difference}; {AGAIN}")
    try:
        with h5py.File(path, "r", locking=False) as f:
            images = f["images"]
            offset, shape, dtype = images.id.get_offset(), images.shape, images.dtype
    except BAD_HDF5 as error:
        raise UserError(f"shard {path} is damaged ({error}); {AGAIN}") from None
    if shape != (entry["n"], *image_shape):
        raise UserError(
            f"shard {path} holds images {shape}, the manifest states {(entry['n'], *image_shape)}; "
            f"{AGAIN}"
        )
    if not shape[0]:
        return np.zeros(shape, np.uint8)  # an empty data set has no place in the file
    if offset is None or dtype != np.uint8:
        raise UserError(
            f"shard {path}: its images are {dtype}, chunked, compressed or in another file; "
            "wanted one contiguous block of uint8; preprocess again"
        )
    return np.memmap(path, np.uint8, "c", offset, shape)


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Without h5py's remark on the text encoding in the dtype, which .npy files cannot keep."""
    return values.view(np.dtype(values.dtype.str))
