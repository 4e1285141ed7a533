"""The forms of input beside AffectNet's folder and FER2013's CSV, and what each refuses."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.classes import read_stated
from fer_hpc.data.faces import Reject, decode
from fer_hpc.data.readers.arrays import Arrays
from fer_hpc.data.readers.fer2013 import FER2013_CLASSES
from fer_hpc.data.readers.folders import ClassFolders
from fer_hpc.data.readers.table import AffectNetCsv, generic_table
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.tables import CsvTable, read_columns
from fer_hpc.data.tree import Tree
from tests.conftest import Fer, Preprocess

AFFECTNET = read_stated("affectnet")
POINTS = [[10 + i, 20 + i / 2] for i in range(68)]
OWN_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,"
    "facial_landmarks,expression,valence,arousal"
)


def photo(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((120, 100, 3), value, np.uint8))
    return path


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


# ---- CSV tables


def test_the_reports_csv(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "1.jpg")
    line = f'images/1.jpg,4,0.25,-2,"{json.dumps(POINTS)}"'
    source = AffectNetCsv(
        table(tmp_path, f"image_path,expression,valence,arousal,landmarks\n{line}\n"), None
    )
    assert source.rows().label.tolist() == [4]
    face = source.face(source.rows().locators[0])
    assert np.allclose(face.landmarks, POINTS)
    assert face.valence == 0.25
    assert np.isnan(face.arousal)  # AffectNet's -2: none


def test_affectnets_own_csv(tmp_path: Path) -> None:
    photo(tmp_path / "12" / "a.jpg")
    points = ";".join(str(v) for point in POINTS for v in point)
    source = AffectNetCsv(
        table(
            tmp_path,
            f"{OWN_HEADER}\n12/a.jpg,1,2,50,60,{points},7,0.1,0.9\n"
            f"12/b.jpg,1,2,5,6,{points},9,0,0\n",
        ),
        None,
    )
    rows = source.rows()
    assert rows.label.tolist() == [7]
    assert rows.rejects == [("12/b.jpg", "label 9 (uncertain)")]
    assert np.allclose(source.face(source.rows().locators[0]).landmarks, POINTS)


def test_the_box_csv(tmp_path: Path) -> None:
    photo(tmp_path / "1.jpg")
    source = AffectNetCsv(
        table(tmp_path, "image_path,x_min,y_min,x_max,y_max,expression\n1.jpg,10,20,60,70.5,0\n"),
        None,
    )
    source.rows()
    assert source.face(source.rows().locators[0]).box == (10, 20, 60, 71)


@pytest.mark.parametrize(
    "path",
    [
        "/home/someone/data/train_set/images/1.jpg",
        r"C:\Users\x\data\train_set\images\1.jpg",
        "images/1.jpg",
        "./images/1.jpg",
    ],
)
def test_paths_of_another_machine_go_without_one_prefix(tmp_path: Path, path: str) -> None:
    photo(tmp_path / "train_set" / "images" / "1.jpg", 10)
    photo(tmp_path / "images" / "1.jpg", 200)  # a longer prefix would find this one
    source = AffectNetCsv(table(tmp_path, f"image_path,expression,landmarks\n{path},1,\n"))
    rows = source.rows()
    wanted = 10 if "train_set" in path else 200
    assert abs(decode(source.face(rows.locators[0]).encoded, 1)[0, 0] - wanted) < 3
    assert rows.source_id == [path]
    assert bool(rows.notes) == ("data" in path)  # the prefix is named


def test_the_prefix_is_the_same_for_all_rows(tmp_path: Path) -> None:
    for name in ("train_set/images/1.jpg", "images/1.jpg", "images/2.jpg"):
        photo(tmp_path / name)
    lines = [f"/x/{s}/images/{i}.jpg,1," for s in ("train_set", "val_set") for i in (1, 2)]
    text = "\n".join(["image_path,expression,landmarks", *lines])
    rows = AffectNetCsv(table(tmp_path, text)).rows()
    assert rows.source_id == ["/x/train_set/images/1.jpg"]
    assert {reason for _, reason in rows.rejects} == {"missing image"}


@pytest.mark.parametrize("theirs", ["val_set", "validation", "Test"])
def test_paths_of_one_split_find_no_pictures_of_another(tmp_path: Path, theirs: str) -> None:
    root = photo(tmp_path / "train_set" / "images" / "1.jpg").parent
    head = "image_path,expression,landmarks"
    wrong = table(tmp_path, f"{head}\n/home/me/affectnet/{theirs}/images/1.jpg,1,\n")
    with pytest.raises(UserError, match=f"path is in {theirs}, the image root in train_set"):
        AffectNetCsv(wrong, root).rows()
    right = table(tmp_path, f"{head}\n/home/me/affectnet/train_set/images/1.jpg,1,\n")
    assert len(AffectNetCsv(right, root).rows().label) == 1


def test_boxes_in_shares_of_the_picture_are_rejected(tmp_path: Path) -> None:
    photo(tmp_path / "1.jpg")
    head = "image_path,x_min,y_min,x_max,y_max,expression"
    source = AffectNetCsv(table(tmp_path, f"{head}\n1.jpg,0.1,0.1,0.9,0.9,0\n"))
    with pytest.raises(Reject, match="shares of the picture, wanted pixels"):
        source.face(source.rows().locators[0])


def test_boxes_given_as_width_and_height_stop_at_the_limit(fer: Fer, tmp_path: Path) -> None:
    lines = ["image_path,x_min,y_min,x_max,y_max,expression"]
    for i in range(20):
        photo(tmp_path / f"{i}.png", 10 * i)
        lines.append(f"{i}.png,60,60,30,30,{i % 2}")
    source = ("--source", "affectnet_csv", "--input", table(tmp_path, "\n".join(lines)))
    done = fer("preprocess", *source, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "20 of 20 faces: box or landmarks outside the picture" in done.stderr


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "images/../../secret.jpg",
        "/etc/passwd",
        r"..\secret.jpg",
        "link/secret.jpg",
        "",
    ],
)
def test_no_path_in_a_table_leads_out_of_the_root(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    photo(root / "images" / "1.jpg")
    photo(tmp_path / "secret.jpg")
    (root / "link").symlink_to(tmp_path)
    text = f"image_path,expression,landmarks\nimages/1.jpg,1,\n{path},1,\n"
    rejects = AffectNetCsv(table(tmp_path, text), root).rows().rejects
    assert len(rejects) == 1
    assert re.search(r"leaves the image root|missing image|empty path", rejects[0][1])


@pytest.mark.parametrize(
    ("landmarks", "reason"),
    [
        (json.dumps(POINTS[:60]), "120 landmark numbers"),
        (json.dumps([[float("nan"), 1.0], *POINTS[1:]]), "not finite"),
        ("[[1, 2], [3", "not a list of points"),
        ("1;2;x", "not a list of points"),
    ],
)
def test_bad_landmarks_are_rejected_with_the_reason(
    tmp_path: Path, landmarks: str, reason: str
) -> None:
    photo(tmp_path / "1.jpg")
    source = AffectNetCsv(
        table(tmp_path, f'image_path,expression,landmarks\n1.jpg,1,"{landmarks}"\n'), None
    )
    source.rows()
    with pytest.raises(Reject, match=reason):
        source.face(source.rows().locators[0])


def test_a_picture_may_have_several_faces_but_no_row_occurs_twice(tmp_path: Path) -> None:
    photo(tmp_path / "1.jpg")
    head = "image_path,expression,x_min,y_min,x_max,y_max"
    lines = ["1.jpg,1,0,0,50,50", "1.jpg,2,50,0,99,50", "1.jpg,1,0,0,50,50"]
    rows = AffectNetCsv(table(tmp_path, "\n".join([head, *lines])), None).rows()
    assert (rows.source_id, rows.label.tolist()) == (["1.jpg", "1.jpg#2"], [1, 2])
    assert rows.rejects == [("1.jpg", "duplicate row")]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image_path,landmarks", "no column 'expression'"),
        ("image_path,expression", "neither landmarks nor x_min"),
        ("", "the file is empty"),
    ],
)
def test_a_table_without_its_columns_says_what_was_wanted(
    tmp_path: Path, header: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        AffectNetCsv(table(tmp_path, f"{header}\n"), None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1\x15\x04\x15\x80\n\x00", "a Parquet file"),
        (b"PK\x03\x04\x14\x00\n", "a ZIP archive"),
        (b"\x1f\x8b\x08\x00\n", "a gzip file"),
        (b"a,b\x00\x01\n", "binary data"),
        ("image_path,expression\n".encode("utf-16"), "UTF-16"),
        (b"image_path,expression,landmarks\r1.jpg,1,\r", "carriage returns only"),
    ],
)
def test_a_file_that_is_no_csv_is_called_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        AffectNetCsv(path)
    assert str(caught.value).isprintable()


def test_a_line_break_in_quotes_belongs_to_its_row(tmp_path: Path) -> None:
    for i in range(6):
        photo(tmp_path / f"{i}.jpg")
    lines = ['"0.jpg","1","line\nbreak"', '1.jpg,1,"a ""word""\n\n,2.jpg\r\n"', "2.jpg,2,"]
    lines += ['3.jpg,2,5" tall', '4.jpg,2,"not closed', '"5.jpg","3","good"', '2.jpg,2,"x']
    text = "\n".join(["image_path,expression,note", *lines])
    source = generic_table([(CsvTable(table(tmp_path, text)), "")], Tree(tmp_path), AFFECTNET)
    rows = source.rows()
    assert rows.source_id == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "2.jpg#2"]
    assert [source.table.line(at[1])["image_path"] for at in rows.locators] == [
        name.partition("#")[0] for name in rows.source_id
    ]
    assert source.table.line(rows.locators[1][1])["note"] == 'a "word"\n\n,2.jpg'
    assert len(source.table.sample(100)) == 7


def test_an_open_quote_takes_no_good_row_away_and_little_memory(tmp_path: Path) -> None:
    good = '"a.jpg","1","x"\n' * 100_000
    file = table(tmp_path, f'path,label,note\n"b.jpg,1,x\n{good}')
    kinds = [isinstance(line, str) for _, line in CsvTable(file)]
    assert (kinds[0], len(kinds), sum(kinds)) == (True, 100_001, 1)


@pytest.mark.parametrize("separator, name", [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_separated_by_other_characters_is_read_and_said(
    tmp_path: Path, separator: str, name: str
) -> None:
    photo(tmp_path / "1.jpg")
    text = 'image_path,expression,note\n1.jpg,3,"a,b"\n'.replace(",", separator)
    text = text.replace(f"a{separator}b", "a,b")
    source = generic_table([(CsvTable(table(tmp_path, text)), "")], Tree(tmp_path), AFFECTNET)
    rows = source.rows()
    assert rows.label.tolist() == [3]
    assert rows.notes == [f"table.csv is separated by {name}"]
    notes: list[str] = []
    columns = table(tmp_path, f"source_id{separator}age\na{separator}30\n")
    assert read_columns(columns, ["a"], notes)["age"].tolist() == [30]
    assert notes == [f"table.csv is separated by {name}"]


def test_a_stray_carriage_return_rejects_its_line_only(tmp_path: Path) -> None:
    photo(tmp_path / "1.jpg")
    path = table(tmp_path, "")
    path.write_bytes(b"image_path,expression,landmarks\n1.jpg,1,\n2\r.jpg,2,\n")
    rows = AffectNetCsv(path).rows()
    assert rows.source_id == ["1.jpg"]
    assert rows.rejects[0][1].startswith("not a line of CSV")


def test_landmarks_outside_the_picture_fall_back_to_all_of_it(
    preprocess: Preprocess, tmp_path: Path
) -> None:
    lines = ["image_path,expression,landmarks"]
    for i in range(20):
        photo(tmp_path / f"{i}.png", 10 * i)
        points = [[x + (500 if i == 3 else 0), y] for x, y in POINTS]
        lines.append(f'{i}.png,{i % 2},"{json.dumps(points)}"')
    done = preprocess(
        "affectnet_csv", tmp_path / "out", "--input", table(tmp_path, "\n".join(lines))
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest.content["empty_boxes"] == 1
    assert manifest.content["rejects"]["n"] == 0


# ---- class folders


def test_class_folders_go_by_name(tmp_path: Path) -> None:
    for i, name in enumerate(("angry", "Happy", "3 fear")):
        photo(tmp_path / name / f"{i}.jpg")
    source = ClassFolders(tmp_path)
    rows = source.rows()
    assert source.classes == ("Happiness", "Fear", "Anger")
    assert {rows.source_id[i]: source.classes[k] for i, k in enumerate(rows.label)} == {
        "angry/0.jpg": "Anger",
        "Happy/1.jpg": "Happiness",
        "3 fear/2.jpg": "Fear",
    }
    assert set(rows.split) == {""}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "test"), {"train", "test"}),
        (("train", "test-public", "test-private"), {"train", "val", "test"}),
    ],
)
def test_fer2013_folder_forms(tmp_path: Path, folders: tuple[str, ...], splits: set[str]) -> None:
    for folder in folders:
        photo(tmp_path / folder / "2 fear" / "fear-000001.png")
    rows = ClassFolders(tmp_path, FER2013_CLASSES).rows()
    assert set(rows.split) == splits
    assert bool(rows.notes) == (len(folders) == 2)  # the merged test is noted


def test_a_folder_that_is_no_expression_is_refused_with_the_flag_to_write(tmp_path: Path) -> None:
    photo(tmp_path / "angry" / "1.jpg")
    photo(tmp_path / "smile" / "1.jpg")
    with pytest.raises(
        UserError, match=r"'smile': not named after an expression.*--classes angry,smile"
    ):
        ClassFolders(tmp_path).rows()


def test_numbered_folders_are_refused_with_the_flag_to_write(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        photo(tmp_path / name / "1.jpg")
    with pytest.raises(UserError, match="--classes NAME_OF_1,NAME_OF_2,NAME_OF_3"):
        ClassFolders(tmp_path).rows()


def test_files_that_are_not_read_are_counted(tmp_path: Path) -> None:
    for path in ("angry/1.jpg", "sad/2.png", "angry/.ipynb_checkpoints/1.jpg", ".cache/3.jpg"):
        photo(tmp_path / path)
    for path in ("angry/4.heic", "angry/5.heic", "sad/6.mp4", "sad/notes.txt", "labels.csv"):
        (tmp_path / path).write_bytes(b"x")
    (tmp_path / "sad" / "linked").symlink_to(tmp_path / "angry")
    rows = ClassFolders(tmp_path).rows()
    assert sorted(rows.source_id) == ["angry/1.jpg", "sad/2.png"]
    kinds = {reason: kind.n for reason, kind in rows.ignored.kinds.items()}
    wanted = {".heic files": 2, ".mp4 files": 1, ".txt files": 1, ".csv files": 1}
    assert kinds == wanted | {"hidden": 2, "linked folders": 1}
    assert rows.ignored.limited == 3  # the HEICs and the link


def test_class_folders_take_what_the_decoder_reads(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "bmp", "tif", "tiff", "webp", "PNG"):
        photo(tmp_path / "angry" / f"{suffix}.{suffix}")
    photo(tmp_path / "sad" / "1.png")
    source = ClassFolders(tmp_path)
    rows = source.rows()
    assert len(rows.source_id) == 8
    assert not rows.notes
    assert not rows.ignored.total
    for locator in rows.locators:
        assert decode(source.face(locator).encoded, 1).shape == (120, 100)


@pytest.mark.parametrize("other", ["eval", "dev", "test_set", "holdout"])
def test_pictures_beside_the_split_folders_are_never_dropped(tmp_path: Path, other: str) -> None:
    photo(tmp_path / "train" / "angry" / "1.jpg")
    photo(tmp_path / other / "angry" / "1.jpg")
    with pytest.raises(UserError, match=f"{other}/ holds pictures beside train/"):
        ClassFolders(tmp_path).rows()


def test_a_file_name_that_is_not_utf8_is_read_under_an_escaped_id(tmp_path: Path) -> None:
    picture = photo(tmp_path / "angry" / "1.jpg")
    picture.rename(os.fsdecode(os.fsencode(tmp_path) + b"/angry/caf\xe9.jpg"))
    photo(tmp_path / "sad" / "2.jpg")
    source = ClassFolders(tmp_path)
    rows = source.rows()
    assert sorted(rows.source_id) == [r"angry/caf\xe9.jpg", "sad/2.jpg"]
    rows.source_id[0].encode()
    assert source.face(rows.locators[rows.source_id.index(r"angry/caf\xe9.jpg")]).encoded


def test_what_is_no_ordinary_file_is_a_reject_not_a_hang(tmp_path: Path) -> None:
    photo(tmp_path / "angry" / "1.jpg")
    photo(tmp_path / "sad" / "1.jpg")
    os.mkfifo(tmp_path / "angry" / "pipe.png")
    (tmp_path / "angry" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    reasons = dict(ClassFolders(tmp_path).rows().rejects)
    assert reasons["angry/pipe.png"] == "not an ordinary file"
    assert reasons["angry/dangling.jpg"].startswith("unreadable image")


def test_mixed_order_keeps_classes_apart_from_shards(tmp_path: Path) -> None:
    for i in range(30):
        photo(tmp_path / ("angry" if i < 15 else "sad") / f"{i}.png")
    labels = ClassFolders(tmp_path).rows().label
    assert (np.diff(labels) != 0).sum() > 5


# ---- arrays


def arrays(folder: Path, splits: tuple[str, ...] = ("train", "val", "test"), n: int = 40) -> Path:
    rng = np.random.default_rng(0)
    for split in splits:
        np.save(folder / f"X_{split}.npy", rng.integers(0, 256, (n, 48, 48, 1)) / 255)
        np.save(folder / f"y_{split}.npy", np.eye(8)[np.arange(n) % 8])
    return folder


def test_arrays_become_bytes_exactly(tmp_path: Path) -> None:
    sent = pickle.dumps(Arrays(arrays(tmp_path), AFFECTNET))  # to a worker process
    source = pickle.loads(sent)  # noqa: S301
    rows = source.rows()
    assert (rows.split[0], rows.split[40], rows.split[80]) == ("train", "val", "test")
    assert rows.label[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    stored = np.load(tmp_path / "X_val.npy")[5, ..., 0]
    assert (source.face(source.rows().locators[45]).pixels / 255 == stored).all()


def test_arrays_are_not_sent_whole_to_a_worker(tmp_path: Path) -> None:
    assert len(pickle.dumps(Arrays(arrays(tmp_path), AFFECTNET))) < 10_000


def test_arrays_without_val_get_it_cut_from_train(fer: Fer, tmp_path: Path) -> None:
    arrays(tmp_path, ("train", "test"))
    source = ("--source", "arrays", "--input", tmp_path, "--classes", "affectnet")
    done = fer("preprocess", *source, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert [manifest.n(s) for s in ("train", "val", "test")] == [32, 8, 40]
    assert open_split(manifest, "test").columns["source_id"][3] == b"test/3"


def test_arrays_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    arrays(tmp_path)
    y = np.load(tmp_path / "y_train.npy")
    y[3] = 0.125
    np.save(tmp_path / "y_train.npy", y)
    x = np.load(tmp_path / "X_train.npy")
    x[4, 0, 0] = 1.5
    np.save(tmp_path / "X_train.npy", x)
    source = Arrays(tmp_path, AFFECTNET)
    assert source.rows().rejects == [("train/3", "label is not one-hot")]
    with pytest.raises(Reject, match="outside 0 to 1"):
        source.face(source.rows().locators[3])
    np.save(tmp_path / "y_train.npy", np.array([{}] * 40, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="never unpickled"):
        Arrays(tmp_path, AFFECTNET)
    (tmp_path / "y_train.npy").unlink()
    with pytest.raises(UserError, match=r"y_train\.npy is missing"):
        Arrays(tmp_path, AFFECTNET)


# ---- a column file


def test_columns_join_by_source_id_for_any_type(tmp_path: Path) -> None:
    path = table(tmp_path, "source_id,age,weight,note\nb,30,1.5,glasses\na,,,\n")
    notes: list[str] = []
    columns = read_columns(path, ["a", "b", "c"], notes)
    assert not notes
    assert columns["age"].tolist() == [-1, 30, -1]
    assert np.array_equal(
        columns["weight"], np.array([np.nan, 1.5, np.nan], np.float32), equal_nan=True
    )
    assert columns["note"].tolist() == ["", "glasses", ""]
    with pytest.raises(UserError, match="these look like 'x'"):
        read_columns(path, ["x"], notes)
    read_columns(path, ["b"], notes)
    assert notes == [f"--columns {path}: 1 row of no face here, for example a"]


@pytest.mark.parametrize(
    "lines, words",
    [
        ("source_id,age,age\na,1,2\n", "column 'age' twice"),
        ("source_id,age\na,1\na,2\n", "two rows of 'a' that differ"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(
    tmp_path: Path, lines: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        read_columns(table(tmp_path, lines), ["a"], [])
    with pytest.raises(UserError, match="column 'label' twice; rename or delete one"):
        CsvTable(table(tmp_path, "path,Label,label\na,1,2\n"))


def test_columns_land_in_the_shards(
    preprocess: Preprocess, affectnet: Path, tmp_path: Path
) -> None:
    import h5py

    lines = [
        "source_id,age,ethnicity",
        *(f"train_set/{i},{20 + i},group {i % 3}" for i in range(60)),
    ]
    path = table(tmp_path, "\n".join(lines))
    done = preprocess("affectnet", tmp_path / "out", "--input", affectnet, "--columns", path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "out" / "train-00000.h5") as f:
        numbers = [int(i.decode().split("/")[1]) for i in f["source_id"][()]]
        assert f["columns/age"][()].tolist() == [20 + n for n in numbers]
        assert [v.decode() for v in f["columns/ethnicity"][()]] == [
            f"group {n % 3}" for n in numbers
        ]
    assert read_manifest(tmp_path / "out").classes == CLASSES
