"""The report's figures: files beside the page, and in the page itself unless they are large."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from fer_hpc.config.errors import counted
from fer_hpc.evaluation import plots, plots_many
from fer_hpc.evaluation.results import result_files
from fer_hpc.files import copy_file
from fer_hpc.report.read import Run, is_outdated
from fer_hpc.report.tables import DataSet, compared, group_key, standing, val_accuracy

NARROW = 300  # pixels of height up to which a heat map can be read on a phone
MAX_DRAWN_RUNS = 12  # a run's figures take about half a second and 100 kB of the page
MAX_OVERLAID = 8  # configurations in one picture of curves
MAX_EMBEDDED = 150_000  # bytes of a picture; a larger one is only linked
WIDE = 2.0  # times its height
DAMAGED = "the file is damaged (cut off)"
KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Figure:
    """A picture in the page."""

    caption: str
    uri: str
    is_plot: bool = True  # drawn on white, so that a dark page may invert it
    file: str = ""  # address of its file, relative to the page
    is_wide: bool = False  # it takes the width of the page


def picture(path: Path, out: Path, caption: str, is_plot: bool = True) -> Figure:
    """The figure of a file below `out`."""
    file = quote(path.relative_to(out).as_posix())
    small = path.stat().st_size <= MAX_EMBEDDED
    width, height = _size(path)
    if not _is_whole(path):
        caption = f"{caption}: {DAMAGED}"
    uri = data_uri(path) if small else file
    is_wide = width > (WIDE if is_plot else 1) * height
    return Figure(caption, uri, is_plot, file, is_wide)


def _is_whole(path: Path) -> bool:
    """Whether a PNG or SVG file has its end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100))
        return file.read().rstrip().endswith((b"IEND\xaeB`\x82", b"</svg>"))


def _size(path: Path) -> tuple[float, float]:
    """Width and height of a PNG, or of an SVG of matplotlib, by its header; 0 where it has none."""
    with path.open("rb") as file:
        head = file.read(2000)
    if path.suffix == ".png":
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    match = re.search(rb'viewBox="0 0 ([\d.]{1,9}) ([\d.]{1,9})"', head)
    return (float(match[1]), float(match[2])) if match else (0.0, 0.0)


def data_uri(path: Path) -> str:
    """A PNG or SVG file as a data URI."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def copied(source: Path, label: str, out: Path, caption: str, is_plot: bool = True) -> Figure:
    """The figure of a file of a run folder, copied to OUT/LABEL-NAME; a label may hold a folder."""
    path = out / f"{label}-{source.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    copy_file(source, path)
    return picture(path, out, caption, is_plot)


def drawn_runs(runs: Sequence[Run]) -> list[Run]:
    """The MAX_DRAWN_RUNS runs that are best on val."""
    return sorted(runs, key=lambda run: val_accuracy([run]), reverse=True)[:MAX_DRAWN_RUNS]


def draw_figures(
    runs: Sequence[Run], out: Path, in_study: Collection[Path] = ()
) -> dict[str, list[Figure]]:
    """Label -> the figures of the runs that are best on val.

    Runs `in_study` have curves and confusion matrices there, over their seeds.
    """
    figures = {}
    for run in drawn_runs(runs):
        drawn = [] if run.path in in_study else list(_draw(run, out))
        figures[run.label] = [*drawn, *_stored(run, out)]
    return figures


def overlaid_curves(
    runs: Sequence[Run], known: dict[str, DataSet], out: Path
) -> list[tuple[DataSet, Figure]]:
    """For each data set val accuracy and loss of the best configurations; a mean over seeds."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if run.rows:
            groups.setdefault(run.trained_on, {}).setdefault(group_key(run), []).append(run)
    figures = []
    for data, by_key in groups.items():
        drawn = sorted(map(compared, by_key.values()), key=standing)[:MAX_OVERLAID]
        if len(drawn) < 2:
            continue
        path = out / f"curves-{data}.svg"
        curves = {_curve_name(seeds): [run.rows for run in seeds] for seeds in drawn}
        plots_many.overlaid_curves(curves, known[data].name, path)
        text = "Validation per epoch; a line is the mean over seeds, its band all of them, "
        text += "for the epochs that all have"
        if len(by_key) > len(drawn):
            text += f"; the {len(drawn)} best of {len(by_key)} configurations"
        text += _not_drawn([run for seeds in drawn for run in by_key[group_key(seeds[0])]], drawn)
        figures.append((known[data], picture(path, out, text)))
    return figures


def _curve_name(seeds: Sequence[Run]) -> str:
    more = f" and {counted(len(seeds) - 1, 'more seed')}" if len(seeds) > 1 else ""
    return f"{seeds[0].label}{more}{'' if seeds[0].is_finished else ' (unfinished)'}"


def _not_drawn(runs: Sequence[Run], drawn: Sequence[Sequence[Run]]) -> str:
    """The runs of the drawn configurations that their lines leave out, and why, in words."""
    shown = {run.path for seeds in drawn for run in seeds}
    labels = [run.label for run in runs if run.path not in shown]
    if not labels:
        return ""
    names = ", ".join(labels[:MAX_OVERLAID]) + ", ..." * (len(labels) > MAX_OVERLAID)
    return (
        f"; {counted(len(labels), 'run')} not drawn, because another one has the same "
        f"configuration, data and seed, or because other seeds are finished: {names}"
    )


def gan_figures(gans: Sequence[Run], out: Path) -> dict[str, list[Figure]]:
    """Label -> the pictures that `fer-hpc evaluate` has written for a GAN."""
    figures = {}
    for gan in gans:
        drawn = [
            copied(p, gan.label, out, f"neutral | expression | output, {_name(p, 'grid')}", False)
            for p in sorted(gan.path.glob("grid-*.png"))
        ]
        for name, scores in gan.scores.items():
            path = out / f"{gan.label}-expressions-{name}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            plots_many.gan_expressions(scores["expression"], f"{gan.label}, {name}", path)
            drawn.append(picture(path, out, f"Wanted expression found by the judge, {name}"))
        drawn += [
            copied(p, gan.label, out, "Losses per epoch") for p in gan.path.glob("curves.png")
        ]
        figures[gan.label] = drawn
    return figures


def heat_map(sweep: Path, out: Path) -> list[Figure]:
    """The heatmap.png of a sweep, if there is one of all its results."""
    path = sweep / "heatmap.png"
    if not path.exists() or is_outdated(sweep):
        return []
    figure = copied(path, sweep.name, out, "Mean over the seeds")
    is_wide = figure.is_wide or _size(path)[1] > NARROW  # its cells hold numbers
    return [dataclasses.replace(figure, is_wide=is_wide)]


def _draw(run: Run, out: Path) -> Iterator[Figure]:
    """Curves and confusion matrices of one run, drawn to OUT/LABEL-*.png."""
    (out / run.label).parent.mkdir(parents=True, exist_ok=True)
    if run.rows:
        path = out / f"{run.label}-curves.png"
        plots.curves(run.rows, run.best_epoch, run.label, path)
        yield picture(path, out, "Accuracy and loss per epoch")
    for name, scores in run.scores.items():
        caption = f"Confusion on {name}; each row sums to 1"
        stored = result_files(run.path, name)["confusion"]
        if stored.exists():
            yield copied(stored, run.label, out, caption)
            continue
        path = out / f"{run.label}-confusion-{name}.png"
        counts = np.array(scores["confusion"])
        plots.confusion(counts, list(scores["classes"]), f"{run.label}, {name}", path)
        yield picture(path, out, caption)


STORED = (
    ("reliability-{}.png", "Calibration on {}: accuracy against confidence", True),
    ("robust-{}.png", "Robustness on {}: accuracy and calibration error by strength", True),
    ("robust-{}-sheet.png", "The disturbances, applied to one face of {}", False),
    ("gallery-{}.png", "Surest misses and hits on {}, and what speaks for the prediction", False),
    ("gallery-{}-pairs.png", "Most confused pairs on {}", False),
    ("label-noise-{}.png", "Labels of {} that may be wrong", False),
)


def _stored(run: Run, out: Path) -> Iterator[Figure]:
    """What `evaluate` has drawn in the run folder, for each of its results."""
    for name in run.scores:
        for file, caption, is_plot in STORED:
            source = run.path / file.format(name)
            if source.exists():
                yield copied(source, run.label, out, caption.format(name), is_plot)


def _name(path: Path, kind: str) -> str:
    return path.stem.removeprefix(f"{kind}-")
