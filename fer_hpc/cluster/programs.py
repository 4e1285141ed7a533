"""Asking a scheduler's programs, and reading what they print."""

from __future__ import annotations

import re
import subprocess

PATIENCE_S = 60.0


def output_of(*command: str) -> str:
    """What a program prints; "" where it is missing or does not answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def size_in_bytes(text: str) -> float:
    """Bytes of 1234K, 12M or 1.5G; 0 where it names none."""
    found = re.match(r"([\d.]+)([KMGT]?)", text)
    return float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") if found else 0.0
