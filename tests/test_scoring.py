"""evaluate: calibration, openings of the test split, robustness cards, galleries."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.config.commands import CompareConfig, ReportConfig
from fer_hpc.evaluation.compare import compare
from fer_hpc.evaluation.disturbances import DISTURBANCES
from fer_hpc.evaluation.openings import openings_file, ordinal, read_openings, record_opening
from fer_hpc.files import process_place
from fer_hpc.report.report import report
from tests.conftest import Fer


def content(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without any result."""
    folder = shutil.copytree(finished_run, tmp_path_factory.mktemp("scoring") / "run")
    for pattern in ("eval-*", "predictions-*", "calibration.json", "test-openings.jsonl"):
        for file in folder.glob(pattern):
            file.unlink()
    return folder


def test_the_temperature_is_fitted_on_val_and_never_on_test(fer: Fer, run: Path) -> None:
    left = run / f".eval-test.json.{process_place()}-4194305.tmp"  # by one that was killed
    left.write_text("half")
    done = fer("evaluate", run, "--split", "test")
    assert done.returncode == 0, done.stderr
    assert not left.exists()
    assert "opened for the 1st time (scores)" in done.stdout
    before = content(run / "eval-test.json")
    assert not (run / "calibration.json").exists(), "test fits nothing"
    assert (before["calibration"]["temperature"], before["calibration"]["after"]) == (None, None)
    assert "no temperature yet" in done.stdout

    assert fer("evaluate", run).returncode == 0
    stored, val = content(run / "calibration.json"), content(run / "eval-val.json")
    assert (stored["fitted_on"], stored["weights"]) == ("val", val["weights"])
    field = val["calibration"]
    assert field["temperature"] == stored["temperature"]
    assert field["after"]["nll"] <= field["before"]["nll"]
    assert val["affectnet_7"]["left_out"] == "Contempt"

    # The temperature is used where the predictions are stored; the split is not opened again.
    done = fer("evaluate", run, "--split", "test")
    assert "nothing to do" in done.stdout
    after = content(run / "eval-test.json")
    assert after["calibration"]["temperature"] == stored["temperature"]
    same = {k: v for k, v in after.items() if k != "calibration"}
    assert same == {k: v for k, v in before.items() if k != "calibration"}
    assert len(read_openings(run)[0]) == 1

    (run / "calibration.json").write_text(json.dumps({**stored, "weights": "of another run"}))
    (run / "eval-test.json").unlink()
    done = fer("evaluate", run, "--split", "test")
    assert "is that of other weights" in done.stdout
    assert "opened for the 2nd time" in done.stdout
    assert "choose on val" in done.stdout


def test_a_robustness_card_and_a_gallery_open_the_split_once(fer: Fer, run: Path) -> None:
    before = len(read_openings(run)[0])
    flags = ("--split", "test", "--robust", "--robust-faces", 30, "--gallery")
    done = fer("evaluate", run, *flags)
    assert done.returncode == 0, done.stderr
    lines = read_openings(run)[0][before:]
    assert [line["what"] for line in lines] == [["robustness", "gallery"]]
    again = fer("evaluate", run, *flags)
    assert len(read_openings(run)[0]) == before + 1
    assert "under disturbance" in again.stdout

    card = content(run / "robust-test.json")
    assert (card["n"], card["of"]) == (30, content(run / "eval-test.json")["n"])
    assert list(card["disturbances"]) == list(DISTURBANCES)
    accuracies = []
    for kind in card["disturbances"].values():
        assert len(kind["levels"]) == 5
        accuracies += [level["accuracy"] for level in kind["levels"]]
    assert card["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    low, high = card["mean"]["accuracy_95"]
    assert low <= card["mean"]["accuracy"] <= high
    assert {"yaw", "pitch"} == set(card["pose"])
    with (run / "robust-test.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 51
    assert float(rows[0]["accuracy"]) == pytest.approx(card["clean"]["accuracy"], abs=1e-6)
    for name in ("robust-test.png", "robust-test-sheet.png", "gallery-test.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG"), name

    found = content(run / "gallery-test.json")
    with np.load(run / "predictions-test.npz") as saved:
        predicted, labels, ids = saved["logits"].argmax(1), saved["labels"], saved["source_id"]
    for k, kinds in enumerate(found["classes"].values()):
        for face in kinds["misses"]:
            assert predicted[face["row"]] != labels[face["row"]] == k
            assert ids[face["row"]].decode() == face["source_id"]
        assert all(predicted[face["row"]] == k for face in kinds["hits"])
        sure = [face["p_predicted"] for face in kinds["misses"]]
        assert sure == sorted(sure, reverse=True)
    with (run / "label-noise-test.csv").open() as f:
        noise = list(csv.DictReader(f))
    assert len(noise) == found["label_noise"]["candidates"]
    assert all(row["label"] != row["suggested"] for row in noise)
    with np.load(run / "predictions-test.npz") as saved:
        images = dict(zip(saved["source_id"], saved["image_hash"], strict=True))
    assert all(images[row["source_id"].encode()].decode() == row["image_hash"] for row in noise)
    beats = (predicted == labels).sum() > np.bincount(labels).max()
    assert found["label_noise"]["beats_majority"] == beats


def test_the_same_card_is_written_again(fer: Fer, run: Path) -> None:
    card = run / "robust-test.json"
    before = card.read_bytes()
    card.unlink()
    flags = ("--split", "test", "--robust", "--robust-faces", 30)
    assert fer("evaluate", run, *flags).returncode == 0
    assert card.read_bytes() == before


def test_damaged_predictions_are_written_again_and_compare_names_them(
    fer: Fer, run: Path, tmp_path: Path
) -> None:
    copies = [shutil.copytree(run, tmp_path / name) for name in ("a", "b")]
    file = copies[1] / "predictions-val.npz"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="is damaged"):
        compare(CompareConfig(runs=tuple(copies)))
    assert fer("evaluate", copies[1], "--gallery").returncode == 0
    pair = compare(CompareConfig(runs=tuple(copies)))["pairs"][0]
    assert (pair["verdict"], pair["accuracy"]["difference"]) == ("not distinguishable", 0.0)


def test_a_column_that_is_not_there_is_one_message(fer: Fer, run: Path) -> None:
    done = fer("evaluate", run, "--by", "ethnicity")
    assert done.returncode == 2
    assert "unknown column in --by 'ethnicity'" in done.stderr
    done = fer("evaluate", run, "--by", "synthetic", "--min-group", 5)
    assert done.returncode == 0, done.stderr
    table = content(run / "eval-val.json")["groups"]["synthetic"]
    assert [row["name"] for row in table["groups"]] == ["1"]
    assert table["min_n"] == 5


def test_the_report_counts_openings_and_names_an_oracle_only_on_request(
    run: Path, tmp_path: Path
) -> None:
    """Run b is better on test, run a on val: a stands first."""
    runs = [shutil.copytree(run, tmp_path / name) for name in ("a", "b")]
    config = content(runs[1] / "config.json")
    config["science"]["lr"] = 0.5
    (runs[1] / "config.json").write_text(json.dumps(config))
    rows = (runs[1] / "attempts" / "0001" / "metrics.jsonl").read_text().splitlines()
    worse = [json.dumps({**json.loads(row), "val_accuracy": 0.01}) for row in rows]
    (runs[1] / "attempts" / "0001" / "metrics.jsonl").write_text("\n".join(worse) + "\n")
    scores = content(runs[1] / "eval-test.json")
    (runs[1] / "eval-test.json").write_text(json.dumps({**scores, "accuracy": 0.99}))
    with openings_file(runs[0]).open("a") as f:
        f.write('{"damaged"\n')
    page = report(ReportConfig(runs=tuple(runs), out=tmp_path / "out")).read_text()
    table = page[page.index("test ·") :]
    assert table.index('runs/a">' if "runs/a" in table else ">a<") < table.index(">b<")
    assert "opened" in table
    assert "1 damaged line(s) in test-openings.jsonl" in page
    assert "Oracle" not in page
    page = report(ReportConfig(runs=tuple(runs), out=tmp_path / "out", oracle=True)).read_text()
    assert "Oracle, chosen on test and therefore optimistic: 99.00 % (b)" in page


def test_openings_are_counted_also_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    for _ in range(2):
        line = record_opening(tmp_path, ["scores"], "data", "config", "weights")
    assert line["count"] == 2
    assert record_opening(tmp_path, ["scores"], "other data", "config", "weights")["count"] == 1
    with openings_file(tmp_path).open("ab") as f:
        f.write(b'{"date": "20')
    assert record_opening(tmp_path, ["scores"], "data", "config", "weights")["count"] == 4
    found, damaged = read_openings(tmp_path)
    assert (len(found), damaged) == (4, 1)
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 112)] == (
        "1st 2nd 3rd 4th 11th 12th 21st 112th".split()
    )
