"""Errors for the user, and exit codes. Standard library only."""

from __future__ import annotations

import difflib
import re
import shlex

# Exit codes of every command.
EXIT_FINISHED = 0
EXIT_CRASHED = 1
EXIT_USER_ERROR = 2
EXIT_FINDINGS = 3
EXIT_TAKEN_OVER = 4
EXIT_RUN_AGAIN = 75  # sysexits' EX_TEMPFAIL: the same command continues where this one stopped


MAX_MESSAGE = 3800  # characters


class UserError(Exception):
    """A mistake that the user can correct; printed as one message (`one_line`), no traceback."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """A message as one short line, whatever a file or a command line brings into it.

    Control characters become spaces. Of a word that is longer than any path's useful part, and of
    a message over MAX_MESSAGE, only both ends are left.
    """
    line = "".join(c if c.isprintable() else " " for c in message)
    line = re.sub(r"(\S{200})\S{600,}(\S{200})", r"\1...\2", line)
    half = MAX_MESSAGE // 2
    return line if len(line) <= MAX_MESSAGE else f"{line[:half]} ... {line[-half:]}"


def counted(n: int, noun: str) -> str:
    """`1 face`, `2,000 faces`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def apart(value: float, bound: float) -> str:
    """A number with as many digits as tell it from the bound that it misses."""
    texts = (f"{value:.{digits}g}" for digits in range(2, 18))
    return next((text for text in texts if float(text) != bound), str(value))


def flag_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def unknown_name_error(what: str, got: str, valid: list[str]) -> UserError:
    """The error for a name that is not one of `valid`; suggests the nearest."""
    near = difflib.get_close_matches(got, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {what} {got!r}{hint} (known: {', '.join(valid)})")


def choice_error(flag: str, got: object, choices: list[str]) -> UserError:
    """The error for a value of a flag that is not one of `choices`; suggests the one meant."""
    text = str(got).lower()
    near = difflib.get_close_matches(text, choices, n=1) or [
        c for c in choices if text and (text.startswith(c) or c.startswith(text))
    ]
    hint = f"; did you mean {near[0]}?" if len(near) == 1 else ""
    word = shlex.quote(str(got))
    return UserError(f"{flag} {word}: wanted one of {', '.join(choices)}{hint}")
