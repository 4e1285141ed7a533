from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer_hpc.config import UserError
from fer_hpc.files import read_json, write_json
from fer_hpc.parallel.world import Job
from fer_hpc.run import lease
from fer_hpc.run.attempts import Attempt, Superseded, claim_attempt
from fer_hpc.run.folder import attempt_numbers, list_checkpoints, read_rows, read_status
from fer_hpc.run.lease import process_state
from fer_hpc.run.saver import checkpoint_write_error
from tests.helpers.waiting import until

HOLD = """
import sys, time
from pathlib import Path
from fer_hpc.run.attempts import claim_attempt
attempt = claim_attempt(Path(sys.argv[1]))
attempt.begin({}, None)
print(attempt.number, flush=True)
time.sleep(60)
"""


def owner_in_another_process(run: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline().strip()
    return process


def begin(run: Path, rows: list[int], parent: tuple[int, int, Path] | None = None) -> Attempt:
    attempt = claim_attempt(run)
    attempt.begin({}, parent)
    lines = [json.dumps({"images_seen": n, "attempt": attempt.number}) for n in rows]
    (attempt.path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return attempt


def save(attempt: Attempt, images_seen: int) -> tuple[int, int, Path]:
    path = attempt.path / f"{images_seen:012d}.pt"
    path.write_text("weights")
    return attempt.number, images_seen, path


def test_a_living_owner_is_not_displaced_and_is_named(tmp_path: Path) -> None:
    process = owner_in_another_process(tmp_path)
    try:
        with pytest.raises(UserError, match=f"in use by process {process.pid}"):
            claim_attempt(tmp_path)
        assert attempt_numbers(tmp_path) == [1]
    finally:
        process.kill()
        process.wait()


def test_a_killed_owner_is_followed_at_once(tmp_path: Path) -> None:
    process = owner_in_another_process(tmp_path)
    process.kill()
    process.wait()
    assert read_status(tmp_path)["state"] == "interrupted"
    began = time.monotonic()
    assert claim_attempt(tmp_path).number == 2
    assert time.monotonic() - began < 25


def test_a_stopped_owner_is_followed_and_finds_out(tmp_path: Path) -> None:
    process = owner_in_another_process(tmp_path)
    try:
        process.send_signal(signal.SIGSTOP)
        until(lambda: process_state(process.pid)[0] == "T", 10, "its stop")
        first = Attempt(tmp_path, 1)
        assert first.is_newest()
        assert claim_attempt(tmp_path).number == 2
        assert not first.is_newest()
    finally:
        process.kill()
        process.wait()


def test_a_requeued_job_takes_over_at_once_another_job_does_not(tmp_path: Path) -> None:
    claim_attempt(tmp_path, Job("77", restarts=0)).begin({}, None)
    with pytest.raises(UserError, match="job 77"):
        claim_attempt(tmp_path, Job("78", restarts=1))
    assert claim_attempt(tmp_path, Job("77", restarts=1)).number == 2


def test_an_owner_on_another_host_is_judged_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = begin(tmp_path, [])
    owner = read_json(attempt.path / "owner.json")
    write_json(attempt.path / "owner.json", {**owner, "host": "elsewhere", "place": "another boot"})
    attempt._ended.set()  # its heartbeat stops
    monkeypatch.setattr(lease, "LEASE_S", 2.0)
    monkeypatch.setattr("fer_hpc.run.attempts.LEASE_S", 2.0)
    began = time.monotonic()
    (attempt.path / "heartbeat").touch()
    lines: list[str] = []
    assert claim_attempt(tmp_path, say=lines.append).number == 2
    assert 1.0 < time.monotonic() - began < 25
    assert "elsewhere" in lines[0]


def test_a_heartbeat_in_the_future_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a file server may jump; an owner that lives changes its heartbeat."""
    attempt = begin(tmp_path, [])
    owner = read_json(attempt.path / "owner.json")
    write_json(attempt.path / "owner.json", {**owner, "host": "elsewhere", "place": "another boot"})
    attempt._ended.set()
    monkeypatch.setattr("fer_hpc.run.attempts.LEASE_S", 2.0)
    beat = attempt.path / "heartbeat"
    beat.touch()
    os.utime(beat, (time.time() + 86400,) * 2)
    lines: list[str] = []
    assert claim_attempt(tmp_path, say=lines.append).number == 2
    assert "at a time that is still to come; waiting up to 2 s" in lines[0]


@pytest.mark.parametrize(("beat_age_s", "state"), [(0, "running"), (3600, "interrupted")])
def test_status_of_a_run_on_another_host_writes_nothing(
    tmp_path: Path, beat_age_s: float, state: str
) -> None:
    """The run may be another user's, whose folder one may only read."""
    attempt = begin(tmp_path, [])
    owner = read_json(attempt.path / "owner.json")
    write_json(attempt.path / "owner.json", {**owner, "host": "elsewhere", "place": "another boot"})
    attempt._ended.set()
    beat = attempt.path / "heartbeat"
    beat.touch()
    os.utime(beat, (time.time() - beat_age_s,) * 2)
    folders = [tmp_path, *(p for p in tmp_path.rglob("*") if p.is_dir())]
    before = [folder.stat().st_mtime_ns for folder in folders]
    assert read_status(tmp_path)["state"] == state
    assert [folder.stat().st_mtime_ns for folder in folders] == before, "a file was made"


def test_history_follows_the_parents_and_not_what_came_after_them(tmp_path: Path) -> None:
    first = begin(tmp_path, [10, 20, 30])
    parent = save(first, 20)
    save(first, 30)
    first.end("interrupted")
    second = begin(tmp_path, [30, 40], parent)
    save(second, 40)
    (first.path / "metrics.jsonl").open("a").write(
        '{"images_seen": 40, "attempt": 1}\n'
    )  # a paused writer goes on
    assert [(row["images_seen"], row["attempt"]) for row in read_rows(tmp_path)] == [
        (10, 1),
        (20, 1),
        (30, 2),
        (40, 2),
    ]
    assert [(n, images) for n, images, _ in list_checkpoints(tmp_path)] == [
        (2, 40),
        (2, 20),
        (1, 20),
    ]


def test_an_attempt_that_never_began_is_no_history(tmp_path: Path) -> None:
    begin(tmp_path, [10]).end("interrupted")
    claim_attempt(tmp_path)  # killed before it loaded anything
    assert [row["images_seen"] for row in read_rows(tmp_path)] == [10]


def test_a_line_cut_off_by_a_kill_is_not_read(tmp_path: Path) -> None:
    attempt = begin(tmp_path, [10])
    (attempt.path / "metrics.jsonl").open("a").write('{"images_seen": 2')
    assert [row["images_seen"] for row in read_rows(tmp_path)] == [10]


def test_pruning_keeps_the_newest_two_and_never_leaves_fewer(tmp_path: Path) -> None:
    first = begin(tmp_path, [])
    parent = save(first, 10)
    first.prune()
    first.end("interrupted")
    second = begin(tmp_path, [], parent)
    second.prune()
    assert parent[2].exists()  # one file here: the older attempt's stays
    for images in (20, 30):
        save(second, images)
        second.prune()
    assert [images for _, images, _ in list_checkpoints(tmp_path)] == [30, 20]
    assert not parent[2].exists()


def test_what_a_start_on_another_host_left_half_written_is_deleted(tmp_path: Path) -> None:
    """It has lost the run, so that nobody need wait until it is old; an evaluation may live."""
    begin(tmp_path, []).end("interrupted")
    theirs = ("attempts/0001/.000000000040.pt", ".config.json", ".final.pt", ".eval-val.json")
    for name in theirs:
        (tmp_path / f"{name}.elsewhere-1.tmp").touch()
    claim_attempt(tmp_path)
    assert [p.name for p in tmp_path.rglob(".*.tmp")] == [".eval-val.json.elsewhere-1.tmp"]


def test_a_process_that_proc_does_not_show_lives_while_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, where /proc is mounted with hidepid."""

    class Hidden(type(tmp_path)):  # type: ignore[misc]
        def read_text(self, *args: object, **more: object) -> str:
            if self.name == "stat":
                raise FileNotFoundError(2, "No such file or directory", str(self))
            return str(super().read_text(*args, **more))

    process = owner_in_another_process(tmp_path)
    monkeypatch.setattr(lease, "Path", Hidden)
    try:
        assert lease.process_state(process.pid) == ("?", "")
        assert read_status(tmp_path)["state"] == "running"
        with pytest.raises(UserError, match=f"in use by process {process.pid}"):
            claim_attempt(tmp_path)
        heartbeat = tmp_path / "attempts" / "0001" / "heartbeat"
        heartbeat.touch()
        os.utime(heartbeat, (0, 0))
        assert read_status(tmp_path)["state"] == "interrupted"
    finally:
        process.kill()
        process.wait()
    assert lease.process_state(process.pid) == ("", "")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_a_process_of_another_user_is_one() -> None:
    code = "import os; from fer_hpc.files import is_process; os.setuid(65534); "
    code += f"assert is_process({os.getpid()}); assert not is_process(4194305)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_checkpoints_of_another_users_start_may_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = begin(tmp_path, [])
    old = save(theirs, 30)
    theirs.end("interrupted")
    mine = begin(tmp_path, [], old)
    for images_seen in (60, 90, 120):
        save(mine, images_seen)
    unlink = Path.unlink

    def unlink_own(path: Path, missing_ok: bool = False) -> None:
        if path == old[2]:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_own)
    mine.prune()
    assert [images for _, images, _ in list_checkpoints(tmp_path)] == [120, 90, 30]
    error = checkpoint_write_error(mine, 150, PermissionError(13, "Permission denied", "a/b"))
    assert "(Permission denied: a/b); the checkpoint at 120 images is kept: correct that" in str(
        error
    )


def test_a_start_whose_half_written_file_the_next_owner_deletes_is_superseded(
    tmp_path: Path,
) -> None:
    first = begin(tmp_path, [])
    error = FileNotFoundError(2, "No such file or directory")
    assert "could not be saved" in str(checkpoint_write_error(first, 40, error))
    first.end("interrupted")
    claim_attempt(tmp_path)
    with pytest.raises(Superseded):
        checkpoint_write_error(first, 40, error)


def test_of_many_simultaneous_starts_exactly_one_wins(tmp_path: Path) -> None:
    code = HOLD.replace("time.sleep(60)", "sys.stdin.read()")
    pipe = subprocess.PIPE
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(6)
    ]
    try:  # who wins holds the run until the others have given up
        until(lambda: sum(p.poll() is None for p in starts) <= 1, 15, "the end of all but one")
    finally:
        won = [p.communicate()[0].strip() for p in starts]  # which closes their input
    assert sorted(won) == ["", "", "", "", "", "1"]
    assert not list((tmp_path / "attempts").glob(".claim-*"))


def test_a_write_that_runs_out_of_space_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (10_000, limits[1])
    )  # the kernel cuts the write short, as a full disk does
    try:
        with pytest.raises(OSError, match="too large"):
            write_json(path, {"state": "x" * 200_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_json(path) == {"state": "running"}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]
