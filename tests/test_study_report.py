"""The section of a page about a study: the source report's numbers beside ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fer_hpc.config.jobs import JobConfig
from fer_hpc.config.study import StudyConfig
from fer_hpc.data.manifest import Manifest
from fer_hpc.evaluation.openings import openings_file, record_opening
from fer_hpc.report import paper, report
from fer_hpc.report.study import _grid_totals, class_table
from fer_hpc.report.study_models import Score, difference_in_words, objective_of
from fer_hpc.study.graph import Part, parts_of
from fer_hpc.study.plan import Plan, new_plan, write_plan
from fer_hpc.study.state import record_part
from tests.conftest import Fer

THEIRS = paper.MODELS["cnn_improved"]  # .7514 on test


def test_the_numbers_of_the_source_report_agree_with_each_other() -> None:
    sums = [sum(counts[i] for counts in paper.COUNTS.values()) for i in range(3)]
    assert sums == [201_347, 43_155, 43_148]
    balanced = [100 * model.balanced for model in paper.MODELS.values()]
    assert balanced == pytest.approx([37.3, 43.1, 42.3, 47.3], abs=0.06)
    assert round(100 * paper.MAJORITY, 1) == 46.7


@pytest.mark.parametrize(
    ("mean", "interval", "words"),
    [
        (0.76, (0.74, 0.78), "+0.9 points on test: not distinguishable"),
        (0.80, (0.79, 0.81), "+4.9 points on test: above their single run"),
        (0.70, (0.69, 0.71), "-5.1 points on test: below their single run"),
        (0.70, None, "1 seed, too few"),
    ],
)
def test_the_difference_is_put_into_words(
    mean: float, interval: tuple[float, float] | None, words: str
) -> None:
    scores = {"test": {"accuracy": Score(mean, interval, 3 if interval else 1)}}
    assert words in difference_in_words(THEIRS, scores, is_affectnet=True)
    assert difference_in_words(THEIRS, scores, False) == "other data: not compared"
    assert difference_in_words(THEIRS, {}, True) == "test not opened"
    assert "not in the source report" in difference_in_words(None, scores, True)


def manifest(counts: dict[str, tuple[int, int, int]]) -> Manifest:
    splits = {
        split: {
            "n": sum(c[i] for c in counts.values()),
            "class_counts": {k: c[i] for k, c in counts.items()},
        }
        for i, split in enumerate(("train", "val", "test"))
    }
    return Manifest(Path("shards"), (48, 48, 1), tuple(counts), "f" * 16, {"splits": splits})


def test_the_class_table_finds_a_split_of_other_counts() -> None:
    rows, words = class_table(manifest(paper.COUNTS), True)
    assert "to within one face" in words
    assert rows[0] == ("Neutral", 52410, 11233, 11231, 52410, 11233, 11231)
    assert rows[-1] == ("all", 201_347, 43_155, 43_148, 201_347, 43_155, 43_148)
    off = {**paper.COUNTS, "Fear": (4400, 957, 957)}
    assert "up to 64 faces" in class_table(manifest(off), True)[1]
    seven = {name: counts for name, counts in paper.COUNTS.items() if name != "Contempt"}
    assert class_table(manifest(seven), False)[0][7] == (
        "Contempt",
        0,
        0,
        0,
        *paper.COUNTS["Contempt"],
    )


def test_the_smoothed_loss_comes_from_the_stored_predictions(tmp_path: Path) -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1]]))
    np.savez(tmp_path / "predictions-test.npz", logits=logits, labels=np.array([0]))
    expected = -(0.9 * np.log(0.7) + 0.1 * np.log([0.7, 0.2, 0.1]).mean())
    assert objective_of(tmp_path, "test", 0.1) == pytest.approx(expected)
    missing = objective_of(tmp_path, "val", 0.1)
    assert Score(missing, None, 1).mean_text(percent=False) == "not known"


def test_a_score_of_fewer_seeds_than_were_trained_says_so() -> None:
    macro = "{% endmacro %}"
    source = (Path(report.__file__).parent / "study.html.j2").read_text().partition(macro)[0]
    shown = report._environment().from_string(source + macro + "{{ score(m, 'test', 'loss') }}")
    for runs in (2, 3):
        scores = {"test": {"loss": Score(0.5, None, 2)}}
        model = SimpleNamespace(runs=range(runs), scores=scores)
        text = shown.render(m=model, plural=lambda count, word: f"{count} {word}s")
        assert ("of 2 seeds" in text) == (runs > 2)


@pytest.mark.parametrize("content", [b"\xba", b"trial\nx\n", b"seconds\nnan\n", b"seconds\nx\n"])
def test_a_damaged_table_of_a_grid_is_named_beside_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.csv").write_bytes(content)
    assert _grid_totals(tmp_path)[:2] == (None, 0)
    assert "results.csv is damaged (" in _grid_totals(tmp_path)[3]


def planned(out: Path, shards: Path) -> tuple[Plan, dict[str, Part]]:
    """A tiny study in `out` that has its shards, and its parts by name."""
    plan = new_plan(
        StudyConfig(out=out, source="synthetic", scale="tiny"), JobConfig(cluster="local")
    )
    write_plan(plan)
    (out / "shards").mkdir()
    (out / "shards" / "32x32x1").symlink_to(shards)
    return plan, {part.name: part for part in parts_of(plan)}


def test_seeds_of_two_networks_are_two_rows_of_the_tables(
    fer: Fer, tmp_path: Path, shards: Path, finished_run: Path
) -> None:
    """A study that an older version let train a plugin before and after an edit."""
    out = tmp_path / "study"
    _, parts = planned(out, shards)
    for seed in range(3):
        run = parts[f"train/cnn_baseline-seed{seed}"].folder
        shutil.copytree(finished_run, run)
        assert fer("evaluate", run, "--split", "val").returncode == 0
        config = json.loads((run / "config.json").read_text())
        config["science"] |= {"seed": seed, "plugin_hash": ("b" if seed == 2 else "a") * 64}
        if seed == 0:
            del config["science"]["loss"]  # a field that is younger than a run is no difference
        (run / "config.json").write_text(json.dumps(config))
    done = fer("report", out, "--out", out / "report")
    assert done.returncode == 0, done.stderr
    text = (out / "report" / "study.md").read_text()
    assert "| CNN baseline, plugin_hash aaaaaaaa, 3 epochs | 2 |" in text
    assert "| CNN baseline, plugin_hash bbbbbbbb, 3 epochs | 1 |" in text
    page = (out / "report" / "index.html").read_text()
    assert 'CNN baseline, plugin_hash aaaaaaaa <span class="interval">2 seeds' in page


def test_the_page_of_a_study_shows_what_failed_and_what_is_there(
    fer: Fer, tmp_path: Path, shards: Path, finished_run: Path
) -> None:
    out = tmp_path / "study"
    plan, parts = planned(out, shards)
    run = parts["train/cnn_baseline-seed0"].folder
    shutil.copytree(finished_run, run)
    record_part(plan, parts["train/cnn_baseline-seed0"], started=True)
    record_part(plan, parts["grid/grid"], failed="3 of 27 trials failed")
    assert fer("evaluate", run, "--split", "val").returncode == 0
    data = json.loads((run / "config.json").read_text())["data"]["fingerprint"]
    openings_file(run).unlink(missing_ok=True)
    pages = []
    for _ in range(2):
        record_opening(run, ["scores"], data, "0" * 12, "0" * 64)
        done = fer("report", out, "--out", out / "report")
        assert done.returncode == 0, done.stderr
        pages.append((out / "report" / "index.html").read_text())
    page = pages[1]
    assert "test was scored once, after that." in pages[0]
    assert "test was scored after that, more than once for 1 run (column" in page
    accuracy = json.loads((run / "eval-val.json").read_text())["accuracy"]
    for text in (
        "grid/grid: 3 of 27 trials failed",
        "train/winner-seed3: needs grid/grid, which has failed",
        'CNN baseline <span class="interval">1 seed, 3 epochs</span>',
        f"<td>{100 * accuracy:.1f} <",
        "62.98",
        "test not opened",
        "other data: the counts are not compared",
        "Figures 5, 6: CNN baseline",
    ):
        assert text in page, text
    text = (out / "report" / "study.md").read_text()
    assert f"| CNN baseline, 3 epochs | 1 | {100 * accuracy:.1f} (63.0) | - (63.0) |" in text
    assert page.index("3 of 27 trials failed") < page.index('<h3 id="table-2">')
