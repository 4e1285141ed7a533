"""Real FER2013, where its shared copy lies beside the checkout; skipped elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fer_hpc.data.shards import open_split, read_manifest
from tests.conftest import Preprocess

SHARED = Path(__file__).parents[2] / "shared" / "data" / "fer2013" / "unpack.py"


@pytest.mark.skipif(not SHARED.exists(), reason="no shared FER2013 beside the checkout")
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
