"""The report's tables: results by split and data set, means over seeds, classes, the CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.data.manifest import SPLITS, read_manifest
from fer_hpc.evaluation.metrics import format_interval, seeds_interval
from fer_hpc.report.book import no_formula
from fer_hpc.report.read import Run, result_order

SHARES = ("accuracy", "balanced_accuracy", "macro_f1")  # have an interval in every result
CSV_METRICS = ("n", "loss", "accuracy", "balanced_accuracy", "macro_f1", "majority_rate")


@dataclass(frozen=True)
class DataSet:
    """A data set, known by its fingerprint."""

    fingerprint: str
    name: str  # of its folder; "" if no run states it

    def __str__(self) -> str:
        return f"{self.name} {self.fingerprint[:8]}".strip()


@dataclass(frozen=True)
class SeedMean:
    """Runs that differ only by their seed, as one row."""

    runs: tuple[Run, ...]
    means: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]  # Student's, over the seeds
    n: int  # faces of each
    majority_rate: float

    @property
    def model(self) -> str:
        return str(self.runs[0].config["science"]["model"])

    def interval_text(self, metric: str) -> str:
        interval = self.intervals[metric]
        percent = interval and (100 * interval[0], 100 * interval[1])
        return format_interval(percent, len(self.runs), ".2f")


@dataclass(frozen=True)
class Row:
    """One run's scores in a table."""

    run: Run
    scores: dict[str, Any]
    trained_on: DataSet

    @property
    def openings(self) -> int:
        """How often the test split of this result's data was opened for this run."""
        return self.run.times_opened(self.scores["data"])


@dataclass(frozen=True)
class ResultTable:
    """All results of one NAME (a split, and what else is unusual) on one data set."""

    name: str
    data: DataSet
    blocks: list[tuple[SeedMean | None, list[Row]]]  # runs that belong together, best on val first

    @cached_property
    def rows(self) -> list[Row]:
        return [row for _, rows in self.blocks for row in rows]

    @property
    def is_test(self) -> bool:
        return self.name.split("-")[0] == "test"

    @cached_property
    def classes(self) -> list[str]:
        """Every class that one of the rows has."""
        return list(dict.fromkeys(name for row in self.rows for name in row.scores["classes"]))

    @cached_property
    def pairs(self) -> list[str]:
        """Every pair of similar classes that one of the rows has."""
        names = (pair_name(p) for row in self.rows for p in row.scores.get("pairs") or [])
        return list(dict.fromkeys(names))


def pair_name(pair: dict[str, Any]) -> str:
    return " / ".join(pair["classes"])


def data_sets(runs: Iterable[Run]) -> dict[str, DataSet]:
    """Fingerprint -> data set, named after the folder that a run was trained on."""
    known: dict[str, DataSet] = {}
    for run in runs:
        known.setdefault(run.trained_on, DataSet(run.trained_on, run.data_folder.name))
    return known


def group_key(run: Run) -> str:
    """The same for runs that differ only by their seed."""
    science = {name: v for name, v in run.config["science"].items() if name != "seed"}
    return json.dumps([science, run.trained_on], sort_keys=True)


def result_tables(runs: Sequence[Run], known: dict[str, DataSet]) -> list[ResultTable]:
    """One table for each result name and data set."""
    groups_by_result: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for run in runs:
        for name, scores in run.scores.items():
            groups = groups_by_result.setdefault((name, scores["data"]), {})
            row = Row(run, scores, known[run.trained_on])
            groups.setdefault(group_key(run), []).append(row)
    tables = []
    for (name, fingerprint), groups in groups_by_result.items():
        _, _, elsewhere = name.partition("-on-")
        data = known.get(fingerprint) or DataSet(fingerprint, elsewhere)
        blocks = [(seed_mean(rows), rows) for rows in groups.values()]
        blocks.sort(key=lambda block: -val_accuracy([row.run for row in block[1]]))
        tables.append(ResultTable(name, data, blocks))
    return sorted(tables, key=lambda t: (t.data.name, t.data.fingerprint, *result_order(t.name)))


def val_accuracy(runs: Sequence[Run]) -> float:
    """Mean over the runs of the val accuracy of their best epoch, which orders and chooses.

    -1 without a finished epoch.
    """
    best = [-1.0 if run.val_accuracy is None else run.val_accuracy for run in runs]
    return float(sum(best) / len(best))


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
        scores = [(_accuracy(mean, rows), mean, rows) for mean, rows in table.blocks]
        accuracy, _, rows = max(scores, key=lambda score: score[0])
        label = ", ".join(row.run.label for row in rows)
        entries.append(Oracle(table.name, table.data, label, accuracy, scores[0][0]))
    return entries


def _accuracy(mean: SeedMean | None, rows: Sequence[Row]) -> float:
    return mean.means["accuracy"] if mean else max(row.scores["accuracy"] for row in rows)


def seed_mean(rows: Sequence[Row]) -> SeedMean | None:
    """The mean over the seeds of finished runs; None where there is only one seed.

    A seed that occurs twice, as in a copied run folder, counts once.
    """
    by_seed = {row.run.seed: row for row in reversed(rows) if row.scores["finished"]}
    kept = [by_seed[seed] for seed in sorted(by_seed)]
    if len(kept) < 2:
        return None
    values = {m: [float(row.scores[m]) for row in kept] for m in ("loss", *SHARES)}
    return SeedMean(
        tuple(row.run for row in kept),
        {metric: sum(v) / len(v) for metric, v in values.items()},
        {metric: seeds_interval(metric, v) for metric, v in values.items()},
        kept[0].scores["n"],
        kept[0].scores["majority_rate"],
    )


# ---- summary ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """The best configuration on one data set, chosen on val."""

    data: DataSet
    runs: tuple[Run, ...]
    chosen_by: float  # mean val accuracy of the best epochs
    candidates: int  # configurations that were compared
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
        if run.status["state"] == "finished" and run.rows:
            groups.setdefault(run.trained_on, {}).setdefault(group_key(run), []).append(run)
    return [
        _best_of([list({r.seed: r for r in g}.values()) for g in by_key.values()], known[data])
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


# ---- data sets and CSV ------------------------------------------------------------------------


def class_tables(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Class counts per split of each data set whose folder can still be read."""
    tables: dict[str, dict[str, Any]] = {}
    for folder in dict.fromkeys(folders):
        try:
            manifest = read_manifest(folder)
            counts = {
                s: manifest.class_counts(s) if manifest.n(s) else [0] * len(manifest.classes)
                for s in SPLITS
            }
            kind, rule = manifest.content["source"]["kind"], manifest.content["split_rule"]
        except (UserError, KeyError, TypeError):
            continue
        totals = [sum(column) for column in zip(*counts.values(), strict=True)]
        columns = [*counts.values(), totals]
        lines = zip([*manifest.classes, "all"], *([*c, sum(c)] for c in columns), strict=True)
        tables[manifest.fingerprint] = {
            "name": manifest.folder.name,
            "folder": manifest.folder,
            "fingerprint": manifest.fingerprint,
            "about": f"{kind}, {'×'.join(map(str, manifest.image_shape))}, splits: {rule}",
            "lines": list(lines),
            "total": sum(totals),
        }
    return list(tables.values())


def results_csv(runs: Sequence[Run], known: dict[str, DataSet]) -> str:
    """Every result as a line of results.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    about = ("run", "id", "model", "seed", "state", "split", "data", "fingerprint", "trained_on")
    writer.writerow([*about, *CSV_METRICS, "accuracy_low", "accuracy_high"])
    for run in runs:
        science = run.config["science"]
        for name, scores in run.scores.items():
            data = known.get(scores["data"]) or DataSet(scores["data"], name.partition("-on-")[2])
            line = [run.label, run.config["id"], science["model"], run.seed, run.status["state"]]
            line += [name, data.name, data.fingerprint, run.trained_on]
            line += [scores[m] for m in CSV_METRICS] + scores["accuracy_95"]
            writer.writerow([no_formula(v) if isinstance(v, str) else v for v in line])
    return text.getvalue()
