"""The report's tables: means over seeds, stars, and the run that is chosen on val."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from fer_hpc.cli.text import format_scores
from fer_hpc.config.commands import EvaluateConfig, ReportConfig
from fer_hpc.evaluation import metrics
from fer_hpc.report.book import cell_text
from fer_hpc.report.report import report
from tests.helpers.reports import another, edit_history, edit_json, page_of


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
    assert "sweep.json has no" in page_of(sweep, scored, out=tmp_path / "out")
    shutil.move(sweep / "trials" / "b64", tmp_path / "single")
    assert "no table yet" in page_of(tmp_path, out=tmp_path / "out")
