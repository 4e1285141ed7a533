"""Fields of configurations: definition, checks, hash, merging on resume. Standard library only.

A field is `science` (it decides the numbers: compared on resume and hashed) or `runtime` (where and
how a run happens: free to change between starts). The commands that are no trainings use `option`.
The definition holds all that the command line, docs/flags.md and the checks need: default, one line
of help, range, and the group of flags that it starts in the help.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import numbers
import types
import typing
import unicodedata
from pathlib import Path
from typing import Any, TypeVar

from fer_hpc.config.aliases import current_science, current_value
from fer_hpc.config.errors import UserError, choice_error, flag_name

Config = TypeVar("Config", bound=Any)
MAX_INTEGER = (1 << 63) - 1  # of what arrays can hold
SCHEMA = 1  # raise it when the meaning of a science field changes
# The first start fills these in; a later start that leaves them at this value takes what is stored.
AUTOMATIC = {
    "precision": "auto",
    "threads": 0,
    "deterministic": None,
    "init_hash": "",
    "plugin_hash": "",
}
# Presets have set these since runs exist that lack them; such a run goes on with their defaults.
YOUNGER_THAN_RUNS = {"bn_images"}


def _field(kind: str, default: Any, help: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help, **more})


def science(default: Any, help: str, **more: Any) -> Any:
    """A field that decides the numbers. For `more`, see `option`."""
    return _field("science", default, help, **more)


def runtime(default: Any, help: str, **more: Any) -> Any:
    """A field that decides where and how a run happens. For `more`, see `option`."""
    return _field("runtime", default, help, **more)


def required(help: str, **more: Any) -> Any:
    """A runtime field without a default. For `more`, see `option`."""
    return _field("runtime", dataclasses.MISSING, help, **more)


def option(default: Any, help: str, **more: Any) -> Any:
    """A field of a command that is no training.

    help: one line: what it is, its unit, what the default does
    low, high: smallest and largest value, both included
    group: this field and those after it are a group of flags of this name in the help
    positional: given by its place on the command line, without a flag
    repeat: the flag may be given several times, and its values add up
    commas: False where a comma is a part of a value, not between two values
    file: a path that may be a file; all others are folders
    hidden: no flag; filled in by the program
    same_as: a value that means the same numbers as the default
    """
    return _field("runtime", default, help, **more)


def value_type(field: dataclasses.Field[Any]) -> Any:
    """The type of a field's value where it is not None: `Path` of `Path | None`."""
    if isinstance(field.type, types.UnionType):
        return next(t for t in typing.get_args(field.type) if t is not types.NoneType)
    return field.type


def check_fields(config: object) -> None:
    """Check types, choices and ranges; turn strings into paths and lists into tuples.

    Raises a UserError that names the flag.
    """
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        object.__setattr__(config, f.name, _checked_value(f, getattr(config, f.name)))


def check_stored(config_class: Any, stored: dict[str, Any], where: Path) -> None:
    """A UserError where a value from the file `where` is none that its field may have."""
    try:
        for f in dataclasses.fields(config_class):
            if f.name in stored:
                _checked_value(f, stored[f.name])
    except UserError as error:
        raise UserError(f"{where} is damaged: {error}") from None


def _checked_value(field: dataclasses.Field[Any], value: Any) -> Any:
    value = current_value(field.name, value)
    if value is None and field.default is None:
        return None
    return _checked(field, value_type(field), value)


def _checked(field: dataclasses.Field[Any], wanted: Any, value: Any) -> Any:
    """`value` as a value of type `wanted`."""
    flag = field.name.upper() if field.metadata.get("positional") else flag_name(field.name)
    if typing.get_origin(wanted) is tuple:
        if isinstance(value, str | Path) or not isinstance(value, list | tuple):
            raise UserError(f"{flag} {value!r}: wanted a list or tuple of values")
        return tuple(_checked(field, typing.get_args(wanted)[0], v) for v in value)
    if isinstance(value, str | Path) and not str(value).isprintable():
        bad = next(c for c in str(value) if not c.isprintable())
        if unicodedata.category(bad) == "Cc":  # in a job's script a line end is a new command
            raise UserError(f"{flag} {str(value)!r}: has the control character {bad!r}")
    if wanted is Path and isinstance(value, str):
        if not value:
            raise UserError(f"{flag} '': wanted a path")
        value = Path(value)
    if typing.get_origin(wanted) is typing.Literal:
        choices = typing.get_args(wanted)
        if value not in choices:
            raise choice_error(flag, value, [str(c) for c in choices])
    elif wanted in (int, float):
        if not isinstance(value, numbers.Integral if wanted is int else numbers.Real):
            kind = "whole number" if wanted is int else "number"
            raise UserError(f"{flag} {value!r}: wanted a {kind}")
        low = field.metadata.get("low", -math.inf)
        high = field.metadata.get("high", MAX_INTEGER if wanted is int else math.inf)
        if not _is_finite(value):
            raise UserError(f"{flag} {value}: wanted a finite number")
        if not low <= value <= high:
            is_open = "high" not in field.metadata and value < low
            limits = f"at least {low}" if is_open else f"{low} to {high}"
            raise UserError(f"{flag} {value}: wanted {limits}")
        return wanted(value)
    elif not isinstance(value, wanted):
        raise UserError(f"{flag} {value!r}: wanted a value of type {wanted.__name__}")
    if wanted is Path and not field.metadata.get("file"):
        _check_folder(flag, value)
    return value


def _is_finite(value: Any) -> bool:
    """Whether a number is finite, and within the range of float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_folder(flag: str, path: Path) -> None:
    """A UserError where `path`, or one that it lies in, is a file or impossible."""
    for part in (path, *path.parents):
        try:
            is_file = part.is_file()
        except OSError as error:  # too long a name, or a folder that one may not enter
            raise UserError(f"{flag} {path}: {error.strerror}") from None
        if is_file:
            what = "it" if part == path else part
            raise UserError(f"{flag} {path}: wanted a folder, but {what} is a file")


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
    usual = {
        f.name: (f.default, f.metadata.get("same_as", f.default))
        for f in dataclasses.fields(config)
    }
    current = fields_of(config, "science")
    return {name: value for name, value in current.items() if value not in usual[name]}


def science_hash(config: Any, data_fingerprint: str) -> str:
    """Identity of a run's numbers: 12 hex digits over the non-default science fields and the data.

    Defaults are left out so that a field added later, at its default, does not orphan older runs.
    """
    text = json.dumps(
        {"schema": SCHEMA, "data": data_fingerprint, **non_default_fields(config)}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def merge_for_resume(config: Config, stored: dict[str, Any]) -> Config:
    """`config` as the continuation of a run whose science fields are `stored`.

    Automatic fields take what the first start resolved. More epochs are accepted where the schedule
    does not depend on their number. Any other difference is a UserError that names the flag.
    """
    stored = current_science(stored)
    check_stored(type(config), stored, config.run / "config.json")
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    resolved: dict[str, Any] = {}
    differ: list[tuple[str, Any, Any]] = []
    for name, now in fields_of(config, "science").items():
        then = stored.get(name, defaults[name])  # absent: the field is younger than the run
        resolved[name] = then if name in AUTOMATIC and now == AUTOMATIC[name] else now
        if name in YOUNGER_THAN_RUNS and name not in stored:
            resolved[name] = then
        grows = name == "epochs" and now > then and getattr(config, "schedule", "") != "cosine"
        if resolved[name] != then and not grows:
            differ.append((name, then, now))
    if differ:
        changes = ", ".join(
            f"{format_flag(name, then)} (now {format_flag(name, now)})"
            for name, then, now in differ
        )
        why = "this would be another experiment"
        if differ[0][0] == "epochs":
            why += " (epochs may grow where the schedule does not depend on them)"
        raise UserError(
            f"{config.run} was started with {changes}: {why}; use another --run folder, "
            "or the first start's flags"
        )
    return dataclasses.replace(config, **resolved)


def flag_arguments(field: str, value: Any) -> list[str]:
    """A field's value as arguments of a command line; none for None."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag_name(field if value else "no_" + field)]
    if isinstance(value, tuple | list):
        return [flag_name(field), *map(str, value)]
    text = str(value)
    return [f"{flag_name(field)}={text}"] if text.startswith("-") else [flag_name(field), text]


def format_flag(field: str, value: Any) -> str:
    """A field's value as one types it, for messages."""
    return " ".join(flag_arguments(field, value)) or f"{flag_name(field)} {value}"
