"""A trained run as a Python object: faces in, probabilities out."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fer_hpc.config import UserError
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.evaluation.load import Predictor, load
from fer_hpc.models.registry import MODELS
from fer_hpc.run import checkpoint
from tests.conftest import Fer

PLUGIN = """
from torch import nn

from fer_hpc.models.registry import register_model


@register_model("mean_of_pixels")
def build(outputs, channels, side):
    return nn.Sequential(nn.AvgPool2d(side), nn.Flatten(), nn.Linear(channels, outputs))
"""


@pytest.fixture(scope="module")
def val_faces(shards: Path) -> np.ndarray:
    """The val faces of the session's shards, [N, 32, 32, 1] uint8."""
    return np.concatenate(open_split(read_manifest(shards), "val").images)


@pytest.fixture(scope="module")
def predictor(finished_run: Path) -> Predictor:
    return load(str(finished_run))


def test_probabilities_are_those_of_evaluate(
    fer: Fer, finished_run: Path, val_faces: np.ndarray, predictor: Predictor, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    assert fer("evaluate", run, "--split", "val").returncode == 0
    with np.load(run / "predictions-val.npz", allow_pickle=False) as saved:
        logits, classes = saved["logits"].astype(np.float64), tuple(saved["classes"])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = predictor(val_faces)
    assert (found.dtype, found.shape) == (np.float64, shares.shape)
    np.testing.assert_allclose(found, shares, atol=1e-6)
    assert predictor.classes == classes
    assert predictor.predict_names(val_faces[:3]) == [classes[k] for k in shares[:3].argmax(1)]


def test_a_run_tells_how_its_faces_were_cropped(shards: Path, predictor: Predictor) -> None:
    assert predictor.image_shape == (32, 32, 1)
    assert predictor.crop == read_manifest(shards).content["faces"]
    assert not predictor.model.training


def test_one_face_is_the_same_in_every_form(
    tmp_path: Path, val_faces: np.ndarray, predictor: Predictor
) -> None:
    face = val_faces[0]
    cv2.imwrite(str(tmp_path / "face.png"), face)
    forms = {
        "[H, W]": face[..., 0],
        "[H, W, 1]": face,
        "[H, W, 3]": face.repeat(3, axis=2),
        "[N, H, W]": val_faces[:1, ..., 0],
        "[N, H, W, 1]": val_faces[:1],
        "floats": face.astype(np.float64) / 255,
        "path": tmp_path / "face.png",
        "text": str(tmp_path / "face.png"),
        "list": [face],
    }
    wanted = predictor(face)
    assert wanted.shape == (1, len(predictor.classes))
    for form, value in forms.items():
        np.testing.assert_allclose(predictor(value), wanted, atol=1e-6, err_msg=form)


def test_a_larger_picture_is_resized_as_preprocess_does(
    val_faces: np.ndarray, predictor: Predictor
) -> None:
    large = val_faces[0].repeat(2, axis=0).repeat(2, axis=1)  # area averaging gives it back
    np.testing.assert_allclose(predictor(large), predictor(val_faces[0]), atol=1e-6)
    mixed = predictor([large, val_faces[1]])  # faces of several sizes
    np.testing.assert_allclose(mixed, predictor(val_faces[:2]), atol=1e-6)


@pytest.mark.parametrize(
    ("faces", "words"),
    [
        (np.zeros((2, 1, 32, 32), np.uint8), "channels last"),
        (torch.zeros(2, 1, 32, 32), "permute"),
        (np.full((32, 32), 9.0), "divide by 255"),
        (np.full((32, 32), np.nan), "divide by 255"),
        (np.zeros((32, 32), np.int64), "int64"),
        (np.zeros((2, 2), np.uint8), "sides of 8"),
        (np.zeros(5, np.uint8), "shape"),
        ([], "at least one"),
        ("nowhere.png", "nowhere.png"),
        (__file__, "JPEG or PNG"),
    ],
)
def test_what_holds_no_faces_is_one_clear_error(
    predictor: Predictor, faces: object, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        predictor(faces)


def test_an_unfinished_run_gives_its_best_weights_so_far(
    finished_run: Path, val_faces: np.ndarray, predictor: Predictor, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    status = run / "attempts" / "0001" / "status.json"
    status.write_text(json.dumps({"state": "interrupted", "why": "stopped by SIGTERM"}))
    (run / "attempts" / "0001" / "best.pt").unlink()
    np.testing.assert_array_equal(load(run)(val_faces[:4]), predictor(val_faces[:4]))
    for path in (run / "attempts" / "0001").glob("*.pt"):
        path.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load(run)


def run_of_a_plugin(run: Path, folder: Path) -> Path:
    """`run` changed into one whose network a plugin in `folder` registers; gives the plugin."""
    plugin = folder / "mine.py"
    plugin.write_text(PLUGIN)
    stored = json.loads((run / "config.json").read_text())
    stored["science"]["model"] = "mean_of_pixels"
    sha256 = hashlib.sha256(plugin.read_bytes()).hexdigest()
    stored["science"]["plugin_hash"] = sha256
    stored["plugins"] = {"model": {"path": str(plugin), "sha256": sha256, "is_plugin": True}}
    (run / "config.json").write_text(json.dumps(stored))
    saved = checkpoint.load(run / "attempts" / "0001" / "best.pt")
    classes = len(stored["data"]["classes"])
    weights = {"2.weight": torch.ones(classes, 1), "2.bias": torch.arange(float(classes))}
    saved |= {"model": weights, "science": stored["science"]}
    checkpoint.save(run / "attempts" / "0001" / "best.pt", saved)
    return plugin


def test_a_plugins_network_is_found_again(
    fer: Fer,
    finished_run: Path,
    val_faces: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    plugin = run_of_a_plugin(run, tmp_path)
    try:
        assert load(run)(val_faces[:2]).argmax(1).tolist() == [7, 7]
        assert capsys.readouterr().err == ""

        MODELS.pop("mean_of_pixels")
        elsewhere = plugin.rename(tmp_path / "elsewhere.py")
        with pytest.raises(UserError, match=r"mine\.py.*plugin="):
            load(run)
        done = fer("evaluate", run, "--split", "val")
        assert done.returncode == 2
        assert "--plugin" in done.stderr
        assert load(run, plugin=elsewhere).predict_names(val_faces[:1])
        done = fer("evaluate", run, "--split", "val", "--plugin", elsewhere)
        assert done.returncode == 0, done.stderr

        MODELS.pop("mean_of_pixels")
        changed = tmp_path / "changed.py"
        changed.write_text(PLUGIN + "# changed\n")
        load(run, plugin=[changed])
        assert "other code" in capsys.readouterr().err
    finally:
        MODELS.pop("mean_of_pixels", None)
