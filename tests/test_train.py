from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fer_hpc.data.shards import read_manifest
from fer_hpc.files import sha256
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import (
    attempt_numbers,
    list_checkpoints,
    outcome_file,
    read_rows,
    read_status,
)
from tests.conftest import TRAIN_SPEED, Fer, Preprocess, Train
from tests.helpers.processes import HOLD, Started
from tests.helpers.processes import run as run_command
from tests.helpers.runs import SECONDS, assert_same_outcome, until_training
from tests.helpers.waiting import until


def start(shards: Path, run: Path, *flags: object, hold: int = 0) -> Started:
    """A training; with `hold` it waits at so many images for a signal, and saves a batch before."""
    call = ("train", "cnn_baseline", "--data", shards, "--run", run, *TRAIN_SPEED, *flags)
    return Started(*call, env={**os.environ, **({HOLD: f"{hold - 30} {hold}"} if hold else {})})


def test_killed_at_random_moments_it_ends_bit_identical(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run, rng = tmp_path / "run", random.Random(0)
    for attempt, images_seen in ((1, 30), (2, 120), (3, 270)):  # of 510, in a second or in ten
        process = start(shards, run, hold=480)
        until_training(run, attempt, images_seen, process)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.wait()
    assert read_status(run)["state"] == "interrupted"
    done = train(run)
    assert done.returncode == 0, done.stderr
    assert "from image" in done.stderr
    assert_same_outcome(run, finished_run)


def test_the_older_of_two_writers_loses_and_corrupts_nothing(
    shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    older = start(shards, run, hold=480)
    until_training(run, 1, 30, older)
    older.send_signal(signal.SIGSTOP)
    newer = start(shards, run)
    until_training(run, 2, 90, newer)
    older.send_signal(signal.SIGCONT)
    assert older.wait(SECONDS) == 4
    assert "another start has taken this run over" in older.communicate()[1]
    assert newer.wait(SECONDS) == 0
    assert_same_outcome(run, finished_run)
    assert read_status(run)["state"] == "finished"


def test_a_run_in_use_is_refused_with_who_holds_it(
    train: Train, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ("--epochs", 500, "--checkpoint-every-s", 1000)
    holder = start(shards, run, *flags)
    until_training(run, 1, process=holder)
    done = train(run, *flags)
    holder.kill()
    holder.wait(SECONDS)
    assert done.returncode == 2
    assert f"in use by process {holder.pid}" in done.stderr
    again = start(shards, run, *flags)
    until_training(run, 2, process=again)
    again.send_signal(signal.SIGTERM)
    said = again.communicate(SECONDS)[1]
    assert "attempt 2, from the beginning: earlier starts left no checkpoint" in said


def test_a_signal_saves_and_asks_to_be_run_again(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(shards, run, "--checkpoint-every-s", 1000, hold=240)
    until_training(run, 1, 210, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 75
    assert "SIGTERM" in read_status(run)["why"]
    assert list_checkpoints(run)[0][1] == 240, "within an epoch, whose last image is the 360th"
    assert train(run).returncode == 0
    assert_same_outcome(run, finished_run)


def test_a_training_whose_output_was_closed_goes_on(shards: Path, tmp_path: Path) -> None:
    """As after `| head -2`; its status says so, and a signal stops it as ever."""
    run = tmp_path / "run"
    flags = ("--data", shards, "--run", run, "--epochs", 5000, *TRAIN_SPEED[2:])
    command = [sys.executable, "-m", "fer_hpc", "train", "cnn_baseline", *map(str, flags)]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(command, stdout=writer, stderr=writer)
    os.close(writer)
    try:
        until(lambda: process.poll() is not None or len(read_rows(run)) > 1, SECONDS, "epochs")
        assert read_status(run)["state"] == "running"
        assert "its output was closed" in read_status(run)["why"]
        process.terminate()
        assert process.wait(SECONDS) == 75
    finally:
        process.kill()
    assert read_status(run)["why"] == "stopped by SIGTERM"


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(shards, run, "--checkpoint-every-s", 0.02, hold=480)
    until_training(run, 1, 450, process)
    process.kill()
    process.wait()
    (_, newest, path), (_, before, _) = list_checkpoints(run)[:2]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    done = train(run)
    assert f"{newest:012d}.pt" in done.stderr
    assert f"from image {before:,}" in done.stderr
    assert_same_outcome(run, finished_run)


def test_finished_says_so_without_loading_torch(train: Train, finished_run: Path) -> None:
    done = train(finished_run)
    assert done.returncode == 0
    assert "finished, nothing to do" in done.stdout
    assert attempt_numbers(finished_run) == [1]


def test_damaged_copies_are_named_and_made_again(
    train: Train, fer: Fer, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "best.pt").write_bytes((run / "best.pt").read_bytes()[:1000])
    (run / "final.pt").unlink()
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:100])
    names = ("best.pt", "final.pt", "metrics.jsonl")
    said = fer("verify", run, finished_run).stdout
    assert all(f"{run / name} is missing, cut or changed" in said for name in names)
    said = train(run).stderr
    assert all(f"{run / name} was missing, cut or changed; made again" in said for name in names)
    assert_same_outcome(run, finished_run)
    assert train(run).stderr == ""


def test_two_n_epochs_equal_n_and_n_more(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--epochs", 2, "--flip").returncode == 0
    assert train(tmp_path / "grown", "--epochs", 1, "--flip").returncode == 0
    assert train(tmp_path / "grown", "--epochs", 2, "--flip").returncode == 0
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (
        tmp_path / "grown" / "metrics.jsonl"
    ).read_bytes()


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


def test_a_differing_science_field_is_refused_by_name_a_runtime_field_is_not(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    refused = train(run, "--lr", 0.5)
    assert refused.returncode == 2
    assert "--lr 0.001 (now --lr 0.5)" in refused.stderr
    moved = shutil.copytree(shards, tmp_path / "moved")
    assert train(run, "--device", "cpu", data=moved).returncode == 0


def test_other_data_is_refused(
    preprocess: Preprocess, train: Train, finished_run: Path, tmp_path: Path
) -> None:
    preprocess("synthetic", tmp_path / "other", "--count", 30, "--seed", 9)  # fewer than a batch
    done = train(finished_run, data=tmp_path / "other")
    assert done.returncode == 2
    assert "trained on other data" in done.stderr


def test_metrics_hold_no_times_and_timing_holds_them(finished_run: Path) -> None:
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    scores = {
        f"{part}_{name}" for part in ("train", "val") for name in ("loss", "objective", "accuracy")
    }
    assert set(rows[0]) == {"epoch", "images_seen", "lr", *scores, "grad_norm", "best"}
    assert all("images_per_s" in row for row in read_rows(finished_run, "timing.jsonl"))


def test_a_diverging_run_stops_and_names_the_place(
    train: Train, shards: Path, tmp_path: Path
) -> None:
    done = train(tmp_path / "run", "--lr", 1e30)
    assert done.returncode == 2
    assert "images seen" in done.stderr
    assert "--lr" in done.stderr
    assert read_status(tmp_path / "run")["state"] == "failed"
    one_step = ("--epochs", 1, "--batch-size", read_manifest(shards).n("train"))
    after = train(tmp_path / "after", *one_step, "--lr", 1e30)
    assert after.returncode == 2, "the step's own loss is a number, that of val after it is none"
    assert "the loss on val is not a finite number" in after.stderr
    assert not (tmp_path / "after" / "best.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cnn_improve",), "did you mean 'cnn_improved'"),
        ((), "which preset?"),
        (("cnn_improved", "--batchsize", "3"), "--batchsize"),
        (
            ("cnn_improved", "--data", "/nowhere"),
            "/nowhere: not a folder of shards",
        ),
        (("cnn_improved", "--lr", "fast"), "--lr"),
        (("cnn_improved", "--epochs", "0"), "--epochs 0"),
    ],
)
def test_bad_arguments_are_one_clear_message(
    fer: Fer, shards: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    where = ["--data", shards] if "--data" not in arguments else []
    done = fer("train", *arguments, *where, "--run", tmp_path / "run")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_staged_data_gives_the_same_run(train: Train, finished_run: Path, tmp_path: Path) -> None:
    stage = tmp_path / "scratch"
    done = train(tmp_path / "run", "--stage", stage)
    assert done.returncode == 0, done.stderr
    assert_same_outcome(tmp_path / "run", finished_run)
    copied = {p.name for p in next(stage.iterdir()).iterdir()}
    assert {"manifest.json", "train-00000.h5", "val-00000.h5"} <= copied
    assert not any(name.endswith(".tmp") for name in copied)


def test_every_augmentation_on_it_resumes_bit_identical(
    train: Train, shards: Path, tmp_path: Path
) -> None:
    flags = "--flip --rotate 15 --shift 0.1 --scale 0.2 --erase 0.5 --mixup 0.2".split()
    flags += ["--brightness", "0.1"]
    whole = train(tmp_path / "whole", "--epochs", 2, *flags)
    assert whole.returncode == 0, whole.stderr
    process = start(shards, tmp_path / "killed", "--epochs", 2, *flags, hold=330)
    until_training(tmp_path / "killed", 1, 60, process)
    process.kill()
    process.wait()
    train(tmp_path / "killed", "--epochs", 2, *flags)
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


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


def run_limited(resource_id: int, limit: int, *args: object) -> tuple[int, str]:
    """Exit code and messages of a command that may use `limit` (bytes) of a resource."""
    process = Started(*args)
    resource.prlimit(process.pid, resource_id, (limit, limit))
    messages = process.communicate(timeout=400)[1]
    return process.wait(), messages


def test_too_little_memory_names_the_batch_size(shards: Path, tmp_path: Path) -> None:
    flags = ("--batch-size", 150, "--threads", 1)
    call = ("train", "vgg", "--data", shards, "--run", tmp_path / "run", *flags)
    code, messages = run_limited(resource.RLIMIT_DATA, 1_300_000_000, *call)
    assert code == 2
    assert "out of memory with --batch-size 150: take a smaller one, or --accumulate" in messages
    assert "Traceback" not in messages


def test_full_storage_keeps_the_checkpoint_before_and_says_so(
    train: Train, shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(shards, run, hold=60)
    until_training(run, 1, 30, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 75
    saved = list_checkpoints(run)[0]
    call = ("train", "cnn_baseline", "--data", shards, "--run", run, *TRAIN_SPEED)
    code, messages = run_limited(resource.RLIMIT_FSIZE, 5 << 20, *call)  # a checkpoint has 30 MB
    assert code == 2
    assert f"the checkpoint at {saved[1]:,} images is kept: make room" in messages
    assert "Traceback" not in messages
    assert list_checkpoints(run)[0][1] == saved[1]
    assert train(run).returncode == 0
    assert_same_outcome(run, finished_run)


def test_full_storage_before_a_checkpoint_names_none(shards: Path, tmp_path: Path) -> None:
    call = ("train", "cnn_baseline", "--data", shards, "--run", tmp_path / "run", *TRAIN_SPEED)
    code, messages = run_limited(resource.RLIMIT_FSIZE, 5 << 20, *call)
    assert code == 2
    assert "there is no checkpoint yet: make room" in messages


def test_a_file_size_limit_is_named_by_export(finished_run: Path, tmp_path: Path) -> None:
    call = ("export", finished_run, "--out", tmp_path)
    code, messages = run_limited(resource.RLIMIT_FSIZE, 20 << 10, *call)
    assert code == 2
    assert f"error: File too large: {tmp_path / 'model.onnx'}\n" in messages


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


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


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


def test_damaged_data_is_one_message(train: Train, shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    shard = next(broken.glob("train-*.h5"))
    shard.write_bytes(bytes(100) + shard.read_bytes()[100:])
    headless = train(tmp_path / "run", data=broken)
    assert headless.returncode == 2
    assert "is damaged" in headless.stderr
    for text in (
        '{"format": 1}',
        "[1]",
        '{"format": 1, "image_shape": [48, 48, 1], "classes": [], "fingerprint": "", "splits": 3}',
    ):
        (broken / "manifest.json").write_text(text)
        done = train(tmp_path / "run", data=broken)
        assert done.returncode == 2, text
        assert "preprocess again" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_pickle_that_runs_code_is_refused(train: Train, tmp_path: Path) -> None:
    torch.save({"model": RunsCode()}, tmp_path / "pickle.pt")
    done = train(tmp_path / "run", "--init-from", tmp_path / "pickle.pt")
    assert done.returncode == 2
    assert "not a file of weights alone: it holds other Python objects" in done.stderr


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


def test_compiling_without_a_compiler_is_refused(shards: Path, tmp_path: Path) -> None:
    arguments = ("resnet_baseline", "--data", shards, "--run", tmp_path / "run", "--compile")
    ended = run_command("train", *arguments, env={**os.environ, "CXX": "no-such-compiler"})
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "--compile needs a C++ compiler, and there is no no-such-compiler" in ended.stderr
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer adamw --schedule cosine --warmup-epochs 0.5 --ema 0.9 --clip 1".split(),
        pytest.param(
            ("--balanced", "--accumulate", "2", "--deterministic"), marks=pytest.mark.long
        ),
        pytest.param(
            ("--precision", "fp16", "--epochs", "1"),
            marks=pytest.mark.long,
            id="fp16, slow on a CPU",
        ),
        pytest.param(("--compile",), marks=pytest.mark.long, id="compiled, half a minute each"),
        # in bf16 where the machine has it
        "--class-weights 5 --label-smoothing 0.1 --mixup 0.2 --va-weight 0.5".split(),
    ],
)
def test_recipes_resume_bit_identical(
    fer: Fer, faces: Path, tmp_path: Path, flags: Sequence[str]
) -> None:
    arguments = ("resnet_baseline", "--data", faces, *TRAIN_SPEED, "--epochs", 2, *flags)
    assert fer("train", *arguments, "--run", tmp_path / "whole").returncode == 0
    call = ("train", *arguments, "--run", tmp_path / "killed")
    process = Started(*call, env={**os.environ, HOLD: "60 90"})
    until_training(tmp_path / "killed", 1, 60, process)
    process.kill()
    process.wait()
    assert fer("train", *arguments, "--run", tmp_path / "killed").returncode == 0
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")
