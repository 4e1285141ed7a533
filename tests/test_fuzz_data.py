"""Whatever bytes a data set holds: a result, a reject or one message; no traceback, no hang.

100 inputs a parser, 2,000 in `make test-long`.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import faces, shards
from fer_hpc.data.audit import audit
from fer_hpc.data.classes import read_stated
from fer_hpc.data.detect import detect
from fer_hpc.data.doctor import verify
from fer_hpc.data.plan import make_plan
from fer_hpc.data.sources import open_source, source_spec
from fer_hpc.data.tables import read_columns
from fer_hpc.files import sha256

FEW, MANY = 100, 2000
COUNTS = [FEW, pytest.param(MANY, marks=[pytest.mark.long, pytest.mark.slow])]
BIG = "9" * 5000
CELLS = ["", "0", "1.0", "nan", "-1e39", BIG, "\r", '"', "é", "[[1,2]]", "[" * 3000, "a/b.png"]
CELLS += [
    "x" * 300,
    "../../etc/passwd",
    "1;2;3",
    "Training",
    "\0",
    "99999999999999999999",
    "\u202e",
]

cell = st.one_of(st.sampled_from(CELLS), st.text(max_size=12))
line = st.lists(cell, min_size=1, max_size=9).map(",".join)


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """The bytes of a good file: cut, with other bytes in it, or with bytes twice."""

    def change(data: bytes, at: int, how: int, piece: bytes) -> bytes:
        at %= len(data) + 1
        if how == 0:
            return data[:at]
        if how == 1:
            return data[:at] + piece + data[at + len(piece) :]
        return data[:at] + piece + data[at:]

    step = st.tuples(st.integers(0, 1 << 20), st.integers(0, 2), st.binary(max_size=6))

    def all_of(steps: list[tuple[int, int, bytes]]) -> bytes:
        data = good
        for at, how, piece in steps:
            data = change(data, at, how, piece)
        return data

    return st.lists(step, min_size=1, max_size=4).map(all_of)


def run(count: int, inputs: st.SearchStrategy[bytes], parse: Callable[[bytes], object]) -> None:
    """Parse `count` inputs; anything but a result, a Reject and a UserError fails."""

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(data: bytes) -> None:
        try:
            parse(data)
        except (UserError, faces.Reject) as error:
            assert str(error)
            assert "\n" not in str(error)

    one()


def read_all(tmp_path: Path, source: str, path: Path, **flags: object) -> None:
    """List an input and read its faces, as preprocess does."""
    config = PreprocessConfig(source=source, input=path, out=tmp_path / "out", **flags)
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


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


HEADS = {
    "affectnet_csv": "image_path,expression,valence,arousal,landmarks",
    "table": "path,label,split,x_min,y_min,x_max,y_max,group",
    "fer2013": "emotion,pixels,Usage",
}
GOOD_LINES = {
    "affectnet_csv": ["1.png,1,0.5,0.5,", "2.png,2,,,"],
    "table": ["1.png,happy,train,0,0,9,9,S1", "2.png,sad,test,1,1,8,8,"],
    "fer2013": [f"{k},{' '.join(['7'] * 2304)},Training" for k in range(4)],
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("source", HEADS)
def test_tables(tmp_path: Path, source: str, count: int) -> None:
    for name in ("1.png", "2.png"):
        picture(tmp_path / name)
    path = tmp_path / "t.csv"
    head, good = HEADS[source], GOOD_LINES[source]
    whole = "\n".join([head, *good]).encode()
    rows = st.lists(line, max_size=4).map(lambda x: "\n".join([head, *good, *x]).encode())
    swapped = line.map(lambda x: f"{x}\n{good[0]}\n".encode())

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read_all(tmp_path, source, path, split="test", max_rejects=1)

    run(count, st.one_of(rows, swapped, mutated(whole), st.binary(max_size=60)), parse)


@pytest.mark.parametrize("count", COUNTS)
def test_packed_tables_and_archives(tmp_path: Path, count: int) -> None:
    table = "\n".join([HEADS["fer2013"], *GOOD_LINES["fer2013"]]).encode()
    good = picture(tmp_path / "x" / "1.png")
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("happy/1.png", good)
        z.writestr("sad/2.png", good)
    with tarfile.open(fileobj=tarred, mode="w:gz") as t:
        for name in ("happy/1.png", "sad/2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(good)
            t.addfile(info, io.BytesIO(good))
    plain = gzip.decompress(tarred.getvalue())
    kinds = {
        "fer2013": (gzip.compress(table), "f.csv.gz"),
        "folder": (zipped.getvalue(), "a.zip"),
    }
    for source, (data, name) in kinds.items():
        run_archive(tmp_path, count, data, source, name)
    run_archive(tmp_path, count, tarred.getvalue(), "folder", "a.tar.gz")
    run_archive(tmp_path, count, plain, "folder", "b.tar")


def run_archive(tmp_path: Path, count: int, good: bytes, source: str, name: str) -> None:
    path = tmp_path / name

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read_all(tmp_path, source, path, split="test")

    run(count, mutated(good), parse)


@pytest.mark.parametrize("count", COUNTS)
def test_lists_of_labels(tmp_path: Path, count: int) -> None:
    for folder in ("e", "r/Image/aligned", "y/train/images", "p/FER2013Train"):
        for i in range(3):
            picture(tmp_path / folder / f"train_{i}_aligned.png")
    for i in range(3):
        picture(tmp_path / f"y/train/images/{i}.png")
    kinds = {
        "expw": ("e/label.lst", "train_1_aligned.png 0 1 1 9 9 4.5 3"),
        "rafdb": ("r/EmoLabel/list_patition_label.txt", "train_1.png 5"),
        "yolo": ("y/train/labels/1.txt", "0 0.5 0.5 0.2 0.2"),
        "ferplus": ("p/FER2013Train/label.csv", 'train_1_aligned.png,"(0, 0)",9,0,0,0,0,0,0,0,0,0'),
    }
    for source, (name, good) in kinds.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        root = tmp_path / name.split("/")[0]
        flags = {"classes": "happy,sad"} if source == "yolo" else {}
        spaced = (
            st.lists(cell, max_size=9).map(" ".join).map(lambda x, g=good: f"{g}\n{x}".encode())
        )

        def parse(data: bytes, path: Path = path, root: Path = root, source: str = source) -> None:
            path.write_bytes(data)
            more = flags if source == "yolo" else {}  # noqa: B023
            read_all(tmp_path, source, root, split="test", **more)

        run(count, st.one_of(spaced, mutated(good.encode())), parse)


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


@pytest.mark.parametrize("count", COUNTS)
def test_npy_headers(tmp_path: Path, count: int) -> None:
    good = npy(np.arange(136.0))
    files = st.one_of(
        mutated(good),
        mutated(npy(np.array("3"))),
        st.builds(with_header, headers, st.binary(max_size=40)),
        st.binary(max_size=40),
    )
    root = tmp_path / "a" / "train_set"
    for i in range(3):
        picture(root / f"images/{i}.png")
        (root / "annotations").mkdir(exist_ok=True)
        np.save(root / f"annotations/{i}_exp.npy", np.array(str(i)))

    def annotation(data: bytes) -> None:
        for kind in ("exp", "lnd", "val"):
            (root / f"annotations/1_{kind}.npy").write_bytes(data)
        read_all(tmp_path, "affectnet", tmp_path / "a", split="test")

    run(count, files, annotation)
    (tmp_path / "x").mkdir()
    np.save(tmp_path / "x/X_train.npy", np.zeros((4, 8, 8), np.uint8))
    np.save(tmp_path / "x/y_train.npy", np.eye(4))

    def array(data: bytes) -> None:
        (tmp_path / "x/y_train.npy").write_bytes(data)
        read_all(tmp_path, "arrays", tmp_path / "x", classes="a,b,c,d", split="test")

    run(count, st.one_of(files, mutated(npy(np.eye(4)))), array)


@pytest.mark.parametrize("count", COUNTS)
def test_pictures(count: int) -> None:
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8), (40, 40))
    for suffix in (".jpg", ".png", ".bmp", ".webp", ".tiff"):
        good = cv2.imencode(suffix, image)[1].tobytes()
        run(count // 5, mutated(good), lambda data: faces.decode(data, 3))


@pytest.mark.parametrize("count", COUNTS)
def test_parquet_files(tmp_path: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = picture(tmp_path / "x.png")
    rows = [
        {"image": {"bytes": good, "path": "x"}, "label": ("sad", "happy")[i % 2]} for i in range(4)
    ]
    path = tmp_path / "p/train.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), path)
    data = path.read_bytes()

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read_all(tmp_path, "parquet", path.parent, split="test")

    run(count, mutated(data), parse)


@pytest.mark.parametrize("count", COUNTS)
def test_class_files_and_column_files(tmp_path: Path, count: int) -> None:
    path = tmp_path / "c.csv"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read_stated(str(path))

    text = st.lists(line, max_size=5).map(lambda x: "\n".join(x).encode())
    run(count, st.one_of(text, mutated(b"number,name\n0,a\n1,b\n")), parse)

    def columns(data: bytes) -> None:
        path.write_bytes(data)
        read_columns(path, ["a", "b"])

    joined = text.map(lambda x: b"source_id,age\na,1\n" + x)
    run(count, st.one_of(text, joined, mutated(b"source_id,age\na,1\nb,\n")), columns)


@pytest.mark.parametrize("count", COUNTS)
def test_what_auto_makes_of_any_file(tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.csv"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        detect(path, tmp_path / "scratch", False)

    run(count, st.one_of(line.map(str.encode), st.binary(max_size=80)), parse)


def small_shards(folder: Path) -> dict[str, object]:
    folder.mkdir()
    n = 6
    columns = {
        name: np.zeros((n, *shape), dtype) for name, (dtype, shape) in shards.COLUMNS.items()
    }
    columns["labels"] = np.arange(n) % 2
    columns["images"] = np.arange(n * 64, dtype=np.uint8).reshape(n, 8, 8, 1)
    columns["source_id"] = np.array([str(i) for i in range(n)], dtype=object)
    entry = shards.write_shard(folder / "train-00000.h5", columns, {})
    split = {"n": n, "class_counts": {"a": 3, "b": 3}, "shards": [entry]}
    manifest = {
        "format": 1,
        "image_shape": [8, 8, 1],
        "classes": ["a", "b"],
        "splits": {"train": split},
    }
    shards.write_manifest(folder, {**manifest, "notes": [], "faces": {}})
    return json.loads((folder / "manifest.json").read_text())


def check_shards(folder: Path) -> list[str]:
    manifest = shards.read_manifest(folder)
    damage = verify(manifest)
    if not damage:
        audit(manifest, {"train": shards.open_split(manifest, "train")})
    return damage


@pytest.mark.parametrize("count", COUNTS)
def test_manifests(tmp_path: Path, count: int) -> None:
    content = small_shards(tmp_path / "s")
    path = tmp_path / "s/manifest.json"
    good = path.read_bytes()
    keys = [*content, *content["splits"]["train"], *content["splits"]["train"]["shards"][0]]
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    values = (
        scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.sampled_from(keys), scalars)
    )

    def replaced(key: str, value: object) -> bytes:
        def walk(node: object) -> object:
            if isinstance(node, dict):
                return {k: value if k == key else walk(v) for k, v in node.items()}
            return [walk(v) for v in node] if isinstance(node, list) else node

        return json.dumps(walk(content)).encode()

    other = st.builds(replaced, st.sampled_from(keys), values)

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        check_shards(tmp_path / "s")

    run(count, st.one_of(other, mutated(good), st.binary(max_size=20)), parse)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


@pytest.mark.parametrize("count", COUNTS)
def test_shards(tmp_path: Path, count: int) -> None:
    small_shards(tmp_path / "s")
    path = tmp_path / "s/train-00000.h5"
    good = path.read_bytes()
    content = json.loads((tmp_path / "s/manifest.json").read_text())

    def parse(data: bytes) -> list[str]:
        path.write_bytes(data)
        entry = content["splits"]["train"]["shards"][0]
        entry |= {"bytes": len(data), "sha256": sha256(path)}
        shards.write_manifest(tmp_path / "s", content)
        return check_shards(tmp_path / "s")

    run(count, mutated(good), parse)
    with h5py.File(path, "w") as f:
        f["images"] = np.zeros((6, 8, 8, 1), np.uint8)
    assert "labels are missing" in parse(path.read_bytes())[0]
