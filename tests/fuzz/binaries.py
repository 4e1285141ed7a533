"""Fuzz targets: annotations in arrays, Parquet files and archives."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hypothesis import strategies as st

from tests.fuzz.forms import of_file, picture, read_all
from tests.fuzz.guard import Fuzz, target
from tests.fuzz.inputs import BIG, CELLS, json_text, mutated

DTYPES = ["<f8", "<i4", "|u1", "<U3", "|S5", "|O", "<M8[s]", "|V7", "|b1", "<c16"]
headers = st.builds(
    lambda d, o, s: f"{{'descr': {d!r}, 'fortran_order': {o}, 'shape': {s}, }}",
    st.one_of(st.sampled_from(DTYPES), st.text(max_size=8), st.just([("a", "<f8")])),
    st.sampled_from(["False", "True", "[", "None"]),
    st.sampled_from(["()", "(1,)", "(136,)", "(7000000000000,)", "(-1,)", "(0,)", "(" * 200, BIG]),
)


def with_header(text: str, body: bytes) -> bytes:
    raw = text.encode("utf-8", "replace") + b"\n"
    return b"\x93NUMPY\x01\x00" + (len(raw) & 0xFFFF).to_bytes(2, "little") + raw + body


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_files(*good: np.ndarray) -> st.SearchStrategy[bytes]:
    made = st.builds(with_header, headers, st.binary(max_size=40))
    return st.one_of(made, st.binary(max_size=40), *(mutated(npy(each)) for each in good))


@target
def affectnet_npy(box: Path) -> Fuzz:
    root = box / "x/train_set"
    for i in range(3):
        picture(root / f"images/{i}.png")
        (root / "annotations").mkdir(exist_ok=True)
        np.save(root / f"annotations/{i}_exp.npy", np.array(str(i)))

    def parse(data: bytes) -> None:
        for kind in ("exp", "lnd", "val"):
            (root / f"annotations/1_{kind}.npy").write_bytes(data)
        read_all(box, "affectnet", box / "x")

    inputs = npy_files(np.arange(136.0), np.array("3"))
    return Fuzz(npy(np.array("3")), inputs, parse, (str(box / "x"),))


@target
def arrays(box: Path) -> Fuzz:
    (box / "x").mkdir()
    np.save(box / "x/X_train.npy", np.zeros((4, 8, 8), np.uint8))
    good = npy(np.eye(4))
    inputs = npy_files(np.arange(136.0), np.array("3"), np.eye(4))
    file = "x/y_train.npy"
    return of_file(box, "arrays", "x", file, good, inputs, classes="a,b,c,d")


def parquet_bytes(names: str = "") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = cv2.imencode(".png", np.full((20, 20), 9, np.uint8))[1].tobytes()
    labels = (0, 1) if names else ("sad", "happy")
    rows = [{"image": {"bytes": image, "path": "x"}, "label": labels[i % 2]} for i in range(4)]
    made = pa.Table.from_pylist(rows)
    if names:
        made = made.replace_schema_metadata({b"huggingface": names.encode("utf-8", "replace")})
    file = io.BytesIO()
    pq.write_table(made, file)
    return file.getvalue()


@target
def parquet(box: Path) -> Fuzz:
    good = parquet_bytes()
    return of_file(box, "parquet", "x", "x/train.parquet", good, mutated(good))


@target
def parquet_label_names(box: Path) -> Fuzz:
    info = {"info": {"features": {"label": {"names": ["sad", "happy"], "_type": "ClassLabel"}}}}
    inputs = json_text(info).map(parquet_bytes)
    good = parquet_bytes(json.dumps(info))
    return of_file(box, "parquet", "x", "x/train.parquet", good, inputs)


def tar_of(members: dict[str, bytes], mode: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w{mode}") as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items():
            z.writestr(name, data)
    return packed.getvalue()


def of_archive(box: Path, name: str, pack: Any) -> Fuzz:
    """An archive of class folders: its bytes changed, or its members' names."""
    image = picture(box / "x/1.png")
    good = pack({"happy/1.png": image, "sad/2.png": image})
    odd = st.sampled_from([c for c in CELLS if c and "\0" not in c and len(c) < 200])
    named = odd.map(lambda n: pack({"happy/1.png": image, "sad/2.png": image, n: image}))
    return of_file(box, "folder", name, name, good, st.one_of(mutated(good), named))


@target
def zip_archive(box: Path) -> Fuzz:
    return of_archive(box, "a.zip", zip_of)


@target
def tar_archive(box: Path) -> Fuzz:
    return of_archive(box, "a.tar", lambda members: tar_of(members, ""))


@target
def tar_gz_archive(box: Path) -> Fuzz:
    return of_archive(box, "a.tar.gz", lambda members: tar_of(members, ":gz"))
