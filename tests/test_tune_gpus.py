"""Sweeps on the GPUs of a machine, which a Ray is made to believe in."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.config import UserError
from fer_hpc.run.folder import read_environment
from fer_hpc.sweep.grid import grid
from tests.helpers.ray_sweeps import MARK, done, sweep


@pytest.fixture
def four_gpus() -> Iterator[str]:
    """A Ray that believes in four GPUs."""
    folder = tempfile.mkdtemp(prefix="fer-gpus-", dir="/tmp")
    ray = str(Path(sys.executable).with_name("ray"))
    quiet = (
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--temp-dir={folder}",
        "--object-store-memory=80000000",
    )
    port = 20_000 + os.getpid() % 10_000
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "FER_TEST": f"{MARK}-gpus"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # empty in tests: Ray would refuse --num-gpus=4
    start = (
        ray,
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=8",
        "--num-gpus=4",
        "--node-ip-address=127.0.0.1",
        *quiet,
    )
    subprocess.run(start, check=True, capture_output=True, env=environment, timeout=400)
    yield f"127.0.0.1:{port}"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"FER_TEST={MARK}-gpus".encode() in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_several_workers_have_a_gpu_each(shards: Path, four_gpus: str, tmp_path: Path) -> None:
    """Two trials of two workers fill four GPUs, each worker its own; five workers do not fit."""
    ray = {"RAY_ADDRESS": four_gpus, "RAY_AUTH_MODE": "disabled"}
    wide = done(
        sweep(
            shards,
            tmp_path / "wide",
            "--lrs",
            0.01,
            "--seeds",
            0,
            1,
            "--epochs",
            1,
            "--workers-per-trial",
            2,
        ),
        **ray,
    )
    assert wide.returncode == 0, wide.stdout + wide.stderr
    assert "up to 2 at a time" in wide.stdout
    used, times = [], []
    for run in (tmp_path / "wide" / "trials").iterdir():
        ranks = read_environment(run)["ranks"]
        assert [rank["local_rank"] for rank in ranks] == [0, 1]
        assert len({rank["gpus_visible"] for rank in ranks}) == 1, (
            "both workers see the trial's GPUs"
        )
        used.append({ranks[0]["gpus_visible"].split(",")[rank["local_rank"]] for rank in ranks})
        ends = (run / "attempts" / "0001" / name for name in ("environment.json", "status.json"))
        times.append([path.stat().st_mtime for path in ends])
    assert [len(gpus) for gpus in used] == [2, 2]
    at_once = max(begin for begin, _ in times) < min(end for _, end in times)
    assert not at_once or used[0] | used[1] == {"0", "1", "2", "3"}
    much = done(
        sweep(
            shards, tmp_path / "much", "--batch-sizes", 60, "--lrs", 0.01, "--workers-per-trial", 5
        ),
        **ray,
    )
    assert much.returncode == 2
    assert "the largest trial that fits has --workers-per-trial 4" in much.stderr
    assert not (tmp_path / "much").exists()


@pytest.mark.long
def test_small_trials_share_gpus(shards: Path, four_gpus: str, tmp_path: Path) -> None:
    """Eight of half a GPU fit on four."""
    ray = {"RAY_ADDRESS": four_gpus, "RAY_AUTH_MODE": "disabled"}
    small = done(
        sweep(
            shards,
            tmp_path / "small",
            "--lrs",
            0.01,
            "--seeds",
            0,
            1,
            "--epochs",
            1,
            "--gpus-per-worker",
            0.5,
        ),
        **ray,
    )
    assert small.returncode == 0, small.stdout + small.stderr
    assert "up to 8 at a time" in small.stdout
    assert {
        read_environment(run)["ranks"][0]["gpus_visible"]
        for run in (tmp_path / "small" / "trials").iterdir()
    } == {"0"}


def test_trials_for_gpus_are_not_refused_for_what_a_cpu_lacks(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver looks at trials before Ray starts, and starts CUDA for none of them."""
    from fer_hpc.sweep import ray_tune

    call = [str(a) for a in sweep(shards, tmp_path, "--precision", "tf32")][1:]
    config, _, base = configure("tune", call)
    trials = grid(config, base)
    with pytest.raises(UserError, match="on a CPU take fp32"):
        ray_tune._check_new_trials(config, trials)
    monkeypatch.setattr(ray_tune, "may_have_gpus", lambda: True)
    ray_tune._check_new_trials(config, trials)
    with_auto = grid(config, dataclasses.replace(base, precision="auto"))
    ray_tune._check_new_trials(config, with_auto)  # CUDA would fail here
