"""A tiny study as jobs of a real Slurm, and of a real Grid Engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_hpc.study.plan import NAME, read_plan
from tests.cluster import test_sge
from tests.helpers.gridengine import Cell
from tests.helpers.slurm import Cluster, fer
from tests.helpers.waiting import until

# One job on each node: the machine below them has few cores.
SLURM = ("--cluster", "slurm", "--gpus-per-node", 0, "--tasks", 2, "--mem", "7500M")
SGE = ("--cluster", "sge", "--gpus-per-node", 0, "--tasks", 2)

Fer = Callable[..., str]  # prints of `python ARGS` where the scheduler's commands are


def submit_small(call: Fer, out: Path, flags: tuple[object, ...]) -> None:
    """Submit a study of three networks, two configurations and the GAN."""
    first = ("-m", "fer_hpc", "study", out, "--source", "synthetic", "--scale", "tiny", *flags)
    call(*first, "--dry-run")
    path = out / NAME
    text = path.read_text().replace(
        "leave_out = []", 'leave_out = ["models.vgg", "models.resnet_improved", "winner"]'
    )
    text = text.replace("seeds = [0, 1, 2]", "seeds = [0]").replace("[16, 32, 64]", "[16]")
    path.write_text(text.replace("lrs = [0.001, 0.005, 0.01]", "lrs = [0.01, 0.02]"))
    assert len(read_plan(out).models) == 3
    assert "train/cnn_improved-seed0: job" in call(*first)


def wait_for_all(call: Fer, out: Path, flags: tuple[object, ...]) -> None:
    """Until all parts have finished; what the scheduler gave up is submitted again, once."""

    def rows() -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(call("-m", "fer_hpc", "status", out, "--json"))
        return found

    def over() -> bool:
        return not {row["state"] for row in rows()} & {"waiting", "running"}

    until(over, 1500, lambda: str(rows()))
    if {row["state"] for row in rows()} != {"finished"}:
        print(call("-m", "fer_hpc", "study", out, *flags))
        until(over, 900, "the second submission")
    assert {row["state"] for row in rows()} == {"finished"}, rows()
    page = out / "report" / "index.html"
    assert page.exists()
    assert f"page: {page}" in call("-m", "fer_hpc", "status", out)


@pytest.mark.long
def test_a_study_as_jobs_survives_the_loss_of_a_node(cluster: Cluster, site: Path) -> None:
    """Its jobs wait for each other; a training's node is lost on the way."""
    out = site / "study"

    def call(*args: object) -> str:
        return fer(cluster, *args)

    submit_small(call, out, SLURM)
    attempt = out / "runs" / "cnn_improved-seed0" / "attempts" / "0001"
    until(lambda: (attempt / "owner.json").exists(), 600, "a training")
    host = json.loads((attempt / "owner.json").read_text())["host"]
    cluster.kill_node(host)
    until(lambda: "down" in cluster.ask("sinfo", "-h", "-n", host, "-o", "%t"), 60, "a lost node")
    cluster.start_node(host)
    wait_for_all(call, out, SLURM)


@pytest.mark.long
def test_a_study_as_jobs_of_grid_engine_survives_a_killed_training(
    cell: Cell, tmp_path: Path
) -> None:
    out = tmp_path / "study"

    def call(*args: object) -> str:
        return test_sge.fer(cell, *args)

    submit_small(call, out, SGE)
    run = out / "runs" / "cnn_improved-seed0"
    until(lambda: (run / "attempts" / "0001" / "owner.json").exists(), 600, "a training")
    test_sge.kill_rank(run)
    wait_for_all(call, out, SGE)
    assert (run / "attempts" / "0002").exists()
