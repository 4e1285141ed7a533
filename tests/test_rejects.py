"""Every kind of bad face at once, through the whole command.

Each is listed with its reason, and the others are kept.
"""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fer_hpc.data.shards import open_split, read_manifest
from tests.conftest import Fer, Preprocess

POINTS = np.stack([20 + 60 * np.cos(np.arange(68)) ** 2, 20 + 70 * np.sin(np.arange(68)) ** 2], 1)
GOOD = 40  # ordinary faces around the bad ones


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(seed: int = 0) -> Image.Image:
    rough = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8)
    return Image.fromarray(cv2.resize(rough, (100, 120)))


def huge_png() -> bytes:
    """A few bytes whose header claims 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def huge_jpeg() -> bytes:
    data = bytearray(saved(photo(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5  # the frame header: height and width follow
    data[at : at + 4] = struct.pack(">HH", 50_000, 50_000)
    return bytes(data)


JPEG = saved(photo(), "JPEG")
BAD_PICTURES = {  # stem: file content, reason
    "truncated": (JPEG[: len(JPEG) // 2], "truncated JPEG"),
    "empty": (b"", "empty file"),
    "text": (b"this is not a picture\n" * 50, "not an image"),
    "huge-png": (huge_png(), "picture too large"),
    "huge-jpeg": (huge_jpeg(), "picture too large"),
}
UNUSUAL_PICTURES = {  # kept: they are pictures
    "sixteen-bit": bytes(cv2.imencode(".png", np.asarray(photo()).astype(np.uint16) * 257)[1]),
    "palette": saved(photo().convert("P"), "PNG"),
    "cmyk": saved(photo().convert("CMYK"), "JPEG"),
}
BAD_LABELS = {
    "label-text": (np.array("glad"), "unreadable exp.npy annotation"),
    "label-11": (np.array("11"), "label 11, wanted 0 to 7"),
    "label-object": (np.array({"label": 1}, dtype=object), "unreadable exp.npy annotation"),
}
NAN = np.where(np.arange(68)[:, None] == 5, np.nan, POINTS)
BAD_POINTS = {
    "points-nan": (NAN, "landmarks are not finite"),
    "points-67": (POINTS[:67], "134 landmark numbers, wanted 136"),
    "points-object": (POINTS.astype(object), "unreadable lnd.npy annotation"),
}


def add(
    root: Path,
    stem: str,
    picture: bytes | None = JPEG,
    label: np.ndarray | None = None,
    points: np.ndarray = POINTS,
) -> None:
    images, annotations = root / "train_set" / "images", root / "train_set" / "annotations"
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(exist_ok=True)
    if picture is not None:
        (images / f"{stem}.jpg").write_bytes(picture)
    values = {
        "exp": np.array("3") if label is None else label,
        "lnd": points,
        "val": np.array("0.5"),
        "aro": np.array("-2"),
    }
    for kind, value in values.items():
        np.save(annotations / f"{stem}_{kind}.npy", value, allow_pickle=True)


def reasons(folder: Path) -> dict[str, str]:
    with (folder / "rejects.csv").open(newline="") as f:
        return {row["source_id"]: row["reason"] for row in csv.DictReader(f)}


@pytest.fixture(scope="module")
def zoo(preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards made from an AffectNet folder that holds every mishap among GOOD ordinary faces."""
    root = tmp_path_factory.mktemp("zoo")
    for i in range(GOOD):
        add(root / "faces", str(i), saved(photo(i), "JPEG"), np.array(str(i % 8)))
    for stem, (picture, _) in BAD_PICTURES.items():
        add(root / "faces", stem, picture)
    for stem, picture in UNUSUAL_PICTURES.items():
        add(root / "faces", stem, picture)
    for stem, (label, _) in BAD_LABELS.items():
        add(root / "faces", stem, label=label)
    for stem, (points, _) in BAD_POINTS.items():
        add(root / "faces", stem, points=points)
    add(root / "faces", "outside", points=POINTS + 5000)
    add(root / "faces", "no-picture", picture=None)
    flags = ("--split", "report", "--max-rejects", 0.4)
    done = preprocess("affectnet", root / "shards", "--input", root / "faces", *flags)
    assert done.returncode == 0, done.stderr
    return root / "shards"


BAD = {
    **{k: v[1] for k, v in (BAD_PICTURES | BAD_LABELS | BAD_POINTS).items()},
    "no-picture": "missing image",
}


@pytest.mark.parametrize("stem", BAD)
def test_it_is_rejected_with_its_reason(zoo: Path, stem: str) -> None:
    got = reasons(zoo)[f"train_set/{stem}"]
    assert got.startswith(BAD[stem])


def test_nothing_else_is_rejected_and_every_good_face_is_there(zoo: Path) -> None:
    assert set(reasons(zoo)) == {f"train_set/{stem}" for stem in BAD}
    manifest = read_manifest(zoo)
    ids = [
        i.decode()
        for s in ("train", "val", "test")
        for i in open_split(manifest, s).columns["source_id"]
    ]
    wanted = [*map(str, range(GOOD)), *UNUSUAL_PICTURES, "outside"]
    assert sorted(ids) == sorted(f"train_set/{stem}" for stem in wanted)
    assert (
        sum(manifest.content["rejects"]["reasons"].values())
        == manifest.content["rejects"]["n"]
        == len(BAD)
    )


def test_landmarks_outside_the_picture_take_all_of_it_and_are_counted(zoo: Path) -> None:
    assert json.loads((zoo / "manifest.json").read_text())["empty_boxes"] == 1


def test_above_the_stated_share_of_rejects_it_fails_and_keeps_the_list(fer: Fer, zoo: Path) -> None:
    faces = zoo.parent / "faces"
    out = zoo.parent / "strict"
    done = fer(
        "preprocess", "--source", "affectnet", "--input", faces, "--out", out, "--split", "report"
    )
    assert done.returncode == 2
    assert (
        f"{len(BAD)} of {len(BAD) + GOOD + 4} faces are unusable, over --max-rejects 0.05"
        in done.stderr
    )
    assert reasons(out) == reasons(zoo)
    assert not (out / "manifest.json").exists()


def test_no_path_in_a_table_leads_out_and_no_id_comes_twice(
    preprocess: Preprocess, tmp_path: Path
) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(GOOD):
        (root / f"{i}.jpg").write_bytes(saved(photo(i), "JPEG"))
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    lines = [f"{i}.jpg,10,10,90,110,{i % 8}" for i in range(GOOD)]
    lines += [
        f"{path},10,10,90,110,1"
        for path in ("../../etc/passwd", "../secret.jpg", "link.jpg", str(tmp_path / "secret.jpg"))
    ]
    lines += [
        "0.jpg,10,10,80,100,1",  # another face of the same picture
        "1.jpg,10,10,90,110,1",
        "1.jpg,10,10",
        "/data/of/another/machine/7.jpg,10,10,90,110,1",
    ]
    text = "image_path,x_min,y_min,x_max,y_max,expression\n" + "\n".join(lines) + "\n"
    (tmp_path / "table.csv").write_text(text)
    flags = ("--input", tmp_path / "table.csv", "--image-root", root, "--max-rejects", 0.5)
    done = preprocess("affectnet_csv", tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    got = reasons(tmp_path / "out")
    for path in ("../../etc/passwd", "../secret.jpg", "link.jpg"):
        assert got.pop(path) == "path leaves the image root"
    assert got.pop(str(tmp_path / "secret.jpg")) == "missing image"  # no such file below the root
    assert got.pop("/data/of/another/machine/7.jpg") == "missing image"  # not as other rows begin
    assert got.pop("1.jpg") == "duplicate row"
    assert list(got.values()) == ["3 columns, wanted 6"]


def test_where_every_face_is_broken_there_is_no_data_set(fer: Fer, tmp_path: Path) -> None:
    for name in ("happy", "sad"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for k in range(3):
            (tmp_path / "faces" / name / f"{k}.jpg").write_bytes(b"no picture")
    flags = ("--source", "folder", "--input", tmp_path / "faces", "--max-rejects", 1)
    done = fer("preprocess", *flags, "--out", tmp_path / "shards")
    assert done.returncode == 2
    assert "is usable; " in done.stderr and "rejects.csv has the reasons" in done.stderr
    assert not (tmp_path / "shards" / "manifest.json").exists()
