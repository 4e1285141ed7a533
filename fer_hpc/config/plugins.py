"""Other people's files that register networks, losses and sources. Standard library only.

A plugin is a Python file named by --plugin or FER_PLUGINS, or an installed package with an entry
point in the group `fer_hpc.plugins`. Importing it runs its register_… calls.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import linecache
import marshal
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fer_hpc.config.errors import UserError

GROUP = "fer_hpc.plugins"
VARIABLE = "FER_PLUGINS"
MISTAKES = (Exception, SystemExit)  # of a plugin's code, which may call exit()
LONGEST = 500  # characters of an error's message
MAX_NAME = 100  # characters of what a plugin registers
# Texts of errors that arise anywhere: a broken GPU, exhausted memory.
NOT_OF_PLUGINS = ("CUDA error", "out of memory", "can't allocate")


@dataclass(frozen=True)
class Origin:
    """Where a registered object comes from: the file, and the SHA-256 of its bytes when loaded."""

    path: str
    sha256: str
    is_plugin: bool = True  # False: the user's own program or notebook, not to be imported again


_loaded: dict[str, Origin] = {}


def load_plugin(path: Path, flag: str = "--plugin") -> Origin:
    """Import a plugin file, once for the same content; a UserError has the file and its mistake."""
    path = path.expanduser().absolute()
    known = _loaded.get(str(path))
    if not path.is_file():
        if known:
            return known
        raise UserError(f"{flag} {path}: no such file; give the Python file that registers it")
    if path.suffix != ".py":
        raise UserError(f"{flag} {path}: not a Python file; its name must end in .py")
    origin = Origin(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    if origin == known:
        return known
    name = f"fer_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    _loaded[str(path)] = origin  # before it runs: its register_… calls ask for their origin
    try:
        spec.loader.exec_module(module)
    except MISTAKES as error:
        del _loaded[str(path)], sys.modules[name]
        if isinstance(error, UserError):
            raise UserError(f"{flag} {path}: {error_line(error, str(path))}{error}") from error
        raise UserError(
            f"{flag} {path}: {error_line(error, str(path))}{describe(error)}"
        ) from error
    return origin


def load_plugins(paths: Iterable[Path | str] = ()) -> list[Origin]:
    """Import installed plugins, those of FER_PLUGINS, and `paths`, in this order."""
    points = importlib.metadata.entry_points(group=GROUP)
    named = [p for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p]
    return [
        *(origin for point in points if (origin := _load_entry_point(point))),
        *(load_plugin(Path(p), VARIABLE) for p in named),
        *(load_plugin(Path(p)) for p in paths),
    ]


def _load_entry_point(point: importlib.metadata.EntryPoint) -> Origin | None:
    """Import an installed plugin; None where it is no Python file."""
    try:
        module = importlib.import_module(point.module)
        point.load()
    except MISTAKES as error:
        package = point.dist.name if point.dist else point.value
        raise UserError(
            f"the installed plugin {package} ({point.value}) cannot be imported: "
            f"{describe(error)}; correct or uninstall it"
        ) from error
    file = Path(module.__file__) if module.__file__ else None
    if file is None or not file.is_file():
        return None
    origin = Origin(str(file), hashlib.sha256(file.read_bytes()).hexdigest())
    return _loaded.setdefault(str(file), origin)


def check_name(what: str, name: object) -> None:
    """A UserError where `name` is not a text that can stand on a command line."""
    good = isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME
    if not good or "/" in str(name) or name != str(name).strip():
        raise UserError(
            f"register_{what}({repr(name)[:60]}): wanted a name of 1 to {MAX_NAME} characters, as "
            f"register_{what}('mine')"
        )


def check_name_free(what: str, name: str, origin: Origin | None, known: Any) -> None:
    """A UserError where `name` is registered already, as `known` with an `origin`, by another file.

    A file may register its names again, and so may a notebook's cell or a program.
    """
    if known is None:
        return
    known_origin: Origin | None = known.origin
    if known_origin is None:
        raise UserError(f"{what} {name!r} is built in; register yours under another name")
    same = origin is not None and (
        origin.sha256 == known_origin.sha256 or origin.path == known_origin.path
    )
    interactive = not known_origin.is_plugin and (origin is None or not origin.is_plugin)
    if not same and not interactive:
        raise UserError(
            f"{what} {name!r} is registered by {known_origin.path} already; register this one "
            "under another name"
        )


def origin_of_caller() -> Origin | None:
    """The file that calls a register_… function of ours; None where that is our own code.

    That is a plugin, or the user's own program or notebook.
    """
    frame: FrameType | None = sys._getframe(1)
    asking = frame.f_code.co_filename if frame else ""
    while frame and frame.f_code.co_filename == asking:
        frame = frame.f_back
    name = frame.f_code.co_filename if frame else ""
    if frame is None or Path(name).is_relative_to(Path(__file__).parents[1]):
        return None
    if name in _loaded:
        return _loaded[name]
    if Path(name).is_file():
        content = Path(name).read_bytes()
    else:  # a notebook's cell
        content = "".join(linecache.getlines(name)).encode() or marshal.dumps(frame.f_code)
    return Origin(name, hashlib.sha256(content).hexdigest(), is_plugin=False)


def mistake_of_plugin(error: BaseException) -> UserError | None:
    """An exception of a loaded plugin's own code as one message with file and line; else None."""
    frames = [f.filename for f in traceback.extract_tb(error.__traceback__)]
    path = next((name for name in reversed(frames) if name in _loaded), "")
    # An OSError without a file may be a network that comes back: see cli/main.py.
    elsewhere = isinstance(error, OSError) and error.filename is None
    elsewhere |= any(text in str(error) for text in NOT_OF_PLUGINS)
    if not path or elsewhere or isinstance(error, UserError) or not isinstance(error, MISTAKES):
        return None
    return UserError(f"{path}, {error_line(error, path)}{describe(error)}")


@contextlib.contextmanager
def plugin_mistakes() -> Iterator[None]:
    """Raise what a plugin's own code raises in the block as a UserError with file and line."""
    try:
        yield
    except MISTAKES as error:
        mistake = mistake_of_plugin(error)
        if mistake is None:
            raise
        raise mistake from error


def defined_at(registered: Any, origin: Origin | None) -> str:
    """`FILE, line N: ` of a registered function, FILE alone where it is none; "" if built in."""
    if origin is None:
        return ""
    code: Any = getattr(registered, "__code__", None)
    if code is None or code.co_filename != origin.path:
        return f"{origin.path}: "
    return f"{origin.path}, line {code.co_firstlineno}: "


def raised_at(error: BaseException, registered: Any, origin: Origin | None) -> str:
    """`FILE, line N: ` where `error` arose in the file that has registered something."""
    line = error_line(error, origin.path) if origin else ""
    return f"{origin.path}, {line}" if origin and line else defined_at(registered, origin)


def describe(error: BaseException) -> str:
    """An exception as its class and message, which other people's code may make a whole page."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    if len(message) > LONGEST:
        message = f"{message[:LONGEST]}..."
    return f"{type(error).__name__}: {message}"


def first_line(function: Any, path: str) -> str:
    """`line N: ` where a function or method begins in the file at `path`, or ""."""
    code = getattr(function, "__code__", None)
    return f"line {code.co_firstlineno}: " if code and code.co_filename == path else ""


def error_line(error: BaseException, path: str) -> str:
    """`line N: ` of the innermost place in the file at `path` where an exception arose, or ""."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"line {error.lineno}: "
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return f"line {lines[-1]}: " if lines else ""
