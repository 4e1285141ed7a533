"""Other people's files that register networks, losses and sources. Standard library only.

A plugin is a Python file named by --plugin or FER_PLUGINS, or an installed package with an entry
point in the group `fer_hpc.plugins`. Importing it runs its register_… calls.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.config.errors import UserError

GROUP = "fer_hpc.plugins"


@dataclass(frozen=True)
class Origin:
    """Where a registered object comes from: the file, and the SHA-256 of its bytes when it was loaded."""

    path: str
    sha256: str


_loaded: dict[str, Origin] = {}


def load_plugin(path: Path) -> Origin:
    """Import a plugin file once per process; a UserError names the file and what went wrong in it."""
    path = path.expanduser().absolute()
    if str(path) in _loaded:
        return _loaded[str(path)]
    if not path.is_file():
        raise UserError(f"--plugin {path}: no such file; give the Python file that registers it")
    origin = Origin(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    name = f"fer_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _loaded[str(path)] = origin
    try:
        spec.loader.exec_module(module)
    except UserError:
        _forget(path, name)
        raise
    except Exception as error:
        _forget(path, name)
        line = next(
            (
                f"line {f.lineno}: "
                for f in reversed(inspect.getinnerframes(error.__traceback__))  # type: ignore[arg-type]
                if f.filename == str(path)
            ),
            "",
        )
        raise UserError(f"--plugin {path}: {line}{type(error).__name__}: {error}") from error
    return origin


def _forget(path: Path, name: str) -> None:
    _loaded.pop(str(path), None)
    sys.modules.pop(name, None)


def load_plugins(paths: Iterable[Path | str] = ()) -> list[Origin]:
    """Import installed plugins, those of FER_PLUGINS, and `paths`, in this order."""
    for point in importlib.metadata.entry_points(group=GROUP):
        point.load()
    named = [p for p in os.environ.get("FER_PLUGINS", "").split(os.pathsep) if p]
    return [load_plugin(Path(p)) for p in [*named, *map(str, paths)]]


def origin_of_caller(thing: Callable[..., Any]) -> Origin | None:
    """The plugin file that a registered function or class is defined in; None for our own."""
    source = None
    with contextlib.suppress(TypeError):  # a built-in has no file
        source = inspect.getsourcefile(thing)
    if source is None or Path(source).is_relative_to(Path(__file__).parents[1]):
        return None
    path = Path(source).absolute()
    if str(path) not in _loaded:  # a notebook cell or the user's own program
        content = path.read_bytes() if path.is_file() else inspect.getsource(thing).encode()
        return Origin(str(path), hashlib.sha256(content).hexdigest())
    return _loaded[str(path)]
