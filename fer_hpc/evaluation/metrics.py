"""The table of metrics, and how they are computed from outputs and labels. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import unknown_name_error
from fer_hpc.config.errors import counted
from fer_hpc.evaluation.intervals import bootstrap_interval, clip_interval, mean_interval, wilson

RESAMPLES = 2000  # of the bootstrap
MIN_SEEDS = 3  # for an interval of the mean over seeds
SPLIT_PREFIXES = ("train_", "val_", "test_")  # val_accuracy is the accuracy on val


@dataclass(frozen=True)
class Metric:
    """A number that a table can hold: which direction is better, its range, and how it is shown.

    `percent` metrics are shares, which tables for people show in percent.
    """

    title: str
    higher_is_better: bool
    bounds: tuple[float, float] = (0.0, 1.0)
    format: str = ".4f"
    percent: bool = True


METRICS: dict[str, Metric] = {
    "loss": Metric("loss", False, (0.0, math.inf), percent=False),
    "objective": Metric("objective", False, (-math.inf, math.inf), percent=False),
    "accuracy": Metric("accuracy", True),
    "balanced_accuracy": Metric("balanced accuracy", True),
    "macro_f1": Metric("macro-F1", True),
    "top_2": Metric("top-2 accuracy", True),
    "kappa": Metric("Cohen's kappa", True, (-1.0, 1.0), percent=False),
    "nll": Metric("cross-entropy", False, (0.0, math.inf), percent=False),
    "brier": Metric("Brier score", False, (0.0, 2.0), percent=False),
    "ece": Metric("calibration error", False),
    "recall": Metric("recall", True),
    "precision": Metric("precision", True),
    "f1": Metric("F1", True),
    "valence_rmse": Metric("valence RMSE", False, (0.0, math.inf), percent=False),
    "valence_ccc": Metric("valence CCC", True, (-1.0, 1.0), percent=False),
    "valence_sign": Metric("valence sign agreement", True),
    "arousal_rmse": Metric("arousal RMSE", False, (0.0, math.inf), percent=False),
    "arousal_ccc": Metric("arousal CCC", True, (-1.0, 1.0), percent=False),
    "arousal_sign": Metric("arousal sign agreement", True),
}


def find_metric(name: str) -> Metric:
    """The metric of a name as `accuracy` or `val_accuracy`; a UserError lists the known names."""
    prefix = next((p for p in SPLIT_PREFIXES if name.startswith(p)), "")
    base = name.removeprefix(prefix)
    if base not in METRICS:
        raise unknown_name_error("metric", name, list(METRICS))
    return METRICS[base]


def higher_is_better(name: str) -> bool:
    """Whether a larger value of `accuracy`, `val_loss`, ... is the better one."""
    return find_metric(name).higher_is_better


def seeds_interval(name: str, values: list[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of a metric's mean over seeds, clipped to the metric's bounds.

    None for fewer than MIN_SEEDS values: over two, Student's factor is 12.7, and the interval
    would hold nearly every possible value.
    """
    interval = mean_interval(values) if len(values) >= MIN_SEEDS else None
    return interval and clip_interval(interval, find_metric(name).bounds)


def format_interval(interval: tuple[float, float] | None, seeds: int, spec: str = ".4f") -> str:
    """An interval over seeds as text; `[0.5100, 0.6200]`, or why there is none."""
    if interval is None:
        return f"{counted(seeds, 'seed')}: too few for an interval"
    low, high = interval
    return f"[{low:{spec}}, {high:{spec}}]"


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms of the class probabilities; logits [n, classes]."""
    z = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def loss_and_accuracy(
    logits: NDArray[Any], labels: NDArray[np.int64], targets: NDArray[Any] | None = None
) -> tuple[float, float]:
    """Mean cross-entropy (nats) and share correct; logits [n, classes], labels [n].

    With `targets` [n, classes] the cross-entropy is against these distributions.
    """
    log_p = log_softmax(logits)
    if targets is None:
        loss = -log_p[np.arange(len(labels)), labels].mean()
    else:
        loss = -(targets * log_p).sum(1).mean()
    return float(loss), float((logits.argmax(1) == labels).mean())


def smoothed_loss(
    logits: NDArray[Any],
    labels: NDArray[np.int64],
    smoothing: float,
    targets: NDArray[Any] | None = None,
) -> float:
    """Mean cross-entropy (nats) against smoothed targets.

    A target gives the true class (or the distribution in `targets`) 1 - `smoothing` and spreads
    `smoothing` evenly over all classes (Szegedy et al. 2016).
    """
    log_p = log_softmax(logits)
    if targets is None:
        of_label = log_p[np.arange(len(labels)), labels]
    else:
        of_label = (targets * log_p).sum(1)
    return float(-((1 - smoothing) * of_label + smoothing * log_p.mean(1)).mean())


def valence_arousal(
    predicted: NDArray[Any], truth: NDArray[Any], prefix: str = ""
) -> dict[str, float]:
    """RMSE, concordance correlation (Lin 1989) and agreement in sign of valence and arousal [n, 2].

    Rows whose true value is NaN are left out; a dimension without any true value is absent.
    """
    scores: dict[str, float] = {}
    for k, name in enumerate(("valence", "arousal")):
        known = np.isfinite(truth[:, k])
        p, t = predicted[known, k].astype(np.float64), truth[known, k].astype(np.float64)
        if len(t):
            spread = p.var() + t.var() + (p.mean() - t.mean()) ** 2
            covariance = ((p - p.mean()) * (t - t.mean())).mean()
            scores[f"{prefix}{name}_rmse"] = float(np.sqrt(((p - t) ** 2).mean()))
            scores[f"{prefix}{name}_ccc"] = float(2 * covariance / spread) if spread else 0.0
            scores[f"{prefix}{name}_sign"] = float((np.sign(p) == np.sign(t)).mean())
    return scores


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Counts [true class, predicted class]."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


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


def kappa(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Cohen's kappa (1960), unweighted, as expressions have no order; counts [..., K, K].

    The agreement beyond chance. NaN where chance alone would agree always.
    """
    n = counts.sum((-2, -1))
    observed = np.trace(counts, axis1=-2, axis2=-1) / n
    chance = (counts.sum(-1) * counts.sum(-2)).sum(-1) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((observed - chance) / (1 - chance))


def top_correct(logits: NDArray[Any], labels: NDArray[np.int64], k: int) -> int:
    """Faces [n] whose label is among the k classes with the largest logits [n, classes]."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return int((best == labels[:, None]).any(1).sum())


def summary(
    logits: NDArray[Any],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    targets: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """All scores of a split as eval-*.json holds them; logits [n, classes], labels [n].

    With `targets` [n, classes] the loss is against these distributions.

    Averages over classes leave out classes without a face. Accuracy has Wilson's interval; balanced
    accuracy and macro-F1 have percentile bootstrap intervals. Resampling the faces is the same as
    drawing the cells of the confusion matrix from a multinomial distribution.
    """
    n = len(labels)
    loss, accuracy = loss_and_accuracy(logits, labels, targets)
    counts = confusion(labels, logits.argmax(1), len(classes))
    in_two, agreement = top_correct(logits, labels, 2), kappa(counts)
    rng = np.random.default_rng(0)
    resampled = rng.multinomial(n, counts.ravel() / n, RESAMPLES).reshape(-1, *counts.shape)
    per_class = zip(
        classes, counts.sum(1), recalls(counts), precisions(counts), f1s(counts), strict=True
    )
    return {
        "n": n,
        "loss": loss,
        "accuracy": accuracy,
        "accuracy_95": wilson(round(accuracy * n), n),
        "balanced_accuracy": _class_mean(recalls(counts)),
        "balanced_accuracy_95": bootstrap_interval(recalls(resampled)),
        "macro_f1": _class_mean(f1s(counts)),
        "macro_f1_95": bootstrap_interval(f1s(resampled)),
        "top_2": in_two / n,
        "top_2_95": wilson(in_two, n),
        "kappa": _number_or_none(float(agreement)),
        "kappa_95": None if np.isnan(agreement) else bootstrap_interval(_column(kappa(resampled))),
        "majority_rate": float(counts.sum(1).max() / n),
        "classes": {
            name: {
                "n": int(k),
                "recall": _number_or_none(r),
                "precision": _number_or_none(p),
                "f1": _number_or_none(f),
            }
            for name, k, r, p, f in per_class
        },
        "pairs": pairs(logits, labels, classes),
        "confusion": counts.tolist(),
    }


def without_class(
    logits: NDArray[Any], labels: NDArray[np.int64], classes: tuple[str, ...], left_out: str
) -> dict[str, Any] | None:
    """The scores of the faces of the other classes, with `left_out` masked before the softmax.

    None where no face is left.
    """
    out = classes.index(left_out)
    kept = labels != out
    if not kept.any():
        return None
    others = tuple(name for name in classes if name != left_out)
    scores = summary(np.delete(logits[kept], out, 1), labels[kept] - (labels[kept] > out), others)
    return {"left_out": left_out, "dropped": int((~kept).sum()), **scores}


# Expressions that are easily confused with each other.
SIMILAR = (("Surprise", "Fear"), ("Anger", "Disgust"), ("Sadness", "Neutral"))


def pairs(
    logits: NDArray[Any], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """How well two similar expressions are distinguished, for each pair of SIMILAR.

    `accuracy`: of the faces of either class, the share whose own logit is the larger of the two,
    with Wilson's interval. `taken_for_the_other`: of each class, the share that was predicted as
    the other one among all classes.
    """
    scores = []
    for pair in SIMILAR:
        if not set(pair) <= set(classes):
            continue
        a, b = (classes.index(name) for name in pair)
        of_pair = (labels == a) | (labels == b)
        n = int(of_pair.sum())
        if not n:
            continue
        sign = np.where(labels[of_pair] == a, 1, -1)
        correct = sign * (logits[of_pair, a] - logits[of_pair, b]) > 0
        scores.append(
            {
                "classes": list(pair),
                "n": n,
                "accuracy": float(correct.mean()),
                "accuracy_95": wilson(int(correct.sum()), n),
                "taken_for_the_other": [
                    _share_predicted_as(logits, labels, *ab) for ab in ((a, b), (b, a))
                ],
            }
        )
    return scores


def _share_predicted_as(
    logits: NDArray[Any], labels: NDArray[np.int64], true: int, predicted: int
) -> float | None:
    of_class = labels == true
    return float((logits[of_class].argmax(1) == predicted).mean()) if of_class.any() else None


def _column(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The known values [resamples] as one column [known, 1]."""
    return values[np.isfinite(values), None]


def _class_mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values))


def _number_or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
