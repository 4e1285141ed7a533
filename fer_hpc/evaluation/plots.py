"""Plots of one run; with plots_many.py the only user of matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray
from PIL import Image

from fer_hpc.files import replacement

DPI = 110
MAX_MARKED_EPOCHS = 30  # above it, curves have no dots
COLORS = {"train": "tab:blue", "val": "tab:orange", "best": "tab:green", "lr": "0.55"}


def confusion(counts: NDArray[Any], classes: Sequence[str], title: str, path: Path) -> None:
    """Confusion matrix, each row divided by its sum; counts [true, predicted].

    The row of a class without a face is empty.
    """
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(6.2, 5.4), layout="constrained")
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [_literal(name) for name in classes]
    rows = [f"{name} ({n:,})" for name, n in zip(names, counts.sum(1), strict=True)]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), rows)
    axes.set(xlabel="predicted", ylabel="true (faces)", title=_literal(title))
    for (i, j), value in np.ndenumerate(share):
        if counts[i].sum():
            color = "white" if value > 0.55 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(picture, shrink=0.8)
    _save(figure, path)


def reliability(calibration: dict[str, Any], title: str, path: Path) -> None:
    """Accuracy against confidence in bins of equal mass, before and after the temperature.

    `calibration` is that field of eval-NAME.json.
    """
    figure, axes = plt.subplots(figsize=(5.4, 5.0), layout="constrained")
    axes.plot((0, 1), (0, 1), color="0.6", lw=1, ls="--", label="calibrated")
    temperature = calibration["temperature"]
    shown = [("as trained", calibration["before"], "tab:blue", "o")]
    if calibration["after"]:
        shown.append((f"temperature {temperature:.2f}", calibration["after"], "tab:orange", "s"))
    for name, scores, color, marker in shown:
        x = np.array([b["confidence"] for b in scores["bins"]])
        y = np.array([b["accuracy"] for b in scores["bins"]])
        around = np.array([b["accuracy_95"] for b in scores["bins"]]).T
        low, high = scores["ece_95"]
        label = f"{name}: error {scores['ece']:.3f} [{low:.3f}, {high:.3f}]"
        bars = np.maximum(np.abs(around - y), 0)
        axes.errorbar(
            x, y, bars, color=color, marker=marker, ms=4, lw=1.4, elinewidth=0.8, label=label
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.set_title(_literal(title))
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)
    _save(figure, path)


def curves(rows: list[dict[str, Any]], best_epoch: int | None, title: str, path: Path) -> None:
    """Accuracy and loss per epoch, on train and val, with the best epoch marked.

    Where the learning rate changes, a strip below shows it.
    """
    rates = [row["lr"] for row in rows]
    has_strip = len(set(rates)) > 1
    with_strip: list[Any] = [["accuracy", "loss"], ["lr", "lr"]]
    grid = with_strip if has_strip else with_strip[:1]
    figure, panels = plt.subplot_mosaic(
        grid,
        figsize=(9.6, 4.4 if has_strip else 3.6),
        height_ratios=[4, 1] if has_strip else [1],
        layout="constrained",
    )
    epochs = [row["epoch"] for row in rows]
    for metric in ("accuracy", "loss"):
        for part in ("train", "val"):
            values = [row[f"{part}_{metric}"] for row in rows]
            marker = "." if len(rows) <= MAX_MARKED_EPOCHS else ""
            panels[metric].plot(epochs, values, color=COLORS[part], label=part, marker=marker)
        if best_epoch is not None:
            panels[metric].axvline(best_epoch, color=COLORS["best"], lw=1, ls="--", label="best")
        panels[metric].set(ylabel=metric, **({} if has_strip else {"xlabel": "epoch"}))
        panels[metric].legend()
        _epoch_axis(panels[metric], epochs)
    if has_strip:
        panels["lr"].step(epochs, rates, where="mid", color=COLORS["lr"], lw=1.2)
        panels["lr"].set(xlabel="epoch", ylabel="learning rate", ylim=(0, 1.1 * max(rates)))
        _epoch_axis(panels["lr"], epochs)
    figure.suptitle(_literal(title))
    _save(figure, path)


def seed_curves(
    runs: dict[int, list[dict[str, Any]]],
    title: str,
    path: Path,
    peers: dict[str, float] | None = None,
) -> None:
    """Accuracy and loss per epoch of several seeds in one picture, on train and val.

    `runs`: seed -> rows. `peers`: val numbers of somebody else's model, as dotted lines, by metric.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    longest = max(runs.values(), key=len)
    for axes, metric in zip(panels, ("accuracy", "loss"), strict=True):
        for i, rows in enumerate(runs.values()):
            for part in ("train", "val"):
                axes.plot(
                    [row["epoch"] for row in rows],
                    [row[f"{part}_{metric}"] for row in rows],
                    color=COLORS[part],
                    label=part if not i else None,
                    lw=1.1,
                    alpha=0.85,
                    marker="." if len(longest) <= MAX_MARKED_EPOCHS else "",
                )
        if peers and metric in peers:
            text = f"source report, val ({peers[metric]:.3g})"
            axes.axhline(peers[metric], color="0.3", lw=1, ls=":", label=text)
        axes.set(xlabel="epoch", ylabel=metric)
        axes.legend(fontsize=8)
        _epoch_axis(axes, [row["epoch"] for row in longest])
    figure.suptitle(_literal(title))
    _save(figure, path)


def gan_curves(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Per epoch: discriminator accuracy, generator loss, and the sum of both losses (log scale)."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    curves_of = {
        "discriminator accuracy, mean of both": [row["train_d_correct"] for row in rows],
        "generator loss": [row["train_g_loss"] for row in rows],
        "generator + discriminator loss": [
            row["train_g_loss"] + row["train_d_loss"] for row in rows
        ],
    }
    for axes, (name, values) in zip(panels, curves_of.items(), strict=True):
        axes.plot(epochs, values, marker="." if len(rows) <= MAX_MARKED_EPOCHS else "")
        axes.set(xlabel="epoch", title=name)
        _epoch_axis(axes, epochs)
    panels[0].set_ylim(0, 1.02)
    panels[2].set_yscale("log")
    panels[2].yaxis.set_major_formatter(ScalarFormatter())
    panels[2].yaxis.set_minor_formatter(ScalarFormatter())
    figure.suptitle(_literal(title))
    _save(figure, path)


def face_grid(
    picture: NDArray[Any], rows: Sequence[str], triples: int, title: str, path: Path
) -> None:
    """Strips of neutral | expression | output, one per class in `rows`, enlarged twice or more.

    `picture` [H, W, C] in [0, 1] holds them, `triples` beside each other. Faces of more than 128
    pixels keep their size.
    """
    side = picture.shape[0] // len(rows)
    scale = 1 if side > 128 else max(2, 96 // side)
    faces = picture.repeat(scale, 0).repeat(scale, 1)
    height, width = faces.shape[:2]
    left, top = 30 + 9 * max(map(len, rows)), 66  # pixels for labels and title
    size = (left + width, top + height)
    figure = plt.figure(figsize=(size[0] / DPI, size[1] / DPI))
    place = (left / size[0], 0, width / size[0], height / size[1])
    axes = figure.add_axes(place)
    axes.imshow(faces.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    step = height / len(rows)
    axes.set_yticks([step * (i + 0.5) for i in range(len(rows))], [_literal(r) for r in rows])
    columns = ["neutral", "expression", "output"] * triples
    centres = [width / len(columns) * (i + 0.5) - 0.5 for i in range(len(columns))]
    axes.set_xticks(centres, columns, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for k in range(1, triples):
        axes.axvline(width / triples * k - 0.5, color="white", lw=3)
    figure.text(left / size[0], 1 - 8 / size[1], _literal(title), fontsize=11, va="top")
    _save(figure, path)


def robustness(card: dict[str, Any], title: str, path: Path) -> None:
    """Accuracy and calibration error against strength, a panel for each disturbance.

    `card` is the content of robust-NAME.json.
    """
    kinds = card["disturbances"]
    columns = 5
    rows = -(-len(kinds) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.5 * rows + 0.6), sharey=True, layout="constrained"
    )
    for axes in panels.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes, kind in zip(panels.flat, kinds.values(), strict=False):
        x = np.arange(1, len(kind["levels"]) + 1)
        for key, color, marker in (("accuracy", "tab:blue", "o"), ("ece", "tab:orange", "s")):
            y = np.array([card["clean"][key], *(level[key] for level in kind["levels"])])
            around = [card["clean"][f"{key}_95"], *(level[f"{key}_95"] for level in kind["levels"])]
            low, high = np.array(around).T
            steps = np.arange(len(x) + 1)
            axes.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
            name = {"accuracy": "accuracy", "ece": "calibration error"}[key]
            axes.plot(steps, y, color=color, marker=marker, ms=3.5, lw=1.4, label=name)
        axes.axhline(card["clean"]["accuracy"], color="0.6", lw=0.8, ls="--")
        strengths = [f"{level['strength']:g}" for level in kind["levels"]]
        axes.set_xticks(range(len(x) + 1), ["clean", *strengths], fontsize=8)
        axes.set_xlabel(_literal(kind["unit"]), fontsize=8)
        axes.set(title=_literal(kind["title"]), ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels.flat[0].legend(fontsize=8)
    figure.suptitle(_literal(title))
    _save(figure, path)


def picture_table(
    cells: Sequence[Sequence[tuple[NDArray[Any] | None, str]]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    path: Path,
    side: int = 96,
) -> None:
    """Pictures with captions, in rows and columns with names.

    cells [rows][columns]: a picture [H, W, C] of bytes (None: empty) and the text below it; `side`
    is that of a picture in pixels.
    """
    lines = 1 + max(text.count("\n") for line in cells for _, text in line)
    step = (side + 8 + 14 * lines, side + 8)  # of a row and of a column
    height, width = len(rows) * step[0], max(map(len, cells)) * step[1]
    canvas = np.full((height, width, 3), 255, np.uint8)
    left = 0.35 + 0.085 * max(map(len, rows), default=0)  # inches for the names of the rows
    size = (left + width / DPI, (0.75 if columns else 0.4) + height / DPI)
    figure = plt.figure(figsize=size)
    axes = figure.add_axes((left / size[0], 0, width / DPI / size[0], height / DPI / size[1]))
    for i, line in enumerate(cells):
        for j, (picture, text) in enumerate(line):
            if picture is not None:
                top, start = i * step[0], j * step[1] + 4
                canvas[top : top + side, start : start + side] = _enlarged(picture, side)
            place = (j * step[1] + 4 + side / 2, i * step[0] + side + 3)
            axes.text(*place, _literal(text), fontsize=7, ha="center", va="top")
    axes.imshow(canvas, interpolation="nearest")
    axes.set_yticks([i * step[0] + side / 2 for i in range(len(rows))], [_literal(r) for r in rows])
    axes.set_xticks([j * step[1] + step[1] / 2 for j in range(len(columns))], columns)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.text(0.01, 1 - 0.06 / size[1], _literal(title), fontsize=11, va="top")
    _save(figure, path)


def _enlarged(picture: NDArray[Any], side: int) -> NDArray[np.uint8]:
    """[side, side, 3]; whole multiples keep the pixels of small faces visible."""
    import cv2

    rgb = np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture
    shape = cv2.INTER_AREA if len(picture) > side else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(np.ascontiguousarray(rgb), (side, side), interpolation=shape))


def heat_map(
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    titles: tuple[str, str, str],
    path: Path,
) -> None:
    """A table of numbers as colours; values [rows, columns], NaN stays white.

    `titles` are those of the rows, the columns and the whole.
    """
    size = (max(6.4, 2.2 + 1.1 * len(columns)), 1.6 + 0.8 * len(rows))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    picture = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), [_literal(name) for name in columns])
    axes.set_yticks(range(len(rows)), [_literal(name) for name in rows])
    row_title, column_title, title = (_literal(text) for text in titles)
    axes.set(ylabel=row_title, xlabel=column_title, title=title)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value < np.nanmean(values) else "black"
            axes.text(j, i, f"{value:.4f}", ha="center", va="center", color=color)
    figure.colorbar(picture, shrink=0.8)
    _save(figure, path)


def _epoch_axis(axes: Axes, epochs: list[int]) -> None:
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3, which="both")


def _literal(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, or as SVG where the name ends so, whole or not at all."""
    try:
        with replacement(path) as f, plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "x"}):
            if path.suffix == ".svg":
                figure.savefig(f, dpi=DPI, format="svg", metadata={"Date": None})
                return
            drawn = io.BytesIO()
            figure.savefig(drawn, dpi=DPI, format="png")
            # A palette takes a third of the space, and no one sees a difference.
            picture = Image.open(drawn).convert("RGB")
            picture.quantize(dither=Image.Dither.NONE).save(f, "PNG", optimize=True)
    finally:
        plt.close(figure)
