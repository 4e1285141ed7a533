"""Write docs/flags.md from the definitions of the fields: python docs/make_flags.py [--check]"""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any

from fer_hpc.cli.flags import Part
from fer_hpc.cli.parse import parts_of
from fer_hpc.cli.table import VERBS
from fer_hpc.config import (
    PRESETS,
    GanConfig,
    TrainConfig,
    flag_arguments,
    flag_name,
    preset_changes,
)
from fer_hpc.config.fields import value_type
from fer_hpc.config.jobs import JobConfig, PipelineConfig

PAGE = Path(__file__).parent / "flags.md"
HEAD = """# Flags

Made by `make flags` from the definitions in `fer_hpc/config/`; `fer-hpc VERB --help` has them too.

- A command is `fer-hpc VERB` or `python -m fer_hpc.VERB`. A flag is `--name VALUE` or
  `--name=VALUE`; a switch is `--name` or `--no-name`. Several values follow one flag,
  separated by spaces or commas.
- *Science* fields decide the results. They are compared when a run continues, and its id is their
  hash. All other fields may change between starts of a run.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for name, verb in VERBS.items():
        parts.append(f"## {name}\n\n{verb.about}\n")
        if name == "sheet":
            parts.append("PRESET and flags are those of [train](#train).\n")
            continue
        if name == "tune":
            parts.append("It takes a PRESET and the flags of [train](#train) as well.\n")
        own = parts_of(name)[:1] if name == "tune" else parts_of(name)
        parts.append(_tables(own))
    for title, config_class in (("jobs/*.py", JobConfig), ("jobs/pipeline.py", PipelineConfig)):
        parts.append(f"## {title}\n\n{config_class.__doc__}\n")
        parts.append("The flags of the submitted commands may be added.\n")
        parts.append(_tables([Part(config_class)]))
    parts.append("## Presets\n\nA PRESET of train sets these defaults.\n")
    parts.append("| Preset | Flags |\n|---|---|")
    for preset in PRESETS:
        flags = [" ".join(flag_arguments(*item)) for item in preset_changes(preset).items()]
        parts.append(f"| {preset} | `{' '.join(flags)}` |")
    return "\n".join(parts) + "\n"


def _tables(parts: list[Part]) -> str:
    """The flags of a command, a table for each group."""
    groups: dict[str, list[tuple[dataclasses.Field[Any], Any]]] = {}
    for part in parts:
        for group, field in part.fields():
            default = part.defaults.get(field.name, field.default)
            groups.setdefault(group, []).append((field, default))
    is_run = parts[0].config_class in (TrainConfig, GanConfig)
    lines: list[str] = []
    for group, fields in groups.items():
        lines += [f"**{group.capitalize()}**", ""] if len(groups) > 1 and group else []
        lines.append("| Flag | Value | Default | What |" + (" Science |" if is_run else ""))
        lines.append("|---|---|---|---|" + ("---|" if is_run else ""))
        lines += [_row(field, default, is_run) for field, default in fields] + [""]
    return "\n".join(lines)


def _row(field: dataclasses.Field[Any], default: Any, is_run: bool) -> str:
    positional = field.metadata.get("positional")
    name = field.name.upper() if positional else f"`{flag_name(field.name)}`"
    cells = [name, _values(field), _default(default), field.metadata["help"]]
    if is_run:
        cells.append("yes" if field.metadata["kind"] == "science" else "")
    return f"| {' | '.join(cells)} |"


def _values(field: dataclasses.Field[Any]) -> str:
    """The type, choices or range of a field."""
    wanted = value_type(field)
    several = typing.get_origin(wanted) is tuple
    if several:
        wanted = typing.get_args(wanted)[0]
    if typing.get_origin(wanted) is typing.Literal:
        return ", ".join(map(str, typing.get_args(wanted)))
    names = {int: "whole number", float: "number", str: "text", Path: "path", bool: "switch"}
    text = names[wanted] + (", several" if several else "")
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if high is not None:
        return f"{text}, {low} to {high}"
    return text if low is None else f"{text}, at least {low}"


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", ()):
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() != page():
            sys.exit("docs/flags.md is not up to date: make flags")
    else:
        PAGE.write_text(page())
