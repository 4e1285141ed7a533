"""What a training writes and starts from: metrics, sheet, TensorBoard, weights, --init-from."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer_hpc.files import sha256
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import outcome_file, read_rows, read_status
from tests.conftest import Fer, Train
from tests.helpers.runs import assert_same_outcome, start, until_training


def test_more_epochs_that_are_not_better_leave_the_best_weights(
    train: Train, tmp_path: Path
) -> None:
    """Their hash says whether scores and the temperature are those of the run."""
    run = tmp_path / "run"
    assert train(run, "--epochs", 1, "--lr", 0).returncode == 0
    best = (run / "best.pt").read_bytes()
    assert train(run, "--epochs", 2, "--lr", 0).returncode == 0
    assert len(read_rows(run)) == 2
    assert (run / "best.pt").read_bytes() == best


def test_metrics_hold_no_times_and_timing_holds_them(finished_run: Path) -> None:
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    scores = {
        f"{part}_{name}" for part in ("train", "val") for name in ("loss", "objective", "accuracy")
    }
    assert set(rows[0]) == {"epoch", "images_seen", "lr", *scores, "grad_norm", "best"}
    assert all("images_per_s" in row for row in read_rows(finished_run, "timing.jsonl"))


def test_staged_data_gives_the_same_run(train: Train, finished_run: Path, tmp_path: Path) -> None:
    stage = tmp_path / "scratch"
    done = train(tmp_path / "run", "--stage", stage)
    assert done.returncode == 0, done.stderr
    assert_same_outcome(tmp_path / "run", finished_run)
    copied = {p.name for p in next(stage.iterdir()).iterdir()}
    assert {"manifest.json", "train-00000.h5", "val-00000.h5"} <= copied
    assert not any(name.endswith(".tmp") for name in copied)


def test_the_sheet_shows_the_first_images_of_training(
    fer: Fer, shards: Path, tmp_path: Path
) -> None:
    import cv2

    call = ("sheet", "cnn_baseline", "--data", shards, "--run", tmp_path)
    done = fer("cli", *call, "--flip", "--rotate", 20)
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)
    assert picture.shape[1] == 12 * 96
    assert picture[16:112].std() > 20
    assert picture[:16].max() > 200, "the class is above each face"


def test_early_stop_ends_the_run_and_keeps_the_best(fer: Fer, shards: Path, tmp_path: Path) -> None:
    flags = "--epochs 50 --early-stop 2 --lr 0 --batch-size 30 --no-tensorboard --freeze-bn"
    arguments = ("resnet_baseline", "--data", shards, "--run", tmp_path / "run", *flags.split())
    done = fer("train", *arguments)
    assert done.returncode == 0, done.stderr
    # without learning the first stays the best
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == [1, 2, 3]
    status = read_status(tmp_path / "run")
    assert (status["best"]["epoch"], status["why"]) == (1, "no gain in val_accuracy for 2 epochs")
    assert "finished, nothing to do" in fer("train", *arguments).stdout


def test_fine_tuning_takes_everything_but_a_head_of_other_classes(
    fer: Fer, train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    flags = ("--init-from", finished_run, "--epochs", 1, "--lr", 0.0, "--freeze-bn")
    tuned = tmp_path / "tuned"
    done = train(tuned, *flags)
    assert done.returncode == 0, done.stderr
    science = json.loads((tuned / "config.json").read_text())["science"]
    assert science["init_hash"] == sha256(outcome_file(finished_run, "best.pt"))
    before = {
        k: v
        for k, v in checkpoint.load(finished_run / "best.pt")["model"].items()
        if v.is_floating_point()
    }
    after = checkpoint.load(tuned / "final.pt")["model"]
    assert all(torch.equal(after[name], value) for name, value in before.items()), (
        "nothing was learnt at rate 0"
    )
    with_head = train(tmp_path / "va", "--va-weight", 1, *flags)
    assert "the last layer is new" in with_head.stderr
    assert read_rows(tmp_path / "va")[0]["val_valence_rmse"] > 0
    call = ("resnet_baseline", "--data", shards, "--run", tmp_path / "other", *flags)
    other = fer("train", *call, "--batch-size", 30)
    assert other.returncode == 2
    assert "weights of another network" in other.stderr


def test_initial_weights_are_not_forgotten(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    """A file that does not fit leaves the folder free; a start that saved nothing asks again."""
    (tmp_path / "text.pt").write_text("no weights")
    refused = train(tmp_path / "run", "--init-from", tmp_path / "text.pt")
    assert refused.returncode == 2
    assert "not a file of weights; give a run folder" in refused.stderr
    assert "or the .h5 of a Keras model" in refused.stderr
    flags = ("--init-from", finished_run, "--checkpoint-every-s", 1000)
    started = start(shards, tmp_path / "run", *flags, hold=30)
    until_training(tmp_path / "run", 1, process=started)
    started.kill()
    started.wait()
    forgotten = train(tmp_path / "run")
    assert forgotten.returncode == 2
    assert "give its --init-from again" in forgotten.stderr
    assert "tensors copied" in train(tmp_path / "run", "--init-from", finished_run).stderr


def test_a_learning_rate_may_stay_as_it_is(train: Train, tmp_path: Path) -> None:
    flags = ("--plateau-factor", 1, "--plateau-patience", 1, "--lr", 1e-30)
    assert train(tmp_path / "run", *flags).returncode == 0
    assert [row["lr"] for row in read_rows(tmp_path / "run")] == [1e-30] * 3


def test_what_tensorboard_shows(fer: Fer, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--epochs", 2, "--batch-size", 30, "--profile", "--label-smoothing", 0.1)
    assert fer("train", "cnn_baseline", "--data", shards, "--run", run, *flags).returncode == 0
    events = EventAccumulator(str(run / "tb"), size_guidance={"images": 0}).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "loss/train",
        "loss/val",
        "objective/train",
        "objective/val",
        "accuracy/val",
        "lr",
        "grad_norm",
        "images_per_s",
        "data_share",
        "memory_gb",
        "tflop_per_s",
    }
    assert "val confusion" in events.Tags()["images"]
    assert len(events.Scalars("loss/val")) == 2
    trace = json.loads((run / "attempts" / "0001" / "trace.json").read_text())
    assert any("convolution" in str(event.get("name")) for event in trace["traceEvents"])
