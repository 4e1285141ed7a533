"""The fields that `--grid FIELD=VALUE,VALUE` sweeps, and their values."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from fer_hpc.config import TrainConfig, UserError, unknown_name_error
from fer_hpc.config.fields import value_type

OWN_FLAG = {"batch_size": "--batch-sizes", "lr": "--lrs", "seed": "--seeds"}
SAME_FOR_ALL = {
    "best_on": "one metric ranks all configurations; give --best-on",
    "threads": "it decides how many trials run at a time; give --threads",
    "init_hash": "the training fills it in; give --init-from",
    "plugin_hash": "the training fills it in; give --plugin",
}
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_grid(entries: tuple[str, ...]) -> dict[str, list[Any]]:
    """The values of each further swept field: ("flip=true,false",) gives {"flip": [True, False]}.

    The fields are in the order of TrainConfig, so that the order of `entries` does not change the
    name of a trial. An entry without "=" holds more values of the field before it. A UserError
    names the field that a sweep cannot vary, or the value that is not of the field's type.
    """
    texts: dict[str, list[str]] = {}
    field = ""
    for entry in entries:
        name, equals, listed = entry.partition("=")
        if equals:
            field = _check_field(name.strip().removeprefix("--").replace("-", "_"))
            if field in texts:
                raise UserError(f"--grid {name} is there twice; give all its values in one list")
            texts[field] = []
        elif not field:
            raise UserError(f"--grid {entry}: wanted FIELD=VALUE,VALUE, as weight_decay=1e-4,5e-4")
        else:
            listed = entry
        texts[field] += [text.strip() for text in listed.split(",") if text.strip()]
    types = {f.name: value_type(f) for f in dataclasses.fields(TrainConfig)}
    grid: dict[str, list[Any]] = {}
    for field, value_texts in sorted(texts.items(), key=lambda item: list(types).index(item[0])):
        if not value_texts:
            raise UserError(f"--grid {field}: wanted at least one value, as {field}=VALUE,VALUE")
        values = [_parse_value(field, types[field], text) for text in value_texts]
        grid[field] = list(dict.fromkeys(values))
    return grid


def _check_field(name: str) -> str:
    """`name`, if it is a science field that `--grid` may vary; otherwise a UserError."""
    kinds = {f.name: f.metadata["kind"] for f in dataclasses.fields(TrainConfig)}
    if name in OWN_FLAG:
        raise UserError(f"--grid {name}: give its values with {OWN_FLAG[name]}")
    if name in SAME_FOR_ALL:
        raise UserError(f"--grid {name}: {SAME_FOR_ALL[name]}")
    if kinds.get(name) == "runtime":
        raise UserError(f"--grid {name}: it does not change the results; give it as a flag")
    if name not in kinds:
        valid = [f for f in kinds if kinds[f] == "science" and f not in OWN_FLAG | SAME_FOR_ALL]
        raise unknown_name_error("field in --grid", name, valid)
    return name


def _parse_value(field: str, type_: Any, text: str) -> Any:
    """`text` as a value of the field's type: bool, int, float, str or Literal."""
    if typing.get_origin(type_) is Literal:
        if text not in typing.get_args(type_):
            raise unknown_name_error(f"value in --grid {field}", text, list(typing.get_args(type_)))
        return text
    if type_ is bool:
        if text.lower() not in BOOLEANS:
            raise UserError(f"--grid {field}={text}: wanted true or false")
        return BOOLEANS[text.lower()]
    try:
        return type_(text)
    except ValueError:
        wanted = "a whole number" if type_ is int else "a number"
        raise UserError(f"--grid {field}={text}: wanted {wanted}") from None
