"""The report: one page of tables and figures, from folders with whole and damaged runs."""

from __future__ import annotations

import csv
import html
import json
import shutil
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.config.commands import ReportConfig
from fer_hpc.files import check_shape, read_json
from fer_hpc.report.read import unique_labels
from fer_hpc.report.report import report
from tests.conftest import Fer
from tests.helpers.outputs import assert_kept
from tests.helpers.reports import another, edit_json, heading, page_of


def test_the_page_has_every_number_and_fetches_nothing(
    fer: Fer, scored: Path, tmp_path: Path
) -> None:
    done = fer("report", scored, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    found = json.loads((scored / "eval-test.json").read_text())
    for key in ("accuracy", "balanced_accuracy", "macro_f1", "majority_rate"):
        assert f"{100 * found[key]:.2f}" in page
    # curves, two confusion matrices, two reliability diagrams
    assert page.count("data:image/png;base64,") == 5
    for outside in ("http", "src=/", "<link", "@import", "url(", "fetch(", "import("):
        assert outside not in page
    assert "prefers-color-scheme: dark" in page
    rows = list(csv.DictReader((tmp_path / "report" / "results.csv").open()))
    assert [row["split"] for row in rows] == ["val", "test"]
    assert rows[1]["accuracy"] == str(found["accuracy"])
    assert (rows[1]["data"], rows[1]["fingerprint"]) == ("shards", found["data"])


def test_nothing_to_report_is_one_clear_error(fer: Fer, tmp_path: Path) -> None:
    done = fer("report", tmp_path, "--out", tmp_path / "report")
    assert done.returncode == 2
    assert "no run folder there or below" in done.stderr


def test_runs_of_the_same_name_keep_their_own_figures(scored: Path, tmp_path: Path) -> None:
    one = another(scored, tmp_path / "exp1" / "first")
    two = another(scored, tmp_path / "exp2" / "first", science__lr=0.25)
    edit_json(two / "eval-test.json", confusion=np.eye(8, dtype=int).tolist())
    (two / "confusion-test.png").unlink()
    alone = tmp_path / "alone"
    page_of(two, out=alone)
    both = tmp_path / "both"
    page = page_of(one.parent, two.parent, out=both)
    assert heading("exp1/first") in page
    assert heading("exp2/first") in page
    assert page.index(heading("exp1/first")) < page.index(heading("exp2/first"))
    pictures = {str(p): p.read_bytes() for p in both.rglob("*.png")}
    assert len(pictures) == 10
    assert len({p for name, p in pictures.items() if "confusion-test" in name}) == 2


def test_a_picture_that_was_cut_off_is_named(scored: Path, tmp_path: Path) -> None:
    run = shutil.copytree(scored, tmp_path / "run")
    whole = (run / "reliability-val.png").read_bytes()
    for content, named in ((whole, False), (whole[:-40], True)):
        (run / "reliability-val.png").write_bytes(content)
        page = page_of(run, out=tmp_path / "report")
        assert ("the file is damaged (cut off)" in page) == named


def test_a_sweep_without_a_run_is_named(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored, tmp_path / "runs" / "run")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "empty" / "sweep.json").write_text("{}")
    page = page_of(tmp_path / "runs", out=tmp_path / "report")
    assert ">empty</h3>" in page and "It has no table yet" in page


def test_labels_are_the_shortest_ends_that_differ() -> None:
    paths = [Path(p) for p in ("/r/exp1/first", "/r/exp2/first", "/r/exp2/second", "/s/exp1/first")]
    assert list(unique_labels(paths).values()) == [
        "r/exp1/first",
        "exp2/first",
        "second",
        "s/exp1/first",
    ]


def test_a_run_given_twice_stands_once(scored: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(scored)
    page = page_of(scored, link, scored.parent, out=tmp_path / "out")
    assert page.count(heading("undisturbed")) == 1


def test_damaged_and_foreign_runs_are_listed_with_the_reason(
    fer: Fer, scored: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for name in ("good", "torn", "foreign", "text", "half", "result", "metrics", "status"):
        shutil.copytree(scored, runs / name)
    config = (runs / "torn" / "config.json").read_text()
    (runs / "torn" / "config.json").write_text(config[: len(config) // 2])
    (runs / "foreign" / "config.json").write_text('{"architectures": ["ViT"], "id": "x"}')
    (runs / "text" / "config.json").write_text('"a text"')
    edit_json(runs / "half" / "config.json", science={"model": "vgg", "seed": "zero"})
    (runs / "result" / "eval-val.json").write_text('{"accuracy": 0.5}')
    (runs / "metrics" / "attempts" / "0001" / "metrics.jsonl").write_text('{"epoch": 1, \n[]\n')
    (runs / "status" / "attempts" / "0001" / "status.json").write_text('["finished"]')
    done = fer("report", runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    damaged = page[page.index('id="damaged"') :]
    for name in ("torn", "foreign", "text", "half", "metrics", "status"):
        assert f"{runs / name}" in damaged, name
        stays = name in ("metrics", "status")  # without the damaged part
        assert (heading(name) in page) == stays, name
    assert "result/eval-val.json" in damaged
    assert heading("result") in page, "the rest of a run with one damaged result stays"
    assert heading("good") in page
    assert done.stderr.count("warning") >= 7


def test_a_text_in_place_of_a_number_is_refused_by_all_in_the_same_words(
    fer: Fer, scored: Path, tmp_path: Path
) -> None:
    """The report left the run out; evaluate scored it."""
    run = another(scored, tmp_path / "runs" / "text", science__lr="0.1")
    message = f"{run}/config.json is damaged: --lr '0.1': wanted a number"
    page = page_of(run, scored, out=tmp_path / "out")
    assert message in html.unescape(page[page.index('id="damaged"') :])
    done = fer("evaluate", run)
    assert (done.returncode, message in done.stderr) == (2, True)


def test_only_damaged_runs_are_an_error_with_the_reason(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json has no 'science'"):
        report(ReportConfig((tmp_path / "run",), tmp_path / "out"))


@pytest.mark.parametrize(
    ("value", "wanted", "words"),
    [
        ({"n": 1}, {"n": int, "x": float}, "has no 'x'"),
        ({"n": float("nan")}, {"n": float}, "wanted a number"),
        ({"n": True}, {"n": int}, "wanted an integer"),
        ({"n": [1]}, {"n": [float, float]}, r"n is \[1\]"),
        ({"n": [1, "x"]}, {"n": [int, ...]}, "'x'; wanted an integer"),
        ([], {"n": int}, "wanted an object"),
    ],
)
def test_another_shape_is_named(value: Any, wanted: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_shape(value, wanted, "file.json")


def test_a_shape_may_be_optional() -> None:
    wanted = {"n": (int, None), "deep": {str: [int, ...]}}
    check_shape({"n": None, "deep": {"any": [1, 2], "other": []}}, wanted, "file.json")
    lacking: dict[str, Any] = {"deep": {}}
    check_shape(lacking, wanted, "file.json")
    assert lacking["n"] is None, "readers find every key"
    with pytest.raises(UserError, match="has no 'n'"):
        check_shape({}, {"n": (int, NoneType)}, "file.json")
    with pytest.raises(UserError, match=r"file\.json: n is 'x'"):
        check_shape({"n": "x", "deep": {}}, wanted, "file.json")


def test_scores_of_earlier_weights_are_left_out_and_named(
    scored: Path, tmp_path: Path, fer: Fer
) -> None:
    run = another(scored, tmp_path / "runs" / "run")
    best = read_json(run / "eval-test.json")["epoch"]
    other = 1 + best % 3
    edit_json(run / "eval-test.json", epoch=other)
    done = fer("report", tmp_path / "runs", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert (
        f"eval-test.json is left out: it is of epoch {1 + best % 3}, and the best is" in done.stderr
    )
    assert f"{best} now; fer-hpc evaluate {run} --split test scores it again" in done.stderr
    lines = (tmp_path / "report" / "results.csv").read_text().splitlines()
    assert [line.split(",")[5] for line in lines[1:]] == ["val"]


def test_a_report_replaces_its_own_files_only(fer: Fer, scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    call = ("report", scored, "--out", out)
    for name in ("index.html", "results.csv", "tables/mine.csv", f"{scored.name}-curves.png"):
        assert_kept(fer, out / name, *call)
    (out / "other.txt").write_text("mine")
    for _ in range(2):
        assert fer(*call).returncode == 0
    assert (out / "other.txt").read_text() == "mine"
