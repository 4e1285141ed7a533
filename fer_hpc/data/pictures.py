"""Picture files: which suffixes are read, and the order of names."""

from __future__ import annotations

import os
import re
import struct
import zlib
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


def signature(command: str) -> str:
    """The comment of a picture that a command wrote, by which it knows its own files."""
    return f"fer_hpc {command}"


def signed(picture: bytes, command: str) -> bytes:
    """The bytes of a PNG or JPEG file with the command's signature behind its header."""
    text = signature(command).encode()
    if picture[1:4] == b"PNG":
        chunk = b"tEXtSoftware\0" + text
        entry = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return picture[:33] + entry + picture[33:]
    return picture[:20] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + picture[20:]
