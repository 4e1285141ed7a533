"""A run as a trial of a sweep: SWEEP/trials/NAME, which SWEEP/sweep.json lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.config.fields import AUTOMATIC
from fer_hpc.files import read_record
from fer_hpc.run.folder import find_run_config

# Trials that have these in common resolve the same automatic values and need the same plugins.
RESOLVED_ALIKE = ("model", "loss", *AUTOMATIC)


def swept_fields(run: Path) -> list[str]:
    """The fields that the sweep of a trial varies; none where `run` is no trial."""
    return list(_trials_beside(run).get(run.name, ()))


def earlier_trial(run: Path) -> dict[str, Any] | None:
    """config.json of another trial of the same sweep, with the same swept values of what a start
    resolves; None where no such trial has begun, or `run` is no trial."""
    trials = _trials_beside(run)
    own = trials.pop(run.name, None)
    if own is None:
        return None
    alike = [
        run.absolute().with_name(name)
        for name, swept in trials.items()
        if all(swept.get(f) == own.get(f) for f in RESOLVED_ALIKE)
    ]
    return next(filter(None, map(begun_trial, alike)), None)


def begun_trial(run: Path) -> dict[str, Any] | None:
    """config.json of a trial; None before its first start, and where it is damaged, which that
    trial's own start says."""
    try:
        return find_run_config(run)
    except UserError:
        return None


def _trials_beside(run: Path) -> dict[str, dict[str, Any]]:
    """The swept values of all trials in the sweep of `run`, by name."""
    sweep = read_record(run.absolute().parent.parent / "sweep.json", {"trials": {str: {}}}) or {}
    return dict(sweep.get("trials", {}))
