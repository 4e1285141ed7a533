"""Storage under shards: no locks, a full disk, memory that is used again, damaged shards."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.data import shards
from fer_hpc.data.shards import open_split, read_manifest
from tests.conftest import Fer, Preprocess, command


def test_a_shard_that_was_cut_off_is_named_at_open(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "cut")
    path = copy / "train-00000.h5"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train-00000\.h5 has .* bytes, the manifest states"):
        open_split(read_manifest(copy), "train")
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.h5 is missing"):
        open_split(read_manifest(copy), "train")


@pytest.mark.parametrize("form", ["compressed", "chunked", "float"])
def test_images_that_cannot_be_mapped_are_refused_not_read_as_zeros(
    shards: Path, tmp_path: Path, form: str
) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    path = copy / "val-00000.h5"
    with h5py.File(path, "r+") as f:
        images = f["images"][()]
        del f["images"]
        options = {"compressed": {"compression": "gzip"}, "chunked": {"chunks": (1, 32, 32, 1)}}
        values = images.astype(np.float32) if form == "float" else images
        f.create_dataset("images", data=values, **options.get(form, {}))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["val"]["shards"][0]["bytes"] = path.stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="wanted one contiguous block of uint8"):
        open_split(read_manifest(copy), "val")


def noise_pictures(folder: Path, count: int) -> Path:
    """Class folders of random 48x48 pictures."""
    for i in range(count):
        path = folder / ("angry", "sad")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (48, 48), np.uint8)
        cv2.imwrite(str(path), noise)
    return folder


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc for a library that refuses locks")
def test_shards_are_written_where_locks_are_refused(tmp_path: Path) -> None:
    code = "int flock(int f, int o) { (void)f; (void)o; errno = ENOLCK; return -1; }"
    (tmp_path / "locks.c").write_text(f"#include <errno.h>\n{code}\n")
    library = tmp_path / "locks.so"
    compile_it = ["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "locks.c"]
    subprocess.run(compile_it, check=True)
    source = ("--source", "folder", "--input", noise_pictures(tmp_path / "faces", 40))
    done = subprocess.run(
        command("preprocess", *source, "--workers", 1, "--out", tmp_path / "out"),
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_one_message_and_loses_nothing(fer: Fer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        source = ("--source", "folder", "--input", noise_pictures(tmp_path / "faces", 80))
        arguments = (*source, "--size", 128, "--workers", 1, "--out", disk / "shards")
        done = fer("preprocess", *arguments)
        assert done.returncode == 2
        assert "train-00000.h5" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list((disk / "shards").glob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        again = fer("preprocess", *arguments)
        assert again.returncode == 0, again.stderr
        assert read_manifest(disk / "shards").n("train") > 40
    finally:
        subprocess.run(["umount", disk], check=True)


def test_shared_memory_that_is_used_again(preprocess: Preprocess, tmp_path: Path) -> None:
    """More blocks than there are slots for: each image is the one that its row was hashed from."""
    n, size = 700, 512  # 170 faces a shard, 5 a block, 93 slots
    (tmp_path / "arrays").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 4), np.uint8)
    np.save(tmp_path / "arrays/X_train.npy", images)
    np.save(tmp_path / "arrays/y_train.npy", np.arange(n) % 7)
    flags = ("--input", tmp_path / "arrays", "--size", size, "--channels", 3)
    done = preprocess("arrays", tmp_path / "shards", *flags, "--classes", "fer2013")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "shards")
    seen = 0
    for name in shards.SPLITS:
        split = open_split(manifest, name)
        images_of = itertools.chain.from_iterable(split.images)
        for image, stored in zip(images_of, split.columns["image_hash"], strict=True):
            assert shards.image_hash(image) == stored
            seen += 1
    assert seen == n
