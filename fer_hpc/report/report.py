"""Run folders and sweeps to one static HTML page: python -m fer_hpc.report RUNS... --out DIR. No torch."""

from __future__ import annotations

import base64
import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from fer_hpc.config import UserError
from fer_hpc.config.commands import ReportConfig
from fer_hpc.data.shards import SPLITS, read_manifest
from fer_hpc.evaluation import plots
from fer_hpc.files import read_json, write_bytes
from fer_hpc.run.folder import (
    data_folder,
    find_runs,
    read_environment,
    read_rows,
    read_run_config,
    read_status,
)


@dataclass(frozen=True)
class Run:
    """What the report needs of one run folder."""

    path: Path
    name: str
    config: dict[str, Any]
    status: dict[str, Any]
    rows: list[dict[str, Any]]
    seconds: float
    environment: dict[str, Any]
    scores: dict[
        str, dict[str, Any]
    ]  # name -> eval-<name>.json; the name is the split, and what else is unusual

    @property
    def is_gan(self) -> bool:
        return bool(self.config.get("kind") == "GAN")


def report(config: ReportConfig) -> Path:
    """Write index.html (self-contained), results.csv and the pictures into `config.out`; gives the page's path."""
    found = find_runs(config.runs)
    sweep_of = {
        path: path.absolute().parents[1] for path in found if path not in config.runs
    }  # a trial lies in SWEEP/trials
    sweep_of = {
        path: folder for path, folder in sweep_of.items() if (folder / "sweep.json").exists()
    }
    single = [_read(path) for path in found if path not in sweep_of]
    runs, gans = [run for run in single if not run.is_gan], [run for run in single if run.is_gan]
    sweeps = [
        (folder.name, read_json(folder / "summary.json"), _embedded(folder / "heatmap.png"))
        for folder in dict.fromkeys(sweep_of.values())
    ]
    data = [data_folder(run.path) for run in single] + [
        Path(sweep["data"]) for _, sweep, _ in sweeps if sweep
    ]
    config.out.mkdir(parents=True, exist_ok=True)
    pictures = {run.name: _draw(run, config.out) for run in runs}
    pictures |= {run.name: _drawn_by_evaluate(run.path) for run in gans}
    write_bytes(config.out / "results.csv", _results_csv(runs))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fer_hpc.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda v: "–" if v is None else f"{100 * v:.2f}", number=lambda v: f"{v:,}"
    )
    page = environment.get_template("page.html.j2").render(
        runs=runs,
        gans=gans,
        sweeps=sweeps,
        pictures=pictures,
        tables=_class_tables(data),
        scored=sorted({name for run in runs for name in run.scores}, key=_place),
        when=time.strftime("%Y-%m-%d %H:%M"),
    )
    write_bytes(config.out / "index.html", page.encode())
    return config.out / "index.html"


def _read(path: Path) -> Run:
    stored = read_run_config(path)
    found = {p.stem.removeprefix("eval-"): read_json(p) for p in path.glob("eval-*.json")}
    scores = {name: found[name] for name in sorted(found, key=_place) if found[name]}
    seconds = sum(row["train_s"] + row["val_s"] for row in read_rows(path, "timing.jsonl"))
    return Run(
        path,
        path.absolute().name,
        stored,
        read_status(path),
        read_rows(path),
        seconds,
        read_environment(path),
        scores,
    )


def _place(name: str) -> tuple[int, str]:
    """Results in the order of the splits, plain ones first."""
    return SPLITS.index(name.split("-")[0]), name


def _draw(run: Run, out: Path) -> list[tuple[str, str]]:
    """Curves and confusion matrices of one run: (caption, data URI), also left as files."""
    drawn: list[tuple[str, Path]] = []
    if run.rows:
        best = [row["epoch"] for row in run.rows if row["best"]]
        path = out / f"{run.name}-curves.png"
        plots.curves(run.rows, best[-1] if best else None, run.name, path)
        drawn.append(
            (
                "accuracy and loss per epoch"
                + (
                    "; gray: learning rate lowered"
                    if len({row["lr"] for row in run.rows}) > 1
                    else ""
                ),
                path,
            )
        )
    for split, scores in run.scores.items():
        path = out / f"{run.name}-confusion-{split}.png"
        plots.confusion(
            np.array(scores["confusion"]), list(scores["classes"]), f"{run.name}, {split}", path
        )
        drawn.append((f"confusion on {split}, each row sums to 1", path))
    return [(caption, _embedded(path)) for caption, path in drawn]


def _drawn_by_evaluate(gan: Path) -> list[tuple[str, str]]:
    """What fer_hpc.evaluate has drawn of a GAN: (caption, data URI)."""
    what = {
        "curves": "losses and the discriminator's accuracy",
        "grid": "reference | expression | output for every class",
    }
    return [
        (what[p.stem.partition("-")[0]], _embedded(p))
        for p in [*sorted(gan.glob("grid-*.png")), *gan.glob("curves.png")]
    ]


def _embedded(picture: Path) -> str:
    """A PNG as a data URI; "" where it is not there."""
    return (
        "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
        if picture.exists()
        else ""
    )


def _class_tables(folders: list[Path]) -> list[dict[str, Any]]:
    """Class counts per split, one table a data set, for the data that can still be read."""
    tables: dict[str, dict[str, Any]] = {}
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except UserError:
            continue
        counts = {
            s: manifest.class_counts(s) if manifest.n(s) else [0] * len(manifest.classes)
            for s in SPLITS
        }
        total = sum(map(sum, counts.values()))
        columns = [*counts.values(), [sum(c) for c in zip(*counts.values(), strict=True)]]
        lines = list(zip([*manifest.classes, "all"], *([*c, sum(c)] for c in columns), strict=True))
        kind, shape = manifest.content["source"]["kind"], "x".join(map(str, manifest.image_shape))
        tables[manifest.fingerprint] = {
            "name": f"{manifest.folder.name} ({kind}), {shape}",
            "rule": manifest.content["split_rule"],
            "lines": lines,
            "total": total,
        }
    return list(tables.values())


def _results_csv(runs: list[Run]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    metrics = ("n", "loss", "accuracy", "balanced_accuracy", "macro_f1", "majority_rate")
    table.writerow(
        ["run", "id", "model", "seed", "state", "split", *metrics, "accuracy_low", "accuracy_high"]
    )
    for run in runs:
        science = run.config["science"]
        for split, scores in run.scores.items():
            values = [scores[m] for m in metrics]
            table.writerow(
                [
                    run.name,
                    run.config["id"],
                    science["model"],
                    science["seed"],
                    run.status["state"],
                    split,
                    *values,
                    *scores["accuracy_95"],
                ]
            )
    return text.getvalue().encode()
