"""Values of flags from text. What is wrong with one is a UserError that names its flag."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_hpc.cli.suggest import is_flag
from fer_hpc.config import UserError, flag_name
from fer_hpc.config.errors import choice_error
from fer_hpc.config.fields import value_type

WORDS = {int: "a whole number", float: "a number", Path: "a path", str: "a text"}


def element_type(field: dataclasses.Field[Any]) -> Any:
    """The type of a field's value, or of one of its values."""
    wanted = value_type(field)
    return typing.get_args(wanted)[0] if typing.get_origin(wanted) is tuple else wanted


def choices_of(wanted: Any) -> tuple[Any, ...]:
    """The values of a Literal; none of another type."""
    return typing.get_args(wanted) if typing.get_origin(wanted) is typing.Literal else ()


def value_of(flag: str, wanted: Any, text: str) -> Any:
    """`text` as a value of type `wanted`: one of a Literal's values, a number, a path or a text."""
    if choices := {str(choice): choice for choice in choices_of(wanted)}:
        if text not in choices:
            raise choice_error(flag, text, list(choices))
        return choices[text]
    try:
        return wanted(text)
    except ValueError:
        raise UserError(f"{flag} {shlex.quote(text)}: wanted {WORDS[wanted]}") from None


def check_values_follow(args: list[str], fields: Mapping[str, dataclasses.Field[Any]]) -> None:
    """A UserError for a flag without its value, or for a switch with one; fields: by flag."""
    for arg, after in itertools.pairwise([*args, "--"]):
        if arg == "--":
            return  # no flags follow
        name, joined, value = arg.partition("=")
        field = fields.get(name.replace("_", "-")) if name.startswith("--") else None
        if not field:
            continue
        if value_type(field) is bool:
            if joined or after.lower() in ("true", "false"):
                on, off = flag_name(field.name), flag_name(f"no_{field.name}")
                word = shlex.quote(value if joined else after)
                raise UserError(f"{name} {word}: takes no value; {on} alone is yes, {off} is no")
        elif not joined and is_flag(after):
            element = element_type(field)
            choices = ", ".join(map(str, choices_of(element)))
            wanted = f"one of {choices}" if choices else WORDS[element]
            raise UserError(f"{name}: its value is missing; wanted {wanted}")
