"""On a real Slurm: what loses jobs, repeats them for ever or does something to other people's."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer_hpc.cluster.records import record_job
from fer_hpc.files import read_json
from fer_hpc.run.folder import attempt_numbers, list_checkpoints, read_environment, read_status
from tests.helpers.runs import assert_same_outcome
from tests.helpers.slurm import Cluster, fer
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[2]
PYTHON = {"FER_PYTHON": sys.executable}
QUICK = ("--threads", 1, "--batch-size", 36, "--no-tensorboard", "--epochs", 1)


def log(site: Path, job: str) -> str:
    return "".join(path.read_text() for path in site.glob(f"*-{job}.*"))


def starts(cluster: Cluster, job: str) -> int:
    found = re.search(r"Restarts=(\d+)", cluster.ask("scontrol", "show", "job", job))
    return 1 + int(found[1]) if found else 0


def test_a_layout_that_cannot_start_is_refused_at_once(
    cluster: Cluster, site: Path, shards: Path
) -> None:
    script = ("slurm/train_cnn.sh", "cnn_baseline", "--data", shards, "--run", site / "run", *QUICK)
    nested = f"srun --ntasks=2 bash {' '.join(map(str, script))}"
    asked = {
        "the GPUs are spread unevenly (n": (["-N2", "--gres=none", "--gpus=3"], script),
        "submit with --gres=gpu:2": (["--gpus-per-node=2"], script),
        "every node needs the same number; use": (["-N2", "--gres=none", "--ntasks=3"], script),
        "this script runs as 2 tasks of srun": (["--ntasks=2", f"--wrap={nested}"], ()),
    }
    jobs = {
        message: cluster.sbatch(*options, *call, cwd=site, **PYTHON)
        for message, (options, call) in asked.items()
    }
    for message, job in jobs.items():
        assert cluster.wait(job) == "FAILED", log(site, job)
        assert message in log(site, job)
        assert starts(cluster, job) == 1
    assert not attempt_numbers(site / "run")


@pytest.mark.long
def test_processes_follow_what_was_asked_for(cluster: Cluster, site: Path, shards: Path) -> None:
    """GPUs by task, processors without GPUs, and an interactive shell of one task."""
    inside = f"srun --ntasks=1 bash slurm/train_cnn.sh cnn_baseline --data '{shards}'"
    inside += f" --run '{site}/a%j b' {' '.join(map(str, QUICK))}"
    call = ("slurm/train_cnn.sh", "cnn_baseline", "--data", shards, *QUICK)
    asked = {
        site / "tasks": (["--gres=none", "--ntasks=2", "--gpus-per-task=1"], call),
        site / "cpus": (["--gres=none", "--ntasks=2"], call),
        site / "a%j b": (["--gres=gpu:2", f"--wrap={inside}"], ()),
    }
    jobs = {
        run: cluster.sbatch(
            *options, *command, *(("--run", run) if command else ()), cwd=site, **PYTHON
        )
        for run, (options, command) in asked.items()
    }
    for run, job in jobs.items():
        assert cluster.wait(job, seconds=180) == "COMPLETED", log(site, job)
        assert read_environment(run)["world_size"] == 2, run
    assert "image" in log(site, jobs[site / "cpus"]), "the summary"


def until_said(text: str, site: Path, job: str) -> None:
    until(lambda: text in log(site, job), 120, lambda: log(site, job))


def test_starts_that_gain_nothing_end_with_the_reason_of_the_first(
    cluster: Cluster, site: Path, shards: Path
) -> None:
    """The processes of a training and of a sweep die before they can claim a run."""
    bad = site / "bad"
    bad.mkdir()
    for library in ("torch", "ray"):
        (bad / f"{library}.py").write_text("raise OSError('libcudart.so.12: cannot open')\n")
    env = {**PYTHON, "PYTHONPATH": f"{bad}{os.pathsep}{os.environ.get('PYTHONPATH', ROOT)}"}
    common = ("cnn_baseline", "--data", shards)
    jobs = [
        cluster.sbatch(*call, cwd=site, **env)
        for call in (
            ("slurm/train_cnn.sh", *common, "--run", site / "run", *QUICK),
            ("slurm/tune.sh", *common, "--out", site / "sweep", "--epochs", 1),
        )
    ]
    for job in jobs:
        until_said("starts in a row gained nothing", site, job)
        assert cluster.wait(job) == "FAILED"
        assert starts(cluster, job) == 3
        assert "libcudart.so.12: cannot open" in log(site, job).partition("The first of them")[2]


@pytest.mark.long
def test_a_job_from_inside_another_ones_array_is_itself(
    cluster: Cluster, site: Path, shards: Path
) -> None:
    """Its run, requeue and end are its own, whatever variables it inherits."""
    call = f"slurm/train_cnn.sh cnn_baseline --data '{shards}' --threads 1 --batch-size 36"
    call += " --no-tensorboard --epochs 8 --checkpoint-every-s 0.3"
    inner = f"sbatch --parsable {call} > inner"
    env = {**PYTHON, "FER_RUNS": site / "runs", "SLURM_RESTART_COUNT": 7, "SLURM_CPU_BIND": "rank"}
    outer = cluster.sbatch("--array=4-4", "--gres=none", f"--wrap={inner}", cwd=site, **env)
    until((site / "inner").exists, 60, "the inner job")
    assert cluster.wait(outer) == "COMPLETED"
    job, run = (site / "inner").read_text().strip(), site / "runs" / "cnn_baseline"
    until(lambda: list_checkpoints(run), 120, lambda: log(site, job))
    cluster.ask("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job, seconds=180) == "COMPLETED", log(site, job)
    assert starts(cluster, job) == 2
    assert starts(cluster, f"{outer}_4") == 1, "the outer job was not started again"
    assert sorted(p.name for p in (site / "runs").glob("[!.]*")) == ["cnn_baseline"], "no seed 4"
    assert f"job {job}, start 1:" in log(site, job)
    assert f"job {job}, start 2:" in log(site, job)


@pytest.mark.long
def test_a_controller_that_is_away_and_an_edit_do_not_lose_a_run(
    cluster: Cluster, site: Path, shards: Path
) -> None:
    """A run stops while the controller is dead, and its code is edited; it goes on as it began."""
    shutil.copytree(ROOT / "fer_hpc", site / "code" / "fer_hpc")
    flags = ("cnn_baseline", "--data", shards, "--threads", 1, "--batch-size", 36)
    flags += ("--no-tensorboard", "--epochs", 8, "--checkpoint-every-s", 0.3)
    run = site / "run"
    env = {**PYTHON, "PYTHONPATH": site / "code", "FER_RUNS": site / "runs"}
    job = cluster.sbatch("slurm/train_cnn.sh", *flags, "--run", run, cwd=site, **env)
    until(lambda: list_checkpoints(run), 120, lambda: log(site, job))
    (site / "code" / "fer_hpc" / "cli" / "main.py").write_text("this is no Python\n")
    cluster.kill_controller()
    try:
        for pid in batch_shells(job):
            os.kill(pid, signal.SIGUSR1)
        until(lambda: read_status(run)["state"] == "interrupted", 60, lambda: log(site, job))
        time.sleep(10)
    finally:
        cluster.start_controller()
    assert cluster.wait(job, seconds=240) == "COMPLETED", log(site, job)
    assert len(attempt_numbers(run)) == 2, log(site, job)
    undisturbed = site / "undisturbed"
    fer(cluster, "-m", "fer_hpc", "train", *flags, "--run", undisturbed, CUDA_VISIBLE_DEVICES="")
    assert_same_outcome(run, undisturbed)


def batch_shells(job: str) -> list[int]:
    """Process ids of a job's batch script on its node, as this machine sees them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().split(b"\0")
            if line[0].endswith(b"bash") and f"/job{int(job):05}/slurm_script".encode() in line[1]:
                found.append(int(folder.name))
    return found


def test_only_what_is_ours_is_cancelled(cluster: Cluster, site: Path) -> None:
    """A record of another cluster, of another job of this number, and of a local process."""
    job = cluster.sbatch("--gres=none", "--job-name=other", "--wrap=sleep 60", cwd=site)
    assert cluster.wait(job, "RUNNING") == "RUNNING"
    usual = {"scheduler": "slurm", "starts": []}
    for name, more in {
        "elsewhere": {"cluster": "another", "name": "other", "submitted": 0.0},
        "renamed": {"cluster": "fer", "name": "fer-train", "submitted": 0.0},
        "later": {"cluster": "fer", "name": "other", "submitted": time.time() + 3600},
        "old": {},
    }.items():
        record_job(site / name, job, ["train"], [], **(usual if more else {}), **more)
        assert "no living job there" in fer(cluster, "-m", "fer_hpc", "cancel", site / name)
    sleeper = subprocess.Popen(["sleep", "60"])
    record_job(site / "gone", f"local-{sleeper.pid}_1", ["train"], [], scheduler="local")
    assert "no living job there" in fer(cluster, "-m", "fer_hpc", "cancel", site / "gone")
    assert cluster.state(job) == "RUNNING"
    assert sleeper.poll() is None
    sleeper.kill()
    mine = {"cluster": "fer", "name": "other", "submitted": time.time()}
    record_job(site / "mine", job, ["train"], [], **usual, **mine)
    assert f"cancelled job {job}" in fer(cluster, "-m", "fer_hpc", "cancel", site / "mine")
    assert cluster.wait(job) == "CANCELLED"


@pytest.mark.long
def test_the_block_of_the_readme_runs_as_it_stands(cluster: Cluster, tmp_path: Path) -> None:
    """In a folder with slurm/, with a fer2013.csv of few faces."""
    text = (ROOT / "README.md").read_text()
    block = text.partition("## Cluster")[2].split("```")[1]
    assert "sbatch" in block
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    rows = [
        f"{i % 7},{' '.join(str((i * 37 + k) % 256) for k in range(2304))},{usage}"
        for usage, count in (("Training", 256), ("PublicTest", 21), ("PrivateTest", 21))
        for i in range(count)
    ]
    (tmp_path / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]) + "\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "fer-hpc").write_text(f'#!/bin/sh\nexec {sys.executable} -m fer_hpc "$@"\n')
    (tools / "fer-hpc").chmod(0o755)
    env = {k: v for k, v in cluster.env.items() if not k.startswith("FER_")}
    env |= {"PATH": f"{tools}:{env['PATH']}", **PYTHON}
    done = subprocess.run(
        ["bash", "-ec", block],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (last,) = re.findall(r"Submitted batch job (\d+)", done.stdout)
    assert cluster.wait(last, seconds=240) == "COMPLETED", "".join(
        path.read_text() for path in sorted(tmp_path.glob("*.log"))
    )
    scores = read_json(tmp_path / "runs" / "cnn_improved" / "eval-val.json")
    assert scores is not None


def test_a_submitted_job_runs_in_the_container_of_the_site(
    cluster: Cluster, site: Path, shards: Path
) -> None:
    """A wrapper stands for the container: every Python of the job goes through it."""
    checkout = site / "checkout"
    for name in ("fer_hpc", "slurm", "jobs"):
        shutil.copytree(ROOT / name, checkout / name)
    wrapper = site / "container"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> "{site}/used"\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    env_sh = checkout / "slurm" / "env.sh"
    text = env_sh.read_text()
    assert "\nfer_python=()\n" in text
    env_sh.write_text(text.replace("\nfer_python=()\n", f'\nfer_python=("{wrapper}")\n'))
    call = ("cnn_baseline", "--data", shards, "--run", site / "run", *QUICK)
    output = fer(cluster, checkout / "jobs" / "train.py", *call, PYTHONPATH=str(checkout))
    job = output.split("\njob ")[1].split()[0]
    assert cluster.wait(job) == "COMPLETED", output
    used = (site / "used").read_text().splitlines()
    assert [line.split()[2] for line in used] == ["begin", "train", "end"]


@pytest.mark.parametrize(
    ("option", "message"),
    [("constrain=h100", "did you mean 'constraint'"), ("array=0-3", "sets --array by itself")],
)
def test_an_option_of_sbatch_is_checked_by_its_name(
    cluster: Cluster, site: Path, shards: Path, option: str, message: str
) -> None:
    call = ("cnn_baseline", "--data", shards, "--run", site / "run", "--sbatch", option)
    assert message in fer(cluster, ROOT / "jobs" / "train.py", *call, code=2)


def test_an_option_of_sbatch_is_passed_on(cluster: Cluster, site: Path, shards: Path) -> None:
    call = ("cnn_baseline", "--data", shards, "--run", site / "run", *QUICK, "--sbatch", "hold")
    output = fer(cluster, ROOT / "jobs" / "train.py", *call, "--sbatch", "comment=for a paper")
    job = output.split("\njob ")[1].split()[0]
    shown = cluster.ask("scontrol", "show", "job", job)
    assert "Comment=for a paper" in shown
    assert "Reason=JobHeldUser" in shown
    assert f"cancelled job {job}" in fer(cluster, "-m", "fer_hpc", "cancel", site / "run")
