"""Stored predictions of a run: reading them, and a temperature that came later. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.evaluation.calibration import FITTED_HERE, calibration, stored_temperature
from fer_hpc.evaluation.results import result_files, scoring_command
from fer_hpc.files import write_json

KINDS = {  # of numpy's dtypes
    "logits": "f",
    "labels": "i",
    "classes": "U",
    "source_id": "S",
    "group": "i",
    "image_hash": "S",
}
ARRAYS = tuple(KINDS)


@dataclass(frozen=True)
class Predictions:
    """predictions-NAME.npz of a run, or the part of it that concerns some faces."""

    run: Path
    logits: NDArray[np.float32]  # [n, classes]
    labels: NDArray[np.int64]  # [n]
    classes: tuple[str, ...]
    source_id: NDArray[np.bytes_]  # [n]
    group: NDArray[np.int64]  # [n] person, -1 unknown
    image_hash: NDArray[np.bytes_]  # [n]

    @property
    def predicted(self) -> NDArray[np.int64]:
        return self.logits.argmax(1)


def read_predictions(run: Path, name: str) -> Predictions:
    """The stored predictions; a UserError where there are none or they are damaged."""
    path = result_files(run, name)["predictions"]
    again = f"{scoring_command(run, name)} writes them"
    if not path.is_file():
        have = sorted(p.stem.removeprefix("predictions-") for p in run.glob("predictions-*.npz"))
        there = f"; it has those of {', '.join(have)}" if have else ""
        raise UserError(f"{run} has no {path.name}{there}; {again}")
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = {key: saved[key] for key in ARRAYS}
    except Exception as why:  # zipfile and numpy have errors of many kinds for other bytes
        raise UserError(f"{path} is damaged ({type(why).__name__}); {again} again") from None
    n, classes = arrays["labels"].size, tuple(str(c) for c in arrays["classes"].ravel())
    shapes = dict.fromkeys(ARRAYS, (n,)) | {"logits": (n, len(classes)), "classes": (len(classes),)}
    if (
        any(a.dtype.kind != KINDS[key] or a.shape != shapes[key] for key, a in arrays.items())
        or not n
        or not 0 <= arrays["labels"].min() <= arrays["labels"].max() < len(classes)
        or not np.isfinite(arrays["logits"]).all()
    ):
        raise UserError(f"{path} is damaged (its arrays do not fit each other); {again} again")
    return Predictions(run, **{**arrays, "classes": classes})


def recalibrate(run: Path, name: str, scores: dict[str, Any]) -> dict[str, Any]:
    """`scores`, with the run's temperature as it is now; the split is not opened again.

    The stored file is replaced where the temperature has changed since it was written.
    """
    temperature, note = stored_temperature(run, scores["weights"])
    old = scores["calibration"]
    is_fitted_here = old["note"] == FITTED_HERE
    if scores["tta"] != "none" or is_fitted_here or temperature == old["temperature"]:
        return scores
    predictions = read_predictions(run, name)
    field = calibration(predictions.logits, predictions.labels, None, temperature, note)
    if abs(field["before"]["nll"] - old["before"]["nll"]) > 1e-6:
        return scores  # soft targets, which the predictions do not hold, or another scoring
    from fer_hpc.evaluation import plots

    scores = {**scores, "calibration": field}
    plots.reliability(field, f"{run.name}, {name}", result_files(run, name)["reliability"])
    write_json(result_files(run, name)["scores"], scores)
    return scores
