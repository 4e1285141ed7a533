"""The public forms of data, each in exactly the layout that people download."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from fer_hpc.config import CLASSES, UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data.readers.ferplus import decide
from fer_hpc.data.sources import open_source, source_spec
from tests.helpers.forms import (
    FER,
    FERPLUS,
    fer2013,
    ferplus,
    ignored,
    rafdb_basic,
    read,
    save,
    save_csv,
)

RAF = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")


# ---- RAF-DB


@pytest.mark.parametrize("entry", ["", "EmoLabel/list_patition_label.txt"])
def test_rafdb_as_its_authors_give_it(tmp_path: Path, entry: str) -> None:
    found, plan = read(tmp_path, rafdb_basic(tmp_path / "basic") / entry)
    assert len(found) == 42
    assert found["test_00003.jpg"] == ("test", RAF[3], 40)
    assert all(label == RAF[value // 10 - 1] for _, label, value in found.values())
    assert {s for s, _, _ in found.values()} == {"train", "val", "test"}  # val is cut from train
    assert "aligned faces are taken" in plan.rows.notes
    assert plan.rows.class_map.source == "RAF-DB's numbers"


def test_a_face_that_a_list_names_twice_has_one_label_or_none(tmp_path: Path) -> None:
    root = rafdb_basic(tmp_path / "basic")
    with (root / "EmoLabel/list_patition_label.txt").open("a") as f:
        f.write("train_00001.jpg 2\ntrain_00003.jpg 5\n")
    found, plan = read(tmp_path, root)
    rejects = [("train_00001.jpg", "duplicate id"), ("train_00003.jpg", "two labels")]
    assert plan.rows.rejects == [*rejects, rejects[1]]
    assert len(found) == 41 and "train_00003.jpg" not in found


def test_rafdb_in_numbered_folders_with_tables(tmp_path: Path) -> None:
    for split in ("train", "test"):
        lines = []
        for c in range(1, 8):
            for k in range(4):
                name = f"{split}_{c}{k}_aligned.jpg"
                save(tmp_path / f"DATASET/{split}/{c}/{name}", 10 * c)
                lines.append([name, c])
        save_csv(tmp_path / f"{split}_labels.csv", "image,label", lines)
    found, plan = read(tmp_path, tmp_path)
    assert len(found) == 56
    assert all(label == RAF[value // 10 - 1] for _, label, value in found.values())
    assert not ignored(plan)
    rows = (tmp_path / "train_labels.csv").read_text().replace("train_10_aligned.jpg,1", "{},2")
    (tmp_path / "train_labels.csv").write_text(rows.format("train_10_aligned.jpg"))
    found, plan = read(tmp_path, tmp_path)
    assert found["DATASET/train/1/train_10_aligned.jpg"][1] == RAF[1]
    assert any("1 pictures" in note and "the tables count" in note for note in plan.rows.notes)


# ---- FER2013 and FER+


def test_ferplus_majority_beside_fer2013(tmp_path: Path) -> None:
    found, plan = read(tmp_path, ferplus(tmp_path / "f"), "ferplus")
    assert len(found) == 67
    assert all(label == FERPLUS[value % 8] for _, label, value in found.values())
    assert found["8"][0] == "val"
    assert dict(plan.rows.rejects) == {
        "3": "most votes: not a face",
        "4": "the votes agree on no class",
        "5": "most votes: not a face",
    }
    assert "targets" not in plan.rows.columns


def test_ferplus_distribution_gives_targets(tmp_path: Path) -> None:
    found, plan = read(tmp_path, ferplus(tmp_path / "f"), "ferplus", labels="distribution")
    assert "4" in found
    targets = plan.rows.columns["targets"]
    assert targets.shape == (68, 8)
    assert np.allclose(targets.sum(1), 1)
    row = plan.rows.source_id.index("0")
    assert np.allclose(targets[row][:2], [2 / 3, 1 / 3])  # the single vote for unknown is dropped


def test_ferplus_tables_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    folder = ferplus(tmp_path / "f")
    fer2013(folder / "fer2013.csv", 69)
    with pytest.raises(UserError, match="belong together row by row"):
        read(tmp_path, folder, "ferplus")
    fer2013(folder / "fer2013.csv", 71)
    with pytest.raises(UserError, match="belong together row by row"):
        read(tmp_path, folder, "ferplus")


def test_ferplus_as_folders_of_pngs(tmp_path: Path) -> None:
    root = tmp_path / "f"
    for part in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        lines = []
        for i in range(8):
            save(root / part / f"fer{i:07d}.png", 10 * i)
            votes = [10 * (k == i) for k in range(10)]
            lines.append([f"fer{i:07d}.png", "(0, 0, 48, 48)", *votes])
        with (root / part / "label.csv").open("w", newline="") as f:
            csv.writer(f).writerows(lines)
    found, plan = read(tmp_path, root)
    assert len(found) == 24
    assert found["FER2013Valid/fer0000002.png"] == ("val", "Surprise", 20)
    assert not ignored(plan)


def test_the_votes_rules_are_those_of_the_authors() -> None:
    assert decide([10, 0, 0, 0, 0, 0, 0, 0, 0, 0], False)[0] == "Neutral"
    assert decide([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], False)[0] == "unknown"
    assert decide([0] * 8 + [9, 0], False)[0] == "unknown"
    assert decide([0] * 9 + [9], False)[0] == "no face"
    assert decide([1] * 10, False)[0] == "unknown"
    assert decide([3, 1, 1, 1, 1, 0, 0, 0, 1, 0], False)[0] == "Neutral"  # single votes are dropped
    assert decide([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], True) == ("Neutral", [0.5, 0.5] + [0.0] * 6)
    assert decide([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], True)[0] == "unknown"  # more than three
    assert decide([4, 0, 0, 0, 0, 0, 0, 0, 6, 0], True)[0] == "unknown"
    assert decide([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], True)[0] == "Neutral"
    assert decide([5, 0, 0, 0, 0, 0, 0, 0, 5, 0], True)[0] == "unknown"  # no more than half


# ---- tables


def test_the_generic_table_in_all_its_columns(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / f"p/{i}.png", i)
    lines = [
        [f"p/{i}.png", ("happy", "sad")[i % 2], ("train", "val", "test")[i % 3], *box, f"S{i // 3}"]
        for i in range(30)
        for box in ([0, 0, 50, 50], [50, 0, 100, 50])
    ]
    head = "path,label,split,x_min,y_min,x_max,y_max,group"
    found, plan = read(tmp_path, save_csv(tmp_path / "t.csv", head, lines))
    assert len(found) == 60  # two faces of every picture
    assert found["p/7.png"] == ("val", "Sadness", 7)
    assert found["p/7.png#2"] == ("val", "Sadness", 7)
    assert plan.rows.columns["group"].max() == 9
    assert plan.split_rule == "official"


def test_numbers_in_a_table_need_to_be_said_whose_they_are(tmp_path: Path) -> None:
    for i in range(14):
        save(tmp_path / f"{i}.png", i)
    table = save_csv(tmp_path / "t.csv", "path,label", [[f"{i}.png", i % 7 + 1] for i in range(14)])
    with pytest.raises(UserError, match="--classes NAME_OF_1,NAME_OF_2"):
        read(tmp_path, table)
    found, plan = read(tmp_path, table, classes="rafdb")
    assert all(label == RAF[value % 7] for _, label, value in found.values())
    assert plan.rows.class_map.source == "--classes rafdb"
    with pytest.raises(UserError, match="fer2013: its numbers are 0 to 6"):
        read(tmp_path, table, classes="fer2013")


def test_affectnets_pair_of_tables_is_one_set(tmp_path: Path) -> None:
    head = (
        "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
        "expression,valence,arousal"
    )
    points = ";".join(f"{20 + i % 10};{20 + i // 7}" for i in range(68))
    for name, n in (("training", 24), ("validation", 8)):
        lines = []
        for i in range(n):
            picture = f"{i % 3}/{name}{i}.jpg"
            save(tmp_path / "Manually_Annotated_Images" / picture, 10 * (i % 8))
            lines.append([picture, 0, 0, 9, 9, points, i % 8, 0.5, -0.5])
        save_csv(tmp_path / f"{name}.csv", head, lines)
    images = tmp_path / "Manually_Annotated_Images"
    save(images / "0/unlisted.jpg", 5)
    found, plan = read(tmp_path, tmp_path, image_root=images)
    assert {s: sum(f[0] == s for f in found.values()) for s in ("train", "val", "test")} == {
        "train": 19,
        "val": 5,
        "test": 8,
    }
    assert all(label == CLASSES[value // 10] for _, label, value in found.values())
    assert ignored(plan) == {"pictures without a row in the table": 1}
    table = tmp_path / "validation.csv"
    for name, other, own in (
        ("facial_landmarks", "points", "no column"),
        ("face_x", "person", "person"),
    ):
        kept = table.read_text()
        table.write_text(kept.replace(name, other, 1))
        with pytest.raises(UserError, match=f"validation.csv: {own} where .*training.csv has"):
            read(tmp_path, tmp_path, image_root=images)
        table.write_text(kept)


def test_expw_has_several_faces_a_picture(tmp_path: Path) -> None:
    lines = []
    for i in range(20):
        save(tmp_path / f"image/origin/{i}.jpg", 10 * (i % 7))
        for k in range(2):
            lines.append(f"{i}.jpg {k} 10 {10 + 40 * k} {40 + 40 * k} 60 45.5 {i % 7}\n")
    (tmp_path / "label").mkdir()
    (tmp_path / "label/label.lst").write_text("".join(lines))
    found, _ = read(tmp_path, tmp_path)
    assert len(found) == 40
    assert all(label == FER[value // 10] for _, label, value in found.values())
    config = PreprocessConfig("expw", tmp_path / "out", tmp_path)
    with open_source(source_spec("expw"), config) as source:
        face = source.face(source.rows().locators[1])
    assert face.box == (50, 10, 80, 60)  # left, top, right, bottom


def test_yolo_with_names_in_data_yaml(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for i in range(8):
            save(tmp_path / f"set/{split}/images/{i}.png", 10 * i)
            (tmp_path / f"set/{split}/labels").mkdir(exist_ok=True)
            (tmp_path / f"set/{split}/labels/{i}.txt").write_text(f"{i % 4} 0.5 0.5 0.4 0.6\n")
    names = "['Anger', 'Happy', 'Neutral', 'Sad']"
    (tmp_path / "set/data.yaml").write_text(f"train: ../train\nnc: 4\nnames: {names}\n")
    found, plan = read(tmp_path, tmp_path / "set")
    assert found["valid/images/1.png"] == ("val", "Happiness", 10)
    assert plan.rows.class_map.source == "data.yaml's names"
    (tmp_path / "set/data.yaml").write_text(
        "names:\n  0: anger\n  1: happy\n  2: neutral\n  3: sad\n"
    )
    assert read(tmp_path, tmp_path / "set")[0] == found
    (tmp_path / "set/data.yaml").unlink()
    with pytest.raises(UserError, match="--classes NAME_OF_0"):
        read(tmp_path, tmp_path / "set")


# ---- evaluation only


def test_a_tree_of_tests_only_is_for_evaluation(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"t/test/{('happy', 'sad')[i % 2]}/{i}.png", i)
    found, plan = read(tmp_path, tmp_path / "t")
    assert {s for s, _, _ in found.values()} == {"test"}
    for i in range(6):
        save(tmp_path / f"u/{('happy', 'sad')[i % 2]}/{i}.png", i)
    found, plan = read(tmp_path, tmp_path / "u", split="test")
    assert {s for s, _, _ in found.values()} == {"test"}
    assert plan.split_rule == "test: every face"


# ---- auto asks, and two label sources are named


def test_auto_asks_where_two_forms_fit(tmp_path: Path) -> None:
    lines = []
    for i in range(8):
        save(tmp_path / f"{('happy', 'sad')[i % 2]}/{i}.png", i)
        lines.append([f"{('happy', 'sad')[i % 2]}/{i}.png", ("happy", "sad")[(i > 5) ^ (i % 2)]])
    save_csv(tmp_path / "labels.csv", "pth,label", lines)
    with pytest.raises(UserError, match=r"fits several forms.*--source table.*--source folder"):
        read(tmp_path, tmp_path)
    _, plan = read(tmp_path, tmp_path, "folder", split="test")
    note = next(n for n in plan.rows.notes if "labels.csv" in n)
    assert "names another class for 2 of 8 pictures" in note
    found, _ = read(tmp_path, tmp_path, "table", split="test")
    assert found["happy/6.png"][1] == "Sadness"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no form that is read fits"):
        read(tmp_path, tmp_path / "empty")


def test_affectnet_with_a_test_set_uses_all_three(tmp_path: Path) -> None:
    for part, n in (("train_set", 16), ("val_set", 8), ("test_set", 8)):
        for i in range(n):
            save(tmp_path / f"{part}/images/{i}.jpg", 10 * (i % 8))
            (tmp_path / f"{part}/annotations").mkdir(exist_ok=True)
            np.save(tmp_path / f"{part}/annotations/{i}_exp.npy", np.array(str(i % 8)))
    found, plan = read(tmp_path, tmp_path)
    assert found["val_set/1"][0] == "val"
    assert found["test_set/1"][0] == "test"
    assert "train_set is train, val_set is val, test_set is test" in plan.rows.notes
    (tmp_path / "holdout_set").mkdir()
    with pytest.raises(UserError, match="holdout_set/ is no part of AffectNet"):
        read(tmp_path, tmp_path)
