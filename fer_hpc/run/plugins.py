"""The plugins of a run, found again from its folder. Standard library only.

A run's config.json holds, under `plugins`, the file that registers its model and the one that
registers its loss: path, SHA-256, and whether it is a plugin or the user's own program.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.config.plugins import Origin, load_plugin, load_plugins
from fer_hpc.files import check_shape, sha256
from fer_hpc.run.folder import find_run_config
from fer_hpc.run.outcome import found_weights
from fer_hpc.run.trial import begun_trial

ENTRIES = {str: {"is_plugin": bool, "sha256": str, "path": str}}
HOW = "with --plugin FILE, in Python plugin=FILE"


def load_run_plugins(
    run: Path, plugins: Sequence[Path | str] = (), needed: Sequence[str] = ("model", "loss")
) -> list[str]:
    """Import `plugins`; without them, those that register what the run in folder `run` needs.

    Gives a line for each whose content is not that of the run's start. A UserError names a file
    that is gone and the flag that replaces it.
    """
    loaded = {origin.sha256: origin for origin in load_plugins(plugins)}
    stored = (find_run_config(run) or {}).get("plugins", {})
    check_shape(stored, ENTRIES, f"{run / 'config.json'}: plugins")
    changed = []
    for what in needed:
        entry = stored.get(what)
        if not entry or not entry["is_plugin"] or entry["sha256"] in loaded:
            continue
        path = Path(entry["path"])
        if plugins:
            now = ", ".join(map(str, plugins))
        elif not path.is_file():
            raise UserError(
                f"{run}: the plugin {path}, which registers its {what}, no longer exists; "
                f"give its new place {HOW}"
            )
        elif load_plugin(path).sha256 == entry["sha256"]:
            continue
        else:
            now = str(path)
        changed.append(
            f"{run} was started with other code for its {what} than {now} holds now "
            f"({path} had SHA-256 {entry['sha256'][:12]})"
        )
    return changed


def changed_files(
    run: Path, plugins: Sequence[Path] = (), init_from: Path | None = None
) -> list[str]:
    """A line for each file of a run whose content is not that of the run's start: those that
    register its model and its loss, and its initial weights.

    `plugins` and `init_from` stand for those that the run names. A file that is gone is not known
    to differ. Imports nothing where nothing has changed.
    """
    stored = begun_trial(run)
    if stored is None:
        return []
    check_shape(stored.get("plugins", {}), ENTRIES, f"{run / 'config.json'}: plugins")
    changed = load_run_plugins(run, plugins) if has_other_plugins(stored, plugins) else []
    then = stored["science"].get("init_hash", "")
    init_from = init_from or (stored.get("runtime") or {}).get("init_from")
    file = found_weights(Path(init_from)) if init_from else None
    if file and then and sha256(file) != then:
        changed.append(
            f"{run} was started with other weights than {init_from} holds now "
            f"({file} had SHA-256 {then[:12]})"
        )
    return changed


def has_other_plugins(stored: Mapping[str, Any], plugins: Sequence[Path] = ()) -> bool:
    """Whether the files of a run's plugins (`stored`: its config.json) have another content now.

    `plugins`, where there are some, stand for them. Imports nothing.
    """
    entries = [entry for entry in stored.get("plugins", {}).values() if entry["is_plugin"]]
    paths = plugins or [Path(entry["path"]) for entry in entries]
    now = {sha256(path) for path in paths if path.is_file()}
    return bool(now) and any(entry["sha256"] not in now for entry in entries)


def plugin_hash(origins: Iterable[Origin | None]) -> str:
    """SHA-256 of the plugins that a configuration needs; empty where it needs none."""
    needed = sorted({origin.sha256 for origin in origins if origin})
    if len(needed) <= 1:
        return "".join(needed)
    return hashlib.sha256("".join(needed).encode()).hexdigest()


def plugin_entries(origins: Mapping[str, Origin | None]) -> dict[str, Any]:
    """What config.json holds of the files that register the run's model and loss."""
    return {what: dataclasses.asdict(origin) for what, origin in origins.items() if origin}
