"""All parsers under test: importing their modules lists them in `TARGETS`."""

from tests.fuzz import binaries, commands, files, forms, runs, studies, sweeps, weights
from tests.fuzz.guard import TARGETS

__all__ = [
    "TARGETS",
    "binaries",
    "commands",
    "files",
    "forms",
    "runs",
    "studies",
    "sweeps",
    "weights",
]
