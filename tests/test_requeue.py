"""Which jobs are started again, when they give up, and what they say then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.cluster.launch import should_requeue
from fer_hpc.cluster.starts import exit_in_words, give_up_message, may_start_again
from fer_hpc.config import TrainConfig
from fer_hpc.files import write_json
from fer_hpc.run.folder import attempt_path


@pytest.mark.parametrize(
    ("state", "code", "again"),
    [
        ("interrupted", 75, True),
        ("interrupted", 0, True),  # srun gave 0 though a node had died
        ("running", 137, True),  # killed before it could write its end
        ("finished", 0, False),
        ("failed", 1, False),
        ("superseded", 4, False),
        ("interrupted", 2, False),  # a mistake of the user
    ],
)
def test_who_is_started_again(tmp_path: Path, state: str, code: int, again: bool) -> None:
    attempt = attempt_path(tmp_path / "run", 1)
    attempt.mkdir(parents=True)
    write_json(attempt / "environment.json", {"parent": None})
    write_json(attempt / "status.json", {"state": state, "why": "x"})
    owner = {"host": "h", "pid": 1, "started": "", "place": "", "job": "", "restarts": 0}
    write_json(attempt / "owner.json", owner)
    os.utime(attempt, (0, 0))  # its heartbeat stopped long ago
    config = configure("train", ["cnn_baseline", "--data", "x", "--run", str(tmp_path / "run")])
    assert isinstance(config, TrainConfig)
    assert should_requeue(config, code)[0] is again


@pytest.mark.parametrize(
    ("before", "reached", "again"),
    [
        ([0], 36, True),
        ([0, 36], 36, True),
        ([0, 36, 36], 36, True),
        ([0, 36, 36, 36], 36, False),
        ([0, 0, 0], 0, False),
        ([0, 0, 0], 36, True),
    ],
)
def test_three_starts_in_a_row_without_a_gain_are_the_last(
    before: list[int], reached: int, again: bool
) -> None:
    starts = [{"restarts": i, "time": 0.0, "before": images} for i, images in enumerate(before)]
    assert may_start_again(starts, reached) is again


def test_who_gives_up_says_how_the_first_start_ended() -> None:
    end = {"how": exit_in_words(137), "lines": ["1-0.log: Killed"]}
    starts = [{"restarts": i, "time": 0.0, "before": 0, "end": end} for i in range(3)]
    message = give_up_message(Path("run"), starts)
    assert "3 starts in a row gained nothing" in message
    assert "ended by SIGKILL, often because memory ran out (exit code 137)" in message
    assert "1-0.log: Killed" in message
