"""What a finished run has at the top of its folder: copies of its attempts' files."""

from __future__ import annotations

import filecmp
from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.files import copy_file, to_jsonl, write_bytes
from fer_hpc.run.folder import (
    attempt_lineage,
    attempt_numbers,
    attempt_path,
    has_results,
    outcome_file,
    read_rows,
    read_status,
)

WEIGHTS = ("final.pt", "best.pt")


def found_weights(path: Path) -> Path | None:
    """The file that --init-from means, a run folder's best.pt or the file itself, if there is."""
    file = outcome_file(path, "best.pt") if path.is_dir() else path
    return file if file and file.is_file() else None


def weights_file(path: Path) -> Path:
    """`found_weights`, or a UserError that says what is missing."""
    if file := found_weights(path):
        return file
    if path.is_dir():
        raise UserError(
            f"--init-from {path}: no finished run in it (no best.pt); "
            "finish it, or give a file of weights"
        )
    raise UserError(f"--init-from {path}: no such file or run folder")


def check_history(run: Path) -> None:
    """UserError where a run has results, but not the records that say what they belong to."""
    numbers = attempt_numbers(run)
    if not numbers and (left := [name for name in WEIGHTS if (run / name).exists()]):
        raise UserError(
            f"{run} has {left[0]}, but not the folder attempts/ that it came from; "
            "restore that from a copy, or give another --run folder"
        )
    newest = next(attempt_lineage(run), (0, 0.0))[0]
    if numbers and numbers[-1] != newest and has_results(run, numbers[-1]):
        record = attempt_path(run, numbers[-1]) / "environment.json"
        raise UserError(
            f"{record} is missing or damaged, and with it what this attempt continued; "
            "restore it from a copy, or give another --run folder"
        )


def damaged_copies(run: Path) -> list[str]:
    """The names of the copies of a finished run that are missing, cut or changed."""
    if read_status(run)["state"] != "finished":
        return []
    names = [
        name
        for name in WEIGHTS
        if (source := outcome_file(run, name)) and not _are_equal(source, run / name)
    ]
    metrics, rows = run / "metrics.jsonl", to_jsonl(read_rows(run))
    if not metrics.is_file() or metrics.read_bytes() != rows:
        names.append(metrics.name)
    return names


def restore_copies(run: Path) -> list[str]:
    """Make what `damaged_copies` names again; gives a line for each."""
    names = damaged_copies(run)
    for name in names:
        source = outcome_file(run, name)
        if source:
            copy_file(source, run / name)
        else:
            write_bytes(run / name, to_jsonl(read_rows(run)))
    return [f"{run / name} was missing, cut or changed; made again" for name in names]


def _are_equal(source: Path, copy: Path) -> bool:
    return copy.is_file() and filecmp.cmp(source, copy, shallow=False)
