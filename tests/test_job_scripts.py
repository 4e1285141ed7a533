"""The scripts of slurm/ and sge/ without a scheduler: the same command, shellcheck, env.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fer_hpc.run.folder import read_status

ROOT = Path(__file__).parents[1]
QUICK = ("--epochs", "1", "--batch-size", "36", "--threads", "1", "--no-tensorboard")


def test_scripts_run_the_same_command_without_slurm(shards: Path, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    env |= {
        "FER_PYTHON": sys.executable,
        "FER_DATA": str(shards),
        "FER_RUNS": str(tmp_path / "runs"),
    }
    call = ["bash", str(ROOT / "slurm" / "train_cnn.sh"), "cnn_baseline", *QUICK]
    done = subprocess.run(
        call, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read_status(tmp_path / "runs" / "cnn_baseline")["state"] == "finished"


def test_scripts_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here")
    scripts = sorted(str(path) for kind in ("slurm", "sge") for path in (ROOT / kind).glob("*.sh"))
    done = subprocess.run(
        ["shellcheck", "-x", *scripts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert len(scripts) >= 16


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_env_sh_finds_its_checkout_from_any_folder(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    checkout = tmp_path / "my checkout"
    (checkout / "slurm").mkdir(parents=True)
    shutil.copy(ROOT / "slurm" / "env.sh", checkout / "slurm")
    env = {k: v for k, v in os.environ.items() if not k.startswith("FER_")}
    show = 'echo "$FER_DATA|$FER_RUNS|${fer_python[*]}"'
    for folder, name in ((checkout, "slurm/env.sh"), (tmp_path, "my checkout/slurm/env.sh")):
        done = subprocess.run(
            [shell, "-c", f'. "{name}"; {show}'],
            cwd=folder,
            env={**env, "FER_PYTHON": "python9"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == f"{checkout}/shards|{checkout}/runs|python9"
        assert done.stderr == ""
