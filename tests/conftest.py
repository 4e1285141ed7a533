"""Shared by all tests: the command line as a user has it, and small real data."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import processes, wheel

Fer = Callable[..., subprocess.CompletedProcess[str]]
Once = Callable[[str, Callable[[Path], subprocess.CompletedProcess[str]]], Path]
Train = Preprocess = Fer  # with arguments of their own: see the fixtures
TRAIN_SPEED = (
    "--epochs 3 --batch-size 30 --checkpoint-every-s 0.2 --no-tensorboard --threads 1"
).split()
DISK = 3_000_000_000  # bytes; `make test` had at most 1.6 GB in use at once
GAN_SPEED = ("--batch-size", 8, "--threads", 1, "--checkpoint-every-s", 0.8, "--no-tensorboard")


def pytest_configure(config: pytest.Config) -> None:
    """Tests compare bits and start ranks, so they train on the CPU; only `-m gpu` uses a GPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Several test processes share the cores: threads that spin cost the others' time.
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if free < DISK:
            pytest.exit(
                f"{tempfile.gettempdir()} has {free / 1e9:.1f} GB free, the tests need "
                f"{DISK / 1e9:.0f}: make room there, or set TMPDIR to another folder",
                returncode=pytest.ExitCode.USAGE_ERROR,
            )


# Files of tests that train, start daemons or look at pages: left out of `make test-fast`.
SLOW = set(
    "test_account.py test_api.py test_batch_norm.py test_classes.py test_cluster.py "
    "test_damage.py test_damage_resumed.py test_deploy.py test_doctor.py test_drill.py "
    "test_drill_checks.py test_drill_jobs.py test_evaluate.py test_extending.py "
    "test_fuzz.py test_gan.py test_gan_training.py test_gan_use.py test_heartbeat.py "
    "test_job_scripts.py test_load.py test_local.py test_memory.py test_plugins.py "
    "test_plugins_trained.py test_predict.py test_preprocess.py test_preprocess_stops.py "
    "test_preprocess_storage.py test_ranks.py test_rejects.py test_report.py "
    "test_report_reading.py test_report_tables.py test_scoring.py test_soft_targets.py "
    "test_sources.py test_study.py test_study_report.py test_study_states.py test_timm.py "
    "test_train.py test_train_refusals.py test_train_results.py test_transfer_box.py "
    "test_tune.py test_tune_gpus.py test_watchdog.py".split()
)


# Chains that take longest begin first, and short tests fill up the end.
# The losses on Slurm come before test_slurm.py, whose last test looks at what all jobs left behind.
FIRST = (
    "test_slurm_losses.py test_slurm.py test_tune.py test_extending.py test_gan_use.py "
    "test_local.py"
).split()
# Slow files without fixtures of their own: each of their tests may run in any process.
SINGLE = set(
    "test_batch_norm.py test_cluster.py test_gan_training.py test_heartbeat.py "
    "test_job_scripts.py test_local.py test_ranks.py test_sources.py test_step.py "
    "test_timm.py test_train.py test_train_refusals.py test_train_results.py "
    "test_watchdog.py".split()
)


@pytest.hookimpl(optionalhook=True)  # a bare GPU machine lacks xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests in one process, but single tests of the files that are in SINGLE."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if Path(file).name in SINGLE else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def is_slow(item: pytest.Item) -> bool:
    return item.path.name in SLOW or item.path.parent.name == "cluster"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.name
        return FIRST.index(name) if name in FIRST else len(FIRST), not is_slow(item)

    items.sort(key=place)
    for item in filter(is_slow, items):
        item.add_marker(pytest.mark.slow)


def command(verb: str, *args: object) -> list[str]:
    return [sys.executable, "-m", f"fer_hpc.{verb}", *map(str, args)]


@pytest.fixture(scope="session")
def fer() -> Fer:
    """Runs `python -m fer_hpc.VERB ARGS`; gives exit code, stdout and stderr.

    Commands that load torch are forked from a process that has it loaded.
    """

    def run(verb: str, *args: object, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        here = {**os.environ, processes.FOLDER: str(Path.cwd())}
        if verb == "preprocess" and "--workers" not in args:
            args = (*args, "--workers", 1)
            if "--plugin" not in args:  # which new interpreters load by themselves
                here[processes.FORK] = "1"  # a new one costs two seconds of CPU
        named = [*args] if verb == "cli" else [verb.removeprefix("data."), *args]
        if named and named[0] in processes.VERBS:
            return processes.run(*named, env=here, timeout=timeout)
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
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a path once for all test processes: `once(name, make)`, where make(path) writes it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def call(name: str, make: Callable[[Path], subprocess.CompletedProcess[str]]) -> Path:
        path, made = base / name, base / name.replace("/", "-")
        path.parent.mkdir(exist_ok=True)
        with made.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not made.stat().st_size:  # another process may have written while this one waited
                done = make(path)
                assert done.returncode == 0, done.stderr
                file.write("made")
        return path

    return call


@pytest.fixture(scope="session")
def installed(once: Once) -> Path:
    """The programs of an environment that has this package from a wheel, not from the checkout."""
    return once("wheel/installed", wheel.install) / "venv" / "bin"


@pytest.fixture(scope="session")
def shards(preprocess: Preprocess, once: Once) -> Path:
    """240 synthetic faces, split by person, 32x32 gray: half the work of 48x48."""
    flags = ("--count", 240, "--size", 32)
    return once("data/shards", lambda path: preprocess("synthetic", path, *flags))


@pytest.fixture(scope="session")
def faces(preprocess: Preprocess, once: Once) -> Path:
    """128 synthetic faces of 32 pixels, for the GAN."""
    flags = ("--count", 128, "--size", 32)
    return once("gan/shards", lambda path: preprocess("synthetic", path, *flags))


@pytest.fixture(scope="session")
def of_40_pixels(preprocess: Preprocess, once: Once) -> Path:
    """The same faces, larger."""
    flags = ("--count", 128, "--size", 40)
    return once("larger/shards", lambda path: preprocess("synthetic", path, *flags))


@pytest.fixture(scope="session")
def affectnet(fer: Fer, once: Once) -> Path:
    """60 synthetic faces as AffectNet's annotations folder."""
    return once("data/faces", lambda path: fer("data.synthetic", "--count", 60, "--out", path))


@pytest.fixture(scope="session")
def train(fer: Fer, shards: Path) -> Train:
    """Runs `train cnn_baseline --run RUN FLAGS` on the small data, or on `data`."""

    def call(run: Path, *flags: object, data: Path = shards) -> subprocess.CompletedProcess[str]:
        return fer("train", "cnn_baseline", "--data", data, "--run", run, *TRAIN_SPEED, *flags)

    return call


@pytest.fixture(scope="session")
def finished_run(train: Train, once: Once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run that killed and resumed ones are compared with: a copy a process.

    What writes into a run, as evaluate does, takes a copy of its own.
    """
    return Path(
        shutil.copytree(
            once("runs/undisturbed", train), tmp_path_factory.mktemp("runs") / "undisturbed"
        )
    )


@pytest.fixture(scope="session")
def scored(
    fer: Fer, finished_run: Path, once: Once, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run with scores on val and test, and no others: a copy a process."""

    def score(run: Path) -> subprocess.CompletedProcess[str]:
        shutil.copytree(finished_run, run)
        for file in run.glob("eval-*.json"):
            file.unlink()
        done = fer("evaluate", run, "--split", "val")
        return fer("evaluate", run, "--split", "test") if done.returncode == 0 else done

    run = tmp_path_factory.mktemp("report") / "undisturbed"
    return Path(shutil.copytree(once("scored/undisturbed", score), run))


@pytest.fixture(scope="session")
def photos(fer: Fer, once: Once) -> list[Path]:
    """6 synthetic photos of a face."""
    folder = once("gan/photos", lambda out: fer("data.synthetic", "--count", 6, "--out", out))
    return sorted((folder / "train_set" / "images").iterdir())


@pytest.fixture(scope="session")
def gpu_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """360 faces, made without a command line, whose parser a bare machine may lack."""
    from fer_hpc.config.commands import PreprocessConfig
    from fer_hpc.data.preprocess import preprocess

    out = tmp_path_factory.mktemp("data") / "shards"
    preprocess(PreprocessConfig(source="synthetic", count=360, size=32, out=out))
    return out


@pytest.fixture
def no_names_left() -> Iterator[None]:
    """Networks and losses that a test registers are forgotten after it."""
    from fer_hpc.models.registry import MODELS
    from fer_hpc.training.losses import LOSSES

    known = dict(MODELS), dict(LOSSES)
    yield
    for names, before in zip((MODELS, LOSSES), known, strict=True):
        names.clear()  # type: ignore[attr-defined]
        names.update(before)  # type: ignore[attr-defined]
