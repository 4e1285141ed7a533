"""On a real Grid Engine: the scripts, jobs/, all ways to lose a job, and who gets which GPU."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer_hpc.files import read_json
from fer_hpc.run.folder import attempt_numbers, read_environment, read_status
from tests.helpers.gridengine import Cell
from tests.helpers.processes import finish, start_ranks
from tests.helpers.runs import TINY, assert_same_outcome, lasting, until_saved
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[2]
ENV = {"FER_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
# Begins and ends as a real job, but its processes show their GPUs, sleep and end with a code.
STUB = """\
#!/bin/bash
case $3 in begin | end) exec {python} "$@" ;; esac
echo "$(date +%s.%N) ${{CUDA_VISIBLE_DEVICES-none}} $*"
sleep "$FER_STUB_S"
date +%s.%N
exit "$FER_STUB_CODE"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to submit from; it gets the logs."""
    (tmp_path / "sge").symlink_to(ROOT / "sge")
    return tmp_path


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "stub"
    path.write_text(STUB.format(python=sys.executable))
    path.chmod(0o755)
    return path


def qsub(cell: Cell, place: Path, *args: object, **env: object) -> str:
    env = ENV | env
    return cell.qsub("-v", ",".join(env), *args, cwd=place, **env)


def logs(folder: Path) -> str:
    found = sorted([*folder.glob("**/*.log"), *folder.glob("**/*.o[0-9]*")])
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in found)


def fer(cell: Cell, *args: object, code: int = 0) -> str:
    call, env = [sys.executable, *map(str, args)], cell.env | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        call, env=env, capture_output=True, text=True, timeout=400, check=False, cwd=cell.base
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def ends(cell: Cell, job: str) -> list[int]:
    return [int(record["exit_status"].split()[0]) for record in cell.account(job)]


@pytest.mark.long
def test_the_scripts_from_raw_faces_to_scores(cell: Cell, place: Path) -> None:
    """Preprocess as an array, train on 2 GPUs, score, each after the one before."""
    env = {"FER_DATA": place / "my shards", "FER_RUNS": place / "runs"}
    made = qsub(
        cell, place, "-t", "1-2", "sge/preprocess.sh", "--source=synthetic", "--count=240", **env
    )
    flags = ("--epochs", 2, *TINY)
    two = ("-l", "gpus=2", "-pe", "omp", 2, "-hold_jid", made)
    trained = qsub(cell, place, *two, "sge/train_cnn.sh", *flags, **env)
    run, away = place / "runs" / "cnn_improved", place / "elsewhere"
    away.mkdir()
    scored = qsub(cell, away, "-hold_jid", trained, ROOT / "sge/evaluate.sh", run, **env)
    for job in (made, trained, scored):
        cell.wait(job, seconds=120)
        assert {record["exit_status"] for record in cell.account(job)} == {"0"}, logs(place)
    environment = read_environment(run)
    assert environment["world_size"] == 2
    assert environment["job"]["id"] == trained
    assert json.loads((place / "my shards" / "manifest.json").read_text())["source"]["rows"] == 240
    assert (run / "eval-val.json").exists()
    assert "accuracy" in (away / f"fer-evaluate-{scored}.log").read_text()
    assert f"{scored}-0.log:   loss" in fer(cell, "-m", "fer_hpc", "logs", run)
    row = json.loads(fer(cell, "-m", "fer_hpc", "status", run, "--json"))[0]
    assert [(job["job"], job["state"]) for job in row["jobs"]] == [
        (trained, "COMPLETED"),
        (scored, "COMPLETED"),
    ]
    assert re.match(
        r"\d+ min \d\d s on the cluster, 0.0\d GPU hours, cores busy \d+%", row["usage"]
    )
    assert 0.3 < float(re.findall(r"largest process (.*) GB", row["usage"])[0]) < 5


def test_a_suspension_a_rescheduling_and_a_killed_process(
    cell: Cell, place: Path, shards: Path, short: tuple[object, ...], whole: Path
) -> None:
    """USR1, KILL and USR2: the job starts again by itself and ends as the undisturbed run."""
    call = ("cnn_baseline", "--data", shards, *short)
    run = place / "runs" / "lost"
    job = qsub(cell, place, "sge/train_cnn.sh", *call, "--run", run)
    until_saved(run)
    cell.ask("qmod", "-sj", job)
    until(lambda: stopped_by(run, 1) == "stopped by SIGUSR1", 20, "its stop")
    cell.wait(job, "s", "Rq", "Rr")
    cell.ask("qmod", "-usj", job)
    until_saved(run, attempt=2)
    kill_rank(run)
    until_saved(run, attempt=3)
    for _ in range(3):  # Grid Engine loses what comes within a second or two of a job's start
        assert cell.ask("qmod", "-rj", job)
        with contextlib.suppress(TimeoutError):
            until(lambda: stopped_by(run, 3), 1, "its stop")
            break
    cell.wait(job, seconds=120)
    assert ends(cell, job)[-1] == 0, logs(place)
    starts = len(attempt_numbers(run))
    assert starts >= 4  # more where a slow stop was asked for again
    assert_same_outcome(run, whole)
    assert stopped_by(run, 3) == "stopped by SIGUSR2"
    record = read_json(run / "jobs" / f"{job}.json")
    assert record["cluster"] == "default@master"
    assert [start["restarts"] for start in record["starts"]] == list(range(starts))
    assert "ended by SIGKILL" in record["starts"][1]["end"]["how"]
    assert abs(record["submitted"] - record["starts"][0]["time"]) < 1000


def stopped_by(run: Path, attempt: int) -> str:
    """Why a start of a run has stopped; "" while it trains."""
    return str((read_json(run / "attempts" / f"{attempt:04}" / "status.json") or {}).get("why", ""))


def kill_rank(run: Path) -> None:
    """KILL the processes that train `run`."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"fer_hpc" in words and b"train" in words and str(run).encode() in words:
                os.kill(int(folder.name), 9)


def test_a_submitted_job_is_shown_and_cancelled(
    cell: Cell, place: Path, shards: Path, short: tuple[object, ...]
) -> None:
    run = place / "runs" / "endless"
    call = (ROOT / "jobs/train.py", "cnn_baseline", "--data", shards, "--run", run, *TINY)
    output = fer(cell, *call, "--epochs", 9999, "--cluster", "sge", "--qsub", "l=gpu_c=7.0")
    job = output.split("\njob ")[1].split()[0]
    waiting = (
        fer(cell, *call[: -len(TINY)], *short, "--cluster", "sge", "--qsub", f"hold_jid={job}")
        .split("\njob ")[1]
        .split()[0]
    )
    until_saved(run)
    shown = json.loads(fer(cell, "-m", "fer_hpc", "status", run, "--json"))[0]
    assert shown["jobs"] == [
        {"job": job, "state": "RUNNING", "reason": "", "starts": 1},
        {"job": waiting, "state": "PENDING", "reason": "hqw", "starts": 0},
    ]
    assert f"job {waiting} has written no log yet" in fer(cell, "-m", "fer_hpc", "logs", run)
    assert cell.ask("qstat", "-j", job).count("gpu_c=7.0") == 1
    lines = fer(cell, "-m", "fer_hpc", "cancel", run).splitlines()
    assert sorted(lines) == sorted(
        [f"cancelled job {job} (running)", f"cancelled job {waiting} (pending)"]
    )
    cell.wait(job)
    assert read_status(run)["state"] == "interrupted"
    assert read_status(run)["why"] == "stopped by SIGUSR2"
    assert ends(cell, job) in ([75], [137])  # killed in 30 s, on a busy machine while it ends
    assert len(attempt_numbers(run)) == 1
    shown = json.loads(fer(cell, "-m", "fer_hpc", "status", run, "--json"))[0]
    assert shown["jobs"][0]["state"] == "FAILED"


PIPELINE = ("cnn_baseline", "--source", "synthetic", "--count", 240, "--tasks", 2, "--seeds", 0)


@pytest.mark.long
def test_a_pipeline_and_one_whose_first_stage_fails(cell: Cell, place: Path) -> None:
    """Grid Engine starts jobs also after a failed one: they refuse, one after the other."""
    call = (ROOT / "jobs/pipeline.py", *PIPELINE, "--cluster", "sge", "--epochs", 1, *TINY)
    failing = fer(cell, *call, "--out", place / "failing")
    shards, *others = re.findall(r"^  job (\d+)", failing, re.M)
    cell.wait(shards, "r", "r,t")
    cell.cancel(f"{shards}.2")
    whole = fer(cell, *call, "--out", place / "whole")
    page = place / "whole" / "report" / "index.html"
    until(page.exists, 180, lambda: f"the page\n{whole}\n{logs(place)}")
    assert (place / "whole" / "runs" / "cnn_baseline-seed0" / "eval-val.json").exists()
    for before, job in zip([shards, *others], others, strict=False):
        cell.wait(job)
        assert ends(cell, job) == [2]
        assert f"job {before}, whose result this one needs, failed" in logs(place / "failing")
    assert not (place / "failing" / "report" / "index.html").exists()


@pytest.mark.long
def test_a_sweep_as_an_array(cell: Cell, place: Path, shards: Path) -> None:
    out = place / "sweep"
    flags = ("--batch-sizes", 36, "--lrs", 0.01, 0.003, "--seeds", 0, "--epochs", 1)
    call = (ROOT / "jobs/sweep.py", "cnn_baseline", "--data", shards, "--out", out, *flags)
    output = fer(cell, *call, "--threads", 1, "--no-tensorboard", "--cluster", "sge")
    array, tables = re.findall(r"  job (\d+)", output)
    assert f"job {array}.1, {array}.2\n" in output
    until((out / "summary.json").exists, 120, lambda: f"{output}{logs(out)}")
    cell.wait(tables)
    assert json.loads((out / "summary.json").read_text())["finished"] == 2
    assert ends(cell, array) == [0, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpus-per-node", "8"), "no suitable queues"),
        (("--qsub", "l=gpu_c=9.0"), "no suitable queues"),
        (("--partition", "nosuch.q"), "unknown queue"),
        (("--sge-gpus", "nosuch"), 'unknown resource "nosuch"'),
        (("--sge-pe", "nosuch", "--cpus", "2"), '"nosuch" does not exist'),
        (("--account", "nosuch"), 'project "nosuch" does not exist'),
        (("--nodes", "2"), "a job has the GPUs of one host"),
        (("--mem", "8G"), "give the site's own option, as --qsub l=h_vmem=8G"),
        (("--gpus-per-node", "3", "--batch-size", "32"), "use 30 or 33"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_at_submission(
    cell: Cell, place: Path, shards: Path, flags: tuple[str, ...], message: str
) -> None:
    call = (ROOT / "jobs/train.py", "cnn_baseline", "--data", shards, "--run", place / "run")
    output = fer(cell, *call, "--cluster", "sge", *flags, code=2)
    assert message in output
    assert output.count("\n") <= 2, output


def gpu_job(cell: Cell, place: Path, stub: Path, data: Path, run: str, **env: object) -> str:
    given = {"FER_PYTHON": stub, "FER_STUB_S": 3, "FER_STUB_CODE": 2, **env}
    call = ("cnn_baseline", "--data", data, "--run", place / run, "--batch-size", 36)
    two = ("-l", "gpus=2", "-pe", "omp", 2)
    return qsub(cell, place, *two, "sge/train_cnn.sh", *call, **given)


@pytest.mark.parametrize(
    "variable",
    ["CUDA_VISIBLE_DEVICES", pytest.param("SGE_GPU", marks=pytest.mark.long), "NONE"],
)
def test_two_jobs_never_get_one_gpu(
    cell: Cell, place: Path, stub: Path, shards: Path, variable: str
) -> None:
    """Chosen by the site, or without it by locks: the second waits where too few are free."""
    devices = [f"{os.getpid()}{number}" for number in range(3)]
    env = {"FER_GPUS": " ".join(devices)} if variable == "NONE" else {}
    with contextlib.ExitStack() as stack:
        used = cell
        if variable != "CUDA_VISIBLE_DEVICES":
            used = stack.enter_context(Cell(gpu_variable=variable))
        jobs = [gpu_job(used, place, stub, shards, f"run{i}", **env) for i in range(2)]
        for job in jobs:
            used.wait(job)
    texts = [path.read_text() for path in sorted(place.glob("run*/logs/*-0.log"))]
    shown = [re.findall(r"^([\d.]+) (\S+) .*--procs 2\n([\d.]+)$", text, re.M)[0] for text in texts]
    (_, gpus, end), (later_start, others, _) = sorted(shown)
    assert len(set(gpus.split(","))) == len(set(others.split(","))) == 2
    one_after_the_other = float(later_start) > float(end)
    apart = not set(gpus.split(",")) & set(others.split(","))
    assert one_after_the_other or (apart and variable != "NONE")
    for device in devices:
        Path(f"/tmp/fer-gpu-{device}.lock").unlink(missing_ok=True)


@pytest.mark.long
def test_more_gpus_than_the_host_has(place: Path, stub: Path, shards: Path) -> None:
    with Cell(gpu_variable="NONE") as cell:
        job = gpu_job(cell, place, stub, shards, "run", FER_GPUS="only")
        cell.wait(job)
        assert ends(cell, job) == [1]
    assert "2 GPUs granted, and n1 has 1; FER_GPUS names them" in logs(place)


def test_three_starts_without_a_gain_are_the_last(
    cell: Cell, place: Path, stub: Path, shards: Path
) -> None:
    """Code 99 starts a job again for ever, and Grid Engine counts nothing."""
    job = gpu_job(cell, place, stub, shards, "run", FER_STUB_CODE=7, FER_STUB_S=0)
    cell.wait(job)
    assert ends(cell, job) == [99, 99, 7]
    text = logs(place)
    assert "3 starts in a row gained nothing" in text
    assert "The first of them: it ended with exit code 7" in text


def test_a_job_in_error_shows_its_message_and_can_be_cancelled(
    cell: Cell, place: Path, shards: Path
) -> None:
    call = (ROOT / "jobs/train.py", "cnn_baseline", "--data", shards, "--run", place / "run")
    output = fer(cell, *call, "--cluster", "sge", "--qsub", f"o={place}/gone/log")
    job = output.split("\njob ")[1].split()[0]
    cell.wait(job, "Eqw")
    shown = fer(cell, "-m", "fer_hpc", "status", place / "run")
    assert f'can\'t open output file "{place}/gone/log"' in shown
    assert f"cancelled job {job} (error)" in fer(cell, "-m", "fer_hpc", "cancel", place / "run")
    cell.wait(job)


@pytest.mark.long
def test_the_master_is_away_while_a_job_ends(
    cell: Cell, place: Path, stub: Path, shards: Path
) -> None:
    """25 s: the job asks until it is answered, and is started again."""
    job = gpu_job(cell, place, stub, shards, "run", FER_STUB_CODE=75)
    until((place / "run" / "logs" / f"{job}-0.log").exists, 30, "its start")
    cell.stop_qmaster()
    assert "qstat does not answer" in fer(cell, "-m", "fer_hpc", "status", place / "run")
    time.sleep(25)
    assert ends(cell, job) == []
    cell.start_qmaster()
    until(lambda: ends(cell, job) == [99, 99, 75], 120, lambda: f"three starts {logs(place)}")


@pytest.mark.long
def test_a_time_limit(cell: Cell, place: Path, shards: Path, finished_run: Path) -> None:
    """A training of a minute under a limit of 25 s: it stops in time, starts again, ends alike."""
    call = ("cnn_baseline", "--data", shards, *lasting(finished_run, 60))
    job = qsub(cell, place, "-l", "s_rt=25", "sge/train_cnn.sh", *call, "--run", place / "limited")
    assert finish(start_ranks(1, "train", *call, "--run", place / "whole"), 400) == [0]
    cell.wait(job, seconds=400)
    codes = ends(cell, job)
    assert len(codes) >= 3
    assert codes == [99] * (len(codes) - 1) + [0]
    assert_same_outcome(place / "limited", place / "whole")
