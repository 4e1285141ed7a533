"""The files that a scoring leaves in a run folder: their names and how they are read. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.manifest import find_manifest
from fer_hpc.evaluation.shapes import SCORES
from fer_hpc.files import check_shape, read_record, read_stored

ROBUSTNESS, GALLERY = "robustness", "gallery"  # what evaluate can write beside the scores


def result_name(config: EvaluateConfig, trained_on: str) -> str:
    """NAME in eval-NAME.json: the split, the views averaged, and a data set other than the run's.

    `trained_on` is the fingerprint of the data that the run was trained on.
    """
    name = config.split if config.tta == "none" else f"{config.split}-{config.tta}"
    if config.data is None:
        return name
    manifest = find_manifest(config.data)
    if manifest and manifest.fingerprint == trained_on:
        return name
    return f"{name}-on-{re.sub(r'[^A-Za-z0-9_-]+', '_', config.data.absolute().name)}"


def result_files(run: Path, name: str) -> dict[str, Path]:
    """The files of one scoring: scores (JSON), predictions (NPZ) and plots (PNG)."""
    return {
        "scores": run / f"eval-{name}.json",
        "predictions": run / f"predictions-{name}.npz",
        "confusion": run / f"confusion-{name}.png",
        "reliability": run / f"reliability-{name}.png",
    }


def read_scores(path: Path, wanted: Any = SCORES) -> dict[str, Any]:
    """The content of eval-NAME.json; a UserError where it is damaged or has other fields.

    `wanted` are its fields, by default those of a classifier's scores.
    """
    scores = read_stored(path)
    if scores is None:
        raise UserError(f"{path} does not exist")
    check_shape(scores, wanted, path.name)
    return dict(scores)


def wanted_extras(config: EvaluateConfig) -> list[str]:
    """What a command writes beside the scores: robustness, gallery."""
    wanted = {ROBUSTNESS: config.robust, GALLERY: config.gallery}
    return [name for name, is_wanted in wanted.items() if is_wanted]


def extra_files(run: Path, name: str) -> dict[str, Path]:
    """What of a robustness card or a gallery says which weights and data it is of."""
    return {ROBUSTNESS: run / f"robust-{name}.json", GALLERY: run / f"gallery-{name}.json"}


def is_current(path: Path, data: str, weights: str) -> bool:
    """Whether a result file is of this data (a fingerprint) and these weights (SHA-256)."""
    record = read_record(path, {"data": str, "weights": str})
    return bool(record and (record["data"], record["weights"]) == (data, weights))
