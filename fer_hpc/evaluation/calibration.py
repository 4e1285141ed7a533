"""How far a classifier's probabilities can be believed, and the temperature that mends them.

RUN/calibration.json holds the temperature that was fitted on val, with the SHA-256 of the weights
that it belongs to. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.evaluation.intervals import wilson
from fer_hpc.evaluation.metrics import log_softmax
from fer_hpc.files import check_shape, read_stored, write_json

BINS = 15  # of equal mass, for the expected calibration error
RESAMPLES = 1000
MAX_DRAWS = 50_000_000  # of faces; large splits, whose intervals are narrow, are resampled less
TEMPERATURES = (0.05, 20.0)  # the range that is searched
FITTED_HERE = "fitted on these very faces"
STORED = {"temperature": float, "weights": str, "data": str, "n": int}

Probabilities = NDArray[np.float64]  # [n, classes]


# ---- the expected calibration error -----------------------------------------------------------


@dataclass(frozen=True)
class Bins:
    """Faces in bins of equal mass, by their confidence: the largest probability of each."""

    order: NDArray[np.int64]  # [n] faces, least confident first
    starts: NDArray[np.int64]  # [bins] places in `order`
    confidence: NDArray[np.float64]  # [n], in this order
    correct: NDArray[np.float64]  # [n] 0 or 1, in this order

    @staticmethod
    def of(p: Probabilities, labels: NDArray[np.int64], bins: int = BINS) -> Bins:
        """At most one bin for each face."""
        confidence = p.max(1)
        order = np.argsort(confidence, kind="stable")
        n = len(order)
        starts = np.arange(min(bins, n)) * n // min(bins, n)
        return Bins(order, starts, confidence[order], (p.argmax(1) == labels)[order].astype(float))

    def error(self, correct: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Sum over the bins of |confidence - accuracy| x share of the faces.

        For other outcomes `correct` [..., n] (in the bins' order) in place of the true ones.
        """
        gap = self.confidence - (self.correct if correct is None else correct)
        return np.asarray(np.abs(np.add.reduceat(gap, self.starts, -1)).sum(-1) / gap.shape[-1])


def ece_interval(bins: Bins, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % basic bootstrap interval of the error, over faces, in the bins as they are.

    Noise adds to the estimate, and resampling adds it a second time. The basic interval (Davison
    and Hinkley 1997) mirrors the resampled errors at the estimate, which takes the noise off; the
    percentile interval would often lie above the estimate. Where it ends below the estimate, which
    few faces make too large, it is widened to it.
    """
    n, rng = len(bins.order), np.random.default_rng(0)
    gap = bins.confidence - bins.correct
    bin_of = np.repeat(np.arange(len(bins.starts)), np.diff([*bins.starts, n]))
    drawn = np.empty(min(resamples, max(100, MAX_DRAWS // n)))
    for i in range(len(drawn)):
        faces = rng.integers(0, n, n)
        sums = np.bincount(bin_of[faces], gap[faces], len(bins.starts))
        drawn[i] = np.abs(sums).sum() / n
    error = float(bins.error())
    low, high = 2 * error - np.percentile(drawn, (97.5, 2.5))
    return float(np.clip(low, 0, error)), float(np.clip(high, error, 1))


def ece_of_calibrated(bins: Bins, resamples: int = 200) -> float:
    """The error that a perfectly calibrated classifier with these confidences shows on average.

    It is not zero: with few faces, a bin's accuracy differs from its confidence by chance.
    """
    rng = np.random.default_rng(1)
    total = 0.0
    for _ in range(resamples):
        total += float(bins.error(rng.random(len(bins.order)) < bins.confidence))
    return total / resamples


def reliability(bins: Bins) -> list[dict[str, Any]]:
    """Each bin: n, mean confidence, accuracy, and Wilson's interval of the accuracy."""
    rows = []
    parts = (np.split(values, bins.starts[1:]) for values in (bins.confidence, bins.correct))
    for confidence, correct in zip(*parts, strict=True):
        hits = int(correct.sum())
        rows.append(
            {
                "n": len(correct),
                "confidence": float(confidence.mean()),
                "accuracy": hits / len(correct),
                "accuracy_95": wilson(hits, len(correct)),
            }
        )
    return rows


def brier(p: Probabilities, truth: Probabilities) -> float:
    """Mean squared distance of the probabilities from the truth (Brier 1950), from 0 to 2."""
    return float(((p - truth) ** 2).sum(1).mean())


def scores(
    logits: NDArray[Any],
    labels: NDArray[np.int64],
    targets: NDArray[Any] | None = None,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Calibration of softmax(logits / temperature): nll (nats), brier, ece, bins.

    With `targets` [n, classes], nll and brier are against these distributions.
    """
    log_p = log_softmax(logits / temperature)
    p = np.exp(log_p)
    truth = np.eye(p.shape[1])[labels] if targets is None else targets
    bins = Bins.of(p, labels)
    return {
        "nll": float(-(truth * log_p).sum(1).mean()),
        "brier": brier(p, truth),
        "ece": float(bins.error()),
        "ece_95": ece_interval(bins),
        "ece_of_calibrated": ece_of_calibrated(bins),
        "bins": reliability(bins),
    }


# ---- the temperature --------------------------------------------------------------------------


def fit_temperature(
    logits: NDArray[Any], labels: NDArray[np.int64], targets: NDArray[Any] | None = None
) -> float:
    """The temperature with the smallest cross-entropy (Guo et al. 2017).

    The cross-entropy is convex in 1 / temperature, so that a bounded search finds it.
    """
    from scipy.optimize import minimize_scalar  # a tenth of a command's start, and few need it

    truth = np.eye(logits.shape[1])[labels] if targets is None else targets

    def nll(log_temperature: float) -> float:
        log_p = log_softmax(logits * np.exp(-log_temperature))
        return float(-(truth * log_p).sum(1).mean())

    bounds = tuple(np.log(TEMPERATURES))
    minimum = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(minimum.x))


def calibration_file(run: Path) -> Path:
    return run / "calibration.json"


def store_temperature(run: Path, temperature: float, weights: str, data: str, n: int) -> None:
    """Write RUN/calibration.json; `weights` is the SHA-256 of their file, `n` the faces of val."""
    content = {"temperature": temperature, "fitted_on": "val", "weights": weights, "data": data}
    write_json(calibration_file(run), {**content, "n": n})


def stored_temperature(run: Path, weights: str) -> tuple[float | None, str]:
    """The temperature of these weights; None, and why, where there is none that can be used."""
    how = f"fer-hpc evaluate {run} (on val) fits it"
    try:
        content = read_stored(calibration_file(run))
        if content is None:
            return None, f"no temperature yet; {how}"
        check_shape(content, STORED, "calibration.json")
    except UserError as error:
        return None, str(error)
    if content["weights"] != weights:
        return None, f"the temperature in calibration.json is that of other weights; {how}"
    low, high = TEMPERATURES
    if not low <= content["temperature"] <= high:
        return None, f"the temperature in calibration.json is impossible; {how}"
    return float(content["temperature"]), ""


def calibration(
    logits: NDArray[Any],
    labels: NDArray[np.int64],
    targets: NDArray[Any] | None,
    temperature: float | None,
    note: str,
) -> dict[str, Any]:
    """The field `calibration` of eval-NAME.json: before, and after where there is a temperature."""
    before = scores(logits, labels, targets)
    after = scores(logits, labels, targets, temperature) if temperature else None
    return {"temperature": temperature, "note": note, "before": before, "after": after}
