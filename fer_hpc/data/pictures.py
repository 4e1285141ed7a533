"""Picture files: which suffixes are read, the order of names, and bytes."""

from __future__ import annotations

import os
import re
from pathlib import PurePath

# Suffixes that the decoder reads; GIF only from OpenCV 4.11 on, else they are rejects.
PICTURES = (".jpg", ".jpeg", ".png")
READABLE = (*PICTURES, ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
# Pictures that it does not read: they count towards --max-rejects.
UNREADABLE = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".psd", ".dng", ".raw", ".svg")


def natural_sort_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts 2 before 10."""
    parts = re.split(r"(\d{1,18})", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def printable(name: str) -> str:
    r"""A file's name as valid text: bytes that are not UTF-8 become `\xe9` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if _is_odd(name) else name


def _is_odd(name: str) -> bool:
    return not name.isascii()


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture that the decoder reads."""
    return name.lower().endswith(READABLE)


def kind_of(name: str) -> str:
    """How to name files of this kind in a count of what is not read."""
    return printable(PurePath(name).suffix.lower()) or "without a suffix"


def read_file(path: PurePath | str, limit: int = 1 << 40) -> bytes:
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
