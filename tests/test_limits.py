"""What ends a process from outside Python still leaves a message."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import TRAIN_SPEED, command

CUT = """
import os, sys
from pathlib import Path
from fer_hpc.cli.main import run_command
from fer_hpc.data.shards import open_split, read_manifest

def read_pixels():
    split = open_split(read_manifest(Path(sys.argv[1])), "train")
    os.truncate(Path(sys.argv[1]) / "train-00000.h5", 4096)
    return int(split.images[0].sum())

run_command("train", read_pixels)
"""


def test_a_shard_that_is_cut_while_it_is_mapped_says_where(shards: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shards, tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(data)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -7
    assert "Bus error" in done.stderr
    assert "in read_pixels" in done.stderr


def test_too_few_addresses_name_the_limit(shards: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))

    arguments = ("cnn_baseline", "--data", shards, "--run", tmp_path / "run", *TRAIN_SPEED)
    done = subprocess.run(
        command("train", *arguments), capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert done.returncode == 2
    assert "ulimit -v allows 1.5 GB of addresses" in done.stderr
    assert "Traceback" not in done.stderr
