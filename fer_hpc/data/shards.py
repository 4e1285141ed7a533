"""The shard format: contiguous uint8 images in HDF5, memory-mapped. The only user of h5py.

    DIR/manifest.json      shape, classes, splits with their shards, counts and checksums, source, how faces were cut
    DIR/<split>-00000.h5   images [N, H, W, C] uint8 and one row per face in every other data set

A contiguous, unfiltered data set is one range of bytes in its file, so after `get_offset()` it is mapped with numpy:
no HDF5 handle stays open, nothing is locked, and processes on a node share the page cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.files import read_json, sha256, sync_folder, write_json

FORMAT = 1
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
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest().encode()


def write_shard(
    path: Path, columns: dict[str, NDArray[Any]], extra: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """Write one shard under a temporary name, sync, rename; gives its manifest entry {file, n, bytes, sha256}.

    `columns` holds images, source_id (str) and everything in COLUMNS; `extra` goes to columns/<name>.
    The bytes depend on the content alone.
    """
    n = len(columns["images"])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w", libver=("earliest", "v110")) as f:
            for name, values in {
                **columns,
                **{f"columns/{k}": v for k, v in extra.items()},
            }.items():
                if len(values) != n:
                    raise ValueError(f"{path.name}: {name} has {len(values)} rows, images {n}")
                if values.dtype.kind in "OU":
                    encoded = [str(v).encode() for v in values]
                    utf8 = h5py.string_dtype(
                        "utf-8", max((len(e) for e in encoded), default=0) or 1
                    )
                    values = np.array(encoded, dtype=utf8)
                f.create_dataset(name, data=values, track_times=False)
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        entry = {
            "file": path.name,
            "n": n,
            "bytes": temporary.stat().st_size,
            "sha256": sha256(temporary),
        }
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return entry


def read_shard(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """A shard's data sets in memory, and those under columns/; as `write_shard` takes them."""
    with h5py.File(path, "r", locking=False) as f:
        columns = {name: f[name][()] for name in ("images", *COLUMNS, "source_id")}
        extra = {name: f["columns"][name][()] for name in f["columns"]} if "columns" in f else {}
    return columns, extra


def fingerprint(manifest: dict[str, Any]) -> str:
    """Identity of the data, free of paths and file names: what the images, labels and splits are."""
    shards = {
        split: [s["sha256"] for s in entry["shards"]] for split, entry in manifest["splits"].items()
    }
    text = json.dumps(
        [manifest["format"], manifest["image_shape"], manifest["classes"], shards], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_json(folder / "manifest.json", {**manifest, "fingerprint": fingerprint(manifest)})


@dataclass(frozen=True)
class Manifest:
    folder: Path
    image_shape: tuple[int, int, int]  # H, W, C
    classes: tuple[str, ...]
    fingerprint: str
    content: dict[str, Any]

    def n(self, split: str) -> int:
        return int(self.content["splits"][split]["n"]) if split in self.content["splits"] else 0

    def class_counts(self, split: str) -> list[int]:
        return [int(self.content["splits"][split]["class_counts"][c]) for c in self.classes]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards; UserError where there is none or its format is not ours."""
    content = read_json(folder / "manifest.json")
    if content is None:
        what = (
            "has no manifest.json"
            if folder.is_dir()
            else "is a file"
            if folder.exists()
            else "does not exist"
        )
        raise UserError(
            f"{folder}: not a folder of shards, it {what}; make one with python -m fer_hpc.preprocess"
        )
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise UserError(
            f"{folder}: shard format {version}, this version reads {FORMAT}; preprocess again"
        )
    try:
        height, width, channels = content["image_shape"]
        manifest = Manifest(
            folder,
            (height, width, channels),
            tuple(content["classes"]),
            content["fingerprint"],
            content,
        )
        for split in content["splits"]:
            manifest.n(split), manifest.class_counts(split), content["splits"][split]["shards"]
        return manifest
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'manifest.json'} is no manifest of shards ({error!r}); preprocess again"
        ) from None


def staged(manifest: Manifest, folder: Path) -> Manifest:
    """A copy of the data under `folder`/<fingerprint>, made and verified at the first use; gives its manifest.

    Any number of processes may do this at once: each file appears whole, by a rename.
    """
    here = folder / manifest.fingerprint
    entries = [entry for split in manifest.content["splits"].values() for entry in split["shards"]]
    todo = [
        e
        for e in entries
        if not (here / e["file"]).exists() or (here / e["file"]).stat().st_size != e["bytes"]
    ]
    need = sum(e["bytes"] for e in todo)
    try:
        here.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(here).free
        if need > free:
            raise UserError(
                f"--stage {folder}: {need / 1e9:.1f} GB to copy, {free / 1e9:.1f} GB free; give another folder or none"
            )
        for entry in todo:
            temporary = here / f".{entry['file']}.{os.getpid()}.tmp"
            shutil.copyfile(manifest.folder / entry["file"], temporary)
            if sha256(temporary) != entry["sha256"]:
                temporary.unlink()
                raise UserError(
                    f"shard {manifest.folder / entry['file']} has not the checksum of the manifest; copy or make it again"
                )
            temporary.replace(here / entry["file"])
    except OSError as error:
        raise UserError(
            f"--stage {folder}: {error.strerror or error}; give another folder or none"
        ) from None
    write_json(here / "manifest.json", manifest.content)
    return read_manifest(here)


class Columns(dict[str, NDArray[Any]]):
    """A split's columns by name, over all its shards, each read when it is first asked for: training needs the labels,
    not the 544 bytes of landmarks a face."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__()
        self.paths = paths

    def __missing__(self, name: str) -> NDArray[Any]:
        parts = []
        for path in self.paths:
            with h5py.File(path, "r", locking=False) as f:
                parts.append(_plain(f[name][()]))
        self[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self[name]


@dataclass(frozen=True)
class Split:
    """One split: images memory-mapped shard by shard, the columns read when they are asked for."""

    name: str
    images: list[NDArray[np.uint8]]  # per shard [n, H, W, C], private mappings of the file
    starts: NDArray[np.int64]  # first row of each shard, and the end: [shards + 1]
    columns: Columns | dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def describe_row(self, row: int) -> str:
        """A row in words, for messages: shard-local place and source id."""
        return f"row {row} (source_id {self.columns['source_id'][row].decode()!r})"


def open_split(manifest: Manifest, split: str) -> Split:
    """Map a split's shards. UserError for an absent split, or a shard that is missing or not as long as it should be."""
    if not manifest.n(split):
        have = ", ".join(f"{s} {manifest.n(s):,}" for s in SPLITS if manifest.n(s))
        raise UserError(
            f"{manifest.folder} has no {split} split (it has {have}); give a data folder that holds one"
        )
    mapped, paths = [], []
    for entry in manifest.content["splits"][split]["shards"]:
        path = manifest.folder / entry["file"]
        size = path.stat().st_size if path.exists() else -1
        if size != entry["bytes"]:
            got = (
                "is missing"
                if size < 0
                else f"has {size:,} bytes, the manifest says {entry['bytes']:,}"
            )
            raise UserError(f"shard {path} {got}; copy it again, or delete it and preprocess again")
        try:
            with h5py.File(path, "r", locking=False) as f:
                images = f["images"]
                offset = images.id.get_offset()  # None for an empty data set
                shape = images.shape
        except (OSError, KeyError) as error:
            raise UserError(
                f"shard {path} is damaged ({error}); copy it again, or delete it and preprocess again"
            ) from None
        paths.append(path)
        mapped.append(
            np.zeros(shape, np.uint8)
            if offset is None
            else np.memmap(path, np.uint8, "c", offset, shape)
        )
    starts = np.cumsum([0, *(len(m) for m in mapped)])
    return Split(split, mapped, starts, Columns(paths))


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Without h5py's note on the text encoding in the dtype, which numpy's own formats cannot keep."""
    return values.view(np.dtype(values.dtype.str))
