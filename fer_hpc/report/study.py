"""The section of a page about a study: its state, and the source report's tables and figures with
our numbers beside theirs."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.config import CLASSES
from fer_hpc.data.manifest import SPLITS, Manifest, find_manifest
from fer_hpc.files import DAMAGE, damage_reason, read_json
from fer_hpc.report import paper
from fer_hpc.report.figures import Figure
from fer_hpc.report.read import Collection, Run
from fer_hpc.report.study_models import Model, order_by_accuracy, study_figures, study_models
from fer_hpc.run.folder import attempt_numbers, read_environment
from fer_hpc.study.graph import Part, parts_of
from fer_hpc.study.plan import Plan, is_study, read_plan
from fer_hpc.study.state import PartState, jobs_of, states_of_parts

AFFECTNET = ("affectnet", "affectnet_csv", "yolo")


@dataclass(frozen=True)
class Line:
    """A part of the study in the table of time and state."""

    name: str
    state: str
    why: str
    seconds: float | None
    device: str
    restarts: int


@dataclass(frozen=True)
class StudySection:
    """What study.html.j2 shows."""

    plan: Plan
    states: dict[str, PartState]
    counts: Counter[str]
    failed: list[tuple[str, str]]
    missing: list[tuple[str, str]]  # left out, blocked or waiting, and why
    models: list[Model]
    class_table: list[tuple[Any, ...]]
    class_words: str
    lacking: list[str]  # classes of the source report that the data has not
    order: list[str]
    figures: list[tuple[str, list[Figure]]]
    lines: list[Line]
    starts: int
    reopened: int  # runs whose test split was opened more than once
    is_affectnet: bool
    our_majority: float | None  # of the test split, else of val
    faces: dict[str, int]
    notes: tuple[str, ...] = paper.NOTES
    classes: tuple[str, ...] = CLASSES
    majority: float = paper.MAJORITY


def study_section(paths: Sequence[Path], collection: Collection, out: Path) -> StudySection | None:
    """The section of the first study among `paths`; None where there is none."""
    folder = next((path for path in paths if is_study(path)), None)
    if folder is None:
        return None
    plan = read_plan(folder)
    parts = [part for part in parts_of(plan) if part.kind != "report"]
    states = states_of_parts(plan, parts, jobs_of(plan, parts))
    runs = {run.path.resolve(): run for run in [*collection.runs, *collection.gans]}
    is_affectnet = plan.tables["source"] in AFFECTNET
    models = [
        model
        for name, members in _by_model(parts).items()
        for model in study_models(name, _runs_of(members, runs), is_affectnet)
    ]
    gans = _runs_of([p for p in parts if p.kind == "gan"], runs)
    manifest = next(filter(None, (find_manifest(_shards(plan, p)) for p in plan.products)), None)
    table, words = class_table(manifest, is_affectnet)
    mine = _runs_of([p for p in parts if p.kind in ("train", "gan")], runs)
    starts = read_json(plan.out / "parts" / "driver.json")
    return StudySection(
        plan=plan,
        states=states,
        counts=Counter(state.state for state in states.values()),
        failed=[(n, s.why) for n, s in states.items() if s.state == "failed"],
        missing=[
            (name, s.why or "not run yet")
            for name, s in states.items()
            if s.state in ("left out", "blocked", "waiting", "running")
        ],
        models=models,
        class_table=table,
        class_words=words,
        lacking=[c for c in CLASSES if manifest and c not in manifest.classes],
        order=order_by_accuracy(models),
        figures=study_figures(models, gans, out, is_affectnet),
        lines=_lines(plan, parts, states, runs),
        starts=len(starts) if isinstance(starts, list) else 0,
        reopened=sum(run.times_opened(run.trained_on) > 1 for run in mine),
        is_affectnet=is_affectnet,
        our_majority=_majority(manifest),
        faces={s: manifest.n(s) for s in SPLITS} if manifest else {},
    )


def _majority(manifest: Manifest | None) -> float | None:
    split = next((s for s in ("test", "val") if manifest and manifest.n(s)), None)
    if manifest is None or split is None:
        return None
    return max(manifest.class_counts(split)) / manifest.n(split)


def _shards(plan: Plan, product: str) -> Path:
    return plan.out / "shards" / product


def _runs_of(parts: list[Part], runs: dict[Path, Run]) -> list[Run]:
    return [runs[path] for part in parts if (path := part.folder.resolve()) in runs]


def _by_model(parts: list[Part]) -> dict[str, list[Part]]:
    groups: dict[str, list[Part]] = {}
    for part in parts:
        if part.kind == "train":
            groups.setdefault(part.model, []).append(part)
    order = [*paper.MODELS, "winner"]
    return dict(sorted(groups.items(), key=lambda i: order.index(i[0]) if i[0] in order else 99))


# ---- table 1 -------------------------------------------------------------------------------------


def class_table(manifest: Manifest | None, is_affectnet: bool) -> tuple[list[Any], str]:
    """(class, ours in train, val, test, theirs in train, val, test) and the difference in words."""
    if manifest is None:
        return [], "the shards are not there"
    ours = dict.fromkeys([*CLASSES, *manifest.classes], (0, 0, 0))
    columns = [manifest.class_counts(s) if manifest.n(s) else None for s in SPLITS]
    for i, name in enumerate(manifest.classes):
        ours[name] = tuple(column[i] if column else 0 for column in columns)  # type: ignore
    nothing = (None, None, None)
    rows: list[Any] = [
        (name, *counts, *paper.COUNTS.get(name, nothing)) for name, counts in ours.items()
    ]
    totals = [sum(row[i] or 0 for row in rows) for i in range(1, 7)]
    rows.append(("all", *totals))
    if not is_affectnet:
        return rows, "other data: the counts are not compared"
    pairs = [pair for c in paper.COUNTS for pair in zip(ours[c], paper.COUNTS[c], strict=True)]
    off = max(abs(mine - theirs) for mine, theirs in pairs)
    if off <= 1:
        return rows, "equal to the source report's to within one face"
    return rows, f"up to {off:,} faces from the source report's: another copy, or another --split"


# ---- time ----------------------------------------------------------------------------------------


def _lines(
    plan: Plan, parts: list[Part], states: dict[str, PartState], runs: dict[Path, Run]
) -> list[Line]:
    """A line for each part that takes long: how long, on what, how often restarted."""
    lines = []
    for part in parts:
        if part.kind not in ("train", "grid", "gan"):
            continue
        run, state = runs.get(part.folder.resolve()), states[part.name]
        seconds, device, restarts, why = None, "", 0, state.why
        if run:
            threads = run.config["science"]["threads"]
            device = str(run.environment.get("device", ""))
            device += f", {threads} thread(s)" if device == "cpu" else ""
            seconds, restarts = run.seconds, max(0, len(attempt_numbers(run.path)) - 1)
        if part.kind == "grid":
            seconds, restarts, device, damage = _grid_totals(part.folder)
            why = "; ".join(filter(None, (why, damage)))
        lines.append(Line(part.name, state.state, why, seconds, device, restarts))
    return lines


def _grid_totals(folder: Path) -> tuple[float | None, int, str, str]:
    """Seconds of all trials together, how often one was started again, on what they ran, and what
    is damaged."""
    path, seconds, damage = folder / "results.csv", None, ""
    if not path.exists():
        return None, 0, "", ""
    try:
        with path.open(newline="") as file:
            seconds = sum(float(row["seconds"] or 0) for row in csv.DictReader(file))
        if not math.isfinite(seconds):
            raise ValueError(f"{seconds} seconds")
    except (*DAMAGE, csv.Error) as error:
        seconds, damage = None, f"{path.name} is damaged ({damage_reason(error)})"
    trials = [trial.parent for trial in folder.glob("trials/*/config.json")]
    restarts = sum(max(0, len(attempt_numbers(trial)) - 1) for trial in trials)
    devices = {str(read_environment(trial).get("device", "")) for trial in trials}
    return seconds, restarts, ", ".join(sorted(devices - {""})), damage
