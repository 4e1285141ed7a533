"""The files that a scoring leaves in a run folder: their names and how they are read. No torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.manifest import Manifest, find_manifest, read_manifest
from fer_hpc.evaluation.shapes import SCORES
from fer_hpc.files import check_shape, read_record, read_stored
from fer_hpc.run.folder import best_row, data_folder

ROBUSTNESS, GALLERY = "robustness", "gallery"  # what evaluate can write beside the scores
ON = "-on-"  # in NAME, before the data set


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
    return name_on(name, config.data)


def name_on(name: str, data: Path) -> str:
    """NAME of the same scoring on the data of another folder."""
    return f"{name}{ON}{re.sub(r'[^A-Za-z0-9_-]+', '_', data.absolute().name)}"


def scoring_command(run: Path, name: str) -> str:
    """The command that writes the results of NAME."""
    views, _, data = name.partition(ON)
    split, _, tta = views.partition("-")
    flags = (f" --tta {tta}" if tta else "") + (f" --data DIR (its folder {data})" if data else "")
    return f"fer-hpc evaluate {run} --split {split}{flags}"


def scored_data(config: EvaluateConfig, trained_on: str) -> Manifest:
    """The data that --data names, else that of the run's training, with fingerprint `trained_on`.

    UserError where there is none, or where the run's own is not what the run was trained on any
    more: its scores would pass for the run's.
    """
    if config.data:
        return read_manifest(config.data)
    folder = data_folder(config.run)
    manifest = find_manifest(folder)
    if manifest is None:
        raise UserError(
            f"the data of {config.run} is not at {folder} any more; give --data DIR, its folder now"
        )
    if manifest.fingerprint != trained_on:
        raise UserError(
            f"{folder} was made again: it holds the data {manifest.fingerprint}, {config.run} was "
            f"trained on {trained_on}; give --data with the folder of those shards, or --data "
            f"{folder} to score the run on these, as {name_on(config.split, folder)}"
        )
    return manifest


def result_files(run: Path, name: str) -> dict[str, Path]:
    """The files of one scoring: scores (JSON), predictions (NPZ) and plots (PNG)."""
    return {
        "scores": run / f"eval-{name}.json",
        "predictions": run / f"predictions-{name}.npz",
        "confusion": run / f"confusion-{name}.png",
        "reliability": run / f"reliability-{name}.png",
    }


def say_replaced(run: Path, name: str, data: str) -> None:
    """A line where eval-NAME.json is of other data: folders of two data sets may share a name."""
    path = result_files(run, name)["scores"]
    old = read_record(path, {"data": str})
    if old and old["data"] != data:
        print(
            f"warning: {path} was of the data {old['data']}; replaced by scores on {data}",
            file=sys.stderr,
        )


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


def outdated(scores: Mapping[str, Any], rows: list[dict[str, Any]], state: str) -> str:
    """Why scores are not of the best epoch any more, in words; "" where they are.

    `rows` are those of metrics.jsonl, `state` the run's. Scores of a run that has not finished are
    of its best epoch so far, and known as such.
    """
    best = best_row(rows)
    is_final = scores["finished"] or state == "finished"
    if not best or not is_final or scores["epoch"] == best["epoch"]:
        return ""
    if scores["epoch"] not in {row.get("epoch") for row in rows}:
        return ""  # lines are lost, and perhaps those of the best epoch
    return f"is of epoch {scores['epoch']}, and the best is {best['epoch']} now"


def empty_classes(classes: Mapping[str, Any]) -> str:
    """What averages over `classes`, a field of scores, leave out, in words; "" if nothing."""
    empty = [name for name, of_class in classes.items() if not of_class["n"]]
    if not empty:
        return ""
    return (
        f"no face is {' or '.join(empty)}: balanced accuracy and macro-F1 are means over the other "
        f"{len(classes) - len(empty)}"
    )
