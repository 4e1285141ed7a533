"""What a trained GAN is used for: transfer, evaluation, generated faces."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel

from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.shards import open_split, read_manifest, write_manifest
from fer_hpc.gan.evaluate import evaluate_gan
from fer_hpc.gan.transfer import TITLE_HEIGHT
from fer_hpc.gan.weights import load_generator
from fer_hpc.models.gan import Generator
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import list_checkpoints, outcome_file, read_status
from tests.conftest import GAN_SPEED, Fer
from tests.helpers.outputs import assert_kept

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gan_run(fer: Fer, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "gan"
    done = fer("train_gan", "--data", faces, "--run", run, "--epochs", 2, "--lr", 0.002, *GAN_SPEED)
    assert done.returncode == 0, done.stderr
    return run


def test_transfer_finds_the_faces_and_writes_a_picture(
    fer: Fer, gan_run: Path, photos: list[Path], tmp_path: Path
) -> None:
    def output(name: str, *flags: object) -> NDArray[np.uint8]:
        path = tmp_path / "new" / name
        done = fer("transfer", *photos[:2], "--run", gan_run, "--out", path, *flags)
        assert done.returncode == 0, done.stderr
        for photo in photos[:2]:
            assert re.search(rf"{photo.name} \(\d+x\d+\): face at left \d+, top \d+", done.stdout)
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)

    strip, default = output("strip.png", "--strip"), output("default.png")
    assert strip.shape == (TITLE_HEIGHT + 384, 3 * 384, 3)
    assert default.shape == (256, 256)
    raw = output("raw.png", "--scale", 1)
    assert raw.shape == (32, 32)
    for picture, side in ((default, 256), (strip[TITLE_HEIGHT:, 768:, 0], 384)):
        assert (cv2.resize(raw, (side, side), interpolation=cv2.INTER_CUBIC) == picture).all()
    for left in (0, 384):
        panel = strip[TITLE_HEIGHT:, left : left + 384]
        white_columns = np.flatnonzero((panel == 255).all(2).sum(0) > 100)
        assert white_columns[-1] - white_columns[0] > 100, "a box is drawn around the face"


def test_transfer_refuses_what_is_no_face_of_a_sensible_size(
    fer: Fer, gan_run: Path, finished_run: Path, photos: list[Path], tmp_path: Path
) -> None:
    def picture(name: str, pixels: NDArray[np.uint8]) -> Path:
        cv2.imwrite(str(tmp_path / name), pixels)
        return tmp_path / name

    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    for neutral, run, message in (
        (picture("blank.png", np.full((80, 60), 128, np.uint8)), gan_run, "no face found"),
        (text, gan_run, "text.jpg: not an image"),
        (picture("huge.png", np.zeros((9000, 9000), np.uint8)), gan_run, "picture too large"),
        (tmp_path / "gone.jpg", gan_run, "No such file or directory"),
        (photos[0], finished_run, "holds a classifier"),
    ):
        out = tmp_path / "never.png"
        done = fer("transfer", neutral, photos[1], "--run", run, "--out", out)
        assert done.returncode == 2
        assert message in done.stderr
        assert not out.exists()
    blank = tmp_path / "blank.png", photos[1]
    whole = fer("transfer", *blank, "--run", gan_run, "--out", tmp_path / "whole.png", "--whole")
    assert whole.returncode == 0, whole.stderr


def test_transfer_uses_the_checkpoint_before_a_damaged_file(
    fer: Fer, gan_run: Path, photos: list[Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(gan_run, damaged)
    final = outcome_file(damaged, "final.pt")
    assert final
    final.write_bytes(final.read_bytes()[:1000])
    pictures = []
    for run in (gan_run, damaged):
        out = tmp_path / f"{run.name}.png"
        done = fer("transfer", *photos[:2], "--run", run, "--out", out)
        assert done.returncode == 0, done.stderr
        pictures.append(out.read_bytes())
    assert "its checksum does not match" in done.stderr
    assert pictures[0] == pictures[1]


def _old_keys(state: dict[str, Any]) -> dict[str, Any]:
    """A generator's state dict with the names of earlier versions."""
    renamed = {
        key.replace("class_head.", "name.").replace("film.", "told."): value
        for key, value in state.items()
    }
    assert renamed.keys() != state.keys()
    return renamed


def test_weights_of_earlier_versions_are_read(gan_run: Path, tmp_path: Path) -> None:
    """Their generator had `name` and `told`, and the mode was called `mended`."""
    generator = Generator(1, 64, classes=7)
    average = AveragedModel(Generator(1, 64, classes=7), use_buffers=True)
    average.module.load_state_dict(_old_keys(generator.state_dict()))
    again = AveragedModel(Generator(1, 64, classes=7), use_buffers=True)
    again.load_state_dict(_old_keys(average.state_dict()))
    for key, value in generator.state_dict().items():
        assert torch.equal(again.module.state_dict()[key], value), key

    run = tmp_path / "old"
    shutil.copytree(gan_run, run)
    config = json.loads((run / "config.json").read_text())
    config["science"]["mode"] = "mended"
    (run / "config.json").write_text(json.dumps(config))
    final, newest = outcome_file(run, "final.pt"), list_checkpoints(run)[0][2]
    assert final
    for path, part in ((final, "model"), (newest, "ema")):
        saved = checkpoint.load(path)
        checkpoint.save(path, {**saved, part: _old_keys(saved[part])})
    wanted = load_generator(gan_run, CPU)[0].state_dict()
    for path in (final, newest):
        for key, value in load_generator(run, CPU)[0].state_dict().items():
            assert torch.equal(wanted[key], value), key
        path.unlink()  # the checkpoint is read where there are no final weights


def test_evaluate_measures_a_gan_with_another_classifier(
    fer: Fer, faces: Path, of_40_pixels: Path, gan_run: Path, tmp_path: Path
) -> None:
    judge = tmp_path / "judge"
    speed = "--epochs 2 --batch-size 32 --threads 1 --no-tensorboard"
    how = ("--data", of_40_pixels, *speed.split())
    assert fer("train", "cnn_baseline", "--run", judge, *how).returncode == 0
    off = ("--identity-judge", "off")
    done = fer("evaluate", gan_run, "--judge", judge, "--split", "test", *off)
    assert done.returncode == 0, done.stderr
    assert "identity judge: not measured: --identity-judge off" in done.stdout
    found = json.loads((gan_run / "eval-test.json").read_text())
    labels = open_split(read_manifest(faces), "test").columns["labels"]
    assert found["n"] == (labels != 0).sum()
    assert sum(c["n"] for c in found["expression"]["classes"].values()) == found["n"]
    assert found["expression"]["informative"] is True
    for part in ("to_neutral", "to_expressive", "to_a_stranger"):
        low, high = found["identity"][part]["interval_95"]
        assert -1 <= low <= found["identity"][part]["mean"] <= high <= 1
    for distance in (found["distance"]["frechet"], found["distance"]["kernel"]):
        low, high = distance["bootstrap_95"]
        assert low < distance["value"] < high
    assert found["distance"]["frechet"]["value"] > found["distance"]["frechet"]["real_halves"]
    assert found["judge"]["features"] == 1024
    assert found["judge"]["trained_on"] == read_manifest(of_40_pixels).fingerprint
    low, high = found["expression"]["balanced_accuracy_95"]
    assert low <= found["expression"]["balanced_accuracy"] <= high
    assert found["judge"]["image_shape"] == [
        40,
        40,
        1,
    ]  # it sees the 32-pixel faces at its own size
    for name in ("grid-test.png", "curves.png"):
        assert (gan_run / name).stat().st_size > 5000
    assert f"on test, {found['n']} pairs of {found['neutral_faces']} neutral faces" in done.stdout
    fer("report", gan_run, "--out", tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"{found['distance']['frechet']['value']:.4g}" in page
    assert page.count("data:image/png;base64,") == 2  # the grid and the curves
    assert "Identity judge: not measured: --identity-judge off" in page
    del (
        found["identity_judge"],
        found["expression"]["accuracy_of_neutral_faces"],
        found["distance"]["frechet"]["of_neutral_faces"],
    )
    (gan_run / "eval-test.json").write_text(json.dumps(found))  # as earlier versions wrote it
    assert fer("report", gan_run, "--out", tmp_path / "earlier").returncode == 0
    alike = ("train", "resnet_baseline", "--run", tmp_path / "alike", *how, "--epochs", 1)
    assert fer(*alike).returncode == 0
    for wrong, message in (
        (("--judge", gan_run), "wanted the finished run of a classifier"),
        (("--judge", tmp_path / "alike"), "is a resnet_baseline, the network of the GAN's own"),
        (("--judge", judge, "--identity-judge", judge), "was trained on expressions"),
        (("--judge", judge, "--pairs", 7), "wanted at least 8"),
    ):
        done = fer("evaluate", gan_run, *wrong)
        assert done.returncode == 2
        assert message in done.stderr


def test_a_missing_split_is_refused_before_a_judge_is_trained(
    fer: Fer, faces: Path, gan_run: Path, tmp_path: Path
) -> None:
    content = read_manifest(faces).content
    for entry in content["splits"]["train"]["shards"] + content["splits"]["val"]["shards"]:
        shutil.copy(faces / entry["file"], tmp_path)
    splits = {name: content["splits"][name] for name in ("train", "val")}
    write_manifest(tmp_path, {**content, "splits": splits})
    done = fer("evaluate", gan_run, "--data", tmp_path, "--split", "test")
    assert done.returncode == 2
    assert "no test split" in done.stderr
    assert not (gan_run / "judge").exists()


def test_the_judges_are_trained_once_and_reported(
    gan_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fer_hpc.gan.judge.JUDGE_EPOCHS", (1, 1))
    monkeypatch.setattr("fer_hpc.gan.measures.DISTANCE_RESAMPLES", 2)
    run = tmp_path / "run"
    shutil.copytree(gan_run, run)
    first = evaluate_gan(EvaluateConfig(run, split="test"))
    shown = capfd.readouterr().err
    assert f"training a judge in {run / 'judge'}, 1 epochs" in shown
    assert re.search(r"epoch +1  train loss", shown)
    assert "measuring" in shown
    assert f"training a judge in {run / 'identity'}, 1 epochs" in shown
    who = first["identity_judge"]
    assert who["people_of_its_training"] == 0, "no person is in two splits"
    assert who["judge"]["persons"] == len(read_manifest(run / "identity-faces").classes)
    assert who["among_neutral"]["unchanged"]["rank_1"]["mean"] == 1
    assert who["n"] == first["n"], "everybody is known in drawn faces"
    for judge in ("judge", "identity"):
        assert read_status(run / judge)["state"] == "finished"
    assert evaluate_gan(EvaluateConfig(run, split="test")) == first
    assert "training a judge" not in capfd.readouterr().err
    other = EvaluateConfig(run, identity_judge=str(run / "identity"), split="train")
    who = evaluate_gan(other)["identity_judge"]
    assert who["people_of_its_training"] == who["judge"]["persons"]
    only_one = evaluate_gan(EvaluateConfig(run))["identity_judge"]
    assert "fewer than two known persons" in only_one["left_out"]


@pytest.mark.long
def test_generated_faces_fill_up_a_rare_class_of_train_only(
    fer: Fer, faces: Path, of_40_pixels: Path, gan_run: Path, tmp_path: Path
) -> None:
    larger = tmp_path / "more"
    where = ("--data", of_40_pixels, "--out", larger)
    call = ("generate", "--run", gan_run, *where, "--classes", "Contempt", "Fear")
    done = fer(*call, "--fill", 20)
    assert done.returncode == 0, done.stderr
    before, after = read_manifest(of_40_pixels), read_manifest(larger)
    for name, was, now in zip(
        before.classes, before.class_counts("train"), after.class_counts("train"), strict=True
    ):
        assert now == (20 if name in ("Contempt", "Fear") else was), name
    train, own = open_split(after, "train"), open_split(read_manifest(faces), "train")
    count = before.n("train")
    assert (train.columns["synthetic"][count:] == 1).all()
    assert set(train.columns["group"]) == set(own.columns["group"]), "no person of val or test"
    labels = dict(
        zip(own.columns["source_id"].tolist(), own.columns["labels"].tolist(), strict=True)
    )
    for i in range(count, len(train)):
        neutral, expressive = train.columns["source_id"][i].decode().partition(": ")[2].split(" + ")
        assert labels[neutral.encode()] == 0
        assert labels[expressive.encode()] == train.columns["labels"][i]
    assert np.array_equal(open_split(after, "val").images[0], open_split(before, "val").images[0])
    assert "nothing to do" in fer(*call, "--fill", 20).stdout
    for mode, message in (
        ("paper", "its outputs are nearly blank"),
        ("improved", "its outputs are the neutral faces"),
    ):
        run = ("--run", tmp_path / mode)
        untrained = ("--data", faces, *run, "--mode", mode, "--epochs", 1, "--lr", 0.0)
        assert fer("train_gan", *untrained, *GAN_SPEED).returncode == 0
        refused = fer(
            "generate", "--run", tmp_path / mode, "--data", of_40_pixels, "--out", tmp_path / "no"
        )
        assert refused.returncode == 2
        assert message in refused.stderr
    for more, message in (
        (("--fill", 1), "no class has fewer than 1"),
        (("--seed", 1, "--fill", 20), "holds other files"),
        (("--classes", "Contemt"), "did you mean 'Contempt'"),
        (("--classes", "Disgust"), "has no face of that class"),
    ):
        wrong = fer(*call, *more)
        assert wrong.returncode == 2
        assert message in wrong.stderr
    assert (
        fer(
            "preprocess",
            "--source",
            "synthetic",
            "--count",
            170,
            "--size",
            40,
            "--out",
            tmp_path / "other",
        ).returncode
        == 0
    )
    other = fer(
        "generate", "--run", gan_run, "--data", tmp_path / "other", "--out", tmp_path / "never"
    )
    assert other.returncode == 2
    assert "it may have seen val or test" in other.stderr
    assert "(synthetic, 128 rows, fingerprint synthetic" in other.stderr
    assert "{" not in other.stderr
    doctor = fer("doctor", larger, "--json")
    assert "do not match" not in doctor.stdout + doctor.stderr
    train_on = ("--epochs", 1, "--batch-size", 30, "--threads", 1, "--no-tensorboard")
    assert (
        fer(
            "train", "cnn_baseline", "--data", larger, "--run", tmp_path / "run", *train_on
        ).returncode
        == 0
    )


def test_transfer_replaces_its_own_picture_only(
    fer: Fer, gan_run: Path, photos: list[Path], tmp_path: Path
) -> None:
    neutral, out = tmp_path / "neutral.png", tmp_path / "out.png"
    cv2.imwrite(str(neutral), cv2.imread(str(photos[0])))
    before = neutral.read_bytes()
    call = ("transfer", neutral, photos[1], "--run", gan_run, "--whole", "--out")
    assert_kept(fer, neutral, *call, neutral, content=before)
    neutral.write_bytes(before)
    assert_kept(fer, out, *call, out)
    for _ in range(2):
        assert fer(*call, out).returncode == 0
    os.mkfifo(tmp_path / "pipe.png")
    done = fer("transfer", tmp_path / "pipe.png", *call[2:], out, timeout=60)
    assert done.returncode == 2
    assert f"not an ordinary file: {tmp_path / 'pipe.png'}" in done.stderr
