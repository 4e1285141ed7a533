"""The lowest supported versions: `make test-lowest`. No pytest, so that little is installed.

python tests/lowest.py requirements     # setup.cfg's lower bounds, each with its newest patch
python tests/lowest.py                  # imports everything, trains, resumes, scores, sweeps
"""

from __future__ import annotations

import configparser
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = "cnn_baseline --batch-size 32 --threads 1 --device cpu --no-tensorboard".split()
# Modules that need an extra of setup.cfg, and commands, which run when they are imported.
LEFT_OUT = re.compile(r"fer_hpc\.(.*\.)?(__main__|timm_models|export)")


def requirements() -> list[str]:
    """`torch >= 2.8` as `torch==2.8.*`; a bound with three numbers is exact."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    found = []
    for line in config["options"]["install_requires"].splitlines():
        name, _, bound = line.partition(">=")
        bound = bound.partition(",")[0].strip()
        if bound and not line.startswith("#"):
            exact = bound if bound.count(".") > 1 else f"{bound}.*"
            found.append(f"{name.strip()}=={exact}")
    return found


def fer(*args: object) -> None:
    call = [sys.executable, "-m", "fer_hpc", *map(str, args)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"{'ok' if done.returncode == 0 else 'FAILED'}  fer-hpc {args[0]}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")


def main() -> None:
    for line in requirements():
        name = re.split(r"==|\[", line)[0]
        print(f"{name} {importlib.metadata.version(name)} (wanted {line.partition('==')[2]})")
    import fer_hpc

    modules = [m.name for m in pkgutil.walk_packages(fer_hpc.__path__, "fer_hpc.")]
    modules = [name for name in modules if not LEFT_OUT.fullmatch(name)]
    for name in modules:
        importlib.import_module(name)
    print(f"ok  {len(modules)} modules imported", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data, once, twice = (Path(folder) / name for name in ("data", "once", "twice"))
        fer("preprocess", "--source", "synthetic", "--count", 240, "--size", 32, "--out", data)
        fer("train", *TRAIN, "--data", data, "--run", once, "--epochs", 2)
        fer("train", *TRAIN, "--data", data, "--run", twice, "--epochs", 1)
        fer("train", *TRAIN, "--data", data, "--run", twice, "--epochs", 2)
        fer("verify", once, twice)
        fer("evaluate", once, "--device", "cpu")
        gan = ("--batch-size", 8, "--threads", 1, "--device", "cpu", "--epochs", 1)
        fer("train_gan", "--data", data, "--run", Path(folder) / "gan", *gan)
        grid = ("--batch-sizes", 32, "--lrs", 0.01, "--seeds", 0, "--epochs", 1)
        fer("tune", "cnn_baseline", "--data", data, "--out", Path(folder) / "sweep", *grid)
        fer("report", folder, "--out", Path(folder) / "report")


if __name__ == "__main__":
    if sys.argv[1:] == ["requirements"]:
        print("\n".join(requirements()))
    else:
        main()
