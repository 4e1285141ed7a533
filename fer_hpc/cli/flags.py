"""Fields of configurations as flags of a command line; the only user of tyro.

tyro parses a type that is made here from the fields of one or more configurations. It gives what
stands on the command line; a preset, a sweep or the fields' defaults fill the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import operator
import os
import re
import shutil
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fer_hpc.cli.suggest import check_flags
from fer_hpc.cli.values import check_values_follow, choices_of, element_type, value_of
from fer_hpc.config import (
    PRESETS,
    UserError,
    flag_arguments,
    flag_name,
    preset_changes,
    unknown_name_error,
)
from fer_hpc.config.aliases import current_arguments
from fer_hpc.config.fields import value_type

MIN_COLUMNS = 20
Config = TypeVar("Config")
METAVARS = {Path: "PATH", str: "TEXT", int: "INT", float: "FLOAT"}
BOX = re.compile(r"[\u2500-\u257f\s]+")  # the frame that tyro draws around its errors


@dataclasses.dataclass(frozen=True)
class Part:
    """Fields of one configuration as flags; `defaults` replace the fields' own in the help."""

    config_class: type
    omit: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def fields(self) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
        """(group, field) of every field that is on the command line."""
        group = ""
        for field in dataclasses.fields(self.config_class):
            group = field.metadata.get("group", group)
            if field.name not in self.omit and not field.metadata.get("hidden"):
                yield group, field


@dataclasses.dataclass(frozen=True)
class Given:
    """What stood on a command line: PRESET, and values of fields."""

    command: str
    preset: str | None
    values: Mapping[type, dict[str, Any]]

    def build(self, config_class: type[Config], **defaults: Any) -> Config:
        """The configuration: given values, else `defaults`, else the fields' own defaults."""
        values = {**defaults, **self.values[config_class]}
        missing = [
            field
            for _, field in Part(config_class).fields()
            if field.default is dataclasses.MISSING and not values.get(field.name)
        ]
        if missing:
            names = ", ".join(_title(field) for field in missing)
            what = "; ".join(field.metadata["help"] for field in missing)
            raise UserError(f"missing: {names} ({what}); see {self.command} --help")
        return config_class(**values)

    def arguments(self, *omit: type) -> list[str]:
        """The same as arguments again, PRESET first, but for the configurations in `omit`."""
        positional = [self.preset] if self.preset else []
        flags: list[str] = []
        for config_class, values in self.values.items():
            for field in dataclasses.fields(config_class):
                value = values.get(field.name)
                if config_class in omit or value is None:
                    continue
                if field.metadata.get("positional"):
                    positional += map(str, value if isinstance(value, tuple) else [value])
                else:
                    flags += flag_arguments(field.name, value)
        return positional + flags


def _title(field: dataclasses.Field[Any]) -> str:
    """How a field is called on the command line."""
    return field.name.upper() if field.metadata.get("positional") else flag_name(field.name)


class HelpShown(Exception):
    """The help was asked for and is printed: there is nothing more to do."""


def parse(
    command: str,
    about: str,
    parts: list[Part],
    args: list[str],
    presets: bool = False,
    notes: Mapping[str, str] | None = None,
) -> Given:
    """The values in `args`. HelpShown after --help; every mistake is a UserError of one line.

    command: as the user types it, for messages; about: what it does, for the help; presets: whether
    a PRESET may stand among the arguments; notes: see `check_flags`
    """
    import tyro

    if shutil.get_terminal_size().columns < MIN_COLUMNS:
        os.environ["COLUMNS"] = str(MIN_COLUMNS)  # in fewer, tyro's help never ends
    for arg in args:
        if any(ord(character) < 32 or ord(character) == 127 for character in arg):
            raise UserError(f"the argument {arg!r} contains a control character")
        if any(0xD800 <= ord(character) < 0xE000 for character in arg):
            raise UserError(f"the argument {arg!r} is not UTF-8: rename the file or folder")
    args = current_arguments(args)
    fields = {f.name: f for part in parts for _, f in part.fields()}
    flags = {flag_name(f.name): f for f in fields.values() if not f.metadata.get("positional")}
    flags |= {flag_name(f"no_{f.name}"): f for f in fields.values() if value_type(f) is bool}
    check_flags(args, set(flags), notes or {}, f"{command} --help")
    check_values_follow(args, flags)
    _check_paths(args, {flag_name(f.name) for f in fields.values() if element_type(f) is Path})
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            arguments, unknown = tyro.cli(
                _arguments_type(parts, presets),
                prog=command,
                description=about,
                args=args,
                return_unknown_args=True,
                # The help stands in the fields; to look for it in the sources costs 0.25 s.
                config=(tyro.conf.CascadeSubcommandArgs, tyro.conf.HelptextFromCommentsOff),
            )
    except SystemExit as end:
        if end.code:  # a mistake that the checks above do not know
            raise UserError(BOX.sub(" ", written.getvalue()).strip()) from None
        raise HelpShown from None
    subcommand = arguments.pop("PRESET", None)
    preset = type(subcommand).__name__ if subcommand else None
    if unknown:
        names = [_title(f) for f in fields.values() if f.metadata.get("positional")]
        raise _unknown_argument(unknown[0], preset, presets, names)
    values: dict[str, Any] = {}
    for key, value in arguments.items():
        values |= value if isinstance(value, dict) else {key: value}
    for name, field in fields.items():
        if field.metadata.get("repeat"):  # one tuple for each time the flag is given
            several = [v for each in values.pop(name) for v in each]
            values |= {name: tuple(several)} if several else {}
    split = {
        part.config_class: {f.name: values[f.name] for _, f in part.fields() if f.name in values}
        for part in parts
    }
    return Given(command, preset, split)


def _check_paths(args: list[str], path_flags: set[str]) -> None:
    """A UserError for an empty path, which would mean the current folder."""
    for before, arg in zip(["", *args], args, strict=False):
        flag, _, value = arg.partition("=") if arg.startswith("--") else (before, "", arg)
        flag = flag.replace("_", "-")
        if not value and flag in path_flags and arg != flag:
            raise UserError(f"{flag} '': wanted a path")
        if not arg and not before.startswith("--"):
            raise UserError("one of the arguments is empty ('')")


def _unknown_argument(
    argument: str, preset: str | None, presets: bool, names: list[str]
) -> UserError:
    """The error for an argument that is no flag and has no place; names: of those that have one."""
    if argument.startswith("--"):
        flag = argument.partition("=")[0]
        return UserError(f"{flag} is given before and after {preset}; give it once")
    if not presets:
        wanted = f"only {', '.join(names)}" if names else "flags only"
        return UserError(f"unexpected argument {argument!r}; wanted {wanted}")
    if preset is None:
        return unknown_name_error("preset", argument, list(PRESETS))
    return UserError(f"unexpected argument {argument!r}: the preset is {preset} already")


def _arguments_type(parts: list[Part], presets: bool) -> Any:
    """The type that tyro fills: the fields in their groups, all of them absent where not given."""
    import tyro

    typed_dict: Any = typing.TypedDict
    groups: dict[str, dict[str, Any]] = {"": {}}
    for part in parts:
        for group, field in part.fields():
            default = part.defaults.get(field.name, field.default)
            groups.setdefault(group, {})[field.name] = _argument(field, default)
    members = groups.pop("")
    for title, arguments in groups.items():
        group_type = typed_dict(title, arguments, total=False)
        members[f"group {title}"] = Annotated[group_type, tyro.conf.arg(name=title)]
    if presets:
        members["PRESET"] = _preset_type()
    return typed_dict("Arguments", members, total=False)


def _preset_type() -> Any:
    """One of the presets: to tyro a sub-command, so that it may stand anywhere."""
    import tyro

    def changes(fields: dict[str, Any]) -> str:
        return " ".join(" ".join(flag_arguments(*item)) for item in fields.items())

    choices = [
        Annotated[
            dataclasses.make_dataclass(name, []),
            tyro.conf.subcommand(
                name, prefix_name=False, description=changes(preset_changes(name))
            ),
        ]
        for name in PRESETS
    ]
    union: Any = functools.reduce(operator.or_, choices)
    return Annotated[union, tyro.conf.arg(help="PRESET, and the defaults that it changes:")]


def _argument(field: dataclasses.Field[Any], default: Any) -> Any:
    """The annotated type of one argument."""
    import tyro

    wanted, element = value_type(field), element_type(field)
    choices = ",".join(map(str, choices_of(element)))
    metavar = f"{{{choices}}}" if choices else METAVARS.get(element, "")
    several = element is not wanted
    about: Any = functools.partial(
        tyro.conf.arg,
        prefix_name=False,
        help=field.metadata["help"],
        help_behavior_hint=_hint(field, default),
    )
    if field.metadata.get("repeat"):
        many: Any = tuple[tuple[element, ...], ...]  # type: ignore[valid-type]
        many = Annotated[many, tyro.conf.UseAppendAction, about(metavar=f"{metavar} ...")]
        return typing.Required[many]
    if field.metadata.get("positional"):
        name = f"{field.name.upper()}{' ...' if several else ''}"
        return Annotated[wanted, tyro.conf.Positional, about(metavar=name)]
    if element is bool:
        return Annotated[wanted, about()]
    return Annotated[wanted, _values(field, f"{metavar} ..." if several else metavar), about()]


def _values(field: dataclasses.Field[Any], metavar: str) -> Any:
    """How the value of one flag is read; several are separated by spaces or commas."""
    from tyro.constructors import PrimitiveConstructorSpec

    flag, element = flag_name(field.name), element_type(field)
    several = element is not value_type(field)

    def from_text(texts: list[str]) -> Any:
        parts = [part for text in texts for part in text.split(",") if part] if several else texts
        if not parts:
            raise UserError(f"{flag}: wanted one value or more")
        values = tuple(value_of(flag, element, part) for part in parts)
        return values if several else values[0]

    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=metavar,
        instance_from_str=from_text,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(each) for each in value],
    )


def _hint(field: dataclasses.Field[Any], default: Any) -> str:
    """The end of a flag's help."""
    if default is dataclasses.MISSING:
        return "(required)"
    if field.metadata.get("repeat"):
        return "(may be given several times)"
    if default is None or default in ("", ()):
        return ""  # the help describes what happens
    if isinstance(default, bool):
        return f"(default: {'yes' if default else 'no'})"
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"(default: {text})"
