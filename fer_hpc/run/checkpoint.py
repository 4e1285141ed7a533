"""Checkpoint files: whole or absent, with a checksum.

A file is torch's own zip archive (`torch.load` reads it as it is) whose archive comment holds the
SHA-256 of all bytes before it. It is written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
from pathlib import Path
from typing import IO, Any, cast

import torch

from fer_hpc.config import UserError
from fer_hpc.files import replacement

_DIGEST = 64  # bytes of the comment: SHA-256 in hexadecimal


class DamagedCheckpoint(UserError):
    """The file is cut off, changed, or not one of ours."""


class _Hashing(io.RawIOBase):
    """Passes writes on and hashes them, so that a large state is read once."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.failed: OSError | None = None  # torch would hide it behind an error of its own

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failed = error
            raise


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; an OSError (a full disk) leaves what was there before."""
    with replacement(path) as f:
        stream = _Hashing(f)
        try:
            torch.save(_canonical(state), cast(IO[bytes], stream))
        except RuntimeError:
            raise stream.failed or OSError(f"{path} could not be written") from None
        f.seek(-2, os.SEEK_END)  # the archive ends with its comment's length, 0
        if f.read(2) != b"\0\0":
            raise OSError(f"{path}: torch wrote an archive with a comment of its own")
        f.seek(-2, os.SEEK_END)
        f.write(_DIGEST.to_bytes(2, "little") + stream.digest.hexdigest().encode())


def _canonical(value: Any) -> Any:
    """The same content as plain dicts and lists with shared strings: bytes depend on it alone.

    Pickle writes a string that it has met before as a reference; a state that was loaded once would
    give other bytes.
    """
    if isinstance(value, dict):
        return {sys.intern(k) if isinstance(k, str) else k: _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return sys.intern(str(value)) if type(value) is str else value


def has_checksum(path: Path) -> bool:
    """Whether a file ends as those that `save` writes, be it damaged or not."""
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - _DIGEST - 2))
        return f.read(2) == _DIGEST.to_bytes(2, "little")


def load(path: Path) -> dict[str, Any]:
    """Read a state to the CPU; DamagedCheckpoint unless every byte is as written.

    Never unpickles objects.
    """
    data = bytearray(path.read_bytes())
    body, length, digest = (
        memoryview(data)[: -_DIGEST - 2],
        bytes(data[-_DIGEST - 2 : -_DIGEST]),
        bytes(data[-_DIGEST:]),
    )
    checksum = hashlib.sha256(body)
    checksum.update(b"\0\0")
    if length != _DIGEST.to_bytes(2, "little") or checksum.hexdigest().encode() != digest:
        raise DamagedCheckpoint(
            f"{path}: its checksum does not match; it is damaged or no checkpoint of ours"
        )
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DamagedCheckpoint(
            f"{path}: refused, it holds objects other than tensors, numbers and text"
        ) from None
    except Exception as error:  # of many kinds, for an archive or tensors that are not as written
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DamagedCheckpoint(f"{path}: its content cannot be read ({reason})") from None
    if not isinstance(state, dict):
        raise DamagedCheckpoint(f"{path}: holds no training state")
    return state
