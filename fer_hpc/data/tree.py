"""The files of an input: a folder, or an archive (.zip, .tar, .tar.gz, ...) read in place.

Names are relative, with "/" between folders. Hidden files and links to folders are not read; they
are counted in `ignored`.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from fer_hpc.config import UserError
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import printable
from fer_hpc.data.split_names import split_of
from fer_hpc.data.tally import Tally
from fer_hpc.files import read_file

Stamp = int | Reject  # changes with a file's size or time; a Reject says why it cannot be read
MAX_MEMBER_BYTES = 1 << 28  # of a picture or annotation; larger ones are no such file
HIDDEN = (".", "__MACOSX")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_MISSING, _OUTSIDE = Reject("missing image"), Reject("path leaves the image root")
# What reading a file or an archive of any content may raise.
_PACKED = (struct.error, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, OverflowError, *_PACKED)


class SupportsRead(Protocol):
    def read(self, length: int = ..., /) -> bytes: ...


def is_hidden(name: str) -> bool:
    return name.startswith(HIDDEN)


class Tree:
    """A folder on disk. `scratch` is where files of archives are unpacked, if they must be."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"--input {root}: no such folder")
        self.root = root
        self.ignored = Tally()
        self.linked: list[str] = []  # folders that are links
        self._real = os.path.realpath(root)
        self._listed: dict[str, tuple[dict[str, Stamp], list[str]]] = {}
        self._outside: set[str] = set()  # folders that a link in their path leads out of the root

    # ---- what is there

    def folder(self, name: str = "") -> dict[str, Stamp]:
        """The visible files in a folder by name, in order; {} where there is no such folder."""
        return self._list(name)[0]

    def folders(self, name: str = "") -> list[str]:
        """The visible folders in a folder, as names from the root, in order."""
        return self._list(name)[1]

    def files(self, below: str = "") -> Iterator[tuple[str, Stamp]]:
        """(name, stamp) of every visible file below a folder, folder by folder, in order."""
        files, folders = self._list(below)
        prefix = f"{below}/" if below else ""
        for name, stamp in files.items():
            yield prefix + name, stamp
        for folder in folders:
            yield from self.files(folder)

    def has(self, name: str) -> bool:
        """Whether there is a visible file of this name."""
        folder, _, last = name.rpartition("/")
        return last in self.folder(folder)

    def stamp(self, name: str) -> Stamp:
        """A file's stamp; a Reject where there is no such file."""
        folder, _, last = name.rpartition("/")
        stamp = self.folder(folder).get(last, _MISSING)
        return _OUTSIDE if stamp is _MISSING and folder in self._outside else stamp

    def _list(self, name: str) -> tuple[dict[str, Stamp], list[str]]:
        if name not in self._listed:
            self._listed[name] = self._scan(name)
        return self._listed[name]

    def _scan(self, name: str) -> tuple[dict[str, Stamp], list[str]]:
        path = f"{self.root}/{name}"
        try:
            if not self._inside(os.path.realpath(path)):
                self._outside.add(name)
                return {}, []
            with os.scandir(path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}, []
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                return {}, []
            raise UserError(f"--input {path}: cannot be read ({error.strerror})") from None
        files: dict[str, Stamp] = {}
        folders = []
        for entry in listed:
            full = f"{name}/{entry.name}" if name else entry.name
            if is_hidden(entry.name):
                self.ignored.add("hidden", printable(full))
            elif entry.is_dir(follow_symlinks=False):
                folders.append(full)
            elif entry.is_symlink() and entry.is_dir():
                self.linked.append(full)
                self.ignored.add("linked folders", printable(full), limited=True)
            else:
                files[entry.name] = self._stamp(entry)
        return files, folders

    def _stamp(self, entry: os.DirEntry[str]) -> Stamp:
        try:
            info = entry.stat()
        except OSError as error:
            return Reject(f"unreadable image: {error.strerror}")
        if entry.is_symlink() and not self._inside(os.path.realpath(entry.path)):
            return _OUTSIDE
        if not stat.S_ISREG(info.st_mode):
            return Reject("not an ordinary file")
        return info.st_mtime_ns << 40 | info.st_size

    def _inside(self, path: str) -> bool:
        return path == self._real or path.startswith(self._real.rstrip("/") + "/")

    # ---- contents

    def read(self, name: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
        """A file's first `limit` bytes; raises OSError."""
        return read_file(f"{self.root}/{name}", limit)

    def picture(self, name: str) -> bytes:
        """A picture file's bytes; raises Reject."""
        try:
            return self.read(name)
        except FileNotFoundError:
            raise Reject("missing image") from None
        except (*DAMAGED, KeyError) as error:
            raise Reject(f"unreadable image: {getattr(error, 'strerror', None) or error}") from None

    def local(self, name: str) -> Path:
        """A file as a path on disk: itself, or a copy out of the archive."""
        return self.root / name

    def close(self) -> None:
        """Remove what was unpacked."""

    def __getstate__(self) -> dict[str, Any]:  # to a worker process go no listings
        return {**self.__dict__, "_listed": {}, "ignored": Tally()}


class Archive(Tree):
    """The files of a ZIP or tar archive. A compressed tar is unpacked to a plain one first."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.root, self.scratch, self.ignored, self.linked = path, scratch, Tally(), []
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        self._zip: zipfile.ZipFile | None = None
        self._outside = set()
        self._tar: dict[str, tuple[int, int]] = {}  # name -> first byte, number of bytes
        self._plain = path
        try:
            self.is_zip = zipfile.is_zipfile(path)
            stamps = dict(self._zip_members() if self.is_zip else self._tar_members())
        except DAMAGED as error:
            self.close()
            raise _full_or_damaged(error, path) from None
        except UserError:
            self.close()
            raise
        self._top = _common_folder(stamps)
        self._listed = _as_folders({n.removeprefix(self._top): s for n, s in stamps.items()})

    def _zip_members(self) -> Iterator[tuple[str, Stamp]]:
        self._zip = zipfile.ZipFile(self.root)
        for member in self._zip.infolist():
            if member.is_dir() or not self._is_visible(member.filename):
                continue
            usable: Stamp = member.CRC << 40 | member.file_size
            if member.flag_bits & 1:
                usable = Reject("encrypted in the archive")
            elif member.file_size > MAX_MEMBER_BYTES and not _is_table(member.filename):
                usable = Reject("too large for a picture")
            yield member.filename, usable

    def _tar_members(self) -> Iterator[tuple[str, Stamp]]:
        with self.root.open("rb") as f:
            start = f.read(6)
        unpacker = next((u for magic, u in _UNPACKERS.items() if start.startswith(magic)), None)
        if unpacker:
            self._plain = self.scratch / "plain.tar"
            with unpacker(self.root) as packed, self._plain.open("wb") as plain:
                copy_stream(packed, plain, self._plain)
        with tarfile.open(self._plain, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isdir() or not self._is_visible(name):
                    continue
                if not member.isreg() or member.issparse():
                    self.ignored.add("links in the archive", printable(name), limited=True)
                    continue
                self._tar[name] = member.offset_data, member.size
                yield name, int(member.mtime) << 40 | member.size

    def _is_visible(self, name: str) -> bool:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/") or "\0" in name:
            self.ignored.add("paths that leave the archive", printable(name)[:80], limited=True)
            return False
        if any(map(is_hidden, parts)):
            self.ignored.add("hidden", printable(name))
            return False
        return True

    def _list(self, name: str) -> tuple[dict[str, Stamp], list[str]]:
        return self._listed.get(name, ({}, []))

    def read(self, name: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
        full = self._top + name
        if self.is_zip:
            if self._zip is None:
                self._zip = zipfile.ZipFile(self.root)
            try:
                with self._zip.open(full) as f:
                    return f.read(limit)
            except KeyError:
                raise FileNotFoundError(full) from None
        if full not in self._tar:
            raise FileNotFoundError(full)
        first, size = self._tar[full]
        with self._plain.open("rb") as f:
            f.seek(first)
            return f.read(min(size, limit))

    def local(self, name: str) -> Path:
        target = self.scratch / name
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self.is_zip:
                assert self._zip
                with self._zip.open(self._top + name) as f, target.open("wb") as copy:
                    copy_stream(f, copy, target)
            else:
                first, size = self._tar[self._top + name]
                with self._plain.open("rb") as f, target.open("wb") as copy:
                    f.seek(first)
                    while size > 0 and (data := f.read(min(size, 1 << 20))):
                        copy.write(data)
                        size -= len(data)
        except DAMAGED as error:
            raise _full_or_damaged(error, self.root) from None
        return target

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listed": {}, "_zip": None, "ignored": Tally()}


def open_tree(path: Path, scratch: Path) -> Tree:
    """The files of a folder, or of an archive by its content; else a UserError."""
    if path.is_dir():
        return Tree(path)
    if not path.exists():
        raise UserError(f"--input {path}: no such folder or archive")
    if is_archive(path):
        return Archive(path, scratch)
    raise UserError(f"--input {path}: wanted a folder or an archive ({', '.join(ARCHIVES)})")


def is_archive(path: Path) -> bool:
    """Whether a file is a ZIP or tar archive, by its content; a .csv.gz is none."""
    if not path.is_file():
        return False
    try:
        return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except DAMAGED:
        return path.name.lower().endswith(ARCHIVES)


def _is_table(name: str) -> bool:
    return name.lower().endswith((".csv", ".txt", ".lst", ".parquet", ".npy", ".gz"))


def copy_stream(source: SupportsRead, target: IO[bytes], path: Path) -> None:
    """Copy a stream to a file; an OSError of the disk names `path`."""
    try:
        shutil.copyfileobj(source, target, 1 << 20)
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def _full_or_damaged(error: BaseException, path: Path) -> BaseException:
    if isinstance(error, OSError) and error.errno:
        return error
    return UserError(f"--input {path}: cannot be unpacked ({error}); is the download whole?")


def _common_folder(names: Mapping[str, Stamp]) -> str:
    """The folders, with "/" at the end, that all files of an archive lie in; splits stay."""
    common = ""
    while names:
        first, slash, _ = next(iter(names)).removeprefix(common).partition("/")
        longer = f"{common}{first}/"
        if not slash or split_of(first) or not all(n.startswith(longer) for n in names):
            break
        common = longer
    return common


def _as_folders(names: Mapping[str, Stamp]) -> dict[str, tuple[dict[str, Stamp], list[str]]]:
    listed: dict[str, tuple[dict[str, Stamp], list[str]]] = {"": ({}, [])}

    def entry(folder: str) -> tuple[dict[str, Stamp], list[str]]:
        if folder not in listed:
            listed[folder] = ({}, [])
            entry(folder.rpartition("/")[0])[1].append(folder)
        return listed[folder]

    for name in sorted(names):
        folder, _, last = name.rpartition("/")
        entry(folder)[0][last] = names[name]
    return listed
