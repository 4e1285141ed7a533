"""Runs that differ in known ways, and the page of a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fer_hpc.config.commands import ReportConfig
from fer_hpc.report.report import report


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; `data__path` is field `path` of field `data`."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = content
        for key in outer:
            place = place[key]
        place[last] = value
    path.write_text(json.dumps(content))


def another(run: Path, to: Path, accuracy: float | None = None, **config: Any) -> Path:
    """A copy of a run with other fields in config.json and another accuracy on val and test."""
    shutil.copytree(run, to)
    edit_json(to / "config.json", **config)
    fingerprint = json.loads((to / "config.json").read_text())["data"]["fingerprint"]
    for split in ("val", "test"):
        changes = {} if accuracy is None else {"accuracy": accuracy}
        edit_json(to / f"eval-{split}.json", data=fingerprint, **changes)
    return to


def edit_history(run: Path, **changes: Any) -> None:
    """Change fields in every row of a run's metrics.jsonl."""
    for file in run.glob("attempts/*/metrics.jsonl"):
        rows = [json.loads(line) | changes for line in file.open()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def heading(label: str) -> str:
    """What a run's card begins with, after its level and id."""
    return f'">{label} <span class="state '


def page_of(*runs: Path, out: Path) -> str:
    return report(ReportConfig(runs, out)).read_text()
