"""Reading run folders and sweeps for the report. Damaged ones are listed and left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from fer_hpc.config import UserError
from fer_hpc.config.errors import one_line
from fer_hpc.data.manifest import SPLITS
from fer_hpc.data.pictures import printable
from fer_hpc.evaluation.metrics import find_metric
from fer_hpc.evaluation.openings import read_openings
from fer_hpc.evaluation.results import outdated, read_scores, scoring_command
from fer_hpc.evaluation.shapes import SCORES
from fer_hpc.files import DAMAGE, check_shape, damage_reason, read_record, read_stored, sha256
from fer_hpc.report import shapes
from fer_hpc.run.folder import (
    attempt_numbers,
    best_row,
    damaged_records,
    find_runs,
    is_identity_judge,
    outcome_file,
    rank_counts,
    read_environment,
    read_history,
    read_run_config,
    read_status,
)
from fer_hpc.sweep.tables import summarise

Content = TypeVar("Content")


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path
    label: str  # its folder's name, longer where another run has the same
    config: dict[str, Any]
    status: dict[str, Any]
    rows: list[dict[str, Any]]  # one an epoch
    seconds: float  # of training and validation
    environment: dict[str, Any]
    data_folder: Path
    scores: dict[str, dict[str, Any]]  # NAME -> eval-NAME.json, in the order of the splits
    openings: list[dict[str, Any]]  # of test splits, a line each time
    images_per_s: float | None  # median over the epochs
    restarts: int  # starts after the first
    ranks: list[int]  # their number in each start, without repeats: more than one where it changed

    @property
    def is_finished(self) -> bool:
        return bool(self.status["state"] == "finished")

    @property
    def is_gan(self) -> bool:
        return bool(self.config.get("kind") == "GAN")

    @property
    def best_epoch(self) -> int | None:
        best = best_row(self.rows)
        return int(best["epoch"]) if best else None

    @property
    def val_accuracy(self) -> float | None:
        """Accuracy on val of the epoch that is best by --best-on, whose weights are scored."""
        best = best_row(self.rows)
        return float(best["val_accuracy"]) if best else None

    @property
    def parameters(self) -> int | None:
        """Trainable parameters; older versions did not record them."""
        count = self.environment.get("parameters")
        return count if isinstance(count, int) else None

    @property
    def trained_on(self) -> str:
        """Fingerprint of its data."""
        return str(self.config["data"]["fingerprint"])

    def times_opened(self, data: str) -> int:
        """How often the test split of the data with this fingerprint was opened for this run."""
        return sum(line["data"] == data for line in self.openings)

    @property
    def seed(self) -> int:
        return int(self.config["science"]["seed"])


@dataclass(frozen=True)
class Sweep:
    """One sweep's folder; `summary` is None until it has a first trial."""

    path: Path
    summary: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.path.name


@dataclass
class Collection:
    """All that was found below the given folders."""

    runs: list[Run] = field(default_factory=list)
    gans: list[Run] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    damaged: list[tuple[Path, str]] = field(default_factory=list)  # what is left out, and why


def collect(paths: tuple[Path, ...]) -> Collection:
    """Read the runs and sweeps among `paths` and below; a UserError where there are none at all."""
    collection = Collection()
    sweeps: dict[Path, None] = {}
    singles: dict[Path, Path] = {}  # absolute path, without links -> path as given
    for path in find_runs(paths):
        if path not in paths and is_identity_judge(path):
            continue  # its classes are persons; the GAN's table has what it says
        trials = path.absolute().parent
        is_trial = trials.name == "trials" and (trials.parent / "sweep.json").exists()
        if path not in paths and is_trial:
            sweeps[trials.parent] = None
        else:
            singles.setdefault(path.resolve(), path)
    for path in paths:  # sweeps of which no trial has begun to write
        for pattern in ("sweep.json", "*/sweep.json", "*/*/sweep.json"):
            sweeps |= dict.fromkeys(p.parent.absolute() for p in path.glob(pattern))
    for resolved, label in unique_labels(list(singles)).items():
        run = _read_run(singles[resolved], label, collection.damaged)
        if run:
            (collection.gans if run.is_gan else collection.runs).append(run)
    for folder in sweeps:
        try:
            collection.sweeps.append(Sweep(folder, _read_summary(folder)))
        except DAMAGE as why:
            collection.damaged.append((folder, damage_reason(why)))
    if collection.damaged and not (collection.runs or collection.gans or collection.sweeps):
        path, reason = collection.damaged[0]
        raise UserError(
            f"no run can be read; the first of {len(collection.damaged)} is {path}: {reason}"
        )
    return collection


def unique_labels(paths: list[Path]) -> dict[Path, str]:
    """The shortest ends of paths that differ: first, or exp1/first beside exp2/first."""
    lengths = dict.fromkeys(paths, 1)

    def label(path: Path) -> str:
        return one_line(printable("/".join(path.parts[-lengths[path] :])))

    while True:
        counts = Counter(map(label, paths))
        same = [p for p in paths if counts[label(p)] > 1 and lengths[p] < len(p.parts)]
        if not same:
            return {path: label(path) for path in paths}
        for path in same:
            lengths[path] += 1


def result_order(name: str) -> tuple[int, str]:
    """Order of eval-NAME.json by split: train, val, test, and plain ones first."""
    split = name.split("-")[0]
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS)), name


def _read_run(path: Path, label: str, damaged: list[tuple[Path, str]]) -> Run | None:
    """The run, or None with a line in `damaged`; a damaged result alone leaves the run."""
    try:
        config = read_run_config(path)
        check_shape(config, shapes.CONFIG, "config.json")
        gan = config.get("kind") == "GAN"
        if not gan:
            check_shape(config, shapes.CLASSIFIER_CONFIG, "config.json")
        row = shapes.ROW if gan else shapes.CLASSIFIER_ROW
        status = _checked(read_status(path), shapes.STATUS, "status.json")
        rows, torn = read_history(path)
        check_shape(rows, [row, ...], "metrics.jsonl")
        times, torn_times = read_history(path, "timing.jsonl")
        check_shape(times, [shapes.TIMING, ...], "timing.jsonl")
        environment = _checked(read_environment(path), {}, "environment.json")
        data = Path(environment.get("data") or config["data"]["path"])
    except DAMAGE as why:
        damaged.append((path, damage_reason(why)))
        return None
    damaged += [(path, line) for line in damaged_records(path) + torn + torn_times]
    scores = {}
    for file in path.glob("eval-*.json"):
        try:
            wanted = shapes.GAN_SCORES if gan else SCORES
            name = file.stem.removeprefix("eval-")
            result = read_scores(file, wanted)
            if gan:
                final, of = outcome_file(path, "final.pt"), result.get("weights")
                old = "is of earlier weights" if final and of and of != sha256(final) else ""
            else:
                old = outdated(result, rows, status["state"])
            if old:
                raise UserError(f"it {old}; {scoring_command(path, name)} scores it again")
            scores[name] = result
        except DAMAGE as why:
            damaged.append((file, damage_reason(why)))
    openings, damaged_lines = read_openings(path)
    if damaged_lines:
        reason = f"{damaged_lines} damaged line(s) in test-openings.jsonl left out"
        damaged.append((path, reason))
    return Run(
        path,
        label,
        config,
        status,
        rows,
        sum(row["train_s"] + row["val_s"] for row in times),
        environment,
        data,
        {name: scores[name] for name in sorted(scores, key=result_order)},
        openings,
        _median([row["images_per_s"] for row in times if "images_per_s" in row]),
        max(0, len(attempt_numbers(path)) - 1),
        rank_counts(path),
    )


def _median(values: list[Any]) -> float | None:
    known = [float(v) for v in values if isinstance(v, int | float) and isfinite(v)]
    return median(known) if known else None


def is_outdated(sweep: Path) -> bool:
    """Whether trials have gone on since `tune` wrote the sweep's table, or it has written none."""
    table = sweep / "summary.json"
    written = table.stat().st_mtime if table.exists() else 0.0
    return any(p.stat().st_mtime > written for p in sweep.glob("trials/*/status.json"))


def _read_summary(folder: Path) -> dict[str, Any] | None:
    if is_outdated(folder):
        return summarise(folder)[1]
    summary = read_stored(folder / "summary.json")
    if summary is None:
        return None
    check_shape(summary, shapes.SWEEP, "summary.json")
    find_metric(summary["metric"])
    sweep = read_record(folder / "sweep.json", {"science": {"model": (str, None)}})
    if sweep and summary["model"] is None:  # not in summaries of older versions
        summary["model"] = sweep["science"]["model"]
    return dict(summary)


def _checked(content: Content, wanted: Any, where: str) -> Content:
    check_shape(content, wanted, where)
    return content
