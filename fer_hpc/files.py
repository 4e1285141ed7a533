"""Files that are whole or absent: atomic writes, JSON, hashes. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from fer_hpc.config.errors import UserError
from fer_hpc.config.fields import MAX_INTEGER

# What repairs a damaged file, by its name or what stands before its first "-".
REMEDIES = {
    "config.json": "restore it from a copy, or train again in another --run folder",
    "manifest.json": "preprocess again into this folder, or restore the file from a copy",
    "sweep.json": "restore it from a copy, or sweep again in another --out folder",
    "summary.json": "fer-hpc tune --collect writes it again",
    "best.json": "fer-hpc tune --collect writes it again",
    "eval": "fer-hpc evaluate writes it again",
    "calibration.json": "fer-hpc evaluate RUN (on val) writes it again",
    "robust": "fer-hpc evaluate RUN --robust writes it again",
    "gallery": "fer-hpc evaluate RUN --gallery writes it again",
}

# Errors of reading a file that is cut off, damaged, or of another form than it should have.
DAMAGE = (
    UserError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    OSError,
    RecursionError,
)
MAX_NUMBER = sys.float_info.max
NAMES = {str: "text", bool: "true or false", int: "an integer", float: "a number"}
IN_NO_NAME = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # half characters in no file's name
LEFTOVER_S = 600.0  # a temporary file that has not changed for so long has no living writer


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An OSError in the body names `path` if it names no file, as those of write and fsync do.

    Also where it names `temporary`, or a file in it, of which no user knows.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or (temporary and str(error.filename).startswith(str(temporary))):
            error.filename = str(path)
        raise


def process_place() -> str:
    """HOST-NAMESPACE: where process ids mean the same. Containers may share a host's name."""
    try:
        return f"{socket.gethostname()}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{socket.gethostname()}-0"


def process_tag() -> str:
    """HOST-NAMESPACE-PID, for names of files of which each process has its own."""
    return f"{process_place()}-{os.getpid()}"


def is_process(pid: int) -> bool:
    """Whether there is a process of that id here; /proc may hide those of other users."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` in one step when the body ends without an error.

    Readers see the old content or the new one. An OSError names `path`: write, fsync and HDF5
    name no file; a folder in its place is one. Raises UserError where `path` is a device or a pipe.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # root could replace /dev/null
        raise UserError(f"{path} is not a regular file: give another name for the output")
    temporary = path.with_name(f".{path.name}.{process_tag()}.tmp")
    try:
        with naming(path, temporary):
            with temporary.open("w+b") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_file(path: PurePath | str, limit: int = 1 << 40) -> bytes:
    """A file's first `limit` bytes; an OSError for a pipe or a device, which may never end.

    By plain system calls: open() takes twice as long, and there are five files a face.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", str(path))
        size = min(info.st_size, limit)
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more  # beyond the 2 GB that one call reads
        return data
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` in one step: readers see the old content or the new one."""
    with replacement(path) as f:
        f.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text as UTF-8; what of a file's name is no UTF-8 becomes \\udcXX."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content to `path`, in one step; an OSError names the file that it is about."""
    with source.open("rb") as content, replacement(path) as f:
        shutil.copyfileobj(content, f, 1 << 20)


def is_own(path: Path, marker: str) -> bool:
    """Whether a file is empty or has `marker`, which its command leaves in what it writes."""
    with path.open("rb") as f:
        if not os.fstat(f.fileno()).st_size:
            return True
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(marker.encode()) >= 0


def check_output(path: Path, marker: str, flag: str = "--out", inputs: Iterable[Path] = ()) -> None:
    """UserError where writing `path` would replace an input, or a file without the marker."""
    if not path.is_file():
        return
    if any(each.exists() and path.samefile(each) for each in inputs):
        raise UserError(f"{path} is an input and would be replaced: give another {flag}")
    if not is_own(path, marker):
        raise UserError(
            f"{path} was not written by this command and would be replaced: give another {flag}"
        )


def remove_leftovers(folder: Path, pattern: str = ".*.tmp", anyones: bool = False) -> None:
    """Delete what processes that are gone had begun to write in `folder`.

    Their names end in `process_tag`. A process of another place counts as gone once its file has
    not changed for LEFTOVER_S, by the clock of the file system. `anyones`: all are gone, or must
    stop.
    """
    with contextlib.suppress(OSError):  # a folder that one may only read
        paths = list(folder.glob(pattern))
        if not paths:
            return
        with tempfile.TemporaryFile(dir=folder) as probe:
            now = os.fstat(probe.fileno()).st_mtime
        for path in paths:
            rest, _, pid = path.name.removesuffix(".tmp").rpartition("-")
            is_ours = pid.isdigit() and rest.endswith(process_place())
            is_gone = is_ours and not is_process(int(pid))
            with contextlib.suppress(OSError):  # deleted meanwhile, or another user's
                if anyones or is_gone or now - path.stat().st_mtime > LEFTOVER_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, in one step."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def from_json(data: bytes) -> Any:
    """The value of a JSON text; ValueError or RecursionError where it is none.

    Half a character, which JSON can hold and nothing can write or open, becomes U+FFFD; the bytes
    of a file's name that are no UTF-8, which Python keeps as such halves, stay.
    """
    value = json.loads(data.decode())
    if b"\\u" in data and IN_NO_NAME.search(text := json.dumps(value, ensure_ascii=False)):
        return json.loads(IN_NO_NAME.sub("\ufffd", text))
    return value


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where it is missing or not JSON."""
    try:
        return from_json(read_file(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None


def read_stored(path: Path, wanted: dict[Any, Any] | None = None) -> Any:
    """The content of a JSON file, or None where it is missing; a UserError where it is damaged.

    `wanted` is the shape that it must have, see `check_shape`.
    """
    content = read_json(path)
    kind = path.name if path.name in REMEDIES else path.name.partition("-")[0]
    if content is None and path.is_file():
        raise UserError(f"{path} is damaged (empty, cut off or not JSON); {REMEDIES[kind]}")
    if content is not None and wanted is not None:
        try:
            check_shape(content, wanted, path.name)
        except UserError as error:
            raise UserError(f"{path} is damaged ({error}); {REMEDIES[kind]}") from None
    return content


def read_record(path: Path, wanted: dict[Any, Any]) -> dict[str, Any] | None:
    """A JSON file of the shape `wanted`; None where it is missing or has another content."""
    content = read_json(path)
    try:
        check_shape(content, wanted, path.name)
    except UserError:
        return None
    return dict(content)


def damage_reason(error: BaseException) -> str:
    """Why a file cannot be used, as one line."""
    text = f"unexpected content ({type(error).__name__}: {error})"
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.strerror}: {os.fsdecode(error.filename)}"
    elif isinstance(error, UserError | OSError):
        text = str(error)
    return " ".join(text.split())


# ---- the shape of JSON -----------------------------------------------------------------------
# A type stands for a value of it; float takes integers too, but neither takes NaN, infinity or what
# no array holds. A dict stands for its keys, `str` for any key; [x, y] for a list of two; [x, ...]
# for a list of any length; a tuple for one of its members. A key whose value may be None may be
# missing, and is then added, so that readers find every key; with NoneType in its place it may not
# be missing.


def check_shape(value: Any, wanted: Any, where: str) -> None:
    """UserError, with the field in `where`, unless a JSON value has the shape `wanted`.

    Adds the keys that may be missing, as None.
    """
    if not _fits(value, wanted):
        name = NAMES.get(wanted, "") if isinstance(wanted, type) else ""
        form = "an object" if isinstance(wanted, dict) else "another form"
        name = name or ("a list" if isinstance(wanted, list) else form)
        raise UserError(f"{where} is {_short(value)}; wanted {name}")
    if isinstance(wanted, dict):
        for key, part in wanted.items():
            if key is str:
                for name, inner in value.items():
                    check_shape(inner, part, f"{where}: {name}")
            elif key not in value and not (isinstance(part, tuple) and None in part):
                raise UserError(f"{where} has no {key!r}")
            else:
                check_shape(value.setdefault(key, None), part, f"{where}: {key}")
    elif isinstance(wanted, list):
        parts = wanted[:1] * len(value) if wanted[-1] is ... else wanted
        for inner, part in zip(value, parts, strict=True):
            check_shape(inner, part, where)
    elif isinstance(wanted, tuple) and value is not None:
        check_shape(value, next(part for part in wanted if _fits(value, part)), where)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of the kind that is wanted; its parts are not looked at."""
    if isinstance(wanted, tuple):
        return any(_fits(value, part) for part in wanted)
    if isinstance(wanted, dict):
        return isinstance(value, dict)
    if isinstance(wanted, list):
        return isinstance(value, list) and (wanted[-1] is ... or len(value) == len(wanted))
    if wanted is None or wanted is bool or isinstance(value, bool):
        return value is None if wanted is None else isinstance(value, bool) and wanted is bool
    if wanted is float:
        return isinstance(value, int | float) and -MAX_NUMBER <= value <= MAX_NUMBER
    if wanted is int and isinstance(value, int):
        return -MAX_INTEGER <= value <= MAX_INTEGER
    return isinstance(value, wanted)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# ---- hashes and folders ----------------------------------------------------------------------


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
