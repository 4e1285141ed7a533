"""On real schedulers without a clone: an installed package and the folder of fer-hpc init."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_hpc.run.folder import read_environment, read_status
from tests.helpers.gridengine import Cell
from tests.helpers.slurm import Cluster
from tests.helpers.wheel import environment

QUICK = ("--epochs", 1, "--threads", 1, "--batch-size", 36, "--no-tensorboard")
Call = Callable[..., str]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Runs a command in a folder that is not the site's; gives what it prints."""
    (tmp_path / "elsewhere").mkdir()

    def run(scheduler: Cluster | Cell, *command: object) -> str:
        of_scheduler = {
            name: value
            for name, value in scheduler.env.items()
            if name == "PATH" or name.startswith(("SLURM_CONF", "SGE_"))
        }
        done = subprocess.run(
            [*map(str, command)],
            cwd=tmp_path / "elsewhere",
            env={**environment(), **of_scheduler},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def assert_finished(job: str, run: Path) -> None:
    folders = (run.parent / "elsewhere", run / "jobs", run / "logs")
    files = [p for folder in folders if folder.exists() for p in folder.iterdir()]
    logs = "\n".join(p.read_text() for p in files if ".log" in p.name or ".o" in p.name)
    assert (run / "final.pt").exists(), logs
    assert read_status(run)["state"] == "finished", logs
    environment_of_run = read_environment(run)
    assert environment_of_run["job"]["id"] == job
    assert "commit" not in environment_of_run["code"], "not the code of the checkout"


@pytest.mark.long
def test_a_wheel_is_enough_to_train_on_slurm(
    cluster: Cluster, call: Call, installed: Path, shards: Path, tmp_path: Path
) -> None:
    site, flags = tmp_path / "site", ("cnn_baseline", "--data", shards, *QUICK, "--run")
    call(cluster, installed / "fer-hpc", "init", site)
    script, job = site / "slurm" / "train_cnn.sh", site / "jobs" / "train.py"
    first = call(cluster, "sbatch", "--parsable", script, *flags, tmp_path / "by script").strip()
    printed = call(
        cluster, installed / "python", job, *flags, tmp_path / "by job", "--cluster", "slurm"
    )
    second = printed.split("job ", 1)[1].split()[0]
    for name, run in ((first, "by script"), (second, "by job")):
        cluster.wait(name)
        assert_finished(name, tmp_path / run)


@pytest.mark.long
def test_a_wheel_is_enough_to_train_on_grid_engine(
    cell: Cell, call: Call, installed: Path, shards: Path, tmp_path: Path
) -> None:
    site, flags = tmp_path / "site", ("cnn_baseline", "--data", shards, *QUICK, "--run")
    call(cell, installed / "fer-hpc", "init", site)
    script, job = site / "sge" / "train_cnn.sh", site / "jobs" / "train.py"
    first = call(cell, "qsub", "-terse", script, *flags, tmp_path / "by script").strip()
    printed = call(cell, installed / "python", job, *flags, tmp_path / "by job", "--cluster", "sge")
    second = printed.split("job ", 1)[1].split()[0]
    for name, run in ((first, "by script"), (second, "by job")):
        cell.wait(name, seconds=120)
        assert_finished(name, tmp_path / run)
