"""A set larger than memory, under a real limit of the kernel's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fer_hpc.data import shards

MEGABYTE = 1 << 20
LIMIT = 450 * MEGABYTE
SIDE, ROWS, SHARDS = 224, 256, 26  # 26 shards of 39 MB: 1 GB

READ_AN_EPOCH = """
import sys, torch
from pathlib import Path
from fer_hpc.data.augment import Augmentation
from fer_hpc.data.loader import TrainLoader
from fer_hpc.data.shards import open_split, read_manifest
split = open_split(read_manifest(Path(sys.argv[1])), "train")
loader = TrainLoader(split, 64, 0, Augmentation(flip=True), torch.device("cpu"), window=2)
total = 0
for seen in range(0, len(split), 64):
    batch = loader.batch(seen)
    total += len(set(batch.rows.tolist()))
    first = (batch.images[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(first, batch.rows % 251)
print(total)
"""


@pytest.fixture
def limited() -> Iterator[Path]:
    """A memory control group of LIMIT bytes; gives the file that a process writes its id to."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    group = root / f"fer-hpc-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no memory control group may be made here: {error}")
    yield group / "cgroup.procs"
    group.rmdir()


@pytest.mark.long
def test_a_set_larger_than_memory_is_read_in_windows(limited: Path, tmp_path: Path) -> None:
    entries = []
    for k in range(SHARDS):
        rows = np.arange(k * ROWS, (k + 1) * ROWS)
        empty = {
            name: np.zeros((ROWS, *shape), kind) for name, (kind, shape) in shards.COLUMNS.items()
        }
        ids = rows.astype(str).astype(object)
        columns = {
            "images": np.zeros((ROWS, SIDE, SIDE, 3), np.uint8),
            **empty,
            "labels": rows % 8,
            "source_id": ids,
        }
        columns["images"][:] = (rows % 251)[:, None, None, None]
        entries.append(shards.write_shard(tmp_path / f"train-{k:05d}.h5", columns, {}))
        with (tmp_path / f"train-{k:05d}.h5").open(
            "rb"
        ) as f:  # out of the page cache: the reader must be charged for it
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    classes = [str(c) for c in range(8)]
    split = {
        "n": SHARDS * ROWS,
        "class_counts": dict.fromkeys(classes, ROWS * SHARDS // 8),
        "shards": entries,
    }
    content = {
        "format": 1,
        "image_shape": [SIDE, SIDE, 3],
        "classes": classes,
        "splits": {"train": split},
    }
    shards.write_manifest(tmp_path, content)
    assert sum(e["bytes"] for e in entries) > 2 * LIMIT
    done = subprocess.run(
        [sys.executable, "-c", READ_AN_EPOCH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: limited.write_text(str(os.getpid())),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == SHARDS * ROWS
