"""Jobs without a scheduler: what is submitted and refused, the same jobs on this machine."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer_hpc.cli.main import job
from fer_hpc.cluster.code import keep_code
from fer_hpc.parallel.job import expand_hosts, job_port
from fer_hpc.parallel.world import free_port
from fer_hpc.run.folder import read_environment, read_status
from tests.conftest import Fer

ROOT = Path(__file__).parents[1]
QUICK = ("--epochs", "1", "--batch-size", "36", "--threads", "1", "--no-tensorboard")


def run_job(script: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(ROOT / "jobs" / f"{script}.py"), *map(str, args)]
    return subprocess.run(
        call, capture_output=True, text=True, timeout=400, check=False, env={**os.environ, **env}
    )


def test_the_copy_of_the_code_for_jobs_makes_the_page_that_the_package_makes(
    finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    copy = keep_code(tmp_path / "code")
    for place in (ROOT, copy):
        done = subprocess.run(
            [sys.executable, "-m", "fer_hpc", "report", finished_run, "--out", place.name],
            env=os.environ | {"PYTHONPATH": str(place)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
    pages = [(tmp_path / place.name / "index.html").read_text() for place in (ROOT, copy)]
    assert pages[0].count("</section>") == pages[1].count("</section>") > 1


def test_dry_run_shows_the_whole_script_and_quotes_what_was_given(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "my run; rm -rf $HOME"
    done = run_job(
        "train",
        "cnn_improved",
        "--data",
        shards,
        "--run",
        run,
        "--nodes",
        2,
        "--gpus-per-node",
        4,
        "--partition",
        "gpu",
        "--account",
        "a'b",
        "--mem",
        "64G",
        "--time-min",
        90,
        "--dry-run",
    )
    assert done.returncode == 0, done.stderr
    head, script = done.stdout.split("\n", 1)
    assert head == (
        "2 node(s) x 4 task(s) = 8 ranks, 1 core(s) each, 4 GPU(s) a node; batch 256 = 8 x 32; "
        "90 min, signal 30 s before"
    )
    launch = ROOT / "slurm" / "launch.sh"
    command = f"{launch} --job train cnn_improved --data {shards} --run '{run}'"
    program = f"-u -m submitit.core._submit '{run}/jobs'"
    assert (
        script
        == f"""#!/bin/bash

# Parameters
#SBATCH --account='a'"'"'b'
#SBATCH --cpus-per-gpu=1
#SBATCH --gres=gpu:4
#SBATCH --job-name=fer-train
#SBATCH --mem=64G
#SBATCH --nodes=2
#SBATCH --open-mode=append
#SBATCH --output='{run}/jobs/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=B:USR1@30
#SBATCH --time=90
#SBATCH --wckey=submitit

# setup
trap 'fer_signal=$((${{fer_signal:-0}} + 1))' USR1 USR2 TERM  # kept for launch.sh
export FER_SUBMIT_PYTHON={sys.executable}
fer_kept=''

# command
export SUBMITIT_EXECUTOR=slurm
. {command} -- {program}

"""
    )
    assert not run.exists(), "nothing was submitted or written"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("--batch-size", "100", "--nodes", "3"),
            "--batch-size 100 does not divide by world size 3; use 99 or 102",
        ),
        (("--data", "/nowhere"), "--data /nowhere does not exist on"),
        (("--nodes", "0"), "--nodes 0: wanted at least 1"),
    ],
)
def test_mistakes_are_refused_before_submission(
    shards: Path, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    done = run_job(
        "train",
        "cnn_improved",
        "--data",
        shards,
        "--run",
        tmp_path / "run",
        "--cluster",
        "local",
        *args,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_slurm_the_message_names_where_to_go(shards: Path, tmp_path: Path) -> None:
    done = run_job(
        "train", "cnn_improved", "--data", shards, "--run", tmp_path / "run", PATH=str(tmp_path)
    )
    assert done.returncode == 2
    assert "no sbatch on the PATH here" in done.stderr


def test_a_local_job_runs_in_the_background_and_is_listed(
    fer: Fer, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "one"
    done = run_job(
        "train",
        "cnn_baseline",
        "--data",
        shards,
        "--run",
        run,
        *QUICK,
        "--cluster",
        "local",
        "--gpus-per-node",
        2,
    )
    assert done.returncode == 0, done.stderr
    end = time.monotonic() + 400
    while read_status(run)["state"] != "finished" and time.monotonic() < end:
        time.sleep(0.2)
    assert read_environment(run)["world_size"] == 2
    listed = fer("cli", "status", tmp_path / "runs").stdout
    assert re.search(r"runs/one  finished +1 of 1  best val 0\.\d{4}", listed), listed
    assert "finished; best epoch 1" in fer("cli", "logs", run).stdout


def test_a_debug_job_runs_here_and_now(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_job(
        "train", "cnn_baseline", "--data", shards, "--run", run, *QUICK, "--cluster", "debug"
    )
    assert done.returncode == 0, done.stderr
    assert read_status(run)["state"] == "finished"


def test_lists_of_nodes() -> None:
    assert expand_hosts("n[1-3,07],m4,r[1-2]c[8-9]") == (
        ["n1", "n2", "n3", "n07", "m4", "r1c8", "r1c9", "r2c8", "r2c9"]
    )
    assert expand_hosts("gpu-a.site") == ["gpu-a.site"]


@pytest.mark.parametrize("value", ["a\ntouch X\n", "a\x1b[2J", "a\r"])
@pytest.mark.parametrize("flag", ["--run", "--partition", "--mem"])
def test_a_control_character_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    call = ("cnn_baseline", "--data", shards, "--run", tmp_path / "run", flag, value, "--dry-run")
    assert job("train", "train", [*map(str, call)]) == 2
    assert f"the argument {value!r} contains a control character" in capsys.readouterr().err


def test_jobs_of_one_node_use_different_ports() -> None:
    ports = {job_port(job, offset) for job in range(1000, 1100) for offset in range(3)}
    assert len(ports) == 300
    assert min(ports) >= 1024
    assert max(ports) < 32_768, "above, Linux gives ports to outgoing connections"


def test_a_free_port_is_not_one_that_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert free_port() != server.getsockname()[1]


PLUGIN = """
from torch import nn
from fer_hpc.models.registry import register_model

@register_model("mine", sides=(32, 128), face=(64, 3))
def mine(outputs: int, channels: int, side: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, outputs))
"""


def dry_pipeline(folder: Path, preset: str, *flags: object) -> subprocess.CompletedProcess[str]:
    call = (preset, "--source", "synthetic", "--count", 80, "--out", folder, *flags)
    return run_job("pipeline", *call, "--seeds", 0, "--dry-run")


@pytest.mark.long
def test_a_pipeline_cuts_the_faces_that_its_network_takes(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    for flags, faces in (
        (("resnet_improved",), "--size 224 --channels 3"),
        (("cnn_improved", "--model", "mine", "--plugin", plugin), "--size 64 --channels 3"),
    ):
        done = dry_pipeline(tmp_path / "study", *map(str, flags))
        assert done.returncode == 0, done.stderr
        assert faces in done.stdout


def test_a_mistake_in_a_later_stage_of_a_pipeline_submits_nothing(tmp_path: Path) -> None:
    done = dry_pipeline(tmp_path / "study", "cnn_improved", "--epochs", "many")
    assert done.returncode == 2
    assert "JOB-OF" not in done.stdout
    assert "#SBATCH" not in done.stdout


def test_status_as_json_is_empty_where_nothing_ran(fer: Fer, tmp_path: Path) -> None:
    assert json.loads(fer("cli", "status", tmp_path, "--json").stdout) == []
    assert fer("cli", "status", tmp_path / "nowhere").returncode == 2


def test_status_before_the_first_run_is_no_mistake(tmp_path: Path) -> None:
    """As after the first sbatch: the folder of the runs is made when a job starts."""
    call = [sys.executable, "-m", "fer_hpc", "status"]
    env = {**os.environ, "FER_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(call, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
