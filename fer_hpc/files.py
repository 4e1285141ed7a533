"""Files that are whole or absent: atomic writes, JSON, hashes. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fer_hpc.config.errors import UserError

# What repairs a damaged file, by its name or what stands before its first "-".
REMEDIES = {
    "config.json": "restore it from a copy, or train again in another --run folder",
    "manifest.json": "preprocess again into this folder, or restore the file from a copy",
    "sweep.json": "restore it from a copy, or sweep again in another --out folder",
    "summary.json": "fer-hpc tune --collect writes it again",
    "best.json": "fer-hpc tune --collect writes it again",
    "eval": "fer-hpc evaluate writes it again",
}


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` in one step: readers see the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # write and fsync name no file
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, in one step."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def read_stored(path: Path) -> Any:
    """The content of a JSON file, or None where it is missing; a UserError where it is damaged."""
    content = read_json(path)
    if content is None and path.is_file():
        kind = path.name if path.name in REMEDIES else path.name.partition("-")[0]
        raise UserError(f"{path} is damaged (empty, cut off or not JSON); {REMEDIES[kind]}")
    return content


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to disk: a rename in it then survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_jsonl(values: list[dict[str, Any]]) -> bytes:
    """The values as JSON, one a line."""
    return "".join(json.dumps(row) + "\n" for row in values).encode()
