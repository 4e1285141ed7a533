"""What else stands beside the scores: robustness cards, galleries, groups, and doctor's audits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.evaluation.shapes import PAIR
from fer_hpc.files import DAMAGE, check_shape, damage_reason, from_json
from fer_hpc.report.read import Run

SCORE = {"accuracy": float, "accuracy_95": PAIR, "ece": float, "ece_95": PAIR}
MEAN = {"accuracy": float, "accuracy_95": PAIR, "retained": (float, None)}
ROBUST = {
    "data": str,
    "weights": str,
    "n": int,
    "clean": SCORE,
    "mean": MEAN,
    "disturbances": {str: {"title": str, "mean": float}},
}
SUSPECT = {
    "source_id": str,
    "label": str,
    "suggested": str,
    "p_label": float,
    "p_suggested": float,
}
GALLERY = {
    "data": str,
    "weights": str,
    "n": int,
    "label_noise": {
        "candidates": int,
        "seen_in_training": bool,
        "beats_majority": (bool, None),  # not in those of older versions
        "shown": [SUSPECT, ...],
    },
}
AUDIT = {
    "fingerprint": str,
    "damage": [str, ...],
    "findings": {str: {"count": int, "examples": [str, ...]}},
}
LEAKS = ("also in", "nearly the same", "people in both")  # findings about two splits


@dataclass(frozen=True)
class Extra:
    """A robustness card or a gallery of one result of a run."""

    run: Run
    name: str  # of the result
    content: dict[str, Any]


@dataclass(frozen=True)
class Audit:
    """Doctor's findings about a data set."""

    fingerprint: str
    damage: list[str]
    leaks: dict[str, int]  # finding about two splits -> count
    others: dict[str, int]  # further findings that there are

    @property
    def leaked(self) -> int:
        return sum(self.leaks.values())


@dataclass
class Extras:
    """All that was found; `damaged` lists what was left out, and why."""

    robust: list[Extra]
    galleries: list[Extra]
    audits: dict[str, Audit]  # fingerprint -> the newest audit
    damaged: list[tuple[Path, str]]


def read_extras(runs: Sequence[Run], paths: Iterable[Path]) -> Extras:
    """The extras of the runs that have any, and the audits among `paths` and beside the data."""
    damaged: list[tuple[Path, str]] = []

    def of_runs(file: str, wanted: Any) -> list[Extra]:
        extras = []
        for run in runs:
            for name, scores in run.scores.items():
                content = _read(run.path / file.format(name), wanted, damaged)
                if content and content["weights"] == scores["weights"]:
                    extras.append(Extra(run, name, content))
                elif content:
                    path = run.path / file.format(name)
                    damaged.append((path, "is of other weights than the scores beside it"))
        return extras

    robust = of_runs("robust-{}.json", ROBUST)
    galleries = of_runs("gallery-{}.json", GALLERY)
    audits = {}
    for path in sorted(_audit_files(runs, paths), key=lambda p: p.stat().st_mtime):
        if content := _read(path, AUDIT, damaged):
            audits[content["fingerprint"]] = _audit(content)
    return Extras(robust, galleries, audits, damaged)


def _audit_files(runs: Sequence[Run], paths: Iterable[Path]) -> set[Path]:
    """`doctor --out FILE` where it is found: a study's, or doctor.json beside runs or data."""
    folders = {*paths, *(run.data_folder for run in runs), *(run.path.parent for run in runs)}
    names = ("doctor.json", "findings.json")
    files = {folder / name for folder in folders for name in names if (folder / name).is_file()}
    return files | {file for path in paths for file in path.glob("doctor/*/findings.json")}


def _audit(content: dict[str, Any]) -> Audit:
    counts = {what: f["count"] for what, f in content["findings"].items()}
    leaks = {what: n for what, n in counts.items() if any(word in what for word in LEAKS)}
    others = {what: n for what, n in counts.items() if n and what not in leaks}
    return Audit(content["fingerprint"], content["damage"], leaks, others)


def _read(path: Path, wanted: Any, damaged: list[tuple[Path, str]]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = from_json(path.read_bytes())
        check_shape(content, wanted, path.name)
    except DAMAGE as why:
        damaged.append((path, damage_reason(why)))
        return None
    return dict(content)


# ---- calibration and groups ----------------------------------------------------------------------

CALIBRATION = {"ece": float, "ece_95": PAIR, "nll": float, "brier": float}
GAP = {"best": str, "worst": str, "gap": float, "gap_95": PAIR, "verdict": str}


def calibration_of(scores: dict[str, Any]) -> dict[str, Any] | None:
    """The field `calibration` of a result; None where there is none, as in older results."""
    wanted = {
        "temperature": (float, None),
        "before": CALIBRATION,
        "after": (CALIBRATION, None),
    }
    field = scores.get("calibration")
    return dict(field) if field and _fits(field, wanted) else None


def gaps_of(scores: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(column, gap in accuracy between its groups) of a result, the widest gap first."""
    tables = scores.get("groups")
    gaps = [
        (column, {**table["gap"]["accuracy"], "min_n": table["min_n"]})
        for column, table in (tables if isinstance(tables, dict) else {}).items()
        if _fits(table, {"min_n": int, "gap": {"accuracy": GAP}})
    ]
    return sorted(gaps, key=lambda item: -item[1]["gap"])


def _fits(value: Any, wanted: Any) -> bool:
    try:
        check_shape(value, wanted, "")
    except UserError:
        return False
    return True
