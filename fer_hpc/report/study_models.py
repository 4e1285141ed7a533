"""The models of a study over their seeds: the source report's tables 2 and 3, and its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fer_hpc.evaluation import plots
from fer_hpc.evaluation.metrics import MIN_SEEDS, format_interval, seeds_interval, smoothed_loss
from fer_hpc.evaluation.results import result_files
from fer_hpc.report import paper
from fer_hpc.report.figures import Figure, copied, picture
from fer_hpc.report.read import Run
from fer_hpc.report.tables import group_key, group_words
from fer_hpc.run.folder import attempt_numbers

TITLES = {"vgg": "VGG", "winner": "grid's winner", **{k: m.title for k, m in paper.MODELS.items()}}
SCORED = ("loss", "objective", "accuracy", "balanced_accuracy")


def seeds_text(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


@dataclass(frozen=True)
class Score:
    """One metric over the seeds of a model."""

    mean: float
    interval: tuple[float, float] | None
    seeds: int

    def mean_text(self, percent: bool) -> str:
        """The mean, as a table shows it."""
        if math.isnan(self.mean):  # an objective, and the predictions are gone
            return "not known"
        return f"{100 * self.mean:.1f}" if percent else f"{self.mean:.3f}"

    def interval_text(self, percent: bool) -> str:
        """Its interval; "" where there are too few seeds."""
        if self.interval is None:
            return ""
        factor, spec = (100, ".1f") if percent else (1, ".3f")
        low, high = (factor * limit for limit in self.interval)
        return format_interval((low, high), self.seeds, spec)


@dataclass(frozen=True)
class Model:
    """A model of the study: its runs, and the source report's numbers, if it has it."""

    name: str
    title: str
    runs: tuple[Run, ...]
    theirs: paper.PaperModel | None
    scores: dict[str, dict[str, Score]]  # split -> metric
    recalls: dict[str, dict[str, float | None]]  # split -> class
    words: str
    seconds: float
    devices: tuple[str, ...]
    restarts: int
    smoothing: float
    epochs: str  # how many were trained

    @property
    def split(self) -> str:
        """The split that tables of classes and pictures show: test, where it was opened."""
        return "test" if "test" in self.scores else "val"


# ---- tables 2 and 3 ------------------------------------------------------------------------------


def study_models(name: str, runs: Sequence[Run], is_affectnet: bool) -> list[Model]:
    """A model over its seeds; several where its runs differ in more, which their titles name."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(group_key(run), []).append(run)
    if len(groups) < 2:
        return [_study_model(name, "", runs, is_affectnet)] if runs else []
    return [
        _study_model(name, f", {words}", group, is_affectnet)
        for words, group in zip(group_words(groups), groups.values(), strict=True)
    ]


def _study_model(name: str, words: str, members: Sequence[Run], is_affectnet: bool) -> Model:
    runs = tuple(members)
    smoothing = float(runs[0].config["science"].get("label_smoothing", 0.0))
    scores, recalls = {}, {}
    for split in ("val", "test"):
        scored = [run for run in runs if split in run.scores and run.scores[split]["finished"]]
        if scored:
            scores[split] = _scores(scored, split, smoothing)
            recalls[split] = _recalls(scored, split)
    theirs = paper.MODELS.get(name)
    return Model(
        name + "".join(c if c.isalnum() else "-" for c in words),
        TITLES.get(name, name) + words,
        runs,
        theirs,
        scores,
        recalls,
        difference_in_words(theirs, scores, is_affectnet),
        sum(run.seconds for run in runs),
        tuple(sorted({str(run.environment.get("device", "")) for run in runs} - {""})),
        sum(max(0, len(attempt_numbers(run.path)) - 1) for run in runs),
        smoothing,
        _epochs(runs),
    )


def _epochs(runs: Sequence[Run]) -> str:
    """The numbers of epochs that the runs have trained, in words."""
    counts = sorted({len(run.rows) for run in runs})
    text = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{text} epoch{'s' if counts[-1] != 1 else ''}"


def _scores(runs: list[Run], split: str, smoothing: float) -> dict[str, Score]:
    values = {m: [float(run.scores[split][m]) for run in runs] for m in SCORED if m != "objective"}
    values["objective"] = values["loss"]
    if smoothing:
        values["objective"] = [objective_of(run.path, split, smoothing) for run in runs]
    return {
        metric: Score(
            sum(v) / len(v), seeds_interval(metric, v) if len(v) >= MIN_SEEDS else None, len(v)
        )
        for metric, v in values.items()
    }


def objective_of(run: Path, split: str, smoothing: float) -> float:
    """The loss with label smoothing on a split, from the stored predictions; NaN without them."""
    path = result_files(run, split)["predictions"]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return smoothed_loss(arrays["logits"], arrays["labels"], smoothing)
    except Exception:  # zipfile and numpy have errors of many kinds for other bytes
        return float("nan")


def _recalls(runs: list[Run], split: str) -> dict[str, float | None]:
    """Mean recall of each class over the seeds."""
    recalls: dict[str, float | None] = {}
    for name in runs[0].scores[split]["classes"]:
        values = [run.scores[split]["classes"].get(name, {}).get("recall") for run in runs]
        known = [value for value in values if value is not None]
        recalls[name] = sum(known) / len(known) if known else None
    return recalls


def difference_in_words(
    theirs: paper.PaperModel | None,
    scores: dict[str, dict[str, Score]],
    is_affectnet: bool,
) -> str:
    """The difference to the source report's test accuracy, in words."""
    if theirs is None:
        return "not in the source report's tables"
    if "test" not in scores:
        return "test not opened"
    if not is_affectnet:
        return "other data: not compared"
    score = scores["test"]["accuracy"]
    points = 100 * (score.mean - theirs.test_accuracy)
    text = f"{points:+.1f} points on test"
    if score.interval is None:
        return f"{text}; {seeds_text(score.seeds)}, too few to call it a difference"
    low, high = score.interval
    if low <= theirs.test_accuracy <= high:
        return f"{text}: not distinguishable, their number is within our interval"
    return f"{text}: {'above' if points > 0 else 'below'} their single run, outside our interval"


def order_by_accuracy(models: list[Model]) -> list[str]:
    """The models that both have, best test accuracy first: theirs, and ours."""
    both = [m for m in models if m.theirs and "test" in m.scores]
    if len(both) < 2:
        return []
    theirs = sorted(both, key=lambda m: -(m.theirs.test_accuracy if m.theirs else 0))
    ours = sorted(both, key=lambda m: -m.scores["test"]["accuracy"].mean)
    return [" > ".join(m.title for m in listed) for listed in (theirs, ours)]


# ---- figures -------------------------------------------------------------------------------------


def study_figures(
    models: list[Model], gans: list[Run], out: Path, is_affectnet: bool
) -> list[tuple[str, list[Figure]]]:
    """(heading, pictures) of each model and of the GAN; also written into `out`."""
    sections = []
    folder = out / "study"
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        drawn = []
        rows = {run.seed: run.rows for run in model.runs if run.rows}
        if rows:
            path = folder / f"{model.name}-curves.png"
            peers = None
            if model.theirs and is_affectnet:
                peers = {"accuracy": model.theirs.val_accuracy, "loss": model.theirs.val_loss}
            plots.seed_curves(rows, f"{model.title}, {seeds_text(len(rows))}", path, peers)
            drawn.append(picture(path, out, "Accuracy and loss per epoch, a line for each seed"))
        scored = [run.scores[model.split] for run in model.runs if model.split in run.scores]
        if scored:
            path = folder / f"{model.name}-confusion.png"
            counts = np.sum([np.array(scores["confusion"]) for scores in scored], axis=0)
            title = f"{model.title}, {model.split}, {seeds_text(len(scored))}"
            plots.confusion(counts, list(scored[0]["classes"]), title, path)
            caption = f"Confusion on {model.split}, rows sum to 1, seeds together"
            drawn.append(picture(path, out, caption))
        number = f"Figures {model.theirs.figures}" if model.theirs else "Not in the source report"
        sections.append((f"{number}: {model.title}", drawn))
    for gan in gans:
        caption = "Discriminator accuracy, generator loss, both losses"
        pictures = [
            copied(path, f"study/{gan.label}", out, caption) for path in gan.path.glob("curves.png")
        ]
        grids = sorted(gan.path.glob("grid-*.png"), key=lambda p: p.stem != "grid-test")
        pictures += [
            copied(path, f"study/{gan.label}", out, "Neutral | expression | output", False)
            for path in grids[:1]
        ]
        sections.append((f"Figures 13 to 16: {gan.label}", pictures))
    return [(heading, pictures) for heading, pictures in sections if pictures]
