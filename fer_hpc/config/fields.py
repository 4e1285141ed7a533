"""Science and runtime fields: marking, hashing, merging on resume. Standard library only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any, TypeVar

from fer_hpc.config.errors import UserError, flag_name

Config = TypeVar("Config", bound=Any)
SCHEMA = 1  # raise it when the meaning of a science field changes


def science(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"kind": "science"})


def runtime(default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"kind": "runtime"})


def check_range(config: object, name: str, low: float, high: float) -> None:
    value = getattr(config, name)
    if not low <= value <= high:  # also false for NaN
        wanted = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise UserError(f"{flag_name(name)} {value}: wanted a number {wanted}")


def fields_of(config: Any, kind: str) -> dict[str, Any]:
    """The `science` or `runtime` fields as JSON-ready values."""
    return {
        f.name: _json_ready(getattr(config, f.name))
        for f in dataclasses.fields(config)
        if f.metadata["kind"] == kind
    }


def _json_ready(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_ready(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def non_default_fields(config: Any) -> dict[str, Any]:
    """The science fields that are not at their defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    return {
        name: value
        for name, value in fields_of(config, "science").items()
        if value != defaults[name]
    }


def science_hash(config: Any, data_fingerprint: str) -> str:
    """Identity of the numbers a run will give: 12 hex digits over the non-default science fields and the data.

    Defaults are left out so that a field added later, at its default, does not orphan older runs.
    """
    text = json.dumps(
        {"schema": SCHEMA, "data": data_fingerprint, **non_default_fields(config)}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def merge_for_resume(config: Config, stored: dict[str, Any]) -> Config:
    """`config` as the continuation of a run whose science fields are `stored`.

    `auto` takes what the first start resolved, more epochs are welcome (the plateau schedule does not depend on their
    number); any other difference is refused by name.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    resolved: dict[str, Any] = {}
    differ: list[tuple[str, Any, Any]] = []
    for name, now in fields_of(config, "science").items():
        then = stored.get(
            name, defaults[name]
        )  # a field younger than the run: it ran with the default
        automatic = now == {
            "precision": "auto",
            "threads": 0,
            "init_hash": "",
            "plugin_hash": "",
        }.get(name)
        resolved[name] = then if automatic else now
        if resolved[name] != then and not (
            name == "epochs" and now > then and getattr(config, "schedule", "") != "cosine"
        ):
            differ.append((name, then, now))
    if differ:
        then_now = ", ".join(
            f"{format_flag(name, then)} (now {format_flag(name, now)})"
            for name, then, now in differ
        )
        why = (
            "this would be another experiment (epochs may grow where the schedule does not depend on them)"
            if differ[0][0] == "epochs"
            else "this would be another experiment"
        )
        raise UserError(
            f"{config.run} was started with {then_now}: {why}; use another --run folder, or the first start's flags"
        )
    return dataclasses.replace(config, **resolved)


def format_flag(field: str, value: Any) -> str:
    """A field's value as one types it."""
    return (
        (flag_name(field) if value else flag_name("no_" + field))
        if isinstance(value, bool)
        else f"{flag_name(field)} {value}"
    )
