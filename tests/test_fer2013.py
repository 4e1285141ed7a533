"""Real FER2013, where its shared copy lies beside the checkout; skipped elsewhere."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_hpc.data.manifest import SPLITS
from fer_hpc.data.readers.fer2013 import ORDER
from fer_hpc.data.shards import open_split, read_manifest
from tests.conftest import Preprocess

SHARED = Path(__file__).parents[2] / "shared" / "data" / "fer2013" / "unpack.py"
FEW = 500

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="no shared FER2013 beside the checkout")


def test_its_first_faces_become_shards(preprocess: Preprocess, tmp_path: Path) -> None:
    """As `unpack.py` writes them, but without the time that the others take."""
    with (SHARED.parent / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))[:FEW]
    pixels = cv2.imread(str(SHARED.parent / "sheet00.png"), cv2.IMREAD_GRAYSCALE)
    faces = pixels.reshape(-1, 48 * 48)[:FEW]
    with (tmp_path / "fer2013.csv").open("w") as file:
        print("emotion,pixels,Usage", file=file)
        for row, face in zip(rows, faces, strict=True):
            print(row["emotion"], " ".join(map(str, face)), row["Usage"], sep=",", file=file)
    flags = ("--input", tmp_path / "fer2013.csv", "--split", "report")
    done = preprocess("fer2013", tmp_path / "shards", *flags)
    assert done.returncode == 0, done.stderr
    assert f"taken {FEW} + rejected 0" in done.stdout
    manifest = read_manifest(tmp_path / "shards")
    counts = np.sum([manifest.class_counts(split) for split in manifest.content["splits"]], axis=0)
    wanted = Counter(ORDER[int(row["emotion"])] for row in rows)
    assert dict(zip(manifest.classes, counts.tolist(), strict=True)) == wanted
    shards = [shard for split in SPLITS for shard in open_split(manifest, split).images]
    stored = np.concatenate(shards).reshape(-1, 48 * 48)
    assert set(map(bytes, stored)) == set(map(bytes, faces))


@pytest.mark.long
def test_fer2013_becomes_shards(preprocess: Preprocess, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, SHARED, tmp_path / "fer2013.csv"], check=True, capture_output=True
    )
    done = preprocess("fer2013", tmp_path / "shards", "--input", tmp_path / "fer2013.csv")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "shards")
    assert (manifest.n("train"), manifest.n("val"), manifest.n("test")) == (28_709, 3_589, 0)
    assert dict(zip(manifest.classes, manifest.class_counts("train"), strict=True)) == {
        "Neutral": 4965,
        "Happiness": 7215,
        "Sadness": 4830,
        "Surprise": 3171,
        "Fear": 4097,
        "Disgust": 436,
        "Anger": 3995,
    }
    train, val = (
        set(open_split(manifest, s).columns["image_hash"].tolist()) for s in ("train", "val")
    )
    hashes = open_split(manifest, "val").columns["image_hash"].tolist()
    assert sum(h in train for h in hashes) == 280
    assert len(train) + len(val) > 30_000
