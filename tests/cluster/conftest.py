from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Fer, Once
from tests.helpers import gridengine
from tests.helpers.gridengine import Cell
from tests.helpers.runs import lasting
from tests.helpers.slurm import Cluster, lacking


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes, up for all tests; skips where Slurm cannot be started."""
    why = lacking()
    if why:
        pytest.skip(f"no Slurm here: {why}")
    with Cluster() as started:
        started.env["FER_RUNS"] = str(started.base / "runs")  # not the checkout's
        yield started


@pytest.fixture(scope="session")
def cell() -> Iterator[Cell]:
    """A Grid Engine of one host, up for all tests; skips where it cannot be started.

    Half a minute to end in, which a busy machine may take.
    """
    why = lacking(gridengine.PROGRAMS)
    if why:
        pytest.skip(f"no Grid Engine here: {why}")
    with Cell(notify_s=30) as started:
        yield started


@pytest.fixture(scope="module")
def short(finished_run: Path) -> tuple[object, ...]:
    """Long enough to be lost three times on the way."""
    return lasting(finished_run, 30)


@pytest.fixture(scope="module")
def whole(shards: Path, short: tuple[object, ...], fer: Fer, once: Once) -> Path:
    """A run of `short` without a scheduler, made once for the tests of both."""
    call = ("train", "cnn_baseline", "--data", shards, *short, "--run")
    return once("runs/whole", lambda run: fer(*call, run))


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Path:
    """A folder to submit from, as a person's checkout is: it has slurm/, and gets the logs."""
    (tmp_path / "slurm").symlink_to(Path(__file__).parents[2] / "slurm")
    return tmp_path
