"""CSV tables of faces: boxes, landmarks, paths, separators, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.data.faces import Reject, decode
from fer_hpc.data.readers.table import AffectNetCsv, generic_table
from fer_hpc.data.shards import read_manifest
from fer_hpc.data.tables import CsvTable, read_columns
from fer_hpc.data.tree import Tree
from tests.conftest import Fer, Preprocess
from tests.helpers.pictures import AFFECTNET, photo, table

POINTS = [[10 + i, 20 + i / 2] for i in range(68)]
OWN_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,"
    "facial_landmarks,expression,valence,arousal"
)


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
