"""A copy of the data on a node's own disk."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.data.manifest import Manifest, read_manifest
from fer_hpc.files import remove_leftovers, replacement, write_json

CHUNK_BYTES = 1 << 20


def staged(manifest: Manifest, folder: Path) -> Manifest:
    """A verified copy of the data in `folder`/<fingerprint>, made at the first use.

    Gives the copy's manifest. Any number of processes may do this at once: each file appears whole.
    """
    copy = folder / manifest.fingerprint
    entries = [entry for split in manifest.content["splits"].values() for entry in split["shards"]]
    try:
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
        write_json(copy / "manifest.json", manifest.content)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise UserError(
            f"--stage {folder}: {error.strerror or error}{where}; give another folder or none"
        ) from None
    return read_manifest(copy)


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
