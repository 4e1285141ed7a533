"""Names that have changed: stored files, scripts and notebooks may still use the old ones."""

from __future__ import annotations

from typing import Any

FIELDS = {  # old name of a field -> present name
    "asha_keep": "asha_reduction_factor",
    "asha_first": "asha_first_rung",
}
VALUES = {  # (field, old value) -> present value
    ("mode", "mended"): "improved",
}


def current_value(field: str, value: Any) -> Any:
    """The present name of a field's value."""
    return VALUES.get((field, value), value) if isinstance(value, str) else value


def current_science(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored fields of a run under their present names and values."""
    renamed = {FIELDS.get(name, name): value for name, value in stored.items()}
    return {name: current_value(name, value) for name, value in renamed.items()}


def current_arguments(args: list[str]) -> list[str]:
    """A command line with old flags and old values replaced by the present ones."""
    arguments: list[str] = []
    field = ""
    for arg in args:
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            name = name.replace("-", "_")
            field = FIELDS.get(name, name)
            if name in FIELDS:
                arg = f"--{field.replace('_', '-')}{equals}{value}"
            if (field, value) in VALUES:
                arg = arg.removesuffix(value) + VALUES[field, value]
        elif (field, arg) in VALUES:
            arg = VALUES[field, arg]
        arguments.append(arg)
    return arguments
