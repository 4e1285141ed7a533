"""A tiny study as jobs of a real Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fer_hpc.study.plan import NAME, read_plan
from tests.helpers.slurm import Cluster, fer, until

# One job on each node: the machine below them has few cores.
CALL = ("--cluster", "slurm", "--gpus-per-node", 0, "--tasks", 2, "--mem", "7500M")


def parts(cluster: Cluster, out: Path) -> dict[str, dict[str, str]]:
    """The parts of a study as `status --json` shows them, by name."""
    printed = fer(cluster, "-m", "fer_hpc", "status", out, "--json")
    return {row["part"]: row for row in json.loads(printed)}


@pytest.mark.long
def test_a_study_as_jobs_survives_the_loss_of_a_node(cluster: Cluster, site: Path) -> None:
    """Its jobs wait for each other; a training's node is lost on the way."""
    out = site / "study"
    first = ("study", out, "--source", "synthetic", "--scale", "tiny", *CALL)
    fer(cluster, "-m", "fer_hpc", *first, "--dry-run")
    path = out / NAME
    text = path.read_text().replace(
        "leave_out = []", 'leave_out = ["models.vgg", "models.resnet_improved", "winner"]'
    )
    text = text.replace("seeds = [0, 1, 2]", "seeds = [0]").replace("[16, 32, 64]", "[16]")
    path.write_text(text.replace("lrs = [0.001, 0.005, 0.01]", "lrs = [0.01, 0.02]"))
    assert len(read_plan(out).models) == 3
    submitted = fer(cluster, "-m", "fer_hpc", *first)
    assert "train/cnn_improved-seed0: job" in submitted

    run = out / "runs" / "cnn_improved-seed0"
    until(lambda: (run / "attempts" / "0001" / "owner.json").exists(), 600, "a training")
    host = json.loads((run / "attempts" / "0001" / "owner.json").read_text())["host"]
    cluster.kill_node(host)
    until(lambda: "down" in cluster.ask("sinfo", "-h", "-n", host, "-o", "%t"), 60, "a lost node")
    cluster.start_node(host)

    def states() -> set[str]:
        return {row["state"] for row in parts(cluster, out).values()}

    until(lambda: not states() & {"waiting", "running"}, 1500, lambda: str(parts(cluster, out)))
    found = parts(cluster, out)
    if states() != {"finished"}:  # what the scheduler gave up: the same command submits it again
        print({n: row for n, row in found.items() if row["state"] != "finished"})
        again = fer(cluster, "-m", "fer_hpc", "study", out, *CALL)
        print(again)
        until(lambda: not states() & {"waiting", "running"}, 900, "the second submission")
    assert states() == {"finished"}, parts(cluster, out)
    assert (out / "report" / "index.html").exists()
    status = fer(cluster, "-m", "fer_hpc", "status", out)
    assert f"page: {out / 'report' / 'index.html'}" in status
