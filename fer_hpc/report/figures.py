"""The report's figures, as PNG files and as data URIs in the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fer_hpc.evaluation import plots
from fer_hpc.report.read import Run

MAX_DRAWN_RUNS = 20  # a run's figures take about a second and 60 kB of the page


@dataclass(frozen=True)
class Figure:
    """A picture in the page."""

    caption: str
    uri: str
    is_plot: bool = True  # drawn on white, so that a dark page may invert it


def draw_figures(runs: Sequence[Run], out: Path) -> dict[str, list[Figure]]:
    """Label -> curves and confusion matrices of the MAX_DRAWN_RUNS runs that are best on val."""

    def val_accuracy(run: Run) -> float:
        return max((row["val_accuracy"] for row in run.rows), default=-1.0)

    drawn = sorted(runs, key=val_accuracy, reverse=True)[:MAX_DRAWN_RUNS]
    return {run.label: _draw(run, out) for run in drawn}


def gan_figures(gans: Sequence[Run]) -> dict[str, list[Figure]]:
    """Label -> the pictures that `fer-hpc evaluate` has written for a GAN."""
    found = {}
    for gan in gans:
        caption = "reference | expression | output, "
        grids = [
            Figure(caption + p.stem.removeprefix("grid-"), picture_uri(p), is_plot=False)
            for p in sorted(gan.path.glob("grid-*.png"))
        ]
        curves = [Figure("losses", picture_uri(p)) for p in gan.path.glob("curves.png")]
        found[gan.label] = grids + curves
    return found


def heat_map(sweep: Path) -> list[Figure]:
    """The heatmap.png of a sweep, if there is one."""
    path = sweep / "heatmap.png"
    return [Figure("mean over the seeds", picture_uri(path))] if path.exists() else []


def _draw(run: Run, out: Path) -> list[Figure]:
    """The figures of one run, also written as LABEL-*.png; a label may contain a folder."""
    drawn = []
    (out / run.label).parent.mkdir(parents=True, exist_ok=True)
    if run.rows:
        path = out / f"{run.label}-curves.png"
        plots.curves(run.rows, run.best_epoch, run.label, path)
        drawn.append(Figure("Accuracy and loss per epoch", picture_uri(path)))
    for name, scores in run.scores.items():
        path = out / f"{run.label}-confusion-{name}.png"
        counts = np.array(scores["confusion"])
        plots.confusion(counts, list(scores["classes"]), f"{run.label}, {name}", path)
        drawn.append(Figure(f"Confusion on {name}; each row sums to 1", picture_uri(path)))
    return drawn


def picture_uri(picture: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
