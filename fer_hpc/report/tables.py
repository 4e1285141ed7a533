"""The report's tables: results by split and data set, means over seeds, classes, the CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fer_hpc.config import TrainConfig, UserError
from fer_hpc.data.manifest import SPLITS, read_manifest
from fer_hpc.evaluation.metrics import format_interval, seeds_interval
from fer_hpc.evaluation.results import empty_classes
from fer_hpc.report.book import no_formula
from fer_hpc.report.read import Run, result_order

DEFAULTS = {
    f.name: f.default for f in dataclasses.fields(TrainConfig) if f.metadata["kind"] == "science"
}
SHARES = ("accuracy", "balanced_accuracy", "macro_f1")  # have an interval in every result
ABOUT_RUN = "run", "id", "model", "seed", "state", "split", "data", "fingerprint", "trained_on"
RESULTS_HEAD = ",".join(ABOUT_RUN)  # of results.csv
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

    rows: tuple[Row, ...]
    means: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]  # Student's, over the seeds
    n: int  # faces of each
    majority_rate: float

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(row.run for row in self.rows)

    @property
    def model(self) -> str:
        return str(self.runs[0].config["science"]["model"])

    def of(self, *keys: str) -> float | None:
        """The mean of the scores' value under `keys`; None where a seed lacks it."""
        return _mean([_value(row.scores, keys) for row in self.rows])

    def of_pair(self, name: str) -> float | None:
        """The mean share of a pair of similar classes; None where a seed lacks it."""
        return _mean([_value(row.pair(name), ("accuracy",)) for row in self.rows])

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
    def seed(self) -> int:
        return self.run.seed

    @property
    def val_accuracy(self) -> float | None:
        return self.run.val_accuracy

    @property
    def is_finished(self) -> bool:
        """Whether the scores are of a finished run's weights."""
        return bool(self.scores["finished"]) and self.run.is_finished

    def pair(self, name: str) -> dict[str, Any] | None:
        """The scores of a pair of similar classes."""
        return next((p for p in self.scores.get("pairs") or [] if pair_name(p) == name), None)

    @property
    def openings(self) -> int:
        """How often the test split of this result's data was opened for this run."""
        return self.run.times_opened(self.scores["data"])


@dataclass(frozen=True)
class ResultTable:
    """All results of one NAME (a split, and what else is unusual) on one data set."""

    name: str
    data: DataSet
    blocks: list[tuple[SeedMean | None, list[Row]]]  # runs that belong together, in `standing`

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

    @cached_property
    def without(self) -> list[str]:
        """What averages over classes leave out, in words: a line for each set of classes."""
        lines = dict.fromkeys(empty_classes(row.scores["classes"]) for row in self.rows)
        return [line for line in lines if line]


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
    science = {} if run.is_gan else DEFAULTS  # a run of an older version lacks newer fields
    science = {**science, **run.config["science"], "data": run.trained_on}
    return json.dumps({k: v for k, v in science.items() if k != "seed"}, sort_keys=True)


def group_words(keys: Iterable[str]) -> list[str]:
    """For each key of `group_key`, in which fields it differs from the others: "precision fp32"."""
    groups = [json.loads(key) for key in keys]
    fields = [f for f in groups[0] if any(g.get(f) != groups[0][f] for g in groups)]
    return [", ".join(f"{f} {str(g.get(f))[:8] or 'none'}" for f in fields) for g in groups]


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
        blocks.sort(key=lambda block: standing(compared(block[1])))
        tables.append(ResultTable(name, data, blocks))
    return sorted(tables, key=lambda t: (t.data.name, t.data.fingerprint, *result_order(t.name)))


def with_more(
    tables: Sequence[ResultTable], field: str, known: Mapping[tuple[Path, str], Any]
) -> list[ResultTable]:
    """The tables with the rows alone of which more is known; means are over these.

    known: (run's folder, name of the result) -> what becomes a field of the row's scores
    """
    kept = []
    for table in tables:
        groups = [
            [
                replace(row, scores=row.scores | {field: more})
                for row in rows
                if (more := known.get((row.run.path, table.name))) is not None
            ]
            for _, rows in table.blocks
        ]
        blocks = [(seed_mean(rows), rows) for rows in groups if rows]
        if blocks:
            kept.append(replace(table, blocks=blocks))
    return kept


Entry = TypeVar("Entry", Run, Row)


def compared(entries: Sequence[Entry]) -> list[Entry]:
    """Those that stand for their configuration: one of each seed; finished ones if there are any.

    A seed that occurs twice, as in a copied run folder, counts once: the first is taken.
    """
    finished = [entry for entry in entries if entry.is_finished] or list(entries)
    by_seed = {entry.seed: entry for entry in reversed(finished)}
    return [by_seed[seed] for seed in sorted(by_seed)]


def standing(entries: Sequence[Entry]) -> tuple[bool, float]:
    """Sorts configurations, each as `compared` gives it: finished ones first, by val accuracy."""
    return not entries[0].is_finished, -val_accuracy(entries)


def val_accuracy(runs: Sequence[Entry]) -> float:
    """Mean over the runs of the val accuracy of their best epoch, which orders and chooses.

    -1 without a finished epoch.
    """
    best = [-1.0 if run.val_accuracy is None else run.val_accuracy for run in runs]
    return float(sum(best) / len(best))


def seed_mean(rows: Sequence[Row]) -> SeedMean | None:
    """The mean over the seeds of finished runs; None where there is only one seed."""
    kept = [row for row in compared(rows) if row.is_finished]
    if len(kept) < 2:
        return None
    values = {m: [float(row.scores[m]) for row in kept] for m in ("loss", *SHARES)}
    return SeedMean(
        tuple(kept),
        {metric: sum(v) / len(v) for metric, v in values.items()},
        {metric: seeds_interval(metric, v) for metric, v in values.items()},
        kept[0].scores["n"],
        kept[0].scores["majority_rate"],
    )


def _mean(values: Sequence[Any]) -> float | None:
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    return sum(numbers) / len(values) if len(numbers) == len(values) else None


def _value(content: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


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
    writer.writerow([*ABOUT_RUN, *CSV_METRICS, "accuracy_low", "accuracy_high"])
    for run in runs:
        science = run.config["science"]
        for name, scores in run.scores.items():
            data = known.get(scores["data"]) or DataSet(scores["data"], name.partition("-on-")[2])
            line = [run.label, run.config["id"], science["model"], run.seed, run.status["state"]]
            line += [name, data.name, data.fingerprint, run.trained_on]
            line += [scores[m] for m in CSV_METRICS] + scores["accuracy_95"]
            writer.writerow([no_formula(v) if isinstance(v, str) else v for v in line])
    return text.getvalue()
