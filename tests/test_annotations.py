from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.faces import Reject, decode
from fer_hpc.data.readers.affectnet import AffectNetFolder
from fer_hpc.data.readers.fer2013 import ORDER, Fer2013Csv

GRAY = " ".join(["7"] * 2304)


def fer_csv(folder: Path, text: str) -> Fer2013Csv:
    path = folder / "fer.csv"
    path.write_text(text)
    return Fer2013Csv(path, folder / "unpacked")


def test_fer2013_numbers_become_names_not_indices(tmp_path: Path) -> None:
    source = fer_csv(
        tmp_path, "emotion,pixels,Usage\n" + "".join(f"{k},{GRAY},Training\n" for k in range(7))
    )
    rows = source.rows()
    assert [source.classes[k] for k in rows.label] == list(ORDER)
    assert source.classes == CLASSES[:7]


@pytest.mark.parametrize(
    "header", ["emotion,pixels,Usage", "emotion, Usage, pixels", '"emotion","pixels","Usage"']
)
def test_fer2013_columns_in_any_order(tmp_path: Path, header: str) -> None:
    cells = {"emotion": "3", "pixels": f'"{GRAY}"', "Usage": "PublicTest"}
    line = ",".join(cells[name.strip().strip('"')] for name in header.split(","))
    source = fer_csv(tmp_path, f"{header}\n{line}\n")
    rows = source.rows()
    assert (rows.split, rows.label.tolist()) == (["val"], [CLASSES.index("Happiness")])
    assert (source.face(source.rows().locators[0]).pixels == 7).all()


def test_fer2013_gzip_reads_the_same_and_cleans_up(tmp_path: Path) -> None:
    packed = tmp_path / "fer.csv.gz"
    packed.write_bytes(gzip.compress(f"emotion,pixels,Usage\n0,{GRAY},PrivateTest\n".encode()))
    source = Fer2013Csv(packed, tmp_path / "unpacked")
    assert source.rows().split == ["test"]
    assert (source.face(source.rows().locators[0]).pixels == 7).all()
    source.close()
    assert [p.name for p in tmp_path.iterdir()] == ["fer.csv.gz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("emotion,pixels,Usage\n", "there are none in it"),
        ("a,b\n1,2\n", "no column 'emotion'"),
        ("emotion,pixels,Usage\n9,1 2,Training\n", "emotion '9', wanted 0 to 6"),
    ],
)
def test_fer2013_files_without_a_usable_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fer_csv(tmp_path, text).rows()


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        ("1 2 3", "3 pixels, wanted 2304"),
        (GRAY[:-1] + "x", "not whole numbers"),
        (GRAY[:-1] + "256", "outside 0 to 255"),
    ],
)
def test_fer2013_bad_pixels_are_rejected_with_the_reason(
    tmp_path: Path, pixels: str, reason: str
) -> None:
    source = fer_csv(tmp_path, f"emotion,pixels,Usage\n0,{pixels},Training\n")
    source.rows()
    with pytest.raises(Reject, match=reason):
        source.face(source.rows().locators[0])


def test_a_broken_gzip_is_one_clear_error(tmp_path: Path) -> None:
    packed = tmp_path / "fer.csv.gz"
    packed.write_bytes(gzip.compress(b"emotion,pixels,Usage\n" * 1000)[:60])
    with pytest.raises(UserError, match="is the download whole"):
        Fer2013Csv(packed, tmp_path / "unpacked")


def test_affectnet_folder_gives_what_was_drawn(affectnet: Path) -> None:
    from fer_hpc.data.synthetic.faces import draw_face

    source = AffectNetFolder(affectnet)
    rows = source.rows()
    assert rows.source_id[:3] == [
        "train_set/0",
        "train_set/1",
        "train_set/2",
    ]  # in the order of numbers
    assert rows.columns["group"][:7].tolist() == [0, 0, 0, 0, 0, 0, 1]
    drawn, read = draw_face(17), source.face(source.rows().locators[17])
    assert rows.label[17] == drawn.label
    assert read.valence == pytest.approx(drawn.valence, abs=1e-5)
    assert np.allclose(read.landmarks, drawn.landmarks)
    assert np.abs(decode(read.encoded, 3).astype(int) - drawn.image).mean() < 6  # a JPEG in between


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An AffectNet folder with one good face (0) and room for bad ones."""
    for name in ("images", "annotations"):
        (tmp_path / "train_set" / name).mkdir(parents=True)
    return add(tmp_path, "0", np.array("3"))


def add(root: Path, stem: str, label: np.ndarray | None, image: bytes = b"picture") -> Path:
    (root / "train_set" / "images" / f"{stem}.jpg").write_bytes(image)
    if label is not None:
        np.save(root / "train_set" / "annotations" / f"{stem}_exp.npy", label, allow_pickle=True)
    return root


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (np.array("8"), r"label 8 \(none\)"),
        (np.array(11), "label 11, wanted 0 to 7"),
        (np.array("happy"), "unreadable"),
        (np.array(1.5), "not a whole number"),
        (np.array([1, 2]), "not one number"),
        (np.array({"label": 1}, dtype=object), "unreadable"),  # would have to be unpickled
        (None, "no label"),
    ],
)
def test_affectnet_bad_labels_are_rejected_with_the_reason(
    broken: Path, label: np.ndarray | None, reason: str
) -> None:
    rows = AffectNetFolder(add(broken, "1", label)).rows()
    assert rows.source_id == ["train_set/0"]
    assert len(rows.rejects) == 1
    assert re.search(reason, rows.rejects[0][1])


def test_affectnet_label_forms_are_all_read(broken: Path) -> None:
    for stem, label in {
        "1": np.array("2"),
        "2": np.array(2),
        "3": np.array([2.0]),
        "4": np.array("2.0"),
    }.items():
        add(broken, stem, label)
    assert AffectNetFolder(broken).rows().label.tolist() == [3, 2, 2, 2, 2]


def test_affectnet_missing_folder_says_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        AffectNetFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="train_set/annotations"):
        AffectNetFolder(tmp_path)


def test_affectnet_val_set_becomes_the_test(broken: Path) -> None:
    for name in ("images", "annotations"):
        (broken / "val_set").mkdir(exist_ok=True)
        (broken / "train_set" / name).rename(broken / "val_set" / name)
        (broken / "train_set" / name).mkdir()
    add(broken, "5", np.array(0))
    assert AffectNetFolder(broken).rows().split == ["train", "test"]


def test_rows_without_usage_are_counted_and_train(tmp_path: Path) -> None:
    lines = [f"1,{GRAY},{usage}\n" for usage in ("Training", "", "PublicTest", "")]
    rows = fer_csv(tmp_path, "emotion,pixels,Usage\n" + "".join(lines)).rows()
    assert rows.split == ["train", "", "val", ""]
    assert rows.notes == ["2 rows with an empty Usage: counted as Training"]


def test_a_tar_archive_named_csv_gz_is_called_an_archive(tmp_path: Path) -> None:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("fer2013/fer2013.csv"))
    packed = tmp_path / "fer2013.csv.gz"
    packed.write_bytes(gzip.compress(buffer.getvalue()))
    with pytest.raises(UserError, match="a tar archive"):
        Fer2013Csv(packed, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
