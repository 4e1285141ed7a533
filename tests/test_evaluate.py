from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.evaluation.score import views
from tests.conftest import TRAIN_SPEED, Fer, Preprocess
from tests.helpers.processes import start_ranks


@pytest.fixture(scope="module")
def scored(fer: Fer, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("scored") / "undisturbed"
    shutil.copytree(finished_run, run)
    for split in ("val", "test"):
        done = fer("evaluate", run, "--split", split)
        assert done.returncode == 0, done.stderr
    return run


def test_scores_are_those_of_the_best_epoch(scored: Path) -> None:
    rows = [json.loads(line) for line in (scored / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["val_accuracy"])
    found = json.loads((scored / "eval-val.json").read_text())
    assert (found["accuracy"], found["loss"]) == (best["val_accuracy"], best["val_loss"])


def test_every_face_is_scored_once_and_predictions_say_which(scored: Path, shards: Path) -> None:
    split = open_split(read_manifest(shards), "test")
    with np.load(scored / "predictions-test.npz", allow_pickle=False) as saved:
        assert (saved["source_id"] == split.columns["source_id"]).all()
        accuracy = (saved["logits"].argmax(1) == saved["labels"]).mean()
    found = json.loads((scored / "eval-test.json").read_text())
    assert (found["n"], found["accuracy"]) == (len(split), accuracy)
    assert np.sum(found["confusion"]) == len(split)
    assert (scored / "confusion-test.png").read_bytes().startswith(b"\x89PNG")


def test_scored_again_it_says_so(fer: Fer, scored: Path) -> None:
    before = (scored / "eval-test.json").stat().st_mtime_ns
    done = fer("evaluate", scored, "--split", "test")
    assert "nothing to do" in done.stdout
    assert "majority class" in done.stdout
    assert "eval-test.json, predictions-test.npz, confusion-test.png" in done.stdout
    assert (scored / "eval-test.json").stat().st_mtime_ns == before


def test_a_damaged_result_is_computed_again(fer: Fer, scored: Path, tmp_path: Path) -> None:
    run = shutil.copytree(scored, tmp_path / "run")
    for damage in ('{"split": "te', '["another", "form"]', '{"data": 1}'):
        (run / "eval-test.json").write_text(damage)
        done = fer("evaluate", run, "--split", "test")
        assert done.returncode == 0, done.stderr
        assert (run / "eval-test.json").read_bytes() == (scored / "eval-test.json").read_bytes()


@pytest.fixture(scope="module")
def five_chunks(preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test split of 1,100 noise pictures: four whole chunks and a part of one."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 1100)):
        np.save(folder / f"X_{split}.npy", rng.integers(0, 256, (n, 32, 32, 1), np.uint8))
        np.save(folder / f"y_{split}.npy", np.eye(8, dtype=np.uint8)[np.arange(n) % 8])
    flags = ("--input", folder, "--size", 32, "--classes", "affectnet")
    assert preprocess("arrays", folder / "shards", *flags).returncode == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def one_rank(
    fer: Fer, finished_run: Path, five_chunks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("ranks") / "run")
    assert fer("evaluate", run, "--split", "test", "--data", five_chunks).returncode == 0
    return run


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_predictions_are_bit_identical_at_any_world_size(
    one_rank: Path, five_chunks: Path, tmp_path: Path, size: int
) -> None:
    run = shutil.copytree(one_rank, tmp_path / "run")
    (run / "eval-test-on-shards.json").unlink()
    (run / "predictions-test-on-shards.npz").unlink()
    ranks = start_ranks(size, "evaluate", run, "--split", "test", "--data", five_chunks)
    assert [rank.wait(400) for rank in ranks] == [0] * size
    with (
        np.load(run / "predictions-test-on-shards.npz") as many,
        np.load(one_rank / "predictions-test-on-shards.npz") as one,
    ):
        assert many["logits"].shape == (1100, 8)
        assert (many["logits"] == one["logits"]).all()


def test_data_that_was_made_again_does_not_pass_for_the_runs_own(
    fer: Fer, finished_run: Path, five_chunks: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    scores = {file: file.read_bytes() for file in run.glob("eval-*.json")}

    def move_data(folder: Path) -> None:
        """Let the run's data be in another folder."""
        for path in run.glob("attempts/*/environment.json"):
            record = json.loads(path.read_text()) | {"data": str(folder)}
            path.write_text(json.dumps(record))

    move_data(five_chunks)
    done = fer("evaluate", run, "--split", "test")
    assert done.returncode == 2
    assert f"{five_chunks} was made again" in done.stderr
    assert f"--data {five_chunks}" in done.stderr and "test-on-shards" in done.stderr
    assert scores == {file: file.read_bytes() for file in run.glob("eval-*.json")}
    scored = run / "eval-test-on-shards.json"  # of another data set whose folder has this name
    scored.write_text(json.dumps({"data": "of another set"}))
    done = fer("evaluate", run, "--split", "test", "--data", five_chunks)
    assert done.returncode == 0, done.stderr
    assert f"warning: {scored} was of the data of another set; replaced by" in done.stderr
    move_data(tmp_path / "gone")
    done = fer("evaluate", run, "--split", "test")
    assert done.returncode == 2
    assert f"is not at {tmp_path / 'gone'} any more; give --data DIR" in done.stderr


def test_an_absent_split_is_one_message(fer: Fer, tmp_path: Path) -> None:
    table, gray = tmp_path / "fer.csv", " ".join(["9"] * 2304)
    lines = [f"{k % 7},{gray},{'Training' if k < 40 else 'PublicTest'}" for k in range(50)]
    table.write_text("\n".join(["emotion,pixels,Usage", *lines]))
    assert (
        fer(
            "preprocess", "--source", "fer2013", "--input", table, "--out", tmp_path / "shards"
        ).returncode
        == 0
    )
    arguments = (
        "cnn_baseline",
        "--data",
        tmp_path / "shards",
        "--run",
        tmp_path / "run",
        *TRAIN_SPEED,
    )
    assert fer("train", *arguments, "--epochs", 1).returncode == 0
    done = fer("evaluate", tmp_path / "run", "--split", "test")
    assert done.returncode == 2
    assert "has no test split (it has train 40, val 10)" in done.stderr


def test_what_is_no_run_folder_is_one_message(fer: Fer, tmp_path: Path) -> None:
    done = fer("evaluate", tmp_path / "nowhere", "--split", "val")
    assert done.returncode == 2
    assert "is not a run folder" in done.stderr


@pytest.fixture(scope="module")
def three_classes(preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 48 pictures in three class folders."""
    folder = tmp_path_factory.mktemp("three")
    rng = np.random.default_rng(0)
    for name in ("happy", "sad", "angry"):
        (folder / "faces" / name).mkdir(parents=True)
        for i in range(16):
            cv2.imwrite(
                str(folder / "faces" / name / f"{i}.png"), rng.integers(0, 256, (32, 32), np.uint8)
            )
    done = preprocess("folder", folder / "three", "--input", folder / "faces", "--size", 32)
    assert done.returncode == 0, done.stderr
    return folder / "three"


def test_a_set_with_fewer_classes_masks_the_others(
    fer: Fer, finished_run: Path, three_classes: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    done = fer("evaluate", run, "--split", "train", "--data", three_classes)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "eval-train-on-three.json").read_text())
    assert list(result["classes"]) == ["Happiness", "Sadness", "Anger"]
    assert (result["dropped"], len(result["masked"])) == (0, 5)
    assert "Contempt" in done.stdout
    assert not (run / "eval-train.json").exists(), "the run's own scores have their own name"
    with np.load(run / "predictions-train-on-three.npz") as saved:
        assert saved["logits"].shape == (result["n"], 3)
        shares = np.exp(saved["logits"] - saved["logits"].max(1, keepdims=True))
        loss = -np.log(
            (shares / shares.sum(1, keepdims=True))[np.arange(result["n"]), saved["labels"]]
        ).mean()
    assert result["loss"] == pytest.approx(loss, rel=1e-5)  # renormalised over the three


def test_faces_of_classes_the_run_does_not_know_are_dropped_and_counted(
    fer: Fer, shards: Path, three_classes: Path, tmp_path: Path
) -> None:
    flags = ("--epochs", 1, "--batch-size", 8, "--no-tensorboard")
    assert (
        fer(
            "train", "resnet_baseline", "--data", three_classes, "--run", tmp_path / "run", *flags
        ).returncode
        == 0
    )
    done = fer("evaluate", tmp_path / "run", "--split", "val", "--data", shards)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "eval-val-on-shards.json").read_text())
    counts = read_manifest(shards).content["splits"]["val"]["class_counts"]
    kept = sum(counts[c] for c in ("Happiness", "Sadness", "Anger"))
    assert (result["n"], result["dropped"]) == (kept, sum(counts.values()) - kept)
    assert f"faces dropped: {result['dropped']}" in done.stdout


def test_averaged_views_stand_beside_the_single_one(fer: Fer, scored: Path) -> None:
    for tta, count in (("flip", 2), ("ten_crop", 10)):
        done = fer("evaluate", scored, "--split", "test", "--tta", tta)
        assert done.returncode == 0, done.stderr
        assert f"mean of {count} views" in done.stdout
        result, single = (
            json.loads((scored / f"eval-{name}.json").read_text())
            for name in (f"test-{tta}", "test")
        )
        assert result["loss"] != single["loss"]
        assert result["n"] == single["n"]


def test_a_mirrored_face_and_its_original_score_alike_with_flip() -> None:
    images = torch.rand(4, 1, 48, 48)
    both = [torch.stack(list(views(x, "flip"))).sort(0).values for x in (images, images.flip(3))]
    assert torch.equal(*both)
    crops = list(views(torch.arange(48.0).expand(1, 1, 48, 48), "ten_crop"))
    assert len(crops) == 10
    assert crops[0].mean() < crops[8].mean() < crops[2].mean()  # left, centre, right
    assert torch.equal(crops[1], crops[0].flip(3))
