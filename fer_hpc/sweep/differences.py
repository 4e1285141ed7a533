"""In what trials differ though the sweep does not vary it: their means would mix experiments."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fer_hpc.config import TrainConfig
from fer_hpc.config.errors import flag_name
from fer_hpc.run.trial import begun_trial

# Hardware decides whether determinism costs anything; without it a GPU's sums have another order.
NOT_COMPARED = {"seed", "deterministic"}
FIELDS = {
    f.name: f.default
    for f in dataclasses.fields(TrainConfig)
    if f.metadata["kind"] == "science" and f.name not in NOT_COMPARED
} | {"data": ""}
TITLES = {
    "plugin_hash": "their plugins",
    "init_hash": "their initial weights",
    "data": "their data",
}
FILES = ("init_hash", "plugin_hash")
NEEDED_BY = {"plugin_hash": ("model", "loss")}  # each value of these has its own
Swept = Mapping[str, Mapping[str, Any]]  # the swept values of each trial, by its name


def resolved(out: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the config.json of each trial that has begun holds of FIELDS, defaults included."""
    stored = {name: begun_trial(out / "trials" / name) for name in names}
    return {
        name: {**FIELDS, **config["science"], "data": config["data"]["fingerprint"]}
        for name, config in stored.items()
        if config
    }


def differences(swept: Swept, known: dict[str, dict[str, Any]]) -> list[str]:
    """In what the trials `swept` differ, though neither the seed nor a swept field does, in words:
    "their plugins (1f2e3d4c: 2, 5b6a7988: 1)"; nothing where they are one experiment.
    """
    lines = []
    for field in FIELDS:
        values: dict[str, Counter[str]] = {}
        for name in swept.keys() & known.keys():
            alike = [swept[name].get(f) for f in (field, *NEEDED_BY.get(field, ()))]
            values.setdefault(json.dumps(alike), Counter())[_text(known[name][field])] += 1
        mixed = [counts for counts in values.values() if len(counts) > 1]
        if mixed:
            counted = ", ".join(
                f"{value}: {n}" for value, n in sorted(sum(mixed, Counter()).items())
            )
            lines.append(f"{TITLES.get(field, flag_name(field))} ({counted})")
    return lines


def file_hashes(
    swept: Swept, settings: Mapping[str, Any], known: dict[str, dict[str, Any]]
) -> dict[str, list[str]]:
    """The contents of plugins and initial weights of the trials that have these swept values."""
    names = [n for n in swept if n in known and {**swept[n], **settings} == swept[n]]
    hashes = {field: sorted({known[name][field] for name in names}) for field in FILES}
    return {field: values for field, values in hashes.items() if values}


def _text(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:8] if is_hash else json.dumps(value).strip('"') or "none"
