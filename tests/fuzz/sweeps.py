"""Fuzz targets: the files of a sweep, as `collect`, the report and the next start read them."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from fer_hpc import api
from fer_hpc.config.commands import ReportConfig, SweepConfig
from fer_hpc.files import write_json
from fer_hpc.report.report import report
from fer_hpc.sweep.grid import check_sweep, grid, prepare
from fer_hpc.sweep.tables import best_of, collect
from tests.fuzz.guard import Fuzz, target
from tests.fuzz.runs import FIGURES, SETTINGS, as_json, finished, nothing


def a_sweep(box: Path) -> tuple[SweepConfig, Path]:
    """A sweep of two configurations, of which one is trained."""
    shards = finished() / "shards"
    sweep = SweepConfig(data=shards, out=box / "sweep", batch_sizes=(16,), lrs=(0.01, 0.02))
    sweep = dataclasses.replace(sweep, seeds=(0,), grid=("epochs=2",))
    base = api.preset("resnet_baseline", data=shards, run=box / "x", **SETTINGS)
    trials = grid(sweep, base)
    prepare(sweep, "resnet_baseline", trials)
    shutil.copytree(finished() / "run", trials[0].config.run)
    write_json(sweep.out / "failures.json", {trials[1].name: "killed"})
    return sweep, sweep.out


def of_sweep(box: Path, file: str, *more: Callable[[Path], object]) -> Fuzz:
    _, out = a_sweep(box)
    collect(out)
    path = out / file
    good = path.read_bytes()

    def place(data: bytes) -> None:
        path.write_bytes(data)

    calls = [functools.partial(_call, each, out) for each in more]
    return Fuzz(good, as_json(good), [place, *calls], (str(out),))


def _call(command: Callable[[Path], object], out: Path, _: bytes) -> None:
    with mock.patch("fer_hpc.evaluation.plots.heat_map", nothing):
        command(out)


@target
def sweep_json(box: Path) -> Fuzz:
    sweep, _ = a_sweep(box / "again")
    base = api.preset("resnet_baseline", data=sweep.data, run=box / "x", **SETTINGS)
    trials = grid(sweep, base)

    def tune(out: Path) -> None:
        check_sweep(dataclasses.replace(sweep, out=out), trials)

    return of_sweep(box, "sweep.json", collect, tune)


@target
def failures_json(box: Path) -> Fuzz:
    return of_sweep(box, "failures.json", collect)


@target
def best_json(box: Path) -> Fuzz:
    return of_sweep(box, "best.json", best_of)


@target
def summary_json(box: Path) -> Fuzz:
    def page(out: Path) -> None:
        with mock.patch.multiple("fer_hpc.report.report", **FIGURES):
            report(ReportConfig(runs=(out,), out=out.parent / "page"))

    return of_sweep(box, "summary.json", page)
