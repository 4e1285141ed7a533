"""Predict and export on known values: tables of boxes, sheets, what is in the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fer_hpc import load, predict
from fer_hpc.config.deploy import ExportConfig
from fer_hpc.data.faces import Found
from fer_hpc.deploy import pipeline, sheet
from fer_hpc.deploy.card import model_card
from fer_hpc.deploy.export import Exported, export
from fer_hpc.deploy.inputs import list_boxes
from fer_hpc.deploy.model import About, OnnxModel
from fer_hpc.files import sha256
from fer_hpc.run.folder import outcome_file, read_run_config

CLASSES = ["Neutral", "Anger", "Fear"]


def about(**more: Any) -> About:
    shape = {"image_shape": [8, 8, 1], "faces": {}, "weights": "w", "epoch": 3}
    fields = {"run": "run", "network": "net", "classes": CLASSES, "temperature": None, **shape}
    return About(**fields | more)


def picture(path: Path, seed: int = 0, side: int = 32) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


# ---- tables and photos -------------------------------------------------------------------------


def test_a_table_names_photos_beside_it_and_landmarks_come_before_boxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    for folder in ("here", "there"):
        picture(tmp_path / folder / "a.png")
    picture(tmp_path / "there" / "b.png")
    points = ";".join(f"{k % 9 + 2}" for k in range(136))
    table = tmp_path / "there" / "boxes.csv"
    table.write_text(
        f"path,left,top,right,bottom,landmarks\na.png,1,2,30,31,{points}\nb.png,1,2,30,31,\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    tasks = list_boxes(table, [])
    assert [task.path for task in tasks.photos] == [
        tmp_path / "there" / "a.png",
        tmp_path / "there" / "b.png",
    ]
    with_points, with_box = (task.faces[0] for task in tasks.photos if task.faces)
    assert with_points.landmarks is not None
    assert with_points.box == (2, 2, 10, 10)
    assert with_box.box == (1, 2, 30, 31)
    only = list_boxes(table, [tmp_path / "there" / "b.png"])
    assert [task.path.name for task in only.photos] == ["b.png"]
    ((what, kind),) = only.ignored.worst()
    assert "not asked for" in what
    assert kind.example.endswith("a.png")


def test_of_several_faces_the_largest_is_taken(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [(2, 2, 20, 20), (5, 5, 60, 60), (30, 30, 50, 50)]
    found = [Found(box, 1.0) for box in boxes]
    monkeypatch.setattr(pipeline.Photo, "find", lambda photo, _: found_in(photo))

    def found_in(photo: pipeline.Photo) -> list[Found]:
        photo.pixels(1)
        return found

    path = picture(tmp_path / "a.png", side=64)
    every = predict(finished_run, path)[0]["faces"]
    assert [tuple(face["box"].values()) for face in every] == boxes
    (largest,) = predict(finished_run, path, faces="largest")[0]["faces"]
    assert tuple(largest["box"].values()) == boxes[1]


def test_sheets_show_the_likeliest_class_first_and_old_pages_go(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    fitted = sheet._fitted
    monkeypatch.setattr(
        sheet, "_fitted", lambda draw, text, *more: texts.append(text) or fitted(draw, text, *more)
    )
    photos = [picture(tmp_path / f"{k:02}.png", k) for k in range(sheet.PER_PAGE + 1)]
    out = tmp_path / "out"
    out.mkdir()
    (out / "sheet-7.jpg").write_bytes(b"of an earlier fer_hpc predict")
    found = predict(finished_run, photos, crop="none", out=out, sheets=1)
    assert sorted(path.name for path in out.glob("sheet-*")) == ["sheet-1.jpg"]
    for photo in found[: sheet.PER_PAGE]:
        face = photo["faces"][0]
        assert f"1  {face['class']} {face['probability']:.0%}" in texts
    assert not any(photos[-1].name in text for text in texts), "it is on no page"


# ---- export ------------------------------------------------------------------------------------


def test_the_exported_network_divides_by_the_temperature_and_bounds_affect() -> None:
    class Planted(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :5] * 10

    faces = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)
    faces[0, 0, :5, 0] = torch.tensor([51, 102, 0, 255, 51])
    logits, shares, affect = Exported(Planted(), about(temperature=2.0))(faces)
    torch.testing.assert_close(logits[0], torch.tensor([2.0, 4.0, 0.0]))
    torch.testing.assert_close(shares[0], torch.tensor([1.0, 2.0, 0.0]).softmax(0))
    torch.testing.assert_close(affect[0], torch.tensor([10.0, 2.0]).tanh())


def test_a_calibrated_run_is_exported_calibrated(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    weights = outcome_file(run, "best.pt")
    assert weights
    stored = {"temperature": 2.5, "weights": sha256(weights), "data": "", "n": 9}
    (run / "calibration.json").write_text(json.dumps(stored))
    lines = export(ExportConfig(run, tmp_path / "out", input="float"))
    assert "probabilities (calibrated)" in lines[0]
    faces = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    found = OnnxModel(tmp_path / "out" / "model.onnx")(faces).probabilities
    in_fp32 = read_run_config(run)["science"]["precision"] == "fp32"
    assert in_fp32 or "differ by at most 0.0e+00" not in "".join(lines)
    assert found == pytest.approx(load(run)(faces), abs=1e-3 if in_fp32 else 0.05)
    assert np.abs(found - load(run, calibrated=False)(faces)).max() > 0.01
    assert "softmax(logits / 2.500)" in (tmp_path / "out" / "README.md").read_text()


def test_a_card_has_the_results_of_its_own_weights(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    of_class = {"n": 4, "recall": 0.5, "precision": 0.25}
    share = {"accuracy": 0.611, "balanced_accuracy": 0.5, "macro_f1": 0.4}
    scores = share | {f"{name}_95": [0.3, 0.7] for name in share}
    scores |= {
        "n": 99,
        "majority_rate": 0.2,
        "data": "ab",
        "weights": "w",
        "classes": {"Fear": of_class},
    }
    gap = {"gap": 0.2, "gap_95": [0.1, 0.3], "best": "b", "worst": "a", "verdict": "a gap"}
    groups = [{"name": "a", "n": 40, "accuracy": 0.5, "accuracy_95": [0.4, 0.6]}]
    of_test: dict[str, Any] = {"majority_rate": 0.3}
    of_test |= {"groups": {"gender": {"groups": groups, "gap": {"accuracy": gap}}}}
    of_test["classes"] = {"Fear": of_class | {"recall": 0.789}}
    levels = [{"accuracy": 0.777}, {"accuracy": 0.222}]
    blur = {"title": "blur", "mean": 0.5, "levels": levels}
    card = {"weights": "w", "n": 9, "clean": {"accuracy": 0.6}, "disturbances": {"blur": blur}}
    for name, content in (
        ("eval-val", scores),
        ("eval-test", scores | of_test),
        ("eval-test-flip", scores | {"groups": True}),  # damaged
        ("eval-zoo", scores | {"weights": "of others", "accuracy": 0.123}),
        ("robust-test", card),
        ("robust-val", card | {"weights": "of others", "n": 777}),
    ):
        (run / f"{name}.json").write_text(json.dumps(content))
    opening = {"date": "d", "what": ["scores"], "data": "ab", "config": "c", "weights": "w"}
    openings = [json.dumps(opening | {"count": k}) + "\n" for k in (1, 2)]
    (run / "test-openings.jsonl").write_text("".join(openings))
    facts = {"parameters": 5, "difference": 1e-6, "precision": "fp32", "rounding": 0.0}
    text = model_card(run, about(), True, facts)
    for words in ("0.611 [0.300, 0.700]", "0.789", "class, on test", "By gender", "| blur | 0.500"):
        assert words in text, words
    assert "0.222" in text, "the strongest disturbance"
    assert "opened 2 times" in text
    assert text.count("not shown to be better") == 1
    assert "On test it is not shown to be better than to name the most frequent class" in text
    assert "No training face of" not in text, "Neutral, Anger and Fear are in the train split"
    sure = model_card(run, about(temperature=20.0, classes=[*CLASSES, "Awe"]), True, facts)
    assert "**No training face of Awe**" in sure
    assert "largest that is tried" in sure
    assert "Not measured by age, ethnicity:" in text
    for words in ("0.123", "777"):
        assert words not in text, f"{words}: of other weights"
