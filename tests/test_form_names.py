"""Public forms whose file names are codes: JAFFE, KDEF, CK+, frames of sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fer_hpc.data.readers.ckplus import CkPlus
from fer_hpc.data.tree import Tree
from tests.helpers.forms import ignored, read, save


def test_jaffe_and_kdef_are_read_from_their_names(tmp_path: Path) -> None:
    codes = {"AN": "Anger", "FE": "Fear", "HA": "Happiness", "NE": "Neutral"}
    for p, person in enumerate(("KA", "KL", "KM", "KR", "MK")):
        for c, code in enumerate(codes):
            save(tmp_path / f"j/{person}.{code}1.{p * 4 + c}.tiff", 10 * c)
    found, plan = read(tmp_path, tmp_path / "j")
    assert all(label == list(codes.values())[value // 10] for _, label, value in found.values())
    assert "by person" in plan.split_rule
    for p in range(5):
        for c, code in enumerate(("AN", "AF", "HA", "NE")):
            save(tmp_path / f"k/AF{p:02d}/AF{p:02d}{code}S.JPG", 10 * c)
    found, plan = read(tmp_path, tmp_path / "k")
    assert all(label == list(codes.values())[value // 10] for _, label, value in found.values())
    assert len(np.unique(plan.rows.columns["group"])) == 5


def test_ck_plus_in_class_folders_keeps_subjects_apart(tmp_path: Path) -> None:
    for c in ("anger", "happy", "surprise"):
        for subject in range(8):
            for frame in range(3):
                save(tmp_path / f"c/{c}/S{10 + subject:03d}_001_{frame:08d}.png", frame)
    found, plan = read(tmp_path, tmp_path / "c")
    splits = {
        subject: {s for i, (s, _, _) in found.items() if subject in i} for subject in ("S012",)
    }
    assert len(splits["S012"]) == 1
    assert "persons (group) are those in CK+'s file names" in plan.rows.notes


def test_ck_plus_as_its_authors_give_it(tmp_path: Path) -> None:
    images, emotions = tmp_path / "c/cohn-kanade-images", tmp_path / "c/Emotion"
    for subject in range(6):
        folder = f"S{subject:03d}/001"
        for frame in range(1, 8):
            name = f"S{subject:03d}_001_{frame:08d}"
            save(images / folder / f"{name}.png", 10 * frame)
        (emotions / folder).mkdir(parents=True)
        if subject:  # S000 has a folder without a file
            name = f"{name}_emotion.txt"
            (emotions / folder / name).write_text(f"   {subject:.7e}\n")
    found, plan = read(tmp_path, tmp_path / "c")
    assert len(found) == 5 * 4
    names = ("Neutral", "Anger", "Contempt", "Disgust", "Fear", "Happiness")
    for source_id, (_, label, value) in found.items():
        subject = int(source_id.rpartition("/")[2][1:4])
        assert value in (10, 50, 60, 70)
        assert label == ("Neutral" if value == 10 else names[subject])
    assert "by person" in plan.split_rule
    assert len(np.unique(plan.rows.columns["group"])) == 5
    assert ignored(plan) == {
        "frames of sequences without an emotion": 7,
        "frames between the first and the peak": 5 * 3,
    }
    assert any("--crop detect" in note for note in plan.rows.notes)


def test_landmarks_of_ck_plus_cut_the_face(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for subject in range(3):
        name, folder = f"S{subject:03d}_001_00000001", f"S{subject:03d}/001"
        save(tmp_path / f"c/cohn-kanade-images/{folder}/{name}.png", 10)
        for kind in ("Emotion", "Landmarks"):
            (tmp_path / f"c/{kind}/{folder}").mkdir(parents=True)
        points = rng.uniform(4, 12, (68, 2))
        text = "\n".join(f"   {x:.7e}   {y:.7e}" for x, y in points)
        (tmp_path / f"c/Landmarks/{folder}/{name}_landmarks.txt").write_text(text)
        (tmp_path / f"c/Emotion/{folder}/{name}_emotion.txt").write_text("   9.0e+00\n")
    (tmp_path / f"c/Emotion/{folder}/{name}_emotion.txt").write_text("   7.0e+00\n")
    source = CkPlus(Tree(tmp_path / "c"))
    rows = source.rows()
    assert [reason for _, reason in rows.rejects] == ["emotion 9, wanted 0 to 7"] * 2
    face = source.face(rows.locators[0])
    assert face.landmarks is not None
    assert np.allclose(face.landmarks, points)


def test_frames_of_sequences_are_pointed_out(tmp_path: Path) -> None:
    for clip in range(5):
        for frame in range(6):
            save(tmp_path / f"c/{('happy', 'sad')[clip % 2]}/clip{clip}_{frame:03d}.png", frame)
    _, plan = read(tmp_path, tmp_path / "c")
    assert any("frames of 5 sequences" in note for note in plan.rows.notes)
    for i in range(30):
        save(tmp_path / f"d/{('happy', 'sad')[i % 2]}/{i}.png", i)
    assert not read(tmp_path, tmp_path / "d")[1].rows.notes
