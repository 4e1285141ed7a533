"""The expression-transfer GAN: networks, pairs, training that survives kills, evaluation, use."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel

from fer_hpc.config import GanConfig, UserError
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.shards import open_split, read_manifest, write_manifest
from fer_hpc.gan.evaluate import evaluate_gan
from fer_hpc.gan.loop import pair_block, pair_loader
from fer_hpc.gan.measures import (
    bootstrap_counts,
    feature_distances,
    frechet_distance,
    kernel_distance,
    mean_with_interval,
    partner_of_another_class,
)
from fer_hpc.gan.networks import make_networks
from fer_hpc.gan.pairs import PairLoader
from fer_hpc.gan.step import SUMS, random_flip_shift, step
from fer_hpc.gan.transfer import read_photo
from fer_hpc.gan.weights import load_generator
from fer_hpc.models.gan import CODE_SIZE, SIDES, Discriminator, Generator, paper_classifier
from fer_hpc.parallel.world import World
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import list_checkpoints, outcome_file, read_rows, read_status
from fer_hpc.run.state import TrainState
from tests.conftest import Fer
from tests.helpers.processes import Started, finish, start_ranks
from tests.helpers.runs import until_training

CPU = torch.device("cpu")
QUICK = ("--batch-size", 8, "--threads", 1, "--checkpoint-every-s", 0.8, "--no-tensorboard")


@pytest.fixture(scope="module")
def faces(fer: Fer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 synthetic faces of 32 pixels."""
    out = tmp_path_factory.mktemp("gan") / "shards"
    assert (
        fer(
            "preprocess", "--source", "synthetic", "--count", 160, "--size", 32, "--out", out
        ).returncode
        == 0
    )
    return out


@pytest.fixture(scope="module")
def of_40_pixels(fer: Fer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same faces, larger."""
    out = tmp_path_factory.mktemp("larger") / "shards"
    assert (
        fer(
            "preprocess", "--source", "synthetic", "--count", 160, "--size", 40, "--out", out
        ).returncode
        == 0
    )
    return out


@pytest.mark.parametrize("size", SIDES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_and_a_batch_of_one(size: int, channels: int) -> None:
    face = torch.rand(1, channels, size, size) * 2 - 1
    generator = Generator(channels, size)
    made = generator(face, face)
    assert made.shape == face.shape
    assert made.abs().max() <= 1
    assert generator.encode(face)[-1].shape == (1, 512, 2, 2)
    for network in (Discriminator(channels), Discriminator(channels, 7, spectral=True)):
        scores, features = network(made, torch.tensor([3]))
        assert scores.shape == (1, 1, size // 8 - 2, size // 8 - 2)
        assert features.shape == (1, 256, size // 8, size // 8)
    assert paper_classifier(channels)(made).shape == (1, 2)


def test_the_improved_generator_changes_the_neutral_face_and_classifies_expressions() -> None:
    face, other = torch.rand(2, 2, 1, 32, 32) * 2 - 1
    generator = Generator(1, 32, classes=7)
    assert torch.equal(generator(face, other), face)  # nothing drawn yet
    torch.nn.init.normal_(generator.out.weight)
    made = generator(face, other)
    assert made.shape == face.shape
    assert made.abs().max() <= 1
    assert (made - face).abs().mean() > 0.1
    code = generator.expression(other)
    assert generator.class_head is not None
    assert generator.class_head(code).shape == (2, 7)


@pytest.mark.parametrize("size", SIDES)
def test_the_expressions_code_reaches_the_face_at_every_depth(size: int) -> None:
    """Without FiLM the code changes 0.51, 0.15, 0.11 and 0.05 of the first output; at 64 pixels
    nothing after training."""
    torch.manual_seed(0)
    generator = Generator(1, size, classes=7)
    torch.nn.init.normal_(generator.out.weight, 0.0, 0.02)
    with torch.no_grad():
        neutral = torch.rand(1, 1, size, size).expand(8, -1, -1, -1) * 2 - 1
        codes = 0.35 * torch.randn(8, CODE_SIZE)
        change = generator.eval().decode(neutral, generator.encode(neutral), codes) - neutral
    assert change.std(0).mean() > 0.4 * change.abs().mean()


def test_only_expressions_are_learnt_before_the_adversarial_steps(faces: Path) -> None:
    manifest, config = (
        read_manifest(faces),
        GanConfig(faces, Path("unused"), batch_size=8, precision="fp32"),
    )
    networks = make_networks(config, manifest, CPU)
    loader = pair_loader(config, manifest, "train", CPU)
    state = TrainState.fresh(networks.parts(), len(SUMS), CPU)

    def changed_by(adversarial: bool) -> set[str]:
        parts = {
            "output": networks.generator.out,
            "code": networks.generator.expression,
            "discriminator": networks.discriminator,
            "classifier": networks.classifier,
        }
        before = {
            name: [p.clone() for p in network.parameters()] for name, network in parts.items()
        }
        given = pair_block(config, loader, 0, 0, 1).inputs(0)
        step(networks, state, loader.make(given), given, World(), adversarial)
        return {
            name
            for name, network in parts.items()
            if any(
                not torch.equal(*both)
                for both in zip(before[name], network.parameters(), strict=True)
            )
        }

    assert changed_by(adversarial=False) == {"code", "classifier"}
    assert changed_by(adversarial=True) == {"code", "classifier", "output", "discriminator"}
    sums = dict(zip(SUMS, state.sums.tolist(), strict=True))
    assert (sums["pairs"], sums["adversarial_steps"]) == (16, 8 * 2**32)


def test_the_classifier_sees_each_face_shifted_and_mirrored_on_its_own() -> None:
    torch.manual_seed(0)
    side, furthest = 16, 2
    face = torch.rand(1, 3, side, side)
    padded = torch.nn.functional.pad(face, [furthest] * 4, mode="replicate")
    wanted = {
        (dy, dx, flip): shifted.flip(3) if flip else shifted
        for dy in range(2 * furthest + 1)
        for dx in range(2 * furthest + 1)
        for flip in (False, True)
        for shifted in [padded[:, :, dy : dy + side, dx : dx + side]]
    }
    faces = face.expand(400, -1, -1, -1).clone().requires_grad_()
    seen = random_flip_shift(faces)
    found = [next(k for k, w in wanted.items() if torch.equal(w[0], one)) for one in seen]
    assert set(found) == set(wanted), "every shift in both directions, mirrored and not"
    seen.sum().backward()
    assert faces.grad is not None
    assert faces.grad.sum() == seen.numel(), "gradients pass"


def test_the_reports_generator_has_its_layers() -> None:
    """Seven stages down to 2x2, six up, then bilinear; widths as the report gives them."""
    generator = Generator(3, 256)
    assert [stage[0].out_channels for stage in generator.down] == [64, 128, 256, 512, 512, 512, 512]
    assert [stage[0].out_channels for stage in generator.up] == [512, 512, 256, 128, 64]
    assert [stage[0].in_channels for stage in generator.up] == [512, 1024, 1024, 768, 384]
    assert generator.out.in_channels == 64 + 128
    assert generator.fuse.in_channels == 512 + 128
    assert [any(isinstance(m, torch.nn.Dropout) for m in stage) for stage in generator.act] == [
        True,
        True,
        False,
        False,
        False,
    ]


def pairs(shards: Path, **more: object) -> PairLoader:
    manifest = read_manifest(shards)
    neutral = manifest.classes.index("Neutral")
    split = open_split(manifest, "train")
    return PairLoader(split, neutral, 12, 3, CPU, **more)  # type: ignore[arg-type]


def test_pairs_are_a_neutral_face_and_another_persons_expression(faces: Path) -> None:
    loader = pairs(faces)
    labels, groups = loader.labels, loader.groups
    seen, same_share = [], 0.0
    for k in range(20):
        neutral, expressive, same, _ = loader.rows(12 * k)
        assert (labels[neutral] == 0).all()
        assert (labels[expressive[~same]] != 0).all()
        assert (expressive[same] == neutral[same]).all()
        assert (groups[neutral[~same]] != groups[expressive[~same]]).all()
        seen += labels[expressive[~same]].tolist()
        same_share += same.mean() / 20
    assert 0.05 < same_share < 0.25
    counts = np.bincount(seen, minlength=8)[1:]
    assert counts[counts > 0].max() < 2 * counts[counts > 0].min(), "balanced over the expressions"


def test_ranks_take_slices_of_the_same_pairs(faces: Path) -> None:
    whole = pairs(faces).batch(36)
    parts = [pairs(faces, rank=rank, size=2).batch(36) for rank in (0, 1)]
    for name in ("neutral", "expressive", "target", "same"):
        assert torch.equal(
            torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)
        ), name
    assert whole.neutral.min() >= -1
    assert whole.neutral.max() <= 1


@pytest.mark.parametrize(
    ("size", "mode"), [pytest.param(1, "paper", marks=pytest.mark.long), (2, "improved")]
)
def test_killed_it_ends_bit_identical(faces: Path, tmp_path: Path, size: int, mode: str) -> None:
    """Killed once before and once during the adversarial steps."""
    rng, whole, killed = random.Random(size), tmp_path / "whole", tmp_path / "killed"
    call = ("--data", faces, "--epochs", 2, "--warmup", 0.6, "--mode", mode, *QUICK)
    assert finish(start_ranks(size, "train_gan", *call, "--run", whole)) == [0] * size
    epoch = read_rows(whole)[0]["images_seen"]
    for attempt, images_seen in ((1, 8), (2, epoch)):
        ranks = start_ranks(size, "train_gan", *call, "--run", killed)
        until_training(killed, attempt, images_seen=images_seen)
        time.sleep(rng.uniform(0, 0.3))
        for rank in ranks:
            rank.kill()
        finish(ranks)
    assert read_status(killed)["state"] == "interrupted"
    assert list_checkpoints(killed)[0][1] >= epoch, "saved during the adversarial steps"
    assert finish(start_ranks(size, "train_gan", *call, "--run", killed)) == [0] * size
    for name in ("metrics.jsonl", "final.pt"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    rows = read_rows(whole)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(0 <= row["train_d_correct"] <= 1 for row in rows)


def test_the_papers_mode_trains_and_is_another_experiment(
    fer: Fer, faces: Path, tmp_path: Path
) -> None:
    call = ("train_gan", "--data", faces, "--run", tmp_path / "run", "--epochs", 2, *QUICK)
    done = fer(*call, "--mode", "paper")
    assert done.returncode == 0, done.stderr
    row = read_rows(tmp_path / "run")[-1]
    assert row["train_c_correct"] > 0.9, "its classifier sees one label only"
    assert row["train_identity"] == row["train_reconstruction"] == 0
    again = fer(*call)
    assert again.returncode == 2
    assert "--mode paper (now --mode improved)" in again.stderr


def test_what_cannot_be_trained_is_one_message(
    fer: Fer, faces: Path, of_40_pixels: Path, finished_run: Path, tmp_path: Path
) -> None:
    wrong = fer("train_gan", "--data", of_40_pixels, "--run", tmp_path / "run")
    assert wrong.returncode == 2
    assert "the GAN takes 32, 64, 128 or 256 pixels; preprocess with --size 32" in wrong.stderr
    other = fer("train_gan", "--data", faces, "--run", finished_run)
    assert other.returncode == 2
    assert "holds a classifier; give another --run" in other.stderr
    no_checkpoint = ("--batch-size", 8, "--threads", 1, "--checkpoint-every-s", 600, "--lr", 1e30)
    broken = fer("train_gan", "--data", faces, "--run", tmp_path / "broken", *no_checkpoint)
    assert broken.returncode == 2
    assert "a loss is not a finite number" in broken.stderr
    assert read_status(tmp_path / "broken")["state"] == "failed"
    early = fer("evaluate", tmp_path / "broken", "--pairs", 8)
    assert early.returncode == 2
    assert "holds no weights" in early.stderr


def test_a_signal_saves_and_asks_to_be_run_again(faces: Path, tmp_path: Path) -> None:
    started = Started(
        "train_gan", "--data", faces, "--run", tmp_path / "run", "--epochs", 500, *QUICK
    )
    until_training(tmp_path / "run", 1)
    started.send_signal(15)
    assert started.wait(60) == 75
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["why"] == "stopped by SIGTERM"
    assert list_checkpoints(tmp_path / "run")[0][1] == status["images_seen"]


@pytest.fixture(scope="module")
def photos(fer: Fer, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    assert fer("data.synthetic", "--count", 6, "--out", folder).returncode == 0
    return sorted((folder / "train_set" / "images").iterdir())


@pytest.fixture(scope="module")
def gan_run(fer: Fer, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "gan"
    done = fer("train_gan", "--data", faces, "--run", run, "--epochs", 2, "--lr", 0.002, *QUICK)
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
    assert strip.shape == (256, 768)
    assert (default == strip[:, 512:]).all()
    raw = output("raw.png", "--scale", 1)
    assert raw.shape == (32, 32)
    assert (cv2.resize(raw, (256, 256), interpolation=cv2.INTER_CUBIC) == default).all()
    for panel in (strip[:, :256], strip[:, 256:512]):
        white_columns = np.flatnonzero((panel == 255).sum(0) > 100)
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


def test_transfer_does_not_take_a_small_part_of_a_picture_in_silence(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cheek, for one, that the finder takes for a face."""
    box = (20.0, 30.0, 67.0, 77.0)
    monkeypatch.setattr("fer_hpc.gan.transfer.find_face", lambda _: box)
    with pytest.raises(
        UserError, match=r"left 20, top 30, width 47, height 47.*at least 48 pixels"
    ):
        read_photo(photos[0], 1, whole=False)
    box = (20.0, 30.0, 70.0, 80.0)
    assert read_photo(photos[0], 1, whole=False).box == box
    shown = capsys.readouterr().err
    assert re.search(r"warning: .*width 50, height 50 \(2% of the picture\)", shown)
    box = (20.0, 30.0, 220.0, 230.0)
    assert read_photo(photos[0], 1, whole=False).box == box
    assert read_photo(photos[0], 1, whole=True).box is None
    assert capsys.readouterr().err == ""


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
    how = (
        "--data",
        of_40_pixels,
        "--epochs",
        2,
        "--batch-size",
        32,
        "--threads",
        1,
        "--no-tensorboard",
    )
    assert fer("train", "cnn_baseline", "--run", judge, *how).returncode == 0
    done = fer("evaluate", gan_run, "--judge", judge, "--split", "test")
    assert done.returncode == 0, done.stderr
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
    del (
        found["expression"]["accuracy_of_neutral_faces"],
        found["distance"]["frechet"]["of_neutral_faces"],
    )
    (gan_run / "eval-test.json").write_text(json.dumps(found))  # as earlier versions wrote it
    assert fer("report", gan_run, "--out", tmp_path / "earlier").returncode == 0
    assert (
        fer(
            "train", "resnet_baseline", "--run", tmp_path / "alike", *how[:3], 1, *how[4:]
        ).returncode
        == 0
    )
    for wrong, message in (
        (("--judge", gan_run), "wanted the finished run of a classifier"),
        (("--judge", tmp_path / "alike"), "is a resnet_baseline, the network of the GAN's own"),
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


def test_the_judge_is_trained_once_and_reported(
    gan_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fer_hpc.gan.judge.JUDGE_EPOCHS", (1, 1))
    monkeypatch.setattr("fer_hpc.gan.measures.DISTANCE_RESAMPLES", 2)
    run = tmp_path / "run"
    shutil.copytree(gan_run, run)
    first = evaluate_gan(EvaluateConfig(run))
    shown = capfd.readouterr().err
    assert f"training a judge in {run / 'judge'}, 1 epochs" in shown
    assert re.search(r"epoch +1  train loss", shown)
    assert "measuring" in shown
    assert read_status(run / "judge")["state"] == "finished"
    assert evaluate_gan(EvaluateConfig(run)) == first
    assert "training a judge" not in capfd.readouterr().err


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
        untrained = (
            "--data",
            faces,
            "--run",
            tmp_path / mode,
            "--mode",
            mode,
            "--epochs",
            1,
            "--lr",
            0.0,
        )
        assert fer("train_gan", *untrained, *QUICK).returncode == 0
        refused = fer(
            "generate", "--run", tmp_path / mode, "--data", of_40_pixels, "--out", tmp_path / "no"
        )
        assert refused.returncode == 2
        assert message in refused.stderr
    for more, message in (
        (("--fill", 2), "no class has fewer than 2"),
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
    doctor = fer("doctor", larger, "--json")
    assert "do not match" not in doctor.stdout + doctor.stderr
    train_on = ("--epochs", 1, "--batch-size", 30, "--threads", 1, "--no-tensorboard")
    assert (
        fer(
            "train", "cnn_baseline", "--data", larger, "--run", tmp_path / "run", *train_on
        ).returncode
        == 0
    )


def test_distances_are_zero_for_the_same_and_as_known_for_gaussians() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (4000, 3)), rng.normal((3, 0, 0), 2, (4000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(9 + 3 * (1 + 4 - 2 * 2), rel=0.05)
    assert abs(kernel_distance(a, rng.normal(0, 1, (4000, 3)))) < 0.02
    assert kernel_distance(a, b) > 1
    found = feature_distances(a[:400], b[:400], a[:400], rng)["frechet"]
    assert found["of_neutral_faces"] == pytest.approx(found["real_halves"])
    assert found["bootstrap_95"][0] < found["value"] < found["bootstrap_95"][1]


def test_faces_of_the_same_distribution_are_as_near_as_other_real_faces() -> None:
    """Frechet distances fall as 1/n, so all of them must compare the same number of faces."""
    rng = np.random.default_rng(0)
    real, made, neutral = rng.normal(0, 1, (3, 400, 40))
    found = feature_distances(real, made, neutral, rng)["frechet"]
    assert found["value"] == pytest.approx(found["real_halves"], rel=0.1)
    assert found["of_neutral_faces"] == pytest.approx(found["real_halves"], rel=0.1)


def test_intervals_draw_all_pairs_of_a_person_together() -> None:
    """Ten people of a hundred equal pairs each tell as much as ten pairs."""
    values = np.repeat(np.random.default_rng(1).normal(size=10), 100)
    narrow, wide = (
        mean_with_interval(values, bootstrap_counts(people))["interval_95"]
        for people in (np.arange(1000), np.arange(1000) // 100)
    )
    assert wide[1] - wide[0] > 7 * (narrow[1] - narrow[0])
    balanced = mean_with_interval(
        values > 0, bootstrap_counts(np.arange(1000)), (values > 0).astype(int)
    )
    assert balanced == {"mean": 0.5, "interval_95": [0.5, 0.5]}


def test_another_expression_is_of_another_class() -> None:
    target = np.array([1, 1, 1, 2, 3, 3, 1])
    assert (target[partner_of_another_class(target)] != target).all()
    assert sorted(partner_of_another_class(np.ones(5, int)).tolist()) == [0, 1, 2, 3, 4]
