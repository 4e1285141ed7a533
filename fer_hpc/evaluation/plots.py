"""Every picture of numbers; the only user of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def confusion(counts: NDArray[Any], classes: Sequence[str], title: str, path: Path) -> None:
    """Row-normalised confusion matrix; counts [true, predicted]. A class without a face has an empty row."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(6.2, 5.4), layout="constrained")
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes.set_yticks(
        range(len(classes)), [f"{c} ({n:,})" for c, n in zip(classes, counts.sum(1), strict=True)]
    )
    axes.set(xlabel="predicted", ylabel="true (faces)", title=title)
    for (i, j), value in np.ndenumerate(share):
        if counts[i].sum():
            axes.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.55 else "black",
            )
    figure.colorbar(picture, shrink=0.8)
    _save(figure, path)


def curves(rows: list[dict[str, Any]], best_epoch: int | None, title: str, path: Path) -> None:
    """Accuracy and loss per epoch, train and val, with the learning rate's steps and the best epoch marked."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, metric in ((left, "accuracy"), (right, "loss")):
        for part, color in (("train", "tab:blue"), ("val", "tab:orange")):
            axes.plot(
                epochs,
                [row[f"{part}_{metric}"] for row in rows],
                color=color,
                label=part,
                marker="." if len(rows) < 30 else "",
            )
        for before, row in zip(rows, rows[1:], strict=False):
            if row["lr"] != before["lr"]:
                axes.axvline(row["epoch"], color="0.8", lw=1, zorder=0)
        if best_epoch is not None:
            axes.axvline(best_epoch, color="tab:green", lw=1, ls="--", label="best")
        axes.set(xlabel="epoch", ylabel=metric, xlim=(0.5, epochs[-1] + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    _save(figure, path)


def gan_curves(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Discriminator accuracy, generator loss, and their combined loss in log scale, per epoch."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    both = [row["train_g_loss"] + row["train_d_loss"] for row in rows]
    for axes, values, name in (
        (
            panels[0],
            [row["train_d_correct"] for row in rows],
            "discriminator accuracy (mean of real and made)",
        ),
        (panels[1], [row["train_g_loss"] for row in rows], "generator loss"),
        (panels[2], both, "generator + discriminator loss"),
    ):
        axes.plot(epochs, values, marker="." if len(rows) < 30 else "")
        axes.set(xlabel="epoch", title=name, xlim=(0.5, epochs[-1] + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylim(0, 1.02)
    panels[2].set_yscale("log")
    figure.suptitle(title)
    _save(figure, path)


def face_grid(
    picture: NDArray[Any], rows: Sequence[str], triples: int, title: str, path: Path
) -> None:
    """Strips of neutral | expression | output, one for each of `rows`; picture [H, W, C] in [0, 1]."""
    height, width = picture.shape[:2]
    figure, axes = plt.subplots(
        figsize=(1.2 + 9.0, 0.9 + 9.0 * height / width), layout="constrained"
    )
    axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1)
    side = height / len(rows)
    axes.set_yticks([side * (i + 0.5) for i in range(len(rows))], rows)
    columns = ["neutral", "expression", "output"] * triples
    axes.set_xticks(
        [width / len(columns) * (i + 0.5) for i in range(len(columns))], columns, rotation=30
    )
    axes.tick_params(length=0)
    axes.set_title(title)
    _save(figure, path)


def heat_map(
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    titles: tuple[str, str, str],
    path: Path,
) -> None:
    """A table of numbers as colours; values [rows, columns], NaN stays white; `titles` of rows, columns and the whole."""
    figure, axes = plt.subplots(
        figsize=(max(6.4, 2.2 + 1.1 * len(columns)), 1.6 + 0.8 * len(rows)), layout="constrained"
    )
    picture = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(ylabel=titles[0], xlabel=titles[1], title=titles[2])
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = value < np.nanmean(values)
            axes.text(
                j, i, f"{value:.4f}", ha="center", va="center", color="white" if dark else "black"
            )
    figure.colorbar(picture, shrink=0.8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)
    temporary.replace(path)
