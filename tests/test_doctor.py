from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_hpc.data.doctor import FACE_SIDE, SHEET_COLUMNS, TITLE
from fer_hpc.data.shards import open_split, read_manifest
from tests.conftest import Fer, Preprocess
from tests.helpers.outputs import assert_kept


@pytest.fixture(scope="module")
def troubled(preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER2013 rows with one of each trouble; the pictures are numbered."""
    folder = tmp_path_factory.mktemp("doctor")
    rng = np.random.default_rng(0)
    pictures = {k: " ".join(map(str, rng.integers(0, 256, 2304))) for k in range(60)}
    pictures[99] = " ".join(["128"] * 2304)  # blank
    rows = [(k, k % 7, "Training") for k in range(40)]
    rows += [(3, 3, "Training"), (3, 3, "Training")]  # two repeats
    rows += [(4, 5, "Training")]  # 4 also has label 4: a conflict (and a repeat)
    rows += [(99, 0, "Training")]
    rows += [(k, k % 7, "PublicTest") for k in range(38, 50)]  # 38 and 39 are in train too
    rows += [(k, k % 7, "PrivateTest") for k in (49, *range(50, 60))]  # 49 is in val too
    lines = [f"{label},{pictures[k]},{usage}" for k, label, usage in rows]
    (folder / "fer.csv").write_text("\n".join(["emotion,pixels,Usage", *lines]))
    done = preprocess("fer2013", folder / "shards", "--input", folder / "fer.csv")
    assert done.returncode == 0, done.stderr
    return folder / "shards"


def counts(output: str) -> dict[str, int]:
    return {what: f["count"] for what, f in json.loads(output)["findings"].items() if f["count"]}


def test_every_trouble_is_found_and_counted(fer: Fer, troubled: Path) -> None:
    done = fer("doctor", troubled, "--json")
    assert done.returncode == 3
    assert counts(done.stdout) == {
        "blank images (all pixels alike)": 1,
        "groups of equal images with different labels": 1,
        "train images that repeat an earlier one of train": 3,
        "val images that are also in train": 2,
        "test images that are also in val": 1,
    }


def test_both_sides_of_a_leak_are_named_and_shown(fer: Fer, troubled: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "pairs.png"
    done = fer("doctor", troubled, "--json", "--sheet", sheet)
    assert done.returncode == 3, done.stderr
    findings = json.loads(done.stdout)["findings"]
    (train, val), (_, second) = findings["val images that are also in train"]["pairs"]
    assert (train["split"], train["source_id"], train["file"]) == ("train", "38", "train-00000.h5")
    assert (val["split"], val["source_id"], val["file"]) == ("val", "44", "val-00000.h5")
    assert (train["file_row"], val["file_row"], second["source_id"]) == (38, 0, "45")
    conflict = findings["groups of equal images with different labels"]["examples"]
    assert conflict == [
        "train 42 (Surprise, train-00000.h5 row 42) = train 4 (Sadness, train-00000.h5 row 4)"
    ]
    repeats = findings["train images that repeat an earlier one of train"]["pairs"]
    assert [(b["source_id"], a["source_id"]) for a, b in repeats] == [
        ("3", "40"),
        ("3", "41"),
        ("4", "42"),
    ]
    picture = cv2.imread(str(sheet))
    assert picture.shape[1] == SHEET_COLUMNS * (2 * FACE_SIDE + TITLE)
    shown = [f for f in findings.values() if f["pairs"]]
    rows = sum(-(-len(f["pairs"]) // SHEET_COLUMNS) for f in shown)
    assert picture.shape[0] == rows * (FACE_SIDE + 2 * TITLE) + len(shown) * TITLE
    plain = fer("doctor", troubled)
    assert "train 38 (Happiness" in plain.stdout
    assert "= val 44 (Happiness, val-00000.h5 row 0)" in plain.stdout


def test_a_sheet_is_a_png(fer: Fer, troubled: Path, tmp_path: Path) -> None:
    done = fer("doctor", troubled, "--sheet", tmp_path / "pairs.jpg")
    assert done.returncode == 2
    assert "--sheet" in done.stderr


def test_the_clean_copy_is_clean_and_says_what_it_lacks(
    fer: Fer, troubled: Path, tmp_path: Path
) -> None:
    done = fer("doctor", troubled, "--fix", tmp_path / "clean")
    assert done.returncode == 3
    again = fer("doctor", tmp_path / "clean", "--json")
    assert again.returncode == 0, again.stdout
    assert counts(again.stdout) == {}
    manifest = read_manifest(tmp_path / "clean")
    # train: 44 - blank - both of the conflict - two repeats - two shared with val
    # val: 12 - one shared with test
    assert [manifest.n(s) for s in ("train", "val", "test")] == [37, 11, 11]
    dropped = (tmp_path / "clean" / "dropped.csv").read_text().splitlines()
    assert len(dropped) == 1 + 7 + 1
    assert "train,43,blank images (all pixels alike)" in dropped
    kept = open_split(manifest, "train")
    source = open_split(read_manifest(troubled), "train")
    for row in (0, 20, 36):
        place = source.columns["source_id"].tolist().index(kept.columns["source_id"][row])
        assert (kept.images[0][row] == source.images[0][place]).all()
    again = fer("doctor", troubled, "--fix", tmp_path / "clean")
    assert "the clean copy is there, nothing to do" in again.stderr
    refused = fer("doctor", tmp_path / "clean", "--fix", troubled)
    assert refused.returncode == 2
    assert "there is a data set already; give another folder" in refused.stderr


def test_the_scored_splits_lose_faces_too(fer: Fer, preprocess: Preprocess, tmp_path: Path) -> None:
    """Blank ones, and those whose image has another label elsewhere; docs/data.md says so."""
    rng = np.random.default_rng(0)
    pictures = [" ".join(map(str, rng.integers(0, 256, 2304))) for _ in range(30)]
    usages = ["Training"] * 10 + ["PublicTest"] * 10 + ["PrivateTest"] * 10
    pictures[15] = " ".join(["7"] * 2304)  # blank, in val
    pictures[25] = pictures[3]  # of test, with another label in train
    lines = [f"{k % 7},{p},{u}" for k, (p, u) in enumerate(zip(pictures, usages, strict=True))]
    (tmp_path / "fer.csv").write_text("\n".join(["emotion,pixels,Usage", *lines]))
    done = preprocess("fer2013", tmp_path / "shards", "--input", tmp_path / "fer.csv")
    assert done.returncode == 0, done.stderr
    fer("doctor", tmp_path / "shards", "--fix", tmp_path / "clean")
    conflict = "groups of equal images with different labels"
    assert (tmp_path / "clean" / "dropped.csv").read_text().splitlines()[1:] == [
        f"train,3,{conflict}",
        "val,15,blank images (all pixels alike)",
        f"test,25,{conflict}",
    ]


def test_suspects_are_shown_and_those_of_train_are_left_out(
    fer: Fer, troubled: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(troubled)
    train, val = open_split(manifest, "train"), open_split(manifest, "val")
    label = {row: manifest.classes[train.columns["labels"][row]] for row in (5, 7)}
    of_val = manifest.classes[val.columns["labels"][2]]
    head = "source_id,split,row,label,suggested,p_label,p_suggested,image_hash"
    image = [name.decode() for name in train.columns["image_hash"]]
    lines = [f"{row},train,{row},{label[row]},Fear,.01,.9,{image[row]}" for row in (7, 5)]
    lines += [f"46,val,2,{of_val},Fear,.02,.8,{val.columns['image_hash'][2].decode()}"]
    strange = [f"8,train,8,Contempt,Fear,.1,.7,{image[8]}", "x,train,0,Fear"]
    file = tmp_path / "label-noise-val.csv"
    file.write_text("\n".join([head, *lines, *strange]))
    flags = ("--suspects", file, "--sheet", tmp_path / "s.png", "--fix", tmp_path / "clean")
    done = fer("doctor", troubled, "--json", *flags)
    assert done.returncode == 3, done.stderr
    assert "2 row(s) are no faces of these shards, or have another label here" in done.stderr
    what = "labels that may be wrong, by --suspects (--fix drops those of train)"
    found = json.loads(done.stdout)["findings"][what]
    assert found["count"] == 3
    assert found["examples"][0].startswith(f"train 7 ({label[7]},")
    assert "suggested: Fear p .9" in found["examples"][0]
    assert "3 suspects" in done.stderr
    picture = cv2.imread(str(tmp_path / "s.png"))
    tile = picture[-FACE_SIDE:, :FACE_SIDE, 0]  # the last line holds the suspects
    assert (tile[::2, ::2] == train.images[0][7][..., 0]).all()
    dropped = (tmp_path / "clean/dropped.csv").read_text().splitlines()
    assert [each for each in dropped if "may be wrong" in each] == [
        f'train,{row},"{what}"' for row in (5, 7)
    ]
    file.write_text(f"{head}\n7,train,7,{label[7]},Anger,.1,.8,{image[5][::-1]}")
    other = fer("doctor", troubled, "--suspects", file)
    assert other.returncode == 2
    assert "none of its faces (1) is one of" in other.stderr


def test_suspects_of_other_data_are_known_by_their_image(
    fer: Fer, troubled: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(troubled)
    train = open_split(manifest, "train")
    label = manifest.classes[train.columns["labels"][7]]
    image = train.columns["image_hash"][7].decode()
    file = tmp_path / "label-noise-train.csv"
    head = "source_id,split,row,label,suggested,p_label,p_suggested"
    file.write_text(f"{head},image_hash\n9,train,9,{label},Fear,.1,.8,{image}\n")
    flags = ("--suspects", file, "--fix", tmp_path / "clean")
    assert fer("doctor", troubled, *flags).returncode == 3
    dropped = (tmp_path / "clean/dropped.csv").read_text()
    assert 'train,7,"labels that may be wrong' in dropped and "train,9," not in dropped

    file.write_text(f"{head}\n7,train,7,{label},Fear,.1,.8\n")  # as 0.1.0 wrote it
    for data in (None, "of-other-data"):
        if data:
            (tmp_path / "gallery-train.json").write_text(json.dumps({"data": data}))
        done = fer("doctor", troubled, "--suspects", file)
        assert done.returncode == 2
        assert f"fer-hpc evaluate RUN --split train --gallery --data {troubled}" in done.stderr
    (tmp_path / "gallery-train.json").write_text(json.dumps({"data": manifest.fingerprint}))
    assert fer("doctor", troubled, "--suspects", file).returncode == 3


def test_people_in_two_splits_are_found(
    fer: Fer, preprocess: Preprocess, affectnet: Path, tmp_path: Path
) -> None:
    preprocess("affectnet", tmp_path / "by-face", "--input", affectnet, "--split", "report")
    preprocess("affectnet", tmp_path / "by-person", "--input", affectnet, "--split", "person")
    leaky = fer("doctor", tmp_path / "by-face", "--json")
    assert counts(leaky.stdout)["people in both train and test"] > 0
    assert fer("doctor", tmp_path / "by-person").returncode == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "count"])
def test_damage_is_named(fer: Fer, shards: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    path = copy / "val-00000.h5"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-5])
    elif damage == "delete":
        path.unlink()
    else:
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["splits"]["val"]["class_counts"]["Neutral"] += 1
        (copy / "manifest.json").write_text(json.dumps(manifest))
    done = fer("doctor", copy, "--json")
    assert done.returncode == 3
    found = json.loads(done.stdout)["damage"]
    assert any("val" in line for line in found), found
    assert fer("doctor", copy, "--fix", tmp_path / "fixed").returncode == 2


def test_clean_data_is_called_clean(fer: Fer, shards: Path) -> None:
    done = fer("doctor", shards)
    assert done.returncode == 0, done.stdout
    assert "every shard has the checksum in the manifest" in done.stdout


def test_doctor_replaces_its_own_files_only(fer: Fer, troubled: Path, tmp_path: Path) -> None:
    table, picture, fixed = tmp_path / "a.csv", tmp_path / "a.png", tmp_path / "fixed"
    call = ("doctor", troubled, "--out", table, "--sheet", picture)
    for path in (table, picture):
        assert_kept(fer, path, *call)
    assert_kept(fer, fixed / "dropped.csv", "doctor", troubled, "--fix", fixed)
    for _ in range(2):
        assert fer(*call, "--fix", fixed).returncode == 3
