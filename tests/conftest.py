"""Shared by all tests: the command line as a user has it, and small real data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import processes

Fer = Callable[..., subprocess.CompletedProcess[str]]
Train = Preprocess = Fer  # with arguments of their own: see the fixtures
TRAIN_SPEED = (
    "--epochs 3 --batch-size 30 --checkpoint-every-s 0.2 --no-tensorboard --threads 1"
).split()


def pytest_configure(config: pytest.Config) -> None:
    """Tests compare bits and start ranks, so they train on the CPU; only `-m gpu` uses a GPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


# Files of tests that train, start daemons or look at pages: left out of `make test-fast`.
SLOW = set(
    "test_api.py test_batch_norm.py test_classes.py test_cluster.py test_doctor.py "
    "test_evaluate.py test_extending.py test_gan.py test_gridengine_cell.py test_heartbeat.py "
    "test_load.py test_local.py "
    "test_memory.py test_plugins.py test_preprocess.py test_ranks.py test_rejects.py "
    "test_report.py test_slurm.py test_sources.py test_timm.py test_train.py test_tune.py "
    "test_watchdog.py".split()
)


# Long chains begin first: a file's tests run one after the other.
FIRST = ("test_tune.py", "test_slurm.py", "test_extending.py", "test_ranks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)


def command(verb: str, *args: object) -> list[str]:
    return [sys.executable, "-m", f"fer_hpc.{verb}", *map(str, args)]


@pytest.fixture(scope="session")
def fer() -> Fer:
    """Runs `python -m fer_hpc.VERB ARGS`; gives exit code, stdout and stderr.

    Commands that load torch are forked from a process that has it loaded.
    """

    def run(verb: str, *args: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        if verb in ("train", "train_gan", "evaluate", "generate", "transfer"):
            return processes.run(verb, *args, timeout=timeout)
        return subprocess.run(
            command(verb, *args), capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture(scope="session")
def preprocess(fer: Fer) -> Preprocess:
    """Runs `preprocess --source SOURCE --out OUT FLAGS`."""

    def call(source: str, out: Path, *flags: object) -> subprocess.CompletedProcess[str]:
        return fer("preprocess", "--source", source, "--out", out, *flags)

    return call


@pytest.fixture(scope="session")
def shards(preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """360 synthetic faces, split by person, 32x32 gray: half the work of 48x48."""
    out = tmp_path_factory.mktemp("data") / "shards"
    done = preprocess("synthetic", out, "--count", 360, "--size", 32)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def affectnet(fer: Fer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 synthetic faces as AffectNet's annotations folder."""
    out = tmp_path_factory.mktemp("data") / "faces"
    done = fer("data.synthetic", "--count", 60, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def train(fer: Fer, shards: Path) -> Train:
    """Runs `train cnn_baseline --run RUN FLAGS` on the small data, or on `data`."""

    def call(run: Path, *flags: object, data: Path = shards) -> subprocess.CompletedProcess[str]:
        return fer("train", "cnn_baseline", "--data", data, "--run", run, *TRAIN_SPEED, *flags)

    return call


@pytest.fixture(scope="session")
def finished_run(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run that killed and resumed ones are compared with."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = train(run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def gpu_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The faces of `shards`, made without a command line, whose parser a bare machine may lack."""
    from fer_hpc.config.commands import PreprocessConfig
    from fer_hpc.data.preprocess import preprocess

    out = tmp_path_factory.mktemp("data") / "shards"
    preprocess(PreprocessConfig(source="synthetic", count=360, size=32, out=out))
    return out
