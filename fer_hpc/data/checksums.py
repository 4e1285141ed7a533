"""Whether shards have the checksums in their manifest; remembered by size, times and inode."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.data.manifest import Manifest
from fer_hpc.files import read_record, sha256, write_json

RECORD = ".checksums.json"  # file -> [size, mtime_ns, ctime_ns, inode, sha256] when it was read
SHAPE: dict[Any, Any] = {str: [int, int, int, int, str]}


def verify_shards(manifest: Manifest, splits: Sequence[str], spare: Path) -> None:
    """UserError unless every shard of `splits` has the checksum in the manifest.

    A shard that has not been touched since it was verified is not read again. This is remembered
    beside the shards or, where one may not write there, in the folder `spare`.
    """
    places = (manifest.folder / RECORD, spare / RECORD)
    known: dict[str, list[int | str]] = {}
    for place in reversed(places):
        known |= read_record(place, SHAPE) or {}
    for split in splits:
        for entry in manifest.content["splits"][split]["shards"]:
            path = manifest.folder / entry["file"]
            before = [*_state(path), entry["sha256"]]
            if known.get(entry["file"]) == before:
                continue
            if sha256(path) != entry["sha256"]:
                raise UserError(
                    f"shard {path} does not have the checksum in the manifest: it is damaged or "
                    "was changed; copy it again, or delete it and preprocess again"
                )
            if [*_state(path), entry["sha256"]] == before:
                known[entry["file"]] = before
                _remember(places, known)


def verify_in_background(manifest: Manifest, splits: Sequence[str], spare: Path) -> Future[None]:
    """`verify_shards` in a thread, which does not keep the process from ending."""
    future: Future[None] = Future()

    def verify() -> None:
        try:
            verify_shards(manifest, splits, spare)
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=verify, name="checksums", daemon=True).start()
    return future


def _state(path: Path) -> list[int]:
    """What changes when a file is written or replaced."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _remember(places: Sequence[Path], known: dict[str, list[int | str]]) -> None:
    for place in places:
        with contextlib.suppress(OSError):
            write_json(place, known)
            return
