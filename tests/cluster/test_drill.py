"""The drill as jobs: every kind of fault that a Slurm and a Grid Engine can have is survived."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import gridengine
from tests.helpers.breaker import breaker
from tests.helpers.gridengine import Cell
from tests.helpers.slurm import Cluster, lacking

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two_hosts() -> Iterator[Cell]:
    why = lacking(gridengine.PROGRAMS)
    if why:
        pytest.skip(f"no Grid Engine here: {why}")
    with Cell(hosts=2) as started:
        yield started


def drill(broken: Cluster | Cell, out: Path, *flags: object) -> dict[str, object]:
    """Run a drill beside a cluster; gives what it counted."""
    call = [sys.executable, "-m", "fer_hpc", "drill", str(out), "--json", *map(str, flags)]
    with breaker(broken) as program:
        done = subprocess.run(
            [*call, "--breaker", str(program)],
            env={**broken.env, "PYTHONPATH": str(ROOT)},
            cwd=out.parent,
            capture_output=True,
            text=True,
            timeout=10_000,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    assert found["survived"] == found["tried"]
    return found


@pytest.mark.long
def test_faults_on_slurm_are_survived(cluster: Cluster, tmp_path: Path) -> None:
    found = drill(cluster, tmp_path / "drill", "--cluster", "slurm", "--faults", 24)
    assert int(str(found["tried"])) >= 20


@pytest.mark.long
def test_faults_on_grid_engine_are_survived(two_hosts: Cell, tmp_path: Path) -> None:
    found = drill(two_hosts, tmp_path / "drill", "--cluster", "sge", "--faults", 12)
    assert int(str(found["tried"])) >= 10
