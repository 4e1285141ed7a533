"""Fuzz targets: pictures, shards and manifests, tables of classes, columns and boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hypothesis import strategies as st

from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import account, faces, shards
from fer_hpc.data.audit import audit
from fer_hpc.data.checksums import RECORD, verify_shards
from fer_hpc.data.classes import read_stated
from fer_hpc.data.doctor import verify
from fer_hpc.data.plan import all_verified, check_same_plan, is_done, make_plan
from fer_hpc.data.preprocess import preprocess
from fer_hpc.data.sources import open_source, source_spec
from fer_hpc.data.tables import read_columns
from fer_hpc.deploy.inputs import list_boxes
from fer_hpc.files import sha256
from tests.fuzz.forms import OWN_HEAD, OWN_LINES, picture
from tests.fuzz.guard import Fuzz, target
from tests.fuzz.inputs import json_file, line, mutated, table

# ---- pictures ------------------------------------------------------------------------------------


@target
def pictures(box: Path) -> Fuzz:
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8), (40, 40))
    good = [
        cv2.imencode(suffix, image)[1].tobytes()
        for suffix in (".jpg", ".png", ".bmp", ".webp", ".tiff")
    ]

    def parse(data: bytes) -> None:
        for channels in (1, 3):
            faces.decode(data, channels)

    return Fuzz(good[0], st.one_of(*map(mutated, good)), parse)


# ---- tables --------------------------------------------------------------------------------------


@target
def class_file(box: Path) -> Fuzz:
    path = box / "c.csv"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read_stated(str(path))

    good = b"number,name\n0,a\n1,b\n"
    text = st.lists(line, max_size=5).map(lambda x: "\n".join(x).encode())
    return Fuzz(good, st.one_of(text, mutated(good)), parse, ("--classes",))


@target
def column_file(box: Path) -> Fuzz:
    path = box / "c.csv"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read_columns(path, ["a", "b"], [])

    good = b"source_id,age\na,1\nb,\n"
    text = st.lists(line, max_size=5).map(lambda x: "\n".join(x).encode())
    joined = text.map(lambda x: b"source_id,age\na,1\n" + x)
    return Fuzz(good, st.one_of(text, joined, mutated(good)), parse, ("c.csv",))


@target
def boxes_of_predict(box: Path) -> Fuzz:
    picture(box / "1.png")
    path = box / "b.csv"
    head, good = "photo,left,top,right,bottom", ["1.png,0,0,9,9", "2.png,1,1,8,8"]

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        list_boxes(path, ())

    points = table(OWN_HEAD.replace("subDirectory_filePath", "path"), OWN_LINES)
    inputs = st.one_of(table(head, good), points)
    return Fuzz("\n".join([head, *good]).encode(), inputs, parse, ("b.csv",))


# ---- shards --------------------------------------------------------------------------------------


def small_shards(folder: Path) -> dict[str, Any]:
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
        "split_rule": "test",
        "source": {"kind": "folder"},
        "notes": ["a note"],
        "faces": {},
        "rejects": {"n": 0},
        "empty_boxes": 0,
    }
    shards.write_manifest(folder, manifest)
    return dict(json.loads((folder / "manifest.json").read_text()))


def check_shards(folder: Path) -> list[str]:
    manifest = shards.read_manifest(folder)
    damage = verify(manifest)
    if not damage:
        audit(manifest, {"train": shards.open_split(manifest, "train")})
        account.summary(folder)
    return damage


@target
def manifest(box: Path) -> Fuzz:
    content = small_shards(box / "s")
    path = box / "s/manifest.json"
    good = path.read_bytes()

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        check_shards(box / "s")

    def with_fingerprint(data: bytes) -> bytes:
        """As someone writes it who knows how: the fingerprint belongs to the content."""
        try:
            changed = json.loads(data)
            return json.dumps({**changed, "fingerprint": shards.fingerprint(changed)}).encode()
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return data

    changed = json_file(content)
    inputs = st.one_of(changed, changed.map(with_fingerprint))
    return Fuzz(good, inputs, parse, (str(box / "s"),))


@target
def shard(box: Path) -> Fuzz:
    content = small_shards(box / "s")
    path = box / "s/train-00000.h5"
    good = path.read_bytes()

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        entry = content["splits"]["train"]["shards"][0]
        entry |= {"bytes": len(data), "sha256": sha256(path)}
        shards.write_manifest(box / "s", content)
        check_shards(box / "s")

    return Fuzz(good, mutated(good), parse, (str(box / "s"),))


@target
def checksum_record(box: Path) -> Fuzz:
    small_shards(box / "s")
    manifest = shards.read_manifest(box / "s")
    path = box / "s" / RECORD
    verify_shards(manifest, ["train"], box)
    good = path.read_bytes()

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        verify_shards(manifest, ["train"], box)

    return Fuzz(good, json_file(json.loads(good)), parse, ("train-00000.h5",))


@target
def parts_of_preprocess(box: Path) -> Fuzz:
    """What an earlier start has left in --out: a part of the account, or the manifest."""
    for i, name in enumerate(("happy", "sad") * 4):
        picture(box / f"x/{name}/{i}.png")
    config = PreprocessConfig(
        source="folder", input=box / "x", out=box / "out", split="test", workers=1
    )
    preprocess(config)
    spec = source_spec("folder")
    with open_source(spec, config) as opened:
        plan = make_plan(config, spec, opened)
    files = [box / "out/parts/test-00000.json", box / "out/manifest.json"]
    good = [path.read_bytes() for path in files]

    def parse(given: tuple[int, bytes]) -> None:
        which, data = given
        for path, content in zip(files, good, strict=True):
            path.write_bytes(content)
        files[which].write_bytes(data)
        check_same_plan(config.out, plan)
        if not all_verified(config.out) and is_done(config.out, plan.shards[0], plan):
            account.finish(config, spec, plan)
            account.describe(config.out)
        if all_verified(config.out):
            account.summary(config.out)

    inputs = [st.tuples(st.just(i), json_file(json.loads(c))) for i, c in enumerate(good)]
    return Fuzz((0, good[0]), st.one_of(*inputs), parse, (str(config.out),))
