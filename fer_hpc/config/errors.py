"""Errors for the person at the keyboard, and exit codes. Standard library only."""

from __future__ import annotations

import difflib

# Exit codes of every command. 75 is sysexits' EX_TEMPFAIL: the same command will go on where this one stopped.
EXIT_FINISHED, EXIT_CRASHED, EXIT_USER_ERROR, EXIT_FINDINGS, EXIT_TAKEN_OVER, EXIT_RUN_AGAIN = (
    0,
    1,
    2,
    3,
    4,
    75,
)


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; printed as one message, never as a traceback."""


def flag_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def unknown_name_error(what: str, got: str, valid: list[str]) -> UserError:
    """The error for a name that is not one of `valid`; suggests the nearest."""
    near = difflib.get_close_matches(got, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {what} {got!r}{hint} (known: {', '.join(valid)})")
