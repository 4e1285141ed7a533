"""Which class each label in the data means."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.classes import StatedClasses, map_classes, read_stated
from fer_hpc.data.readers.affectnet import NUMBERING
from fer_hpc.data.readers.arrays import Arrays
from fer_hpc.data.readers.folders import ClassFolders
from fer_hpc.data.readers.table import AffectNetCsv
from fer_hpc.data.shards import open_split, read_manifest
from tests.conftest import Fer

RAF_DB = "Surprise,Fear,Disgust,Happiness,Sadness,Anger,Neutral"  # its numbers 1 to 7


def photo(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (8, 8, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (48, 48)))


def class_of(labels: list[str], stated: str) -> dict[str, str]:
    return map_classes(dict.fromkeys(labels, 1), read_stated(stated), "--input x").class_of


def test_names_are_in_the_order_of_the_numbers_from_0_or_from_1() -> None:
    assert class_of(["2", "0"], "smile,frown,plain") == {"2": "plain", "0": "smile"}
    assert class_of(["3", "1"], "smile,frown,plain") == {"3": "plain", "1": "smile"}


def test_numbers_that_fit_both_counts_are_not_guessed() -> None:
    with pytest.raises(UserError, match="do not tell which is first; write a CSV file"):
        class_of(["1", "2"], "smile,frown,plain")


def test_labels_that_the_classes_do_not_mention_are_named() -> None:
    with pytest.raises(UserError, match=r"'4' \(1 face\)"):
        class_of(["1", "4", "3"], "smile,frown,plain")
    with pytest.raises(UserError, match="'laugh'"):
        class_of(["smile", "laugh"], "smile,frown")


def test_a_csv_file_maps_names_and_numbers_and_merges_classes(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    for header in ("", "label,class\n", "Name in the data, class name\n"):
        path.write_text(f"{header}1,calm\n2, calm\nbig laugh,joy\n")
        found = map_classes({"Big Laugh": 3, "2": 1}, read_stated(str(path)), "x")
        assert found.classes == ("calm", "joy")
        assert found.class_of == {"Big Laugh": "joy", "2": "calm"}
        stated = read_stated(str(path))
        path.write_text(path.read_text().replace(",", ";"))
        assert read_stated(str(path)) == stated


def test_a_header_of_any_words_above_numbers_is_no_class(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("what,meaning\n1,calm\n2,joy\n")
    assert read_stated(str(path)).table == {"1": "calm", "2": "joy"}


def test_known_names_keep_their_spelling_and_order() -> None:
    assert read_stated("happy,SAD,neutral").names == ("Happiness", "Sadness", "Neutral")
    assert read_stated("happy,neutral,calm").names == ("happy", "Neutral", "calm")
    found = map_classes({"7": 1, "1": 1}, read_stated(RAF_DB), "x")
    assert found.classes == CLASSES[:7]
    assert [found.classes[found.label(k)] for k in ("7", "1")] == ["Neutral", "Surprise"]


@pytest.mark.parametrize("text", ["one", "a,", "a,a", "a/b,c", "nowhere.csv", "a,b\x07"])
def test_classes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--classes"):
        read_stated(text)


def test_a_forms_own_numbers_need_no_flag_and_are_described() -> None:
    found = map_classes({"0": 5, "8": 1, "11": 1}, StatedClasses(), "x", NUMBERING, CLASSES)
    assert found.label("0") == 0
    assert found.label("8") == "label 8 (none)"
    assert found.label("11") == "label 11, wanted 0 to 7"
    assert "AffectNet's numbers): 0 = Neutral, 1 = Happiness" in found.describe()


def test_a_table_of_names_or_of_other_numbers(tmp_path: Path) -> None:
    photo(tmp_path / "1.jpg")
    photo(tmp_path / "2.jpg")
    head = "image_path,x_min,y_min,x_max,y_max,expression\n"
    table = tmp_path / "t.csv"
    table.write_text(head + "1.jpg,0,0,9,9,smile\n2.jpg,0,0,9,9,frown\n")
    with pytest.raises(UserError, match="--classes frown,smile"):
        AffectNetCsv(table).rows()
    source = AffectNetCsv(table, None, read_stated("smile,frown"))
    assert [source.classes[k] for k in source.rows().label] == ["smile", "frown"]
    table.write_text(head + "1.jpg,0,0,9,9,Happy\n2.jpg,0,0,9,9,sad\n")
    source = AffectNetCsv(table)
    assert [source.classes[k] for k in source.rows().label] == ["Happiness", "Sadness"]


def test_one_hot_columns_take_the_names_in_their_order(tmp_path: Path) -> None:
    np.save(tmp_path / "X_train.npy", np.zeros((6, 8, 8), np.uint8))
    np.save(tmp_path / "y_train.npy", np.eye(3)[np.arange(6) % 3])
    with pytest.raises(UserError, match="--classes NAME_OF_0,NAME_OF_1,NAME_OF_2"):
        Arrays(tmp_path)
    with pytest.raises(UserError, match="2 names for 3 one-hot columns"):
        Arrays(tmp_path, read_stated("a,b"))
    source = Arrays(tmp_path, read_stated("smile,frown,plain"))
    assert source.rows().label.tolist() == [0, 1, 2, 0, 1, 2]
    assert source.classes == ("smile", "frown", "plain")


def test_folder_names_after_numbers(tmp_path: Path) -> None:
    for name in ("0_smile", "1 frown"):
        photo(tmp_path / name / "x.jpg")
    source = ClassFolders(tmp_path, stated=read_stated("frown,smile"))
    rows = source.rows()
    assert {
        i.split("/")[0]: source.classes[k] for i, k in zip(rows.source_id, rows.label, strict=True)
    } == {
        "0_smile": "smile",
        "1 frown": "frown",
    }


@pytest.mark.long
def test_own_classes_from_folders_to_a_report(fer: Fer, tmp_path: Path) -> None:
    for i in range(120):
        photo(tmp_path / "faces" / f"{i % 3 + 1}" / f"{i}.png", i)
    arguments = ("--source", "folder", "--input", tmp_path / "faces", "--size", 32)
    refused = fer("preprocess", *arguments, "--out", tmp_path / "shards")
    assert refused.returncode == 2
    assert "--classes NAME_OF_1,NAME_OF_2,NAME_OF_3" in refused.stderr
    classes = ("--classes", "smile,frown,plain")
    done = fer("preprocess", *arguments, *classes, "--out", tmp_path / "shards")
    assert done.returncode == 0, done.stderr
    assert "1 = smile" in done.stdout
    manifest = read_manifest(tmp_path / "shards")
    assert manifest.classes == ("smile", "frown", "plain")
    assert manifest.content["class_map"] == {"1": "smile", "2": "frown", "3": "plain"}
    split = open_split(manifest, "val")
    for source_id, label in zip(split.columns["source_id"], split.columns["labels"], strict=True):
        assert int(source_id.decode()[0]) == label + 1
    other = fer("preprocess", *arguments, "--classes", "a,b,c", "--out", tmp_path / "shards")
    assert other.returncode == 2
    assert "other options" in other.stderr

    run = tmp_path / "run"
    speed = ("--epochs", 1, "--batch-size", 16, "--threads", 1, "--no-tensorboard")
    trained = fer("train", "cnn_baseline", "--data", tmp_path / "shards", "--run", run, *speed)
    assert trained.returncode == 0, trained.stderr
    scored = fer("evaluate", run, "--split", "test")
    assert scored.returncode == 0, scored.stderr
    reported = fer("report", run, "--out", tmp_path / "report")
    assert reported.returncode == 0, reported.stderr
    assert "frown" in (tmp_path / "report" / "index.html").read_text()
    gan = fer("train_gan", "--data", tmp_path / "shards", "--run", tmp_path / "gan")
    assert gan.returncode == 2
    assert "Neutral" in gan.stderr
    assert "Traceback" not in gan.stderr


def test_a_message_about_long_labels_stays_short() -> None:
    labels = {"7 " * 2000 + str(k): 1 for k in range(3)}
    with pytest.raises(UserError, match="--classes FILE") as error:
        map_classes(labels, StatedClasses(), "--input t.csv")
    assert len(str(error.value)) < 600
