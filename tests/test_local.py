"""`--procs N`: several ranks on this machine without torchrun."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fer_hpc.cli.main import main
from fer_hpc.cli.parse import configure_job
from fer_hpc.config import EXIT_RUN_AGAIN, EXIT_USER_ERROR, UserError, ranks_that_fit
from fer_hpc.config.commands import RanksConfig
from fer_hpc.config.jobs import JobConfig
from fer_hpc.parallel import local
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import (
    list_checkpoints,
    rank_counts,
    read_environment,
    read_rows,
    read_status,
)
from tests.conftest import Fer
from tests.helpers.waiting import PATIENCE, until
from tests.test_ranks import finish, start_ranks
from tests.test_train import assert_same_outcome, until_training

FLAGS = ("--epochs", "3", "--batch-size", "36", "--threads", "1", "--no-tensorboard", "--flip")


def call(shards: Path, run: Path, *flags: object) -> list[str]:
    return ["cnn_baseline", "--data", str(shards), "--run", str(run), *FLAGS, *map(str, flags)]


def start(verb: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fer_hpc", verb, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ})


def children(pid: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def until_gone(pids: list[int], seconds: float = 10 * PATIENCE) -> None:
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/stat").exists() and state(pid) != "Z" for pid in pids):
        assert time.monotonic() < end, "a rank is still alive"
        time.sleep(0.1)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.long
def test_stopped_and_started_again_it_ends_as_two_ranks_of_torchrun(
    shards: Path, tmp_path: Path
) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    assert finish(start_ranks(2, "train", *call(shards, undisturbed))) == [0, 0]
    first = start("train", *call(shards, run, "--checkpoint-every-s", 1000), "--procs", 2)
    until_training(run, 1)
    ranks = children(first.pid)
    assert len(ranks) == 2
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=400)
    assert first.returncode == EXIT_RUN_AGAIN, err
    assert "stopped by SIGTERM" in out
    assert out.count("the same command") == 1, "rank 0 alone reports"
    until_gone(ranks)
    again = start("train", "--procs=2", *call(shards, run))
    out, err = again.communicate(timeout=400)
    assert again.returncode == 0, err
    assert out.count("finished") == 1
    assert "on 2 x cpu" in err
    assert read_environment(run)["world_size"] == 2
    assert_same_outcome(run, undisturbed)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_rank_ends_all_and_the_run_may_continue(
    shards: Path, tmp_path: Path, rank: int
) -> None:
    run = tmp_path / "run"
    parent = start("train", *call(shards, run, "--epochs", 500), "--procs", 2)
    until_training(run, 1)
    ranks = children(parent.pid)
    os.kill(ranks[rank], signal.SIGKILL)
    _, err = parent.communicate(timeout=400)
    assert parent.returncode == EXIT_RUN_AGAIN, err
    assert f"rank {rank} was ended by SIGKILL" in err
    assert "Traceback" not in err
    until_gone(ranks)
    assert read_status(run)["state"] == "interrupted"


@pytest.mark.long
def test_elastic_goes_on_with_the_rank_that_is_left(
    shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ("--epochs", 8, "--checkpoint-every-s", 0.2)
    parent = start("train", *call(shards, run, *flags), "--procs", 2, "--elastic")
    until(lambda: bool(list_checkpoints(run)), 400, "a checkpoint")
    os.kill(children(parent.pid)[1], signal.SIGKILL)
    _, err = parent.communicate(timeout=400)
    assert parent.returncode == 0, err
    assert "1 of 2 ranks were lost: going on with 1 (--elastic)" in err
    assert "1 rank(s), 2 before: the same samples in the same order" in err
    assert rank_counts(run) == [2, 1]
    undisturbed = tmp_path / "undisturbed"
    assert finish(start_ranks(2, "train", *call(shards, undisturbed, *flags))) == [0, 0]
    chains = [read_rows(each, "chain.jsonl") for each in (run, undisturbed)]
    assert [row["order"] for row in chains[0]] == [row["order"] for row in chains[1]]
    again = start("train", *call(shards, run, *flags, "--epochs", 9), "--procs", 2, "--elastic")
    assert again.communicate(timeout=400) and again.returncode == 0
    assert rank_counts(run) == [2, 1, 2]


PARTLY_USED = """
from torch import nn
from fer_hpc import register_model

class Layers(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.used, self.unused = nn.Linear(inputs, outputs), nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        self.last = y = self.used(x.flatten(1))  # such a network has no copy
        return y if self.calls CONDITION else y + self.unused(y[:, :3]).sum()

@register_model("NAME", sides=(16, 64), face=(32, 1))
def build(outputs, channels, side):
    return Layers(channels * side * side, outputs)
"""


def test_parameters_that_no_step_uses_are_as_on_one_process(
    fer: Fer, shards: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PARTLY_USED.replace("CONDITION", "> 0 or 1").replace("NAME", "partly"))
    flags = ("--plugin", plugin, "--weight-decay", 0.1, "--accumulate", 2, "--precision", "fp64")
    flags = ("--data", shards, *FLAGS, *flags, "--run")
    assert finish(start_ranks(2, "train", "--model", "partly", *flags, tmp_path / "two")) == [0, 0]
    done = fer("train", "--model", "partly", *flags, tmp_path / "one")
    assert done.returncode == 0, done.stderr
    two, one = (checkpoint.load(tmp_path / name / "final.pt")["model"] for name in ("two", "one"))
    assert torch.equal(two["unused.weight"], one["unused.weight"])
    assert torch.allclose(two["used.weight"], one["used.weight"], rtol=0, atol=1e-9)


def test_parameters_that_some_steps_leave_out_are_one_message(shards: Path, tmp_path: Path) -> None:
    plugin, run = tmp_path / "mine.py", tmp_path / "run"
    plugin.write_text(PARTLY_USED.replace("CONDITION", "> 7").replace("NAME", "sometimes"))
    flags = ("--data", shards, *FLAGS, "--plugin", plugin, "--run", run)
    ranks = start_ranks(2, "train", "--model", "sometimes", *flags)
    for rank in ranks:
        _, errors = rank.communicate(100)
        assert rank.returncode == EXIT_USER_ERROR
        assert "let `forward` use the same parameters" in errors
        assert "Traceback" not in errors
    assert read_status(run)["state"] == "failed"


def test_the_largest_number_of_ranks_that_fits() -> None:
    assert [ranks_that_fit(64, 1, n) for n in (8, 7, 3, 1, 0)] == [8, 4, 2, 1, 0]
    assert ranks_that_fit(64, 2, 40) == 32
    assert ranks_that_fit(64, 1, 12, per_node=4) == 8
    assert ranks_that_fit(30, 1, 8, per_node=4) == 0


def test_ranks_die_with_the_process_that_started_them(shards: Path, tmp_path: Path) -> None:
    parent = start("train", *call(shards, tmp_path / "run", "--epochs", 500), "--procs", 2)
    end = time.monotonic() + 30 * PATIENCE
    while len(ranks := children(parent.pid)) < 2:
        assert time.monotonic() < end, "no ranks"
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    until_gone(ranks)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--device", "cuda"), "--device cuda: torch sees no CUDA device"),
        (("--epochs", "many"), "many"),
        pytest.param(("--data", "/nowhere"), "/nowhere", marks=pytest.mark.long),
    ],
)
def test_a_mistake_is_one_message(
    shards: Path, tmp_path: Path, flags: tuple[object, ...], message: str
) -> None:
    parent = start("train", *call(shards, tmp_path / "run", *flags), "--procs", 2)
    _, err = parent.communicate(timeout=400)
    assert parent.returncode == EXIT_USER_ERROR
    assert err.count(message) == 1, err
    assert "Traceback" not in err


@pytest.mark.long
def test_evaluate_runs_in_several_processes(
    shards: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    parent = start("evaluate", run, "--split", "test", "--procs", 2)
    out, err = parent.communicate(timeout=400)
    assert parent.returncode == 0, err
    assert out.count("accuracy") >= 1
    assert (run / "eval-test.json").exists()


def test_ranks_that_torchrun_started_start_no_others(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    parent = start("train", *call(shards, tmp_path / "run"), "--procs", 2)
    _, err = parent.communicate(timeout=400)
    assert parent.returncode == EXIT_USER_ERROR
    assert "leave it out under torchrun" in err


def test_rank_0_that_stands_still_is_ended_after_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others have ended in order, as after a heartbeat that stopped."""
    monkeypatch.setattr(local, "STOP_GRACE_S", 0.5)
    ranks = local._Ranks()
    ranks.outputs = [None, None]
    commands = (["sleep", "600"], ["sh", "-c", f"exit {EXIT_RUN_AGAIN}"])
    ranks.processes = [subprocess.Popen(command) for command in commands]
    began = time.monotonic()
    ranks.wait()
    assert time.monotonic() - began > 0.4
    assert ranks.processes[0].returncode < 0, "it has not slept to its end"
    assert ranks.report("train") == EXIT_RUN_AGAIN


@pytest.mark.parametrize("value", ["0", "two", "-1", "1e9", "5000", "1024"])
def test_a_wrong_number_of_processes_is_refused(
    capsys: pytest.CaptureFixture[str], value: str
) -> None:
    try:
        code = main(["train", "cnn_baseline", "--data", "d", "--run", "r", f"--procs={value}"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == EXIT_USER_ERROR
    assert "--procs" in capsys.readouterr().err


def test_the_ranks_get_the_command_without_the_flag() -> None:
    args = ["--procs", "3", "cnn_baseline", "--data=d", "--run", "r"]
    given, _ = configure_job("train", args)
    assert given.build(RanksConfig).procs == 3
    assert given.arguments(RanksConfig) == ["cnn_baseline", "--data", "d", "--run", "r"]
    with pytest.raises(UserError, match="--gpus-per-node"):
        configure_job("train", args, (JobConfig,))


def listening(pid: int) -> list[str]:
    """The local addresses of a process's listening sockets, as /proc/net has them."""
    links = [
        str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()
    ]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]


def test_ranks_of_one_machine_listen_on_loopback_only(shards: Path, tmp_path: Path) -> None:
    ranks = start_ranks(2, "train", *call(shards, tmp_path / "run", "--epochs", 30))
    try:
        until_training(tmp_path / "run", 1)
        found = [listening(rank.pid) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert found[0], "the ranks meet at rank 0"
    assert set(found[0] + found[1]) == {"0100007F"}  # 127.0.0.1
