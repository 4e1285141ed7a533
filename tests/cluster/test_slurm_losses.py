"""On a real Slurm: lost and cut-off nodes, killed processes and urgent jobs, in long series."""

from __future__ import annotations

import collections
import contextlib
import random
import subprocess
import time
from pathlib import Path

import pytest

from fer_hpc.files import read_json
from fer_hpc.run.folder import (
    attempt_numbers,
    list_checkpoints,
    rank_counts,
    read_environment,
    read_rows,
)
from tests.helpers.processes import finish, start_ranks
from tests.helpers.runs import assert_same_outcome, lasting, until_saved
from tests.helpers.slurm import Cluster
from tests.helpers.slurm_jobs import PYTHON, logs, train
from tests.helpers.waiting import until


@pytest.mark.long
def test_dozens_of_random_losses(
    cluster: Cluster, site: Path, shards: Path, finished_run: Path
) -> None:
    """24 losses: a signal, a killed process, a lost or cut node, an urgent job. One outcome."""
    rng, counts = random.Random(0), collections.Counter[str]()
    flags = ("cnn_baseline", "--data", shards, *lasting(finished_run, 160))
    whole, run = site / "whole", site / "lost"
    assert finish(start_ranks(1, "train", *flags, "--run", whole), 400) == [0]
    job = cluster.sbatch(
        "-p", "scavenge", "slurm/train_cnn.sh", *flags, "--run", run, cwd=site, **PYTHON
    )
    for _ in range(24):
        began, reached = (
            time.monotonic(),
            max((seen for _, seen, _ in list_checkpoints(run)), default=0),
        )
        until(
            lambda least=reached: (
                (
                    cluster.released(job)
                    and cluster.state(job) not in ("RUNNING", "PENDING", "COMPLETING")
                )
                or any(seen > least for _, seen, _ in list_checkpoints(run))
            ),
            120,
            lambda: (
                f"a gain {cluster.ask('scontrol', 'show', 'job', job)}"
                f"{cluster.ask('sinfo')}{logs(site)[-4000:]}"
            ),
        )  # type: ignore[misc]
        if cluster.state(job) == "COMPLETED":
            break
        time.sleep(rng.uniform(0, 2))
        kind, node = (
            rng.choice(["signal", "kill", "node", "cut", "urgent"]),
            cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip(),
        )
        if not node:
            continue
        counts[kind] += 1
        if kind == "signal":
            cluster.ask("scancel", "--batch", "--signal=USR1", job)
        elif kind == "kill":
            subprocess.run(["pkill", "-KILL", "-f", f"fer_hpc train .*--run {run}"], check=False)
        elif kind == "urgent":
            cluster.wait(
                cluster.sbatch(
                    "-w", node, "--gres=gpu:4", "-p", "main", "--wrap", "sleep 1", cwd=site
                )
            )
        elif kind == "node":
            cluster.kill_node(node)
            until(lambda: cluster.state(job) != "RUNNING", 60, "the node's loss is noticed")
            cluster.start_node(node)
        else:
            cluster.cut(node)
            until(lambda: cluster.state(job) != "RUNNING", 60, "the node's loss is noticed")
            time.sleep(rng.uniform(0, 10))
            cluster.join(node)
        print(
            f"{kind} on {node} at {reached:,} images, {time.monotonic() - began:.0f} s", flush=True
        )
    assert cluster.wait(job, seconds=400) == "COMPLETED", logs(site)
    print(f"losses: {dict(counts)}, starts: {len(attempt_numbers(run))}", flush=True)
    assert_same_outcome(run, whole)


@pytest.mark.long
def test_a_killed_node(
    cluster: Cluster, site: Path, shards: Path, short: tuple[object, ...], whole: Path
) -> None:
    """One of two nodes loses power: the survivor ends, the job goes on, also on fewer nodes."""
    run, smaller = site / "runs" / "killed", site / "runs" / "smaller"
    whole_of_two = site / "runs" / "whole"
    call = ("train", "cnn_baseline", "--data", shards, "--run", whole_of_two, *short)
    two_ranks = start_ranks(2, *call)
    job, other = (
        train(cluster, site, shards, folder, short, "--nodes=2", "--gres=gpu:1")
        for folder in (run, smaller)
    )
    until_saved(run)
    until_saved(smaller)
    first, last = cluster.nodes_of(job)
    assert cluster.nodes_of(other) == [first, last]
    cluster.kill_node(last)
    try:
        until(lambda: ended(run) and ended(smaller), 60, "the survivors' end")
        for folder in (run, smaller):  # not after a minute without a sign
            why = read_json(folder / "attempts" / "0001" / "status.json")["why"]
            assert "silent since" not in why, why
        cluster.ask("scancel", other)
        again = train(
            cluster, site, shards, smaller, short, "--nodes=1", "--gres=gpu:1"
        )  # with what is left
        for each in (job, again):  # two nodes are left
            assert cluster.wait(each, seconds=180) == "COMPLETED", logs(site)
    finally:
        cluster.start_node(last)
    assert len(attempt_numbers(run)) >= 2
    assert finish(two_ranks) == [0, 0]
    assert_same_outcome(run, whole_of_two)
    rows, undisturbed = read_rows(smaller), read_rows(whole)
    assert [row["images_seen"] for row in rows] == [row["images_seen"] for row in undisturbed]
    assert read_environment(smaller)["parent"]["images_seen"] > 0


@pytest.mark.long
def test_an_elastic_job_goes_on_with_the_nodes_left_and_takes_all_again(
    cluster: Cluster, site: Path, shards: Path, finished_run: Path
) -> None:
    """Three nodes, then two, then three; the samples in the order of an undisturbed run."""
    run, whole = site / "runs" / "elastic", site / "runs" / "whole"
    long = (*lasting(finished_run, 60), "--elastic")
    job = train(cluster, site, shards, run, long, "--nodes=1-3", "--gres=gpu:1")
    until_saved(run)
    last = cluster.nodes_of(job)[-1]
    cluster.kill_node(last)
    try:
        until(lambda: rank_counts(run) == [3, 2], 120, "a start with two nodes")
        until_saved(run, attempt=attempt_numbers(run)[-1])
    finally:
        cluster.start_node(last)
    cluster.ask("scancel", "--signal=USR1", "--batch", job)
    assert cluster.wait(job, seconds=400) == "COMPLETED", logs(site)
    assert rank_counts(run) == [3, 2, 3], logs(site)
    call = ("train", "cnn_baseline", "--data", shards, "--run", whole, *long)
    assert finish(start_ranks(1, *call)) == [0]
    chains = [read_rows(each, "chain.jsonl") for each in (run, whole)]
    assert [row["order"] for row in chains[0]] == [row["order"] for row in chains[1]]


def ended(run: Path) -> bool:
    """Whether the first start of a run has noted its end."""
    return (read_json(run / "attempts" / "0001" / "status.json") or {}).get(
        "state"
    ) == "interrupted"


def start_times() -> set[str]:
    """When the living processes of this machine were started, as owner.json has it."""
    times = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            times.add(path.read_text().rpartition(")")[2].split()[19])
    return times


@pytest.mark.long
def test_a_cut_link_has_one_winner(
    cluster: Cluster, site: Path, shards: Path, finished_run: Path
) -> None:
    """The isolated node writes on while the requeued job runs elsewhere; nobody reads that."""
    run, whole = site / "runs" / "split", site / "runs" / "whole"
    long = lasting(finished_run, 35)  # enough for another start beside it
    undisturbed = start_ranks(1, "train", "cnn_baseline", "--data", shards, "--run", whole, *long)
    job = train(cluster, site, shards, run, long, "--gres=gpu:1")
    until_saved(run)
    (node,) = cluster.nodes_of(job)
    cluster.cut(node)
    cluster.ask(
        "scontrol", "update", f"nodename={node}", "state=down", "reason=cut"
    )  # it would see that itself in 15 s
    try:
        until_saved(run, attempt=2)
        first = run / "attempts" / "0001" / "status.json"
        until(
            lambda: read_json(first)["state"] == "superseded",
            60,
            "the isolated writer sees that it was replaced",
        )
        # Else its srun, back on the network, ends the step of this number, which is the new one's.
        started = read_json(first.with_name("owner.json"))["started"]
        until(lambda: started not in start_times(), 60, "the isolated writer has ended")
        time.sleep(2)  # and its launcher
    finally:
        cluster.join(node)
    assert cluster.wait(job, seconds=180) == "COMPLETED", logs(site)
    assert finish(undisturbed) == [0]
    assert_same_outcome(run, whole)
    assert len(attempt_numbers(run)) == 2, "the loser did not disturb the winner"
    cluster.ask("scontrol", "update", f"nodename={node}", "state=resume")
    until(lambda: cluster.idle() == 3, 60, "the isolated node is back")
