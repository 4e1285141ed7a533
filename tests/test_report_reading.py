"""The report as it is read: curves, odd names, commands to paste, every reader."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from fer_hpc.cluster.status import format_status, job_status
from fer_hpc.evaluation import plots
from fer_hpc.report.book import cell_text
from fer_hpc.sweep.tables import collect
from tests.helpers.browser import chromium, faults, set_screen
from tests.helpers.reports import another, edit_json, page_of
from tests.helpers.sweeps import begun, prepared, trained


def test_the_curves_name_the_runs_that_they_leave_out(scored: Path, tmp_path: Path) -> None:
    """Two runs of one seed counted twice in the mean of the seeds, without a word."""
    for name, config in (
        ("a", {}),
        ("again", {}),
        ("seed1", {"seed": 1}),
        ("other", {"lr": 0.5}),
    ):
        run = tmp_path / "runs" / name
        another(scored, run, **{f"science__{key}": value for key, value in config.items()})
    page = page_of(tmp_path / "runs", out=tmp_path / "out")
    curves = page[page.index('id="curves"') :]
    caption = cell_text(re.findall("<figcaption>(.*?)</figcaption>", curves)[0])
    assert "1 run not drawn, because another one has the same configuration, data" in caption
    assert ": again" in caption


def test_a_sweep_that_goes_on_is_shown_as_it_is_now(shards: Path, tmp_path: Path) -> None:
    """`tune` writes its table when it ends, and not at all when it is killed."""
    sweep = tmp_path / "sweep"
    _, trials = prepared(shards, sweep, "--batch-sizes", "64", "--lrs", "0.1")
    for number, trial in enumerate(trials, 1):
        begun(trial)
        trained(trial, 0.5 + number / 100)
        shutil.copy(trial.config.run / "attempts/0001/status.json", trial.config.run)
        page = page_of(sweep, out=tmp_path / "out")
        assert f"{number} of 3 trials finished" in page
        if number == 1:
            collect(sweep)
    assert "0.5200" in page, "the mean"
    stored = json.loads((sweep / "summary.json").read_text())
    assert stored["finished"] == 1, "a report changes nothing"


def drawn_curves(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, _: figures.append(figure))
    plots.curves(rows, 3, "a run", Path("unused.png"))
    return figures[0]


def upright_lines(figure: Figure) -> int:
    return sum(
        len(set(np.asarray(line.get_xdata()).tolist())) == 1
        for axes in figure.axes
        for line in axes.lines
    )


def test_curves_of_a_cosine_run_have_no_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = dict.fromkeys(("train_accuracy", "train_loss", "val_accuracy", "val_loss"), 0.5)
    rows = [{"epoch": k, "lr": 0.1 / k, **scores} for k in range(1, 21)]
    figure = drawn_curves(rows, monkeypatch)
    assert upright_lines(figure) == 2, "the best epoch, in both panels"
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "loss", "learning rate"]
    constant = drawn_curves([row | {"lr": 0.1} for row in rows], monkeypatch)
    assert len(constant.axes) == 2


def test_names_with_odd_characters_are_drawn_and_written(scored: Path, tmp_path: Path) -> None:
    one = another(scored, tmp_path / "runs" / r"=r$\q$ <b>")
    page = page_of(one, out=tmp_path / "out")
    assert "<b>" not in page
    line = (tmp_path / "out" / "results.csv").read_text().splitlines()[1]
    assert line.startswith("'="), "a spreadsheet takes it for text, not a formula"


def test_names_that_are_no_text_are_drawn_and_written(scored: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in (os.fsdecode(b"a\xff"), "b\x1b[31m\nc"):
        another(scored, runs / name)
    page = page_of(runs, out=tmp_path / "out")
    assert r"a\xff" in page
    rows = job_status((runs,))
    assert all(line.isprintable() for line in format_status(rows).splitlines())
    assert len(format_status(rows).splitlines()) == 2


def test_the_commands_on_the_page_can_be_pasted(scored: Path, tmp_path: Path) -> None:
    """The audit's named DATA instead of the folder, and no path was quoted."""
    one = another(scored, tmp_path / "runs" / "one")
    unscored = another(scored, tmp_path / "runs" / "a second", science__lr=0.25)
    for file in one.parent.glob("*/attempts/*/environment.json"):
        edit_json(file, data="/no/my faces")
    for file in unscored.glob("eval-*.json"):
        file.unlink()
    page = html.unescape(page_of(tmp_path / "runs", out=tmp_path / "out"))
    assert "fer-hpc doctor '/no/my faces' --out '/no/my faces/doctor.json'" in page
    assert f"fer-hpc evaluate '{unscored}' --split val" in page


def test_the_page_is_for_every_reader(scored: Path, tmp_path: Path) -> None:
    """No screen is narrower than the page; text has contrast, tables and pictures have names."""
    long_name = "resnet_improved-with-a-long-name-" + "x" * 60
    one = another(scored, tmp_path / "runs" / long_name, 0.5)
    for seed, accuracy in enumerate((0.7, 0.9)):
        another(scored, tmp_path / "runs" / f"s{seed}", accuracy, science__seed=seed, science__lr=1)
    damaged = shutil.copytree(scored, tmp_path / "runs" / f"damaged-{long_name}")
    (damaged / "config.json").write_text("{}")
    page_of(one.parent, out=tmp_path / "out")
    with chromium() as page:
        for width in (390, 1400):
            set_screen(page, width, 844)
            page.get((tmp_path / "out" / "index.html").as_uri())
            assert page.execute_script("return document.documentElement.scrollWidth") <= width
            for scheme in ("light", "dark"):
                assert faults(page, scheme) == []
            lines = "return [...document.querySelectorAll('.legend')].map(e => e.getClientRects())"
            assert [len(each) for each in page.execute_script(lines)] == [1, 1, 1], "not broken"
        first = "return document.querySelector('#table-runs tbody th').textContent"
        page.execute_script("document.querySelectorAll('#table-runs thead button')[0].click()")
        assert page.execute_script(first) == long_name
        page.execute_script("document.querySelectorAll('#table-runs thead button')[0].click()")
        assert page.execute_script(first) == "s1"
        lead = "return document.querySelector('[id^=table-results-val] tbody tr').textContent"
        head = "document.querySelectorAll('[id^=table-results-val] thead button')[1].click()"
        page.execute_script(head)
        assert long_name in page.execute_script(lead)
        page.execute_script(head)
        assert "mean of 2 seeds" in page.execute_script(lead), "80 %, with its members below"
