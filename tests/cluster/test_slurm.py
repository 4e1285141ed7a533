"""On a real Slurm: the scripts, arrays, dependencies, signals, preemption and time limits."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from fer_hpc.files import read_json
from fer_hpc.run.folder import attempt_numbers, read_environment
from tests.helpers.processes import finish, start_ranks
from tests.helpers.runs import TINY, assert_same_outcome, lasting, until_saved
from tests.helpers.slurm import Cluster, fer
from tests.helpers.slurm_jobs import PYTHON, logs, train
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_scripts_from_raw_faces_to_scores(cluster: Cluster, site: Path) -> None:
    """Preprocess as an array, train on 2 nodes x 2 ranks, score, each after the one before."""
    env = {**PYTHON, "FER_DATA": site / "my shards", "FER_RUNS": site / "runs"}
    arguments = ("--source", "synthetic", "--count", 240)
    made = cluster.sbatch("--array=1-3", "slurm/preprocess.sh", *arguments, cwd=site, **env)
    flags = ("--epochs", 2, *TINY)
    nodes = ("--nodes=2", "--gres=gpu:2")
    trained = cluster.sbatch(
        f"--dependency=afterok:{made}", *nodes, "slurm/train_cnn.sh", *flags, cwd=site, **env
    )
    scored = cluster.sbatch(
        f"--dependency=afterok:{trained}",
        "slurm/evaluate.sh",
        site / "runs" / "cnn_improved",
        cwd=site,
        **env,
    )
    smaller = ("--source", "synthetic", "--count", 160, "--size", 32, "--out", site / "faces of 32")
    fer(cluster, "-m", "fer_hpc.preprocess", *smaller)
    quick = ("--data", site / "faces of 32", "--epochs", 1, "--threads", 1)
    gan = cluster.sbatch("--nodes=2", "slurm/train_gan.sh", *quick, cwd=site, **env)
    board = cluster.sbatch("slurm/tensorboard.sh", cwd=site, **env)
    for job in (made, trained, scored):
        assert cluster.wait(job) == "COMPLETED", logs(site)
    run = site / "runs" / "cnn_improved"
    environment = read_environment(run)
    assert environment["world_size"] == 4
    assert environment["job"]["id"] == trained
    assert sorted(p.name for p in (run / "logs").glob(f"{trained}-[0-9].log")) == [
        f"{trained}-{rank}.log" for rank in range(4)
    ]
    assert (run / "eval-val.json").exists()
    assert "accuracy" in (site / f"fer-evaluate-{scored}.log").read_text()
    assert json.loads((site / "my shards" / "manifest.json").read_text())["source"]["rows"] == 240
    assert cluster.wait(gan) == "COMPLETED", logs(site)
    assert read_environment(site / "runs" / "gan")["world_size"] == 2

    log = site / f"fer-tensorboard-{board}.log"
    until(
        lambda: (
            log.exists()
            and "http://localhost" in log.read_text()
            and "Press CTRL+C" in log.read_text()
        ),
        60,
        "TensorBoard",
    )
    assert "ssh -N -L" in log.read_text()
    cluster.ask("scontrol", "requeue", board)
    until(lambda: log.read_text().count("ssh -N -L") == 2, 60, "TensorBoard after a requeue")
    cluster.ask("scancel", board)


def test_a_signal_and_a_preemption(
    cluster: Cluster, site: Path, shards: Path, short: tuple[object, ...], whole: Path
) -> None:
    """A job is lost in two ways; it is requeued twice, is shown, ends as the undisturbed run."""
    run, where = site / "runs" / "lost", ("-w", "n3", "--gres=gpu:1", "-p", "scavenge")
    job = train(cluster, site, shards, run, short, *where)
    until_saved(run)
    cluster.ask("scancel", "--batch", "--signal=USR1", job)
    until_saved(run, attempt=2)
    (row,) = json.loads(fer(cluster, "-m", "fer_hpc", "status", site / "runs", "--json"))
    assert row["state"] == "running"
    shown = {"job": job, "state": "RUNNING", "reason": "", "starts": 2}
    assert row["jobs"] == [shown]
    urgent = cluster.sbatch("-w", "n3", "--gres=gpu:4", "-p", "main", "--wrap", "sleep 1", cwd=site)
    assert cluster.wait(urgent) == "COMPLETED"
    assert cluster.wait(job, seconds=180) == "COMPLETED", logs(site)
    assert len(attempt_numbers(run)) >= 3
    assert "attempt 2" in fer(cluster, "-m", "fer_hpc", "logs", run, "--lines", 200)
    assert_same_outcome(run, whole)


@pytest.mark.long
def test_a_time_limit(cluster: Cluster, site: Path, shards: Path, finished_run: Path) -> None:
    """A training of two minutes under a limit of one: it stops in time, is requeued, ends alike."""
    flags = ("cnn_baseline", "--data", shards, *lasting(finished_run, 120))
    # Slurm's own warning would come first under so short a limit.
    early = ("--time=1", "--signal=B:USR1@1")
    job = cluster.sbatch(
        *early, "slurm/train_cnn.sh", *flags, "--run", site / "limited", cwd=site, **PYTHON
    )
    assert finish(start_ranks(1, "train", *flags, "--run", site / "whole"), 400) == [0]
    assert cluster.wait(job, seconds=400) == "COMPLETED", logs(site)
    ends = [read_json(p / "status.json") for p in sorted((site / "limited" / "attempts").iterdir())]
    assert len(ends) >= 2
    whys = [
        end["why"] for end in ends[:-1]
    ]  # the warning, which Slurm may send half a minute early, sometimes comes first
    assert "stopped before its job's end" in whys
    assert set(whys) <= {"stopped before its job's end", "stopped by SIGUSR1"}
    assert_same_outcome(site / "limited", site / "whole")


def test_a_submitted_job_is_shown_and_cancelled(cluster: Cluster, site: Path, shards: Path) -> None:
    run = site / "runs" / "endless"
    endless = ("--data", shards, "--run", run, *TINY, "--epochs", 9999)
    output = fer(cluster, ROOT / "jobs" / "train.py", "cnn_baseline", *endless)
    job = output.split("\njob ")[1].split()[0]
    assert "COMPLETED" not in cluster.state(job), "it waits"
    until_saved(run)
    (row,) = json.loads(fer(cluster, "-m", "fer_hpc", "status", site / "runs", "--json"))
    shown = {"job": job, "state": "RUNNING", "reason": "", "starts": 1}
    assert row["jobs"] == [shown]
    assert "cancelled job" in fer(cluster, "-m", "fer_hpc", "cancel", run)
    until(
        lambda: "running" not in fer(cluster, "-m", "fer_hpc", "status", run),
        30,
        "the cancelled run's end",
    )
    assert len(attempt_numbers(run)) == 1, "a cancelled job is not requeued"


@pytest.mark.long
def test_a_pipeline_of_dependent_jobs(cluster: Cluster, site: Path) -> None:
    out = site / "study"
    output = fer(
        cluster,
        ROOT / "jobs" / "pipeline.py",
        "cnn_baseline",
        "--source",
        "synthetic",
        "--count",
        240,
        "--out",
        out,
        "--tasks",
        2,
        "--seeds",
        0,
        "--epochs",
        1,
        *TINY,
    )
    page = out / "report" / "index.html"
    until(page.exists, 180, f"the pipeline's page\n{output}\n{logs(site)}")
    (run,) = (out / "runs").glob("[!.]*")
    assert run.name == "cnn_baseline-seed0"
    assert (run / "eval-val.json").exists()


SWEEP = (
    "cnn_baseline",
    "--batch-sizes",
    36,
    "--lrs",
    0.01,
    "--checkpoint-every-s",
    0.5,
    "--no-tensorboard",
)
WIDE = ("--workers-per-trial", 2, "--at-once", 1)


@pytest.mark.long
def test_a_sweep_is_requeued_and_an_array_goes_on_with_it(
    cluster: Cluster, site: Path, shards: Path
) -> None:
    """Ray over the job's nodes, a trial with a worker on each.

    Stopped by Slurm's warning while it trains, it is requeued and finishes; nothing of Ray outlives
    the job; an array then adds a seed.
    """
    out = site / "sweep"
    flags = (*SWEEP, "--data", shards, "--out", out, "--epochs", 40)
    on_two_nodes = ("--nodes=2", "--gres=gpu:1", "slurm/tune.sh", *flags, "--seeds", 0, *WIDE)
    job = cluster.sbatch(*on_two_nodes, cwd=site, **PYTHON)
    until(
        lambda: list(out.glob("trials/*/attempts/0001/0*.pt")) or cluster.state(job) == "FAILED",
        240,
        lambda: f"a checkpoint\n{logs(site)}",
    )
    assert cluster.state(job) == "RUNNING", logs(site)
    cluster.ask("scancel", "--batch", "--signal=USR1", job)
    until(lambda: "start 2" in logs(site), 60, "the requeue")
    # Ray's start alone takes two minutes on a busy machine.
    assert cluster.wait(job, seconds=400) == "COMPLETED", logs(site) + str(list(out.glob("logs/*")))
    assert json.loads((out / "summary.json").read_text())["finished"] == 1
    (run,) = (out / "trials").iterdir()
    assert len(attempt_numbers(run)) == 2
    assert len({rank["host"] for rank in read_environment(run)["ranks"]}) == 2, (
        "one GPU a node, two workers: both nodes"
    )
    until(lambda: not of_jobs(cluster), 20, lambda: f"the end of {of_jobs(cluster)}")
    again = cluster.sbatch(*on_two_nodes, cwd=site, **PYTHON)  # no node waits for Ray's head
    assert cluster.wait(again, seconds=90) == "COMPLETED", logs(site)
    assert "finished, nothing to do" in logs(site)

    output = fer(cluster, ROOT / "jobs" / "sweep.py", *flags, "--seeds", 0, 1, "--gpus-per-node", 1)
    assert "2 trials, 1 finished" in output
    until(
        lambda: "2 of 2 trials finished" in "".join(p.read_text() for p in out.glob("jobs/*.out")),
        240,
        output,
    )
    assert len(json.loads((out / "best.json").read_text())["values"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--partition", "nosuch"), "partitions here: main"),
        (("--gpus-per-node", "8"), "sbatch refused --nodes 1 --gpus-per-node 8"),
        (
            ("--gpus-per-node", "2", "--nodes", "3", "--batch-size", "32"),
            "does not divide by world size 6; use 30 or 36",
        ),
    ],
)
def test_what_cannot_be_scheduled_is_refused_at_submission(
    cluster: Cluster, site: Path, shards: Path, flags: tuple[str, ...], message: str
) -> None:
    run = site / "run"
    assert message in fer(
        cluster,
        ROOT / "jobs" / "train.py",
        "cnn_baseline",
        "--data",
        shards,
        "--run",
        run,
        *flags,
        code=2,
    )


def test_what_is_missing_on_the_node_stands_at_the_head_of_the_log(
    cluster: Cluster, site: Path
) -> None:
    job = cluster.sbatch(
        "slurm/train_vgg.sh", cwd=site, **PYTHON, FER_DATA=site / "nowhere", FER_RUNS=site / "runs"
    )
    assert cluster.wait(job) == "FAILED"
    first = (site / f"fer-vgg-{job}.log").read_text().splitlines()[0]
    assert first.startswith(f"fer-hpc begin: error: --data {site / 'nowhere'} does not exist on n")


def test_nothing_is_left_behind(cluster: Cluster) -> None:
    """After all of the above no process of a job is alive."""
    until(
        lambda: not cluster.ask("squeue", "-h", "-t", "RUNNING,COMPLETING").strip(),
        30,
        "all jobs ended",
    )
    until(lambda: not of_jobs(cluster), 15, lambda: f"the end of {of_jobs(cluster)}")


def of_jobs(cluster: Cluster) -> list[str]:
    """Command lines of the living processes of all jobs, known by Slurm's variables."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            if f"SLURM_CONF={cluster.base}/slurm.conf".encode() in environment and any(
                entry.startswith(b"SLURM_JOB_ID=") for entry in environment
            ):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
