"""Reading what a scheduler's programs print."""

from __future__ import annotations

import re


def number_of(text: str) -> float:
    """The number that a text begins with; 0 where there is none."""
    match = re.match(r"\d{1,15}(?:\.\d{1,9})?", text, re.ASCII)
    return float(match[0]) if match else 0.0


def size_in_bytes(text: str) -> float:
    """Bytes of 1234K, 12M or 1.5G; 0 where it names none."""
    unit = re.match(r"[\d.]+([KMGT])", text)
    return number_of(text) * 1024 ** " KMGT".index(unit[1] if unit else " ")
