"""Scores by group of people or pictures: age, gender, ethnicity, source, or any column. No torch.

The gap between the best and the worst group is a maximum over all pairs of groups, so chance alone
makes one. Its interval is therefore simultaneous over all pairs (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError, unknown_name_error
from fer_hpc.data.shards import TARGETS, Columns
from fer_hpc.evaluation.intervals import wilson
from fer_hpc.evaluation.metrics import confusion, recalls

MAX_GROUPS = 40  # of a column; one with more values says who a face is, not what kind
MAX_WHOLE_NUMBERS = 12  # values of a number that are groups of their own; more are binned
DECADES = "age"  # its values are binned by ten; those of other numbers into quarters
OWN_COLUMNS = ("synthetic",)  # columns of every shard that may be asked for
UNKNOWN = ""


@dataclass(frozen=True)
class Grouping:
    """A column as groups."""

    names: list[str]  # in order
    of_face: NDArray[np.int64]  # [n] index into names; -1: unknown


def available(columns: Columns | dict[str, Any]) -> list[str]:
    """The columns of a split that may be groups."""
    extra = columns.extra() if isinstance(columns, Columns) else []
    return [name for name in extra if f"columns/{name}" != TARGETS]


def group_tables(
    columns: Columns | dict[str, Any],
    rows: NDArray[np.bool_],
    wanted: Sequence[str],
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    min_n: int,
) -> dict[str, dict[str, Any]]:
    """Column -> its table, as eval-NAME.json holds it.

    Without `wanted` all columns that have 2 to MAX_GROUPS groups. rows [all of the split]: those
    that count; predicted, labels [those]. A UserError for a wanted column that is not there.
    """
    known = available(columns)
    for name in wanted:
        if name not in (*known, *OWN_COLUMNS):
            raise unknown_name_error("column in --by", name, [*known, *OWN_COLUMNS])
    tables = {}
    for name in wanted or known:
        values = columns[name if name in OWN_COLUMNS else f"columns/{name}"][rows]
        grouping = group(name, values)
        count = 0 if grouping is None else len(grouping.names)
        if wanted and not count:
            raise UserError(
                f"--by {name}: its values are not 1 to {MAX_GROUPS} groups; name another column"
            )
        if grouping is not None and count > (0 if wanted else 1):
            tables[name] = group_table(grouping, predicted, labels, classes, min_n)
    return tables


def group(name: str, values: NDArray[Any]) -> Grouping | None:
    """A column's values [n] as groups; None for tables of numbers and for too many values.

    Absent are "", NaN and -1. Ages are binned by ten; other numbers with more than
    MAX_WHOLE_NUMBERS values into quarters of equal mass.
    """
    if values.ndim != 1:
        return None
    if values.dtype.kind in "SUO":
        texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
        return _named(np.array([text.strip() for text in texts]))
    numbers = values.astype(np.float64)
    absent = ~np.isfinite(numbers) | (numbers == -1)
    if absent.all():
        return None
    kinds = np.unique(numbers[~absent])
    if name == DECADES and kinds[-1] > MAX_WHOLE_NUMBERS:  # years, not numbers of age groups
        return binned(numbers, absent, list(np.arange(10, 100, 10)))
    if len(kinds) > MAX_WHOLE_NUMBERS:
        return binned(numbers, absent, list(np.quantile(numbers[~absent], (0.25, 0.5, 0.75))))
    names = [f"{kind:g}" for kind in kinds]
    return Grouping(names, np.where(absent, -1, np.searchsorted(kinds, numbers)))


def _named(texts: NDArray[np.str_]) -> Grouping | None:
    names = [name for name in np.unique(texts).tolist() if name != UNKNOWN]
    if not 1 <= len(names) <= MAX_GROUPS:
        return None
    index = {name: k for k, name in enumerate(names)}
    return Grouping(names, np.array([index.get(text, -1) for text in texts.tolist()]))


def binned(
    numbers: NDArray[np.float64], absent: NDArray[np.bool_], edges: Sequence[float], unit: str = ""
) -> Grouping:
    """Numbers in the bins between `edges`; a bin holds its lower edge. Empty bins are left out."""
    inner = sorted(set(map(float, edges)))
    place = np.digitize(np.where(absent, 0, numbers), inner)
    texts = [f"{edge:g}{unit}" for edge in inner]
    names = [f"below {texts[0]}", *(f"{a} to {b}" for a, b in zip(texts, texts[1:], strict=False))]
    names.append(f"{texts[-1]} and more")
    used = [k for k in range(len(names)) if (place[~absent] == k).any()]
    index = np.full(len(names), -1)
    index[used] = np.arange(len(used))
    return Grouping([names[k] for k in used], np.where(absent, -1, index[place]))


def group_table(
    grouping: Grouping,
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    min_n: int,
) -> dict[str, Any]:
    """Each group's n, accuracy, balanced accuracy and recalls, and the gap between groups.

    A group of fewer than `min_n` faces is listed, but takes no part in the gap.
    """
    counts = [
        confusion(labels[members], predicted[members], len(classes))
        for members in (grouping.of_face == k for k in range(len(grouping.names)))
    ]
    rows = [_row(name, c, classes, min_n) for name, c in zip(grouping.names, counts, strict=True)]
    large = [(row["name"], c) for row, c in zip(rows, counts, strict=True) if row["n"] >= min_n]
    gaps = {"accuracy": _gap(large, _accuracy), "balanced_accuracy": _gap(large, _balanced)}
    unknown = int((grouping.of_face < 0).sum())
    return {"min_n": min_n, "unknown": unknown, "groups": rows, "gap": gaps}


def _row(
    name: str, counts: NDArray[np.int64], classes: tuple[str, ...], min_n: int
) -> dict[str, Any]:
    n, hits, of_class = int(counts.sum()), int(np.trace(counts)), recalls(counts)
    known = np.isfinite(of_class)
    return {
        "name": name,
        "n": n,
        "enough": n >= min_n,
        "accuracy": hits / n if n else None,
        "accuracy_95": wilson(hits, n) if n else None,
        "balanced_accuracy": float(of_class[known].mean()) if known.any() else None,
        "recall": {
            c: float(r) if k else None for c, r, k in zip(classes, of_class, known, strict=True)
        },
        "n_of_class": {c: int(k) for c, k in zip(classes, counts.sum(1), strict=True)},
    }


def _smoothed(hits: NDArray[Any], n: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Share and variance with one hit and one miss added (Agresti and Caffo 2000)."""
    p = (hits + 1) / (n + 2)
    return p, p * (1 - p) / (n + 2)


def _accuracy(counts: NDArray[Any], _: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The share correct, and its smoothed value and variance."""
    hits, n = np.trace(counts), counts.sum()
    p, variance = _smoothed(hits, n)
    return float(hits / n), float(p), float(variance)


def _balanced(counts: NDArray[Any], common: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The mean recall of the classes that both groups have; else as `_accuracy`."""
    hits, n = np.diag(counts)[common], counts.sum(1)[common]
    p, variance = _smoothed(hits, n)
    return float((hits / n).mean()), float(p.mean()), float(variance.sum() / len(n) ** 2)


def _gap(large: list[tuple[str, NDArray[np.int64]]], score: Any) -> dict[str, Any] | None:
    """The largest difference between two groups; None for fewer than two groups of enough faces."""
    pairs = [(a, b) for i, a in enumerate(large) for b in large[i + 1 :]]
    best: dict[str, Any] | None = None
    for a, b in pairs:
        common = (a[1].sum(1) > 0) & (b[1].sum(1) > 0)
        if not common.any():
            continue
        (pa, sa, va), (pb, sb, vb) = score(a[1], common), score(b[1], common)
        if best and abs(pa - pb) <= best["gap"]:
            continue
        high, low = (a[0], b[0]) if pa >= pb else (b[0], a[0])
        half = NormalDist().inv_cdf(1 - 0.025 / len(pairs)) * float(np.sqrt(va + vb))
        middle = abs(sa - sb) if (pa >= pb) == (sa >= sb) else -abs(sa - sb)
        best = {
            "best": high,
            "worst": low,
            "gap": abs(pa - pb),
            "gap_95": [max(-1.0, middle - half), min(1.0, middle + half)],
            "pairs": len(pairs),
        }
    if best:
        best["verdict"] = "a gap" if best["gap_95"][0] > 0 else "not distinguishable from none"
    return best
