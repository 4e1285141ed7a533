"""The service for processes that share a GPU: its process, with a program that stands for it.

The real one runs in tests/test_gpu.py.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fer_hpc.config import TrainConfig, UserError
from fer_hpc.config.commands import SweepConfig
from fer_hpc.parallel import mps
from fer_hpc.sweep import ray_nodes
from fer_hpc.sweep.ray_cluster import room_for_trials
from fer_hpc.sweep.ray_nodes import shared_gpus

BASE = TrainConfig(data=Path("d"), run=Path("r"), threads=1)

# -f: says what it sees, opens its "control", ends when it is asked; without flags: asks it to end
SERVICE = """#!/bin/sh
cd "$CUDA_MPS_PIPE_DIRECTORY"
if [ "$1" != -f ]; then read word; echo "$word" > asked; exit; fi
echo "$$ visible:$CUDA_VISIBLE_DEVICES" > seen
touch control
until [ -e asked ]; do sleep .05; done
cp asked "$SAID"
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin" / mps.PROGRAM
    path.parent.mkdir()
    path.write_text(SERVICE)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(mps, "PLACES", ())
    monkeypatch.setattr(mps, "USUAL_FOLDER", str(tmp_path / "none"))
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return path


def test_it_lives_as_long_as_the_block(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    folder = tmp_path / "service"
    with mps.multi_process_service(folder) as variables:
        assert variables == {"CUDA_MPS_PIPE_DIRECTORY": str(folder)}
        pid, visible = (folder / "seen").read_text().split()
        assert visible == "visible:", "Ray's numbers of GPUs count all of the node"
        os.kill(int(pid), 0)
    assert (tmp_path / "said").read_text() == "quit\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_service_that_runs_already_is_used(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    (tmp_path / "control").touch()
    with mps.multi_process_service(tmp_path / "service") as variables:
        assert variables == {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert not (tmp_path / "service").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "has no nvidia-cuda-mps-control"),
        ("#!/bin/sh\necho no GPU here; exit 1\n", "did not start: no GPU here"),
        ("#!/bin/sh\nexit 1\n", "did not start: it says nothing"),
    ],
)
def test_where_none_starts_a_line_says_so(
    text: str | None, why: str, program: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program.unlink()
    if text:
        program.write_text(text)
        program.chmod(0o755)
    with mps.multi_process_service(tmp_path / "service") as variables:
        assert variables == {}
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("processes that share a GPU take turns: ") and why in line
    with (
        pytest.raises(UserError, match=f"--mps on: .*{why}"),
        mps.multi_process_service(tmp_path / "service", required=True),
    ):
        pass


def test_it_ends_with_a_killed_sweep(program: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from fer_hpc.parallel import mps\n"
        "with mps.multi_process_service(Path(sys.argv[1])): time.sleep(600)\n"
    )
    folder = tmp_path / "service"
    sweep = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    deadline = time.monotonic() + 60
    while not (folder / "control").exists():
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    pid = int((folder / "seen").read_text().split()[0])
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("fields", "starts"),
    [
        ({"gpus_per_worker": 0.25}, True),
        ({"gpus_per_worker": 0.25, "mps": "off"}, False),
        ({"gpus_per_worker": 1.0}, False),
        ({"gpus_per_worker": 0.0}, False),
        ({}, False),
    ],
)
def test_a_sweep_starts_it_where_trials_share_gpus(
    fields: dict[str, Any],
    starts: bool,
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = SweepConfig(data=tmp_path, out=tmp_path, **fields)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with shared_gpus(sweep, BASE):
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ, "there is no GPU to share"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with shared_gpus(sweep, BASE) as share:
        assert ("CUDA_MPS_PIPE_DIRECTORY" in os.environ) == starts
        assert share == fields.get("gpus_per_worker")
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with shared_gpus(sweep, BASE):
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert ("take turns unless" in capsys.readouterr().out) == starts


@pytest.mark.parametrize(
    ("gpus", "share", "why"), [("", 0.25, "this machine has none"), ("0", 1.0, "a whole one")]
)
def test_it_is_refused_where_no_trials_share_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str, share: float, why: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    sweep = SweepConfig(data=tmp_path, out=tmp_path, gpus_per_worker=share, mps="on")
    with pytest.raises(UserError, match=rf"--mps on: .*{why}"), shared_gpus(sweep, BASE):
        pass


def test_trials_on_the_cpu_take_no_gpu(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    on_cpu, node = dataclasses.replace(BASE, device="cpu"), {"CPU": 8.0, "GPU": 2.0}
    sweep = SweepConfig(data=tmp_path, out=tmp_path)
    with shared_gpus(sweep, on_cpu) as share:
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    room = room_for_trials(sweep, share, on_cpu, [{"Alive": True, "Resources": node}])
    assert (room.trials, room.worker) == (8, {"CPU": 1.0})
    sweep = dataclasses.replace(sweep, mps="on")
    with pytest.raises(UserError, match=r"share a GPU here \(--device cpu\)"):
        shared_gpus(sweep, on_cpu).__enter__()


@pytest.mark.parametrize(
    ("side", "gpus", "cores", "fields", "wanted"),
    [
        (48, {"0": 80.0}, 16, {}, 0.25),
        (48, {"0": 80.0}, 2, {}, 0.5),
        (48, {"0": 12.9}, 16, {}, 0.5),
        (48, {"0": 4.0}, 16, {}, None),
        (48, {"0": 80.0, "1": 80.0, "2": 80.0, "3": 80.0}, 16, {}, 0.25),
        (48, {"0": 80.0, "1": 80.0, "2": 80.0, "3": 80.0}, 4, {}, None),  # one on each
        (48, {"0": 80.0, "1": 80.0}, 16, {"lrs": (0.1,), "batch_sizes": (8,)}, None),  # 3 trials
        (48, {"0": 80.0}, 16, {"at_once": 2}, 0.5),
        (96, {"0": 80.0}, 16, {}, None),
        (48, {"0": 80.0}, 16, {"workers_per_trial": 2}, None),
        (48, {"0": 80.0}, 16, {"mps": "off"}, None),
        (48, {}, 16, {}, None),
    ],
)
def test_small_faces_share_a_gpu_by_default(
    side: int,
    gpus: dict[str, float],
    cores: int,
    fields: dict[str, Any],
    wanted: float | None,
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(gpus))
    monkeypatch.setattr(ray_nodes, "gpus_here", lambda: gpus)
    monkeypatch.setattr("fer_hpc.sweep.grid._fingerprint", lambda data: "0123456789abcdef")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    manifest = SimpleNamespace(image_shape=(side, side, 1))
    monkeypatch.setattr(ray_nodes, "read_manifest", lambda data: manifest)
    sweep = SweepConfig(data=tmp_path, out=tmp_path, **fields)
    with shared_gpus(sweep, BASE) as share:
        assert share == wanted
        assert ("CUDA_MPS_PIPE_DIRECTORY" in os.environ) == (wanted is not None)
    program.unlink()  # nothing starts: one trial on each GPU
    with shared_gpus(sweep, BASE) as share:
        assert share is None
