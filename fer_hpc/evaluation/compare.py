"""Is run A better than run B? Paired tests on the same faces, and tests over seeds. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.commands import CompareConfig
from fer_hpc.config.errors import counted
from fer_hpc.evaluation.metrics import confusion, f1s, recalls
from fer_hpc.evaluation.predictions import Predictions, read_predictions
from fer_hpc.evaluation.results import (
    ON,
    empty_classes,
    name_on,
    outdated,
    result_files,
    scoring_command,
)
from fer_hpc.evaluation.seeds import LEVEL, POWER, SAME, SHARES, SeedSet, compare_seeds
from fer_hpc.files import read_record
from fer_hpc.run.folder import data_folder, read_rows, read_run_config, read_status

RESAMPLES = 2000
CHUNK = 200  # resamples at a time


def compare(config: CompareConfig) -> dict[str, Any]:
    """Every pair of the runs, or two sets of seeds, on the same faces.

    Raises UserError where predictions are absent or damaged, or where the faces, the labels or the
    classes of two runs differ.
    """
    name = config.name or config.split
    runs = list(dict.fromkeys([*config.runs, *config.versus]))
    if len({run.resolve() for run in runs}) < len(config.runs) + len(config.versus):
        raise UserError("a run is named twice; give each once")
    names = [_name_of(_classifier(run), name) for run in runs]
    for run, of_run in zip(runs, names, strict=True):
        _check_current(run, of_run)
    first, *others = [read_predictions(*each) for each in zip(runs, names, strict=True)]
    predictions = [first, *(align(first, other, name) for other in others)]
    about = {"name": name, "n": len(first.labels), "classes": list(first.classes)}
    faces = np.bincount(first.labels, minlength=len(first.classes))
    about["faces"] = dict(zip(first.classes, faces.tolist(), strict=True))
    about["majority_rate"] = float(faces.max() / len(first.labels))
    scores = [
        {"run": str(p.run), "predictions": of_run, **_scores(p)}
        for p, of_run in zip(predictions, names, strict=True)
    ]
    if config.versus:
        count, sets = len(config.runs), {}
        for key, part in (("a", slice(count)), ("b", slice(count, None))):
            sets[key] = SeedSet(predictions[part], scores[part])
        return {**about, "runs": scores, "versus": compare_seeds(sets["a"], sets["b"])}
    pairs = [_pair(a, b) for a, b in itertools.combinations(predictions, 2)]
    for pair, adjusted in zip(pairs, holm([p["mcnemar"]["p"] for p in pairs]), strict=True):
        pair["mcnemar"]["p_holm"] = adjusted
        low, high = pair["accuracy"]["difference_95"]
        is_clear = (low > 0 or high < 0) and adjusted < LEVEL
        better = pair["a"] if pair["accuracy"]["difference"] > 0 else pair["b"]
        pair["verdict"] = f"{better} is better" if is_clear else SAME
    return {**about, "runs": scores, "pairs": pairs}


def _classifier(run: Path) -> Path:
    if read_run_config(run).get("kind", "classifier") != "classifier":
        raise UserError(f"{run} holds a GAN; runs of classifiers are compared")
    return run


def _name_of(run: Path, name: str) -> str:
    """NAME, or without the data set where that is the run's own: its scores do not name it."""
    views = name.partition(ON)[0]
    return name if _has(run, name) or not _has(run, views) else views


def _has(run: Path, name: str) -> bool:
    return result_files(run, name)["predictions"].exists()


def _check_current(run: Path, name: str) -> None:
    """UserError where the predictions are those of an epoch that is not the best any more."""
    path = result_files(run, name)["scores"]
    scores = read_record(path, {"epoch": int, "finished": bool})
    if scores and (why := outdated(scores, read_rows(run), read_status(run)["state"])):
        raise UserError(f"{path} {why}; {scoring_command(run, name)} scores it again")


# ---- the same faces -----------------------------------------------------------------------------


def align(first: Predictions, other: Predictions, name: str) -> Predictions:
    """`other` in the order of `first`'s faces and classes; `name` is that of the predictions.

    Faces are matched by the hash of their pixels, else by their source id (as where the faces have
    another size). UserError where faces, labels or classes are not the same.
    """
    if set(first.classes) != set(other.classes):
        only = sorted(set(first.classes) ^ set(other.classes))
        raise UserError(
            f"{first.run} and {other.run} were scored on other classes ({', '.join(only)} only in "
            "one of them); compare runs of the same classes"
        )
    order = _order(first, other, name)
    columns = [other.classes.index(name) for name in first.classes]
    index = np.array([first.classes.index(name) for name in other.classes])
    labels = index[other.labels[order]]
    differ = int((labels != first.labels).sum())
    if differ:
        raise UserError(
            f"{first.run} and {other.run} have other labels for {differ:,} of {len(labels):,} "
            f"faces: they were scored on two versions of the data; {_same_data(first, other, name)}"
        )
    return Predictions(
        other.run,
        other.logits[order][:, columns],
        labels,
        first.classes,
        first.source_id,
        first.group,
        first.image_hash,
    )


def _order(first: Predictions, other: Predictions, name: str) -> NDArray[np.int64]:
    """Rows of `other` that are the faces of `first`, in their order."""
    for key in ("image_hash", "source_id"):
        a, b = getattr(first, key), getattr(other, key)
        # Equal pictures may occur twice: the source id orders them, and then their place.
        by_a = np.lexsort((np.arange(len(a)), first.source_id, a))
        by_b = np.lexsort((np.arange(len(b)), other.source_id, b))
        if len(a) == len(b) and (a[by_a] == b[by_b]).all():
            order = np.empty(len(a), np.int64)
            order[by_a] = by_b
            return order
    common = len(np.intersect1d(first.source_id, other.source_id))
    raise UserError(
        f"{first.run} and {other.run} were scored on different faces ({len(first.labels):,} and "
        f"{len(other.labels):,}, {common:,} of the same source id); "
        f"{_same_data(first, other, name)}"
    )


def _same_data(first: Predictions, other: Predictions, name: str) -> str:
    """How to score two runs on the same data: that of NAME, else that of the first."""
    if ON in name:
        lacks = [p.run for p in (first, other) if not _has(p.run, name)] or [other.run]
        return f"score {lacks[0]} on it: {scoring_command(lacks[0], name)}"
    folder = data_folder(first.run)
    split, named = name.partition("-")[0], name_on(name, folder)
    return (
        f"score both on one: fer-hpc evaluate {other.run} --split {split} --data {folder}, then "
        f"fer-hpc compare with --name {named}"
    )


# ---- two runs -----------------------------------------------------------------------------------


def _scores(predictions: Predictions) -> dict[str, float]:
    counts = confusion(predictions.labels, predictions.predicted, len(predictions.classes))
    with np.errstate(invalid="ignore"):
        return {
            "accuracy": float(np.trace(counts) / counts.sum()),
            "balanced_accuracy": float(np.nanmean(recalls(counts))),
            "macro_f1": float(np.nanmean(f1s(counts))),
        }


def _pair(a: Predictions, b: Predictions) -> dict[str, Any]:
    right_a, right_b = a.predicted == a.labels, b.predicted == b.labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    scores, drawn, units = _scores(a), *resampled_differences(a, b)
    others = _scores(b)
    pair: dict[str, Any] = {"a": str(a.run), "b": str(b.run), "resampled": units}
    for key in SHARES:
        pair[key] = {
            "difference": scores[key] - others[key],
            "difference_95": [float(v) for v in np.percentile(drawn[key], (2.5, 97.5))],
        }
    pair["mcnemar"] = {"only_a": only_a, "only_b": only_b, "p": mcnemar(only_a, only_b)}
    pair["equal_predictions"] = bool((a.predicted == b.predicted).all())
    pair["smallest_difference"] = smallest_difference(drawn["accuracy"], len(a.labels))
    return pair


def mcnemar(only_a: int, only_b: int) -> float:
    """p of McNemar's exact test (1947): of the faces that one run alone gets right, half each."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979), for several comparisons at once."""
    order, adjusted, largest = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def smallest_difference(drawn: NDArray[np.float64], n: int) -> float:
    """The difference in accuracy that the paired test finds in 80 % of the cases, at 5 %.

    drawn: resampled differences, whose spread is that of the estimate. Where hardly a face is
    judged differently, at least three are assumed (the rule of three).
    """
    z = NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER)
    return float(z * max(drawn.std(), np.sqrt(3) / n))


def resampled_differences(
    a: Predictions, b: Predictions, resamples: int = RESAMPLES
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Paired bootstrap: differences [resamples] of accuracy, balanced accuracy and macro-F1.

    Persons are drawn where they are known, as photographs of one person are not independent; else
    faces. Gives also which of the two, as text.
    """
    classes, n = len(a.classes), len(a.labels)
    cell = (a.labels * classes + a.predicted) * classes + b.predicted  # [n]
    cells, cell = np.unique(cell, return_inverse=True)
    known = (a.group >= 0).all()
    persons, person = np.unique(a.group, return_inverse=True)
    rng = np.random.default_rng(0)
    by_person = bool(known) and 1 < len(persons) < n
    if by_person:
        table = np.zeros((len(persons), len(cells)))
        np.add.at(table, (person, cell), 1)
    share = np.bincount(cell) / n
    drawn: dict[str, list[NDArray[np.float64]]] = {key: [] for key in SHARES}
    for _ in range(0, resamples, CHUNK):
        if by_person:
            times = rng.multinomial(len(persons), np.full(len(persons), 1 / len(persons)), CHUNK)
            counts = times @ table  # [chunk, cells]
        else:  # to draw faces is to draw the cells that they are in
            counts = rng.multinomial(n, share, CHUNK).astype(np.float64)
        for key, values in _differences(counts, cells, classes).items():
            drawn[key].append(values)
    units = counted(len(persons), "person") if by_person else counted(n, "face")
    return {key: np.concatenate(values) for key, values in drawn.items()}, units


def _differences(
    counts: NDArray[np.float64], cells: NDArray[np.int64], classes: int
) -> dict[str, NDArray[np.float64]]:
    """A minus B of each resample; counts [resamples, cells], a cell is (true, A, B) as a number."""
    true, of_a, of_b = cells // classes**2, cells // classes % classes, cells % classes
    both = []
    for predicted in (of_a, of_b):
        matrix = np.zeros((len(cells), classes**2))
        matrix[np.arange(len(cells)), true * classes + predicted] = 1
        both.append((counts @ matrix).reshape(-1, classes, classes))
    n = counts.sum(1)
    with np.errstate(invalid="ignore"):
        accuracy = [np.trace(m, axis1=1, axis2=2) / n for m in both]
        balanced = [np.nanmean(recalls(m), axis=1) for m in both]
        f1 = [np.nanmean(f1s(m), axis=1) for m in both]
    pairs = zip(SHARES, (accuracy, balanced, f1), strict=True)
    return {key: values[0] - values[1] for key, values in pairs}


# ---- as text ------------------------------------------------------------------------------------


def format_comparison(comparison: dict[str, Any]) -> str:
    """The comparison as lines for a terminal."""
    lines = [
        f"predictions of {comparison['name']}, n = {counted(comparison['n'], 'face')}, "
        f"majority class {comparison['majority_rate']:.4f}"
    ]
    for row in comparison["runs"]:
        lines.append(
            f"  {row['run']}{_other_name(row, comparison)}: accuracy {row['accuracy']:.4f}  "
            f"balanced {row['balanced_accuracy']:.4f}  macro-F1 {row['macro_f1']:.4f}"
        )
    if without := empty_classes({name: {"n": n} for name, n in comparison["faces"].items()}):
        lines.append(f"  {without}")
    for pair in comparison.get("pairs", ()):
        lines += _pair_lines(pair, len(comparison["pairs"]))
    if "versus" in comparison:
        lines += _versus_lines(comparison["versus"])
    return "\n".join(lines)


def _pair_lines(pair: dict[str, Any], pairs: int) -> list[str]:
    test, holms = pair["mcnemar"], f", of {pairs} pairs {pair['mcnemar']['p_holm']:.3g}"
    lines = [f"{pair['a']} minus {pair['b']}, by accuracy: {pair['verdict']}"]
    lines += ["  both give every face the same class"] if pair["equal_predictions"] else []
    lines += [f"  {_title(key)} {_difference(pair[key])}" for key in SHARES]
    lines.append(
        f"  right alone: {test['only_a']:,} and {test['only_b']:,} faces; "
        f"McNemar's exact p {test['p']:.3g}{holms if pairs > 1 else ''}"
    )
    lines.append(
        f"  these {pair['resampled']} can show a difference in accuracy of "
        f"{pair['smallest_difference']:.4f} (80 % power)"
    )
    return lines


def _versus_lines(sets: dict[str, Any]) -> list[str]:
    counts = f"{len(sets['a'])} against {len(sets['b'])} seeds"
    lines = [f"{counts}, by accuracy: {sets['verdict']}"]
    lines += [f"  note: {note}" for note in sets["notes"]]
    lines += [f"  {_title(key)} {_difference(sets[key])}" for key in SHARES]
    if sets["accuracy"]["p"] is not None:
        lines.append(
            f"  {sets['test']}: p {sets['accuracy']['p']:.3g}; so many seeds can show a difference "
            f"in accuracy of {sets['accuracy']['smallest_difference']:.4f} (80 % power)"
        )
    return lines


def _other_name(row: dict[str, Any], comparison: dict[str, Any]) -> str:
    return "" if row["predictions"] == comparison["name"] else f" ({row['predictions']})"


def _title(key: str) -> str:
    return f"{key.replace('_', ' ').replace('macro f1', 'macro-F1'):<17}"


def _difference(row: dict[str, Any]) -> str:
    interval = row["difference_95"]
    text = f"  [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "  (no interval)"
    return f"{row['difference']:+.4f}{text}"
