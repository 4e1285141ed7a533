"""Fuzz targets: annotations of all forms of data that preprocess reads."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hypothesis import strategies as st

from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import faces
from fer_hpc.data.detect import detect
from fer_hpc.data.plan import make_plan
from fer_hpc.data.sources import open_source, source_spec
from tests.fuzz.guard import Fuzz, target
from tests.fuzz.inputs import line, lines, mutated, table


def read_all(box: Path, source: str, path: Path, **flags: Any) -> None:
    """List an input and read its faces, as preprocess does."""
    config = PreprocessConfig(source=source, input=path, out=box / "out", split="test", **flags)
    spec = source_spec(source)
    with open_source(spec, config) as opened:
        plan = make_plan(config, spec, opened)
        for locator in plan.rows.locators[:20]:
            try:
                face = opened.face(locator)
                if face.encoded is not None:
                    faces.decode(face.encoded, 1)
            except faces.Reject:
                pass


def picture(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(".png", np.full((20, 20), 9, np.uint8))[1].tobytes()
    path.write_bytes(data)
    return data


def of_file(
    box: Path, source: str, root: str, file: str, good: bytes, inputs: Any, **flags: Any
) -> Fuzz:
    """A form of data in `root` of which the content of one file varies."""
    path = box / file
    path.parent.mkdir(parents=True, exist_ok=True)

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read_all(box, source, box / root, **flags)

    return Fuzz(good, inputs, parse, (path.name, str(box / root)))


def of_table(box: Path, source: str, head: str, good: list[str], **flags: Any) -> Fuzz:
    for name in ("1.png", "2.png"):
        picture(box / name)
    whole = "\n".join([head, *good]).encode()
    return of_file(box, source, "t.csv", "t.csv", whole, table(head, good), **flags)


# ---- tables --------------------------------------------------------------------------------------


@target
def affectnet_csv(box: Path) -> Fuzz:
    head = "image_path,expression,valence,arousal,landmarks"
    return of_table(box, "affectnet_csv", head, ["1.png,1,0.5,0.5,", "2.png,2,,,"])


OWN_HEAD = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
    "expression,valence,arousal"
)
POINTS = ";".join(str(i % 19) for i in range(136))
OWN_LINES = [f"1.png,0,0,9,9,{POINTS},1,0.5,0.5", f"2.png,0,0,9,9,{POINTS},0,-2,-2"]


@target
def affectnet_pair(box: Path) -> Fuzz:
    for name in ("1.png", "2.png"):
        picture(box / "x" / name)
    good = "\n".join([OWN_HEAD, *OWN_LINES]).encode()
    (box / "x/training.csv").write_bytes(good)
    inputs = table(OWN_HEAD, OWN_LINES)
    return of_file(box, "affectnet_csv", "x", "x/validation.csv", good, inputs)


@target
def generic_table(box: Path) -> Fuzz:
    head = "path,label,split,x_min,y_min,x_max,y_max,group"
    good = ["1.png,happy,train,0,0,9,9,S1", "2.png,sad,test,1,1,8,8,"]
    return of_table(box, "table", head, good)


@target
def fer2013(box: Path) -> Fuzz:
    good = [f"{k},{' '.join(['7'] * 2304)},Training" for k in range(4)]
    return of_table(box, "fer2013", "emotion,pixels,Usage", good)


@target
def fer2013_csv_gz(box: Path) -> Fuzz:
    good = [f"{k},{' '.join(['7'] * 2304)},Training" for k in range(4)]
    packed = gzip.compress("\n".join(["emotion,pixels,Usage", *good]).encode())
    return of_file(box, "fer2013", "f.csv.gz", "f.csv.gz", packed, mutated(packed))


@target
def labels_beside_folders(box: Path) -> Fuzz:
    for name in ("happy/1.png", "sad/2.png"):
        picture(box / "x" / name)
    head, good = "path,label", ["happy/1.png,happy", "2.png,fear"]
    whole = "\n".join([head, *good]).encode()
    return of_file(box, "folder", "x", "x/labels.csv", whole, table(head, good))


@target
def rafdb_folders(box: Path) -> Fuzz:
    for k in range(1, 8):
        picture(box / f"x/DATASET/train/{k}/train_{k}_aligned.png")
    head, good = "image,label", ["train_1_aligned.png,1", "train_2_aligned.png,3"]
    whole = "\n".join([head, *good]).encode()
    return of_file(box, "rafdb", "x", "x/train_labels.csv", whole, table(head, good))


@target
def ferplus_votes(box: Path) -> Fuzz:
    head = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt"
    head += ",unknown,NF"
    good = [f"Training,fer000{k}.png,9,0,0,0,0,0,0,0,1,0" for k in range(3)]
    pixels = " ".join(["7"] * 2304)
    rows = "".join(f"{k},{pixels},Training\n" for k in range(3))
    (box / "x").mkdir()
    (box / "x/fer2013.csv").write_text(f"emotion,pixels,Usage\n{rows}")
    whole = "\n".join([head, *good]).encode()
    inputs = table(head, good)
    return of_file(box, "ferplus", "x", "x/fer2013new.csv", whole, inputs, labels="distribution")


# ---- lists of labels -----------------------------------------------------------------------------


def of_list(box: Path, source: str, folder: str, file: str, good: str, **flags: Any) -> Fuzz:
    for i in range(3):
        picture(box / f"x/{folder}/train_{i}_aligned.png")
    separator = "," if file.endswith(".csv") else " "
    inputs = lines([good], separator)
    return of_file(box, source, "x", f"x/{file}", good.encode(), inputs, **flags)


@target
def expw(box: Path) -> Fuzz:
    return of_list(box, "expw", "image", "label.lst", "train_1_aligned.png 0 1 1 9 9 4.5 3")


@target
def rafdb_list(box: Path) -> Fuzz:
    file = "EmoLabel/list_patition_label.txt"
    return of_list(box, "rafdb", "Image/aligned", file, "train_1.png 5")


@target
def yolo_labels(box: Path) -> Fuzz:
    file = "train/labels/train_1_aligned.txt"
    flags = {"classes": "happy,sad"}
    return of_list(box, "yolo", "train/images", file, "0 0.5 0.5 0.2 0.2", **flags)


@target
def yolo_names(box: Path) -> Fuzz:
    picture(box / "x/train/images/1.png")
    (box / "x/train/labels").mkdir()
    (box / "x/train/labels/1.txt").write_text("1 0.5 0.5 0.2 0.2")
    good = ["names: [happy, sad]", "nc: 2"]
    whole = "\n".join(good).encode()
    block = lines(["names:", "- happy", "- sad"])
    inputs = st.one_of(lines(good), block, mutated(whole))
    return of_file(box, "yolo", "x", "x/data.yaml", whole, inputs)


@target
def ferplus_list(box: Path) -> Fuzz:
    good = 'train_1_aligned.png,"(0, 0, 48, 48)",9,0,0,0,0,0,0,0,0,0'
    return of_list(box, "ferplus", "FER2013Train", "FER2013Train/label.csv", good)


@target
def ckplus_emotions(box: Path) -> Fuzz:
    for k in range(1, 5):
        picture(box / f"x/cohn-kanade-images/S005/001/S005_001_{k:08d}.png")
    file = "x/Emotion/S005/001/S005_001_00000004_emotion.txt"
    return of_file(box, "ckplus", "x", file, b"   3.0000000e+00\n", lines(["   3.0000000e+00"]))


@target
def names_of_files(box: Path) -> Fuzz:
    """JAFFE, KDEF, class folders and what auto makes of them: nothing but names."""
    pieces = ["KA.AN1.39", "AF01ANS", "AM31HAFL", "train", "happy", "S005_001_00000004", "1", "é"]
    part = st.lists(st.sampled_from([*pieces, "x" * 200, "\u202e", "~", " "]), max_size=2)
    name = st.lists(part.map("".join).filter(bool), min_size=1, max_size=3).map("/".join)
    suffix = st.sampled_from([".png", ".tiff", ".JPG", ".txt", ""])

    def parse(given: tuple[str, list[tuple[str, str]]]) -> None:
        source, names = given
        with zipfile.ZipFile(box / "a.zip", "w") as packed:
            for each in dict.fromkeys(each + end for each, end in names):
                packed.writestr(each, b"")
        if source == "auto":
            detect(box / "a.zip", box / "scratch", False)
        else:
            read_all(box, source, box / "a.zip")

    good = ("folder", [("happy/1", ".png"), ("sad/2", ".png"), ("fear/KA.AN1.39", ".tiff")])
    sources = st.sampled_from(["auto", "jaffe", "kdef", "folder", "ckplus"])
    inputs = st.tuples(sources, st.lists(st.tuples(name, suffix), max_size=5))
    return Fuzz(good, inputs, parse, ("a.zip",))


@target
def any_file_with_auto(box: Path) -> Fuzz:
    path = box / "x.csv"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        detect(path, box / "scratch", False)

    inputs = st.one_of(line.map(str.encode), st.binary(max_size=80))
    return Fuzz(b"path,label\n", inputs, parse, ("x.csv",))
