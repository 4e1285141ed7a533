"""The report: one page of tables and figures, from folders with whole and damaged runs."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from fer_hpc.cli.text import format_scores
from fer_hpc.cluster.status import format_status, job_status
from fer_hpc.config import UserError
from fer_hpc.config.commands import EvaluateConfig, ReportConfig
from fer_hpc.evaluation import metrics, plots
from fer_hpc.files import check_shape, read_json
from fer_hpc.report.book import cell_text
from fer_hpc.report.read import unique_labels
from fer_hpc.report.report import report
from tests.conftest import Fer
from tests.helpers.browser import chromium, faults, set_screen
from tests.helpers.outputs import assert_kept


@pytest.fixture(scope="module")
def scored(fer: Fer, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with scores on val and test, and no others."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("report") / "undisturbed")
    for file in run.glob("eval-*.json"):
        file.unlink()
    for split in ("val", "test"):
        done = fer("evaluate", run, "--split", split)
        assert done.returncode == 0, done.stderr
    return run


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; `data__path` is field `path` of field `data`."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = content
        for key in outer:
            place = place[key]
        place[last] = value
    path.write_text(json.dumps(content))


def another(run: Path, to: Path, accuracy: float | None = None, **config: Any) -> Path:
    """A copy of a run with other fields in config.json and another accuracy on val and test."""
    shutil.copytree(run, to)
    edit_json(to / "config.json", **config)
    fingerprint = json.loads((to / "config.json").read_text())["data"]["fingerprint"]
    for split in ("val", "test"):
        changes = {} if accuracy is None else {"accuracy": accuracy}
        edit_json(to / f"eval-{split}.json", data=fingerprint, **changes)
    return to


def edit_history(run: Path, **changes: Any) -> None:
    """Change fields in every row of a run's metrics.jsonl."""
    for file in run.glob("attempts/*/metrics.jsonl"):
        rows = [json.loads(line) | changes for line in file.open()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def heading(label: str) -> str:
    """What a run's card begins with, after its level and id."""
    return f'">{label} <span class="state '


def page_of(*runs: Path, out: Path) -> str:
    return report(ReportConfig(runs, out)).read_text()


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


def test_val_of_different_data_is_two_tables(scored: Path, tmp_path: Path) -> None:
    one = another(scored, tmp_path / "a")
    two = another(scored, tmp_path / "b", data__fingerprint="feedbeef01234567")
    page = page_of(one, two, out=tmp_path / "out")
    headings = [
        line for line in page.splitlines() if line.startswith('<h3 id="results') and "val" in line
    ]
    assert len(headings) == 2
    assert sum("feedbeef01234567" in line for line in headings) == 1


def mean_row(page: str) -> str:
    """The row of means in the table of val."""
    table = page[page.index('<h3 id="results-1">val · ') :]
    start = table.index('<tr class="mean">')
    return table[start : table.index("</tr>", start)]


def test_runs_that_differ_only_by_seed_get_their_mean(scored: Path, tmp_path: Path) -> None:
    values = (0.95, 1.0, 0.99)
    for seed, value in enumerate(values):
        another(scored, tmp_path / "runs" / f"s{seed}", value, science__seed=seed)
    another(scored, tmp_path / "runs" / "copy", 0.1, science__seed=0)  # counts once
    another(scored, tmp_path / "runs" / "other", 0.2, science__lr=0.5)
    row = mean_row(page_of(tmp_path / "runs", out=tmp_path / "out"))
    assert "mean of 3 seeds" in row
    low, high = metrics.seeds_interval("accuracy", [0.1, *values[1:]]) or (0, 0)
    assert f"{100 * (0.1 + values[1] + values[2]) / 3:.2f}" in row  # copy sorts before s0
    assert high == 1.0, "an interval of shares ends at 1"
    assert f"[{100 * low:.2f}, 100.00]" in row


def test_two_seeds_are_too_few_for_an_interval(scored: Path, tmp_path: Path) -> None:
    for seed, value in enumerate((0.1, 0.25)):
        another(scored, tmp_path / "runs" / f"s{seed}", value, science__seed=seed)
    page = page_of(tmp_path / "runs", out=tmp_path / "out")
    assert "17.50" in mean_row(page)
    assert "too few for an interval" in mean_row(page)
    assert "[-" not in page[: page.index("<script>")]


def rows_of(page: str, table: str) -> dict[str, str]:
    """First cell, without a star -> the row, of the table whose id begins with `table-TABLE`."""
    body = page[page.index(f'id="table-{table}') :]
    rows = re.findall(r"<tr[^>]*><th scope=\"row\".*?</tr>", body[: body.index("</table>")], re.S)
    return {cell_text(row[: row.index("</th>")]).removeprefix("★ "): row for row in rows}


STARRED = ("results-val", "recall-val", "pairs-val", "calibration-val", "robustness-val")


def test_single_seeds_and_unfinished_runs_have_no_star_in_any_table(
    scored: Path, tmp_path: Path
) -> None:
    """Seed 1 is the best but for the unfinished run; its configuration is the worst by its mean."""

    def run(name: str, value: float, finished: bool = True, **config: Any) -> None:
        path = another(scored, tmp_path / "runs" / name, value, **config)
        scores = json.loads((path / "eval-val.json").read_text())
        for of_class in scores["classes"].values():
            of_class["recall"] = value
        for pair in scores["pairs"]:
            pair["accuracy"] = value
        scores["calibration"]["before"]["ece"] = 1 - value
        score = {"accuracy": value, "accuracy_95": [0, 1], "ece": 0, "ece_95": [0, 1]}
        card = {"data": scores["data"], "weights": scores["weights"], "n": 9, "clean": score}
        card |= {"mean": {**score, "retained": 1}, "disturbances": {}}
        (path / "eval-val.json").write_text(json.dumps(scores | {"finished": finished}))
        (path / "robust-val.json").write_text(json.dumps(card))

    run("s0", 0.1)
    run("s1", 0.8, science__seed=1)
    run("other", 0.6, science__lr=0.5)
    run("equal", 0.6, science__lr=0.25)
    run("unfinished", 0.9, finished=False, science__lr=0.125)
    page = page_of(tmp_path / "runs", out=tmp_path / "out")
    for table in STARRED:
        rows = rows_of(page, table)
        assert list(rows)[-1] == "unfinished (unfinished)", f"{table}: finished runs are first"
        starred = {name for name, row in rows.items() if "★" in row}
        assert starred == {"other", "equal"}, table
        assert "★" not in rows["mean of 2 seeds"], table
    assert "Single seeds under a mean and unfinished runs are not compared" in page
    assert "★" not in page[page.index('id="table-runs"') :].partition("</table>")[0]


def test_the_first_place_on_val_is_that_of_a_finished_run(scored: Path, tmp_path: Path) -> None:
    """What --oracle says that val chooses was an unfinished run's number."""
    for name, value, finished in (("a", 0.31, True), ("b", 0.87, False)):
        run = another(scored, tmp_path / "runs" / name, value, science__model=name)
        edit_json(run / "eval-test.json", finished=finished)
    edit_history(tmp_path / "runs" / "a", val_accuracy=0.2)
    page = report(ReportConfig((tmp_path / "runs",), tmp_path / "out", oracle=True)).read_text()
    assert "optimistic: 31.00 % (a); val chooses 31.00 %" in page


def test_classes_without_a_face_are_named_beside_the_means(scored: Path, tmp_path: Path) -> None:
    run = another(scored, tmp_path / "run")
    counts = json.loads((run / "eval-val.json").read_text())["classes"]
    classes = {name: of_class | {"n": 1, "recall": 0.5} for name, of_class in counts.items()}
    classes["Disgust"] |= {"n": 0, "recall": None}
    for split in ("val", "test"):
        edit_json(run / f"eval-{split}.json", classes=classes)
    text = "no face is Disgust: balanced accuracy and macro-F1 are means over the other 7"
    assert page_of(run, out=tmp_path / "out").count(text) == 2
    scores = json.loads((run / "eval-val.json").read_text())
    assert text in format_scores(EvaluateConfig(run), scores, "val")


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


def test_the_best_run_is_chosen_on_val_not_on_test(scored: Path, tmp_path: Path) -> None:
    """Run a is better on val, run b on test."""
    for name, on_val, on_test in (("a", 0.9, 0.31), ("b", 0.2, 0.87)):
        run = another(scored, tmp_path / "runs" / name, science__model=name)
        edit_json(run / "eval-test.json", accuracy=on_test)
        edit_history(run, val_accuracy=on_val)
    page = page_of(tmp_path / "runs", out=tmp_path / "out")
    best = page[page.index('id="best"') : page.index('id="results"')]
    assert "31.00 %" in best
    assert "87.00" not in best


def test_val_accuracy_is_that_of_the_weights_that_are_scored(scored: Path, tmp_path: Path) -> None:
    """The epoch that is best by --best-on is not the most accurate one."""
    run = shutil.copytree(scored, tmp_path / "run")
    for file in run.glob("attempts/*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.open()]
        for k, row in enumerate(rows):
            row |= {"best": k == 0, "val_accuracy": 0.4321 + 0.1 * k}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(run, out=tmp_path / "out")
    assert len(rows) > 1
    assert "val accuracy 43.21 %" in page
    assert page.count("53.21") == 0


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


def test_a_gan_has_its_own_table(scored: Path, tmp_path: Path) -> None:
    run = tmp_path / "gan"
    shutil.copytree(scored, run)
    edit_json(run / "config.json", kind="GAN", science__mode="improved")
    for file in run.glob("eval-*.json"):
        file.unlink()
    mean = {"mean": 0.4321, "interval_95": [0.4, 0.5]}
    distance = {"value": 12.5, "bootstrap_95": [11.5, 13.5], "real_halves": 3.25}
    hits = {"accuracy": 0.6543, "accuracy_95": [0.6, 0.7], "accuracy_of_real_faces": 0.8}
    scores = {
        "kind": "GAN",
        "split": "test",
        "n": 1234,
        "judge": {"model": "cnn_baseline", "seed": 3, "val_accuracy": 0.7, "sha256": "ab" * 32},
        "expression": hits | {"informative": False, "classes": {"Fear": hits | {"n": 56}}},
        "identity": dict.fromkeys(("to_neutral", "to_expressive", "to_a_stranger"), mean),
        "distance": {"frechet": distance, "kernel": distance},
        "diversity": {"of_outputs": mean, "of_real_faces": mean},
    }
    who = {"n": 9, "nearer": mean | {"mean": 0.8765}, "rank_1": mean, "rank_1_by_chance": 0.01}
    outputs = {"outputs": who, "unchanged": None}
    judge = scores["judge"] | {"persons": 77}
    persons = {"n": 31, "people": 7, "neutral_pictures": 8, "neutral_people": 7, "to_donor": mean}
    persons |= {"judge": judge, "people_of_its_training": 0, "quality": who}
    persons |= {"among_neutral": outputs, "among_others": outputs}
    (run / "eval-test.json").write_text(json.dumps(scores))
    (run / "eval-val.json").write_text(json.dumps(scores | {"identity_judge": persons}))
    shutil.copytree(scored, run / "identity")
    page = page_of(tmp_path, out=tmp_path / "out")
    for text in ("1,234 pairs", "65.43", "12.5", "0.4321", "abab", "Fear", "paper mode"):
        assert text in page, text
    for text in ("87.65", "tell 77 people apart, none of whom", "31 pairs of 7 people", "43.2 %"):
        assert page.count(text) >= 1, text
    assert "0 runs · 1 GAN" in page, "the identity judge's classes are no expressions"
    assert "damaged" not in page[page.index("<main") :]


def test_a_sweep_is_one_table_and_its_trials_do_not_stand_alone(
    scored: Path, tmp_path: Path
) -> None:
    def configuration(lr: float, mean: float | None, **more: Any) -> dict[str, Any]:
        values = {} if mean is None else {"0": mean, "1": mean}
        common = {"batch_size": 64, "lr": lr, "values": values, "mean": mean}
        return common | {"interval_95": None, "states": ["finished"]} | more

    swept = {"batch_size": 64, "lr": 0.1, "flip": True}
    sweep = tmp_path / "lrs"
    (sweep / "trials").mkdir(parents=True)
    shutil.copytree(scored, sweep / "trials" / "b64")
    (sweep / "sweep.json").write_text("{}")
    summary: dict[str, Any] = {
        "preset": "cnn_baseline",
        "metric": "val_accuracy",
        "epochs": 6,
        "data": str(tmp_path),
        "fingerprint": "ab" * 8,
        "trials": 6,
        "finished": 4,
        "seeds": [0, 1],
        "ranked": [configuration(0.1, 0.6125, settings=swept), configuration(0.2, 0.5)],
        "not_ranked": [configuration(0.3, None)],
        "failed": [{"trial": "b64-lr0.3-seed0", "why": "loss is not finite"}],
        "best_two": {"mean": 0.1, "interval_95": None, "verdict": "not tested"},
    }
    (sweep / "summary.json").write_text(json.dumps(summary))
    page = page_of(sweep, out=tmp_path / "out")
    for text in ("lrs", "0.6125", ">flip</th>", "too few for an interval", "not finite"):
        assert text in page, text
    assert "b64 <span" not in page
    for c in [*summary["ranked"], summary["best_two"]]:
        del c["interval_95"]
    (sweep / "summary.json").write_text(json.dumps(summary))
    assert "too few for an interval" in page_of(sweep, out=tmp_path / "out")
    ranked = [configuration(0.2, 0.5), configuration(0.1, 0.6125)]
    (sweep / "summary.json").write_text(
        json.dumps(summary | {"metric": "val_loss", "ranked": ranked})
    )
    assert "★</span>0.5000" in page_of(sweep, out=tmp_path / "out"), "the smallest loss"
    (sweep / "summary.json").write_text(json.dumps(summary | {"metric": "beauty"}))
    assert "unknown metric" in page_of(sweep, scored, out=tmp_path / "out")
    (sweep / "summary.json").write_text(json.dumps(summary | {"ranked": [{}]}))
    assert "has no" in page_of(sweep, scored, out=tmp_path / "out")
    (sweep / "summary.json").unlink()
    assert "no table yet" in page_of(sweep, out=tmp_path / "out")


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


def test_a_report_replaces_its_own_files_only(fer: Fer, scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    call = ("report", scored, "--out", out)
    for name in ("index.html", "results.csv", "tables/mine.csv", f"{scored.name}-curves.png"):
        assert_kept(fer, out / name, *call)
    (out / "other.txt").write_text("mine")
    for _ in range(2):
        assert fer(*call).returncode == 0
    assert (out / "other.txt").read_text() == "mine"
