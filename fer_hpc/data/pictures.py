"""Picture files below a root folder: which one a path means, and its bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fer_hpc.data.faces import Reject

PICTURES = (".jpg", ".jpeg", ".png")
_SET_NAME = re.compile(r"(train|val|test)_set")  # AffectNet's folders


def natural_sort_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts 2 before 10."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def printable(name: str) -> str:
    r"""A file's name as valid text: bytes that are not UTF-8 become `\xe9` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def resolve_inside(root: Path, text: str) -> Path:
    """The file below `root` that a path in a table means; raises Reject.

    A path of another machine (absolute, either separator, also with a drive letter) is resolved by
    its longest suffix that exists below the root. The file must lie inside the root, links
    followed. A path through `val_set` is not resolved in a root in `train_set`: equal file names
    in the two are other people's pictures.
    """
    parts = [p for p in re.split(r"[/\\]+", text.strip()) if p not in ("", ".")]
    if not parts or ".." in parts:
        raise Reject("path leaves the image root" if parts else "empty path")
    for first in range(len(parts)):
        candidate = root.joinpath(*parts[first:])
        if candidate.exists():
            if not candidate.resolve().is_relative_to(root.resolve()):
                raise Reject("path leaves the image root")
            named, present = _set_name(parts[:first]), _set_name(root.absolute().parts)
            if named and present and named != present:
                raise Reject(f"path is in {named}, the image root in {present}")
            return candidate
    raise Reject("missing image")


def _set_name(parts: Sequence[str]) -> str:
    """The last of a path's folders that names a part of a data set, or ""."""
    return next((p for p in reversed(parts) if _SET_NAME.fullmatch(p)), "")


def read_file(path: Path | str, limit: int = 1 << 40) -> bytes:
    """A file's first `limit` bytes.

    By plain system calls: open() takes twice as long, and there are five files a face.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = min(os.fstat(descriptor).st_size, limit)
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more  # beyond the 2 GB that one call reads
        return data
    finally:
        os.close(descriptor)


def read_picture(path: Path | str) -> bytes:
    """A picture file's bytes; raises Reject."""
    try:
        return read_file(path)
    except FileNotFoundError:
        raise Reject("missing image") from None
    except OSError as error:
        raise Reject(f"unreadable image: {error.strerror}") from None
