"""docs/extending.md: every file and command on the page, run in its order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import fer_hpc
from tests.helpers import processes

PAGE = Path(fer_hpc.__file__).parents[1] / "docs" / "extending.md"
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```((?:python|bash)[^\n]*)\n(.*?)^```$", PAGE.read_text(), re.M | re.S
)


def run(line: str, folder: Path) -> str:
    """The output of one command of the page."""
    program, *args = shlex.split(line)
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    if args[0] == "preprocess":
        args += ["--workers", "1"]
        environment |= {} if "--plugin" in args else {processes.FORK: "1"}
    if program == "fer-hpc" and args[0] in processes.VERBS:
        done = processes.run(*args, env={**environment, processes.FOLDER: str(folder)}, timeout=500)
    else:
        call = {"fer-hpc": [sys.executable, "-m", "fer_hpc.cli"], "python": [sys.executable]}
        done = subprocess.run(
            [*call[program], *args],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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


@pytest.mark.parametrize(
    "sweeps", [False, pytest.param(True, marks=pytest.mark.long)], ids=["without its sweep", "all"]
)
def test_the_page_runs_as_it_stands(tmp_path: Path, sweeps: bool) -> None:
    """A sweep of a plugin's network, and a run from it, are in test_tune.py as well."""
    pytest.importorskip("timm")
    draw_pictures(tmp_path)
    outputs = []
    for kind, code in BLOCKS:
        language, _, file = kind.partition(" ")
        if file:
            (tmp_path / file).write_text(code)
            continue
        assert language == "bash"
        lines = code.replace("\\\n", " ").splitlines()
        outputs += [run(line, tmp_path) for line in lines if sweeps or "sweep" not in line]
    assert "(4, 8)" in outputs[-1]
    assert "two_convs" in (tmp_path / "report" / "index.html").read_text()
    for name in ("mine", "focal", "named", "three", "timm", "linear", *["best"] * sweeps):
        assert (tmp_path / "runs" / name / "best.pt").exists(), name
    assert (tmp_path / "runs" / "three" / "eval-test.json").exists()
