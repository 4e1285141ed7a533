"""Class folders, arrays and a file of columns, and what each refuses."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.faces import Reject, decode
from fer_hpc.data.readers.arrays import Arrays
from fer_hpc.data.readers.fer2013 import FER2013_CLASSES
from fer_hpc.data.readers.folders import ClassFolders
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.tables import CsvTable, read_columns
from tests.conftest import Fer, Preprocess
from tests.helpers.pictures import AFFECTNET, photo, table

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
