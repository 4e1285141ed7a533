"""A copy of the data on a node's own disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.data.manifest import Manifest, read_manifest
from fer_hpc.files import read_json, remove_leftovers, replacement, write_json

CHUNK_BYTES = 1 << 20


def staged(manifest: Manifest, folder: Path) -> Manifest:
    """A verified copy of the data in `folder`/<fingerprint>, made at the first use.

    Gives the copy's manifest. Any number of processes may do this at once: each file appears whole.
    Where another user's copy can be neither used nor completed, this user has an own one.
    """
    copy = folder / manifest.fingerprint
    entries = [entry for split in manifest.content["splits"].values() for entry in split["shards"]]
    try:
        if not _is_usable(copy, manifest, entries):
            copy = folder / f"{manifest.fingerprint}-{os.getuid()}"
        copy.mkdir(parents=True, exist_ok=True)
        remove_leftovers(copy)
        missing = [e for e in entries if _size(copy / e["file"]) != e["bytes"]]
        need, free = sum(e["bytes"] for e in missing), shutil.disk_usage(copy).free
        if need > free:
            raise UserError(
                f"--stage {folder}: {need / 1e9:.1f} GB to copy, {free / 1e9:.1f} GB free; "
                "give another folder or none"
            )
        for entry in missing:
            _copy_shard(manifest.folder / entry["file"], copy / entry["file"], entry)
        if read_json(copy / "manifest.json") != manifest.content:
            write_json(copy / "manifest.json", manifest.content)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise UserError(
            f"--stage {folder}: {error.strerror or error}{where}; give another folder or none"
        ) from None
    return read_manifest(copy)


def _is_usable(copy: Path, manifest: Manifest, entries: list[dict[str, Any]]) -> bool:
    """Whether this process may read all of a copy, and write what it lacks."""
    if not copy.exists():
        return True
    if not os.access(copy, os.R_OK | os.X_OK):
        return False
    there = [path for e in entries if (path := copy / e["file"]).exists()]
    if not all(os.access(path, os.R_OK) for path in there):
        return False
    is_whole = all(_size(copy / e["file"]) == e["bytes"] for e in entries)
    if is_whole and os.access(copy / "manifest.json", os.R_OK):
        return bool(read_json(copy / "manifest.json") == manifest.content)
    return os.access(copy, os.W_OK)


def _copy_shard(source: Path, path: Path, entry: dict[str, Any]) -> None:
    """Copy a shard to `path`, in one step; a UserError where it is not what the manifest states."""
    digest = hashlib.sha256()
    with source.open("rb") as content, replacement(path) as f:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            f.write(chunk)
        if digest.hexdigest() != entry["sha256"]:
            raise UserError(
                f"shard {source} does not have the checksum in the manifest; copy or make it again"
            )


def _size(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    return path.stat().st_size if path.exists() else -1
