"""Plots of several runs, and of a GAN's expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from fer_hpc.evaluation.plots import _epoch_axis, _literal, _save

# Distinguishable without colour, too.
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2, 2, 2)))
MARKERS = "osD^vPX*"
BARS = (
    ("generated faces", "accuracy", "tab:blue", ""),
    ("real faces", "accuracy_of_real_faces", "0.75", "///"),
)


def overlaid_curves(
    groups: Mapping[str, Sequence[list[dict[str, Any]]]], title: str, path: Path
) -> None:
    """Val accuracy and loss per epoch of several configurations, at most len(LINES).

    `groups`: name -> rows of each of its runs. A line is their mean over the epochs that all have,
    its band all of them.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10.4, 4.0), layout="constrained")
    for i, (name, runs) in enumerate(groups.items()):
        shared = min(map(len, runs))
        epochs = np.array([row["epoch"] for row in min(runs, key=len)])
        for axes, metric in zip(panels, ("val_accuracy", "val_loss"), strict=True):
            values = np.array([[row[metric] for row in rows[:shared]] for rows in runs])
            color = f"C{i}"
            if len(runs) > 1:
                axes.fill_between(
                    epochs, values.min(0), values.max(0), color=color, alpha=0.18, lw=0
                )
            axes.plot(
                epochs,
                values.mean(0),
                color=color,
                ls=LINES[i % len(LINES)],
                marker=MARKERS[i % len(MARKERS)],
                markevery=max(1, shared // 8),
                ms=4,
                lw=1.4,
                label=_literal(name),
            )
    for axes, label in zip(panels, ("val accuracy", "val loss"), strict=True):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        _epoch_axis(
            axes, sorted({r["epoch"] for runs in groups.values() for rows in runs for r in rows})
        )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8
    )
    figure.suptitle(_literal(title))
    _save(figure, path)


def gan_expressions(expression: dict[str, Any], title: str, path: Path) -> None:
    """How often the judge finds the wanted expression, by class, with 95 % intervals.

    `expression` is that field of a GAN's eval-NAME.json.
    """
    classes = expression["classes"]
    figure, axes = plt.subplots(figsize=(1.8 + 0.95 * len(classes), 3.6), layout="constrained")
    places = np.arange(len(classes))
    for i, (label, key, color, hatch) in enumerate(BARS):
        heights = np.array([c[key] for c in classes.values()])
        errors = None
        if key == "accuracy":
            around = np.array([c["accuracy_95"] for c in classes.values()]).T
            errors = np.maximum(np.abs(around - heights), 0)
        axes.bar(
            places + 0.4 * (i - 0.5),
            heights,
            0.38,
            yerr=errors,
            capsize=2,
            color=color,
            hatch=hatch,
            edgecolor="0.25",
            lw=0.5,
            label=label,
        )
    unchanged = expression.get("accuracy_of_neutral_faces")
    if unchanged is not None:
        axes.axhline(unchanged, color="0.3", lw=1, ls=":", label="neutral faces, unchanged")
    names = [f"{_literal(name)}\nn = {c['n']:,}" for name, c in classes.items()]
    axes.set_xticks(places, names, fontsize=9)
    axes.set(ylim=(0, 1), ylabel="share with the wanted expression", title=_literal(title))
    axes.legend(fontsize=8, ncols=3, loc="upper right")
    _save(figure, path)
