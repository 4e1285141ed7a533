"""Scores with intervals. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000  # of the bootstrap


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    z = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def loss_and_accuracy(logits: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cross-entropy (nats) and share correct; logits [n, classes], labels [n]."""
    loss = -log_softmax(logits)[np.arange(len(labels)), labels].mean()
    return float(loss), float((logits.argmax(1) == labels).mean())


def smoothed_loss(logits: NDArray[Any], labels: NDArray[np.int64], smoothing: float) -> float:
    """Mean cross-entropy against targets of which all classes share `smoothing` alike (the report's ResNet losses)."""
    log_p = log_softmax(logits)
    return float(
        -(
            (1 - smoothing) * log_p[np.arange(len(labels)), labels] + smoothing * log_p.mean(1)
        ).mean()
    )


def valence_arousal(
    predicted: NDArray[Any], truth: NDArray[Any], prefix: str = ""
) -> dict[str, float]:
    """RMSE, concordance correlation (Lin 1989) and agreement in sign of valence and arousal [n, 2]; NaN truths are left out.

    A dimension without a single truth is absent from the result.
    """
    found: dict[str, float] = {}
    for k, name in enumerate(("valence", "arousal")):
        known = np.isfinite(truth[:, k])
        p, t = predicted[known, k].astype(np.float64), truth[known, k].astype(np.float64)
        if len(t):
            spread = p.var() + t.var() + (p.mean() - t.mean()) ** 2
            covariance = ((p - p.mean()) * (t - t.mean())).mean()
            found[f"{prefix}{name}_rmse"] = float(np.sqrt(((p - t) ** 2).mean()))
            found[f"{prefix}{name}_ccc"] = float(2 * covariance / spread) if spread else 0.0
            found[f"{prefix}{name}_sign"] = float((np.sign(p) == np.sign(t)).mean())
    return found


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Counts [true class, predicted class]."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, middle = correct / n, (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * p * (1 - p) + z * z / 4)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of a mean; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    from scipy.special import stdtrit  # a tenth of a command's start, and few need it

    half = float(stdtrit(n - 1, 0.5 + level / 2) * np.std(values, ddof=1) / np.sqrt(n))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def recalls(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Recall of each class, NaN where a class has no face; counts [..., classes, classes]."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.diagonal(counts, axis1=-2, axis2=-1) / counts.sum(-1))


def precisions(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Precision of each class, 0 where it was never predicted."""
    predicted = counts.sum(-2)
    return np.asarray(np.diagonal(counts, axis1=-2, axis2=-1) / np.maximum(predicted, 1))


def f1s(counts: NDArray[Any]) -> NDArray[np.float64]:
    """F1 of each class, NaN where the class has no face."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        f1 = 2 * hits / (counts.sum(-1) + counts.sum(-2))
    return np.asarray(np.where(counts.sum(-1) > 0, f1, np.nan))


def summary(
    logits: NDArray[Any], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Everything a table needs, JSON-ready.

    Averages over classes leave out classes without a face. Accuracy has Wilson's interval; balanced accuracy and
    macro-F1 have percentile bootstrap intervals (resampling faces is drawing the confusion's cells anew).
    """
    n = len(labels)
    loss, accuracy = loss_and_accuracy(logits, labels)
    counts = confusion(labels, logits.argmax(1), len(classes))
    drawn = (
        np.random.default_rng(0)
        .multinomial(n, counts.ravel() / n, RESAMPLES)
        .reshape(-1, *counts.shape)
    )
    per_class = zip(
        classes, counts.sum(1), recalls(counts), precisions(counts), f1s(counts), strict=True
    )
    return {
        "n": n,
        "loss": loss,
        "accuracy": accuracy,
        "accuracy_95": wilson(round(accuracy * n), n),
        "balanced_accuracy": _class_mean(recalls(counts)),
        "balanced_accuracy_95": _interval(recalls(drawn)),
        "macro_f1": _class_mean(f1s(counts)),
        "macro_f1_95": _interval(f1s(drawn)),
        "majority_rate": float(counts.sum(1).max() / n),
        "classes": {
            name: {"n": int(k), "recall": _number(r), "precision": _number(p), "f1": _number(f)}
            for name, k, r, p, f in per_class
        },
        "pairs": pairs(logits, labels, classes),
        "confusion": counts.tolist(),
    }


# Expressions that are easily taken for each other.
SIMILAR = (("Surprise", "Fear"), ("Anger", "Disgust"), ("Sadness", "Neutral"))


def pairs(
    logits: NDArray[Any], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """How well similar expressions are told apart: of the faces of either class, the share whose own logit is the larger of
    the two, with Wilson's interval; and the shares of each that were taken for the other among all classes."""
    found = []
    for pair in SIMILAR:
        if not set(pair) <= set(classes):
            continue
        a, b = (classes.index(name) for name in pair)
        here = (labels == a) | (labels == b)
        n = int(here.sum())
        if not n:
            continue
        right = np.where(labels[here] == a, 1, -1) * (logits[here, a] - logits[here, b]) > 0
        taken = [
            float((logits[labels == i].argmax(1) == j).mean()) if (labels == i).any() else None
            for i, j in ((a, b), (b, a))
        ]
        found.append(
            {
                "classes": list(pair),
                "n": n,
                "accuracy": float(right.mean()),
                "accuracy_95": wilson(int(right.sum()), n),
                "taken_for_the_other": taken,
            }
        )
    return found


def _class_mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values))


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval of the class means of `values` [resamples, classes]."""
    low, high = np.nanpercentile(np.nanmean(values, axis=1), (2.5, 97.5))
    return float(low), float(high)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
