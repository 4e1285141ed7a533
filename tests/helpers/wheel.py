"""This package as a wheel, in an environment of its own, as a person without a clone has it."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = "setup.cfg pyproject.toml README.md LICENSE fer_hpc slurm sge jobs".split()


def install(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the wheel from a copy of the checkout, and FOLDER/venv, which has it.

    The other packages are those of this interpreter; its .pth files, which may name the checkout,
    are not read.
    """
    source, venv = folder / "source", folder / "venv"
    source.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    create = [sys.executable, "-m", "venv", "--without-pip", venv]
    for command in (build, create):
        done = _run(*command)
        if done.returncode:
            return done
    (found,) = folder.glob("*.whl")
    target = [*pip, "--python", venv / "bin" / "python"]
    done = _run(*target, "install", "--no-deps", "--no-index", "--no-compile", found)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return done


def environment() -> dict[str, str]:
    """The variables of a shell that knows nothing of the checkout."""
    unwanted = ("PYTHONPATH", "VIRTUAL_ENV")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in unwanted and not name.startswith(("FER_", "SBATCH_", "SLURM_"))
    }


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    call = [*map(str, command)]
    return subprocess.run(
        call, env=environment(), capture_output=True, text=True, timeout=400, check=False
    )
