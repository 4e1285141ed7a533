"""The plugins of a run, found again from its folder. Standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.config.plugins import Origin, load_plugins
from fer_hpc.files import read_json


def load_run_plugins(run: Path, plugins: Sequence[Path] = ()) -> list[Origin]:
    """Import `plugins`; where there are none, those that the run in folder `run` was trained with.

    A UserError names a file that is gone and the flag that replaces it.
    """
    if not plugins:
        stored = read_json(run / "config.json") or {}
        plugins = [Path(path) for path in stored.get("runtime", {}).get("plugin", [])]
        for path in plugins:
            if not path.is_file():
                raise UserError(
                    f"{run} was trained with the plugin {path}, which is gone: "
                    "put it back, or give its new place with --plugin FILE"
                )
    return load_plugins(plugins)


def plugin_hash(origins: Iterable[Origin | None]) -> str:
    """SHA-256 of the plugins that a configuration needs; empty where it needs none."""
    needed = sorted({origin.sha256 for origin in origins if origin})
    if len(needed) <= 1:
        return "".join(needed)
    return hashlib.sha256("".join(needed).encode()).hexdigest()
