from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fer_hpc.config import CLASSES
from fer_hpc.data.synthetic.faces import (
    CIRCUMPLEX,
    CLASS_COUNTS,
    PHOTOS_PER_PERSON,
    draw_face,
    label_of,
)
from tests.conftest import Fer
from tests.helpers.outputs import assert_kept


def test_a_face_is_a_function_of_seed_and_number() -> None:
    assert (draw_face(5).image == draw_face(5).image).all()
    assert (
        draw_face(5, seed=1).image.shape != draw_face(5).image.shape
        or (draw_face(5, 1).image != draw_face(5).image).any()
    )


def test_label_is_known_without_drawing() -> None:
    assert [label_of(i) for i in range(20)] == [draw_face(i).label for i in range(20)]


def test_class_balance_is_table_1s() -> None:
    counts = np.bincount([label_of(i) for i in range(20_000)], minlength=8)
    shares = np.array(CLASS_COUNTS) / sum(CLASS_COUNTS)
    assert np.abs(counts / 20_000 - shares).max() < 0.01


def test_pictures_and_annotations_agree() -> None:
    faces = [draw_face(i) for i in range(300)]
    for face in faces:
        height, width, _ = face.image.shape
        assert ((face.landmarks > -0.2 * width) & (face.landmarks < 1.2 * max(height, width))).all()
        assert -1 <= face.valence <= 1
        assert -1 <= face.arousal <= 1
    assert [face.person for face in faces[:7]] == [0] * PHOTOS_PER_PERSON + [1]
    for label in (0, 1, 2):  # classes with enough faces here
        mine = np.mean([(f.valence, f.arousal) for f in faces if f.label == label], 0)
        distance = [np.linalg.norm(mine - 0.63 * np.array(c)) for c in CIRCUMPLEX]
        assert int(np.argmin(distance)) == label, CLASSES[label]
    gap = [
        np.linalg.norm(f.landmarks[62] - f.landmarks[66])
        / np.linalg.norm(f.landmarks[0] - f.landmarks[16])
        for f in faces
    ]
    by_class = [
        np.mean([g for g, f in zip(gap, faces, strict=True) if f.label == k]) for k in (0, 3)
    ]
    assert by_class[1] > 4 * by_class[0], "surprise opens the mouth"


@pytest.mark.long
def test_the_demos_training_learns_it_but_does_not_saturate(fer: Fer, tmp_path: Path) -> None:
    assert (
        fer(
            "preprocess", "--source", "synthetic", "--count", 6000, "--out", tmp_path / "shards"
        ).returncode
        == 0
    )
    arguments = (
        "cnn_improved",
        "--data",
        tmp_path / "shards",
        "--run",
        tmp_path / "run",
        "--batch-size",
        64,
        "--flip",
    )
    assert fer("train", *arguments, "--epochs", 12, timeout=1200).returncode == 0
    done = fer("evaluate", tmp_path / "run", "--split", "test")
    assert 0.75 < float(done.stdout.split("accuracy")[1].split()[0]) < 0.92


def test_drawn_faces_replace_none_of_a_real_data_set(fer: Fer, tmp_path: Path) -> None:
    call = ("data.synthetic", "--count", 3, "--out", tmp_path, "--workers", 1)
    real = tmp_path / "train_set" / "images" / "0.jpg"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"a real face")
    done = fer(*call)
    assert done.returncode == 2
    assert "is not empty (train_set); give a new folder" in done.stderr
    assert_kept(fer, tmp_path / "columns.csv", *call)
    assert real.read_bytes() == b"a real face"
