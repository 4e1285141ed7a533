"""A rank that is gone ends the others, also where they wait in C code that does not notice it."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import multiprocessing.process
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from fer_hpc.config import EXIT_RUN_AGAIN
from fer_hpc.parallel import collectives
from fer_hpc.parallel.heartbeat import Heartbeat
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import read_status
from tests.helpers import processes
from tests.helpers.runs import until_training

BEAT_S, SILENT_S = 0.1, 2
PATIENT_S = 5  # where nobody may be missed: a busy machine lets a rank wait for seconds
WORK, WAIT = PATIENT_S + 2, 60  # seconds: longer than a silence; longer than a test
Process = multiprocessing.process.BaseProcess


def _rank(rank: int, size: int, port: int, folder: Path, act: int | str, silent_s: float) -> None:
    """A rank whose main thread waits in C for `act` seconds, or does what `act` says."""
    os.dup2(os.open(folder / f"{rank}.err", os.O_WRONLY | os.O_CREAT), 2)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0)

    def record(why: str) -> None:
        (folder / f"{rank}.why").write_text(why)

    heartbeat = Heartbeat(store, World(rank, size), record, BEAT_S, silent_s)
    store.add("present", 1)
    while store.add("present", 0) < size:
        time.sleep(0.01)
    try:
        with heartbeat:
            (folder / f"{rank}.ready").touch()
            if act == "fail":
                raise KeyError
            if act == "ask":
                with contextlib.suppress(dist.DistStoreError):
                    store.wait(["never"], datetime.timedelta(seconds=WORK))
            else:
                ctypes.CDLL(None).sleep(act)
    except KeyError:
        time.sleep(WAIT)


class Ranks:
    def __init__(self, folder: Path, *acts: int | str, silent_s: float = SILENT_S) -> None:
        size, port = len(acts), processes.free_port()
        self.folder = folder
        self.processes: list[Process] = [
            processes.FORKS.Process(target=_rank, args=(rank, size, port, folder, act, silent_s))
            for rank, act in enumerate(acts)
        ]
        for process in self.processes:
            process.start()
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*.ready"))) < len(acts):
            assert time.monotonic() < deadline, "not all ranks have started"
            time.sleep(0.02)

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.processes[rank].pid or 0, number)

    def ends(self, *ranks: int) -> list[int | None]:
        """Their exit codes."""
        for rank in ranks:
            self.processes[rank].join(WORK + 30)
        return [self.processes[rank].exitcode for rank in ranks]

    def stderr(self, rank: int) -> str:
        return (self.folder / f"{rank}.err").read_text()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[functools.partial[Ranks]]:
    all_of_them: list[Ranks] = []

    def start(*acts: int | str, silent_s: float = SILENT_S) -> Ranks:
        all_of_them.append(Ranks(tmp_path, *acts, silent_s=silent_s))
        return all_of_them[-1]

    yield functools.partial(start)
    for ranks in all_of_them:
        for process in ranks.processes:
            process.kill()
            process.join()


Start = functools.partial[Ranks]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_is_gone_ends_the_others(started: Start, gone: int, how: int) -> None:
    """Rank 0 also takes the store away with it."""
    ranks = started(WAIT, WAIT, WAIT)
    time.sleep(5 * BEAT_S)
    others = [rank for rank in range(3) if rank != gone]
    began = time.monotonic()
    ranks.signal(gone, how)
    assert ranks.ends(*others) == [EXIT_RUN_AGAIN, EXIT_RUN_AGAIN]
    assert time.monotonic() - began > 0.5 * SILENT_S
    for rank in others:
        why = (ranks.folder / f"{rank}.why").read_text()
        assert why.startswith(f"rank {rank} lost rank {gone}, silent since ")
        assert why in ranks.stderr(rank)
        assert "the same command continues" in ranks.stderr(rank)


def test_a_rank_that_failed_but_lives_is_missed(started: Start) -> None:
    ranks = started(WAIT, "fail")
    assert ranks.ends(0) == [EXIT_RUN_AGAIN]
    assert "lost rank 1" in ranks.stderr(0)


def test_a_rank_that_has_ended_or_waits_for_the_store_is_not_missed(started: Start) -> None:
    ranks = started(WORK, WORK, 0, "ask", silent_s=PATIENT_S)
    assert ranks.ends(0, 1, 2, 3) == [0, 0, 0, 0]
    assert "lost" not in ranks.stderr(0) + ranks.stderr(1)


def test_rank_0_may_end_first(started: Start) -> None:
    """It keeps the store for a few seconds; without it the others are not watched."""
    ranks = started(0, WORK, WORK, silent_s=PATIENT_S)
    assert ranks.ends(0, 1, 2) == [0, 0, 0]


def test_a_pause_of_the_process_itself_is_no_silence_of_others(started: Start) -> None:
    """As of a suspended machine: the clock goes on, but nobody could have looked."""
    ranks = started(WORK, WORK, silent_s=PATIENT_S)
    ranks.signal(1, signal.SIGSTOP)
    ranks.signal(0, signal.SIGSTOP)
    time.sleep(PATIENT_S + 1)
    ranks.signal(0, signal.SIGCONT)
    time.sleep(5 * BEAT_S)  # it looks before the other one gives a sign
    ranks.signal(1, signal.SIGCONT)
    assert ranks.ends(0, 1) == [0, 0]


def _train(args: list[str], env: dict[str, str], out: str, err: str) -> None:
    collectives.Heartbeat = functools.partial(  # type: ignore[misc,assignment]
        Heartbeat, beat_s=0.2, silent_s=4.0
    )
    processes._enter(args, env, out, err)


def test_a_training_whose_rank_is_stopped_is_interrupted(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gloo waits for a stopped process without an end: its connections stay open."""
    run = tmp_path / "run"
    monkeypatch.setattr(processes, "_enter_target", _train)
    flags = "--batch-size 36 --epochs 500 --checkpoint-every-s 0.3 --no-tensorboard --threads 1"
    ranks = processes.start_ranks(
        2, "train", "cnn_baseline", "--data", shards, "--run", run, *flags.split()
    )
    until_training(run, 1, 36, ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    try:
        _, err = ranks[0].communicate(60)
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[0].returncode == EXIT_RUN_AGAIN
    assert "rank 0 lost rank 1, silent since" in err
    status = read_status(run)
    assert status["state"] == "interrupted"
    assert "rank 0 lost rank 1, silent since" in status["why"]
