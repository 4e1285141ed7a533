"""The configurations that val chooses, and what choosing on test would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fer_hpc.evaluation.metrics import format_interval
from fer_hpc.report.read import Run
from fer_hpc.report.tables import (
    DataSet,
    ResultTable,
    Row,
    compared,
    group_key,
    seed_mean,
    val_accuracy,
)


@dataclass(frozen=True)
class Best:
    """The best configuration on one data set, chosen on val."""

    data: DataSet
    runs: tuple[Run, ...]
    chosen_by: float  # mean val accuracy of the best epochs
    candidates: int  # finished configurations, which were compared
    result: str  # name of the result shown: test where it was scored, else val
    n: int
    accuracy: float
    interval: str
    bounds: tuple[float, float] | None  # the same as shares
    majority_rate: float


def best_runs(runs: Sequence[Run], known: dict[str, DataSet]) -> list[Best]:
    """For each data set the configuration with the best val accuracy, and its scores.

    The test split chooses nothing: it is shown for what val chose.
    """
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if run.is_finished and run.rows:
            groups.setdefault(run.trained_on, {}).setdefault(group_key(run), []).append(run)
    return [
        _best_of([compared(group) for group in by_key.values()], known[data])
        for data, by_key in groups.items()
    ]


def _best_of(candidates: list[list[Run]], data: DataSet) -> Best:
    group = max(candidates, key=val_accuracy)
    about = (data, val_accuracy(group), len(candidates))
    for name in ("test", "val"):
        rows = [Row(r, r.scores[name], data) for r in group if name in r.scores]
        if rows:
            return _best_scores(name, rows, *about)
    return Best(data, tuple(group), about[1], len(candidates), "", 0, about[1], "", None, 0)


def _best_scores(
    name: str, rows: list[Row], data: DataSet, chosen_by: float, candidates: int
) -> Best:
    mean, first = seed_mean(rows), rows[0].scores
    bounds = mean.intervals["accuracy"] if mean else tuple(first["accuracy_95"])
    runs = mean.runs if mean else (rows[0].run,)
    percent = bounds and (100 * bounds[0], 100 * bounds[1])
    return Best(
        data,
        runs,
        chosen_by,
        candidates,
        name,
        first["n"],
        mean.means["accuracy"] if mean else first["accuracy"],
        format_interval(percent, len(runs), ".2f"),
        bounds,
        first["majority_rate"],
    )


@dataclass(frozen=True)
class Oracle:
    """The best result on a test split: chosen on test, so an optimistic number."""

    name: str  # of the result
    data: DataSet
    label: str
    accuracy: float
    chosen_by_val: float  # accuracy on the same split of the configuration that val chooses


def oracles(tables: Sequence[ResultTable]) -> list[Oracle]:
    """For each table of a test split, the best number that choosing on test would give."""
    entries = []
    for table in tables:
        if not table.is_test:
            continue
        groups = [compared(rows) for _, rows in table.blocks]
        groups = [rows for rows in groups if rows[0].is_finished] or groups
        accuracies = [sum(r.scores["accuracy"] for r in rows) / len(rows) for rows in groups]
        best = accuracies.index(max(accuracies))
        label = ", ".join(row.run.label for row in groups[best])
        entries.append(Oracle(table.name, table.data, label, accuracies[best], accuracies[0]))
    return entries
