"""docs/extending.md: every file and command on the page, run in its order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import fer_hpc

PAGE = Path(fer_hpc.__file__).parents[1] / "docs" / "extending.md"
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```((?:python|bash)[^\n]*)\n(.*?)^```$", PAGE.read_text(), re.M | re.S
)
SHELL = """set -e
fer-hpc() { "$INTERPRETER" -m fer_hpc.cli "$@"; }
python() { "$INTERPRETER" "$@"; }
"""


def draw_pictures(folder: Path) -> None:
    """photos/CLASS/NUMBER.png and named/NUMBER_CLASS.png: three shades of gray, with noise."""
    noise = np.random.default_rng(0)
    for shade, name in enumerate(("plain", "smile", "frown")):
        for i in range(30):
            face = np.clip(noise.normal(80 + 50 * shade, 20, (40, 40)), 0, 255).astype(np.uint8)
            for path in (folder / f"photos/{name}/{i}.png", folder / f"named/{i:03}_{name}.png"):
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), face)


def test_the_page_and_its_blocks_are_short() -> None:
    assert len(PAGE.read_text().splitlines()) <= 250
    assert all(code.count("\n") < 30 for _, code in BLOCKS)


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    draw_pictures(tmp_path)
    environment = {
        **os.environ,
        "INTERPRETER": sys.executable,
        "PYTHONPATH": str(PAGE.parents[1]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    outputs = []
    for kind, code in BLOCKS:
        language, _, file = kind.partition(" ")
        if file:
            (tmp_path / file).write_text(code)
            continue
        assert language == "bash"
        done = subprocess.run(
            ["bash", "-c", SHELL + code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert "(4, 8)" in outputs[-1]
    assert "two_convs" in (tmp_path / "report" / "index.html").read_text()
    for run in ("mine", "best", "focal", "named", "three", "timm", "linear"):
        assert (tmp_path / "runs" / run / "best.pt").exists(), run
    assert (tmp_path / "runs" / "three" / "eval-test.json").exists()
