"""How often a run's test split was opened: RUN/test-openings.jsonl, one line each time.

A test split that chooses between runs, epochs or thresholds measures nothing any more, so every
computation of outputs on it is recorded before it begins. No torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.files import check_shape, from_json, naming

LINE = {"date": str, "what": [str, ...], "data": str, "config": str, "weights": str, "count": int}


def openings_file(run: Path) -> Path:
    return run / "test-openings.jsonl"


def read_openings(run: Path) -> tuple[list[dict[str, Any]], int]:
    """The recorded openings, oldest first, and the number of damaged lines."""
    path = openings_file(run)
    if not path.exists():
        return [], 0
    openings: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines()
    for line in lines:
        try:
            row = from_json(line)
            check_shape(row, LINE, path.name)
        except (ValueError, RecursionError, UserError):
            continue
        openings.append(row)
    return openings, len(lines) - len(openings)


def count_openings(run: Path, data: str) -> int:
    """Openings of the test split of the data with this fingerprint."""
    return sum(row["data"] == data for row in read_openings(run)[0])


def record_opening(
    run: Path, what: Sequence[str], data: str, config: str, weights: str
) -> dict[str, Any]:
    """Add a line for the test split of `data` (a fingerprint), and give it.

    what: what it is opened for; config: the hash of the run's science fields; weights: the SHA-256
    of their file. A damaged line counts as an opening.
    """
    openings, damaged = read_openings(run)
    line = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "what": list(what),
        "data": data,
        "config": config,
        "weights": weights,
        "count": sum(row["data"] == data for row in openings) + damaged + 1,
    }
    path = openings_file(run)
    text = json.dumps(line).encode() + b"\n"
    with naming(path), path.open("a+b") as f:
        if f.tell() and (f.seek(-1, os.SEEK_END), f.read(1))[1] != b"\n":
            text = b"\n" + text  # the last line was cut off; this one stays whole
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    return line


def note_opening(
    run: Path, split: str, what: Sequence[str], data: str, stored: dict[str, Any], weights: str
) -> None:
    """Record and print that a test split is opened; nothing for other splits.

    stored: the run's config.json; for the rest see `record_opening`
    """
    if split == "test":
        line = record_opening(run, what, data, stored.get("id", ""), weights)
        print(f"{run}: {opening_text(line)}", flush=True)


def opening_text(line: dict[str, Any]) -> str:
    """The line as a sentence for the terminal."""
    count = line["count"]
    text = f"test split opened for the {ordinal(count)} time ({', '.join(line['what'])})"
    return text if count == 1 else f"{text}; it must choose nothing: choose on val"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, ..."""
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
