"""The account at the end of preprocess: what was found is taken, rejected or ignored."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data.preprocess import preprocess
from fer_hpc.data.shards import open_split, read_manifest


def save(path: Path, value: int, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((side, side), value, np.uint8))


def folders(root: Path, n: int = 40) -> Path:
    for i in range(n):
        save(root / ("happy", "sad")[i % 2] / f"{i}.png", i)
    return root


def run(tmp_path: Path, source: str, path: Path, **flags: object) -> dict[str, object]:
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    preprocess(PreprocessConfig(source, out, path, workers=1, size=16, **flags))
    return read_manifest(out).content


def test_the_account_adds_up_on_the_screen_and_in_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folders(tmp_path / "faces")
    (root / "happy/0.png").write_bytes(b"")
    (root / "sad/cut.jpg").write_bytes(cv2.imencode(".jpg", np.eye(40) * 99)[1].tobytes()[:-20])
    (root / "happy/a.heic").write_bytes(b"x")
    (root / "notes.txt").write_text("x")
    save(root / ".cache/1.png", 1)
    content = run(tmp_path, "folder", root, max_rejects=0.1)
    account = content["account"]
    rejected, ignored = account["rejected"], account["ignored"]
    assert account["found"] == 41 + 3
    assert account["taken"] == sum(split["n"] for split in content["splits"].values()) == 39
    assert rejected["reasons"]["empty file"] == {"n": 1, "example": "happy/0.png"}
    assert rejected["n"] == 2
    assert ignored["reasons"] == {
        ".heic files": {"n": 1, "example": "happy/a.heic"},
        ".txt files": {"n": 1, "example": "notes.txt"},
        "hidden": {"n": 1, "example": ".cache"},
    }
    assert account["classes_from"] == "by name"
    printed = capsys.readouterr().out
    assert "found 44 = taken 39 + rejected 2 + ignored 3" in printed
    assert "ignored: 1 .heic files, for example happy/a.heic" in printed
    assert "classes (by name): happy = Happiness, sad = Sadness" in printed


def test_ignored_pictures_count_towards_the_limit(tmp_path: Path) -> None:
    root = folders(tmp_path / "faces")
    for i in range(5):
        (root / f"happy/{i}.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"5 of 45 pictures are ignored.*\.heic"):
        run(tmp_path, "folder", root)
    run(tmp_path, "folder", root, max_rejects=0.2)


def box_table(tmp_path: Path, boxes: list[list[object]]) -> Path:
    for i in range(len(boxes)):
        save(tmp_path / f"p/{i}.png", i)
    with (tmp_path / "p/t.csv").open("w", newline="") as f:
        rows = [[f"{i}.png", ("happy", "sad")[i % 2], *box] for i, box in enumerate(boxes)]
        csv.writer(f).writerows([["path", "label", "x_min", "y_min", "x_max", "y_max"], *rows])
    return tmp_path / "p/t.csv"


def test_faces_that_are_whole_pictures_count_and_are_named(tmp_path: Path) -> None:
    boxes: list[list[object]] = [[5, 5, 30, 30]] * 36
    boxes += [[100, 100, 120, 120]] * 2 + [["", "", "", ""]] * 2
    table = box_table(tmp_path, boxes)
    with pytest.raises(UserError, match=r"4 of 40 faces: .* \(for example \d+\.png\)"):
        run(tmp_path, "table", table)
    content = run(tmp_path, "table", table, max_rejects=0.1)
    found = content["account"]["fallbacks"]
    assert found["n"] == 4
    assert {k["n"] for k in found["reasons"].values()} == {2}
    with pytest.raises(UserError, match="--strict"):
        run(tmp_path, "table", table, max_rejects=0.1, strict=True)


def test_a_set_without_any_box_has_no_fallbacks(tmp_path: Path) -> None:
    content = run(tmp_path, "table", box_table(tmp_path, [["", "", "", ""]] * 20), strict=True)
    assert content["account"]["fallbacks"]["n"] == 0


def test_strict_refuses_what_is_ignored_before_it_reads(tmp_path: Path) -> None:
    root = folders(tmp_path / "faces")
    (root / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"--strict: 1 thing in .* for example notes\.txt"):
        run(tmp_path, "folder", root, strict=True)
    assert not list(tmp_path.glob("out*")), "nothing is left of a command that was refused"


def test_shards_are_not_written_among_the_pictures(tmp_path: Path) -> None:
    root = folders(tmp_path / "faces")
    before = sorted(root.rglob("*"))
    for out in (root, root / "happy"):
        with pytest.raises(UserError, match=r"is a folder of --input .* that holds"):
            preprocess(PreprocessConfig("folder", out, root, workers=1, size=16))
    assert sorted(root.rglob("*")) == before


def test_a_class_that_is_rejected_as_a_whole_is_an_error(tmp_path: Path) -> None:
    root = folders(tmp_path / "faces", 60)
    for i in range(2):
        (root / "fear").mkdir(exist_ok=True)
        (root / f"fear/{i}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="all 2 faces of Fear are rejected"):
        run(tmp_path, "folder", root, max_rejects=0.5)


def test_rows_that_the_rule_leaves_out_are_counted(tmp_path: Path) -> None:
    for i in range(60):
        split = "test" if i % 3 == 0 else "train"
        save(tmp_path / f"f/{split}/{('happy', 'sad')[i % 2]}/{i}.png", i)
    account = run(tmp_path, "folder", tmp_path / "f", split="report")["account"]
    assert (account["found"], account["taken"], account["ignored"]["n"]) == (60, 40, 20)


def test_changed_pictures_are_not_taken_for_the_old_ones(tmp_path: Path) -> None:
    root, out = folders(tmp_path / "faces"), tmp_path / "out"
    config = PreprocessConfig("folder", out, root, workers=1, size=16)
    preprocess(config)
    before = (out / "train-00000.h5").read_bytes()
    preprocess(config)
    assert (out / "train-00000.h5").read_bytes() == before
    save(root / "happy/0.png", 255)
    with pytest.raises(UserError, match="pictures or tables that have changed since"):
        preprocess(config)


def test_crop_none_takes_all_and_detect_finds_the_face(tmp_path: Path) -> None:
    boxes: list[list[object]] = [[0, 0, 16, 40]] * 20
    table = box_table(tmp_path, boxes)
    for i in range(20):
        image = np.full((40, 40), 200, np.uint8)
        image[:, :20] = i
        cv2.imwrite(str(tmp_path / f"p/{i}.png"), image)
    run(tmp_path, "table", table, split="test")
    run(tmp_path, "table", table, split="test", crop="none")
    for name, right in (("out0", False), ("out1", True)):
        split = open_split(read_manifest(tmp_path / name), "test")
        assert (split.images[0][..., -1, 0] > 150).all() == right
    with pytest.raises(UserError, match="no face found"):
        run(tmp_path, "table", table, split="test", crop="detect")


def test_a_face_with_two_labels_is_rejected_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [[f"{i}.png", ("happy", "sad")[i % 2]] for i in range(40)]
    for i in range(40):
        save(tmp_path / f"p/{i}.png", i)
    lines += [["3.png", "happy"], ["./4.png", "Happy"], ["5.png", "sad"]]
    (tmp_path / "p/t.csv").write_text("path,label\n" + "\n".join(map(",".join, lines)))
    content = run(tmp_path, "table", tmp_path / "p/t.csv", max_rejects=0.2)
    rejected = content["account"]["rejected"]["reasons"]
    assert rejected["two labels"] == {"n": 2, "example": "3.png"}
    assert rejected["duplicate face"] == {"n": 1, "example": "./4.png#2"}
    assert rejected["duplicate row"]["n"] == 1
    assert "rejected: 2 two labels, for example 3.png" in capsys.readouterr().out
    assert content["account"]["taken"] == 39


@pytest.mark.parametrize("crop, taken", [("auto", 40), ("none", 0)])
def test_two_faces_of_a_picture_are_one_where_no_box_cuts_them(
    tmp_path: Path, crop: str, taken: int
) -> None:
    for i in range(20):
        save(tmp_path / f"p/{i}.png", i)
    boxes = ("happy,0,0,20,40", "sad,20,0,40,40")
    lines = [f"{i}.png,{box}" for i in range(20) for box in boxes]
    table = tmp_path / "p/t.csv"
    table.write_text("\n".join(["path,label,x_min,y_min,x_max,y_max", *lines]))
    if not taken:
        with pytest.raises(UserError, match=r"no usable faces.* 0\.png \(two labels\)"):
            run(tmp_path, "table", table, crop=crop)
        return
    content = run(tmp_path, "table", table, crop=crop)
    assert content["account"]["taken"] == taken
    assert "pictures whole" in content["split_rule"]
    out = tmp_path / "out0"
    ids = [
        {name.decode().partition("#")[0] for name in open_split(manifest, s).columns["source_id"]}
        for manifest in [read_manifest(out)]
        for s in ("train", "val", "test")
    ]
    assert sum(map(len, ids)) == 20


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    root = folders(tmp_path / "faces")
    assert not [note for note in run(tmp_path, "folder", root)["notes"] if "no face" in note]
    (root / "angry").mkdir()
    notes = run(tmp_path, "folder", root)["notes"]
    assert "no face of Anger, although it is a class" in notes
