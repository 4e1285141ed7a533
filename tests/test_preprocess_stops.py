"""Preprocessing that is killed or stopped: the same bytes after it, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Fer, command
from tests.helpers.outputs import hashes
from tests.helpers.waiting import PATIENCE


def processes_of(group: int) -> list[str]:
    """Living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgid = path.read_text().rpartition(")")[2].split()[:3]
            if int(pgid) == group and state not in "ZX":
                found.append(path.parent.name)
    return found


def until(condition: Callable[[], bool], seconds: float = 10 * PATIENCE) -> bool:
    """Whether `condition` comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.long
def test_killed_at_any_moment_it_ends_with_the_same_bytes(fer: Fer, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    arguments = ("--source", "synthetic", "--count", 300, "--seed", 5, "--workers", 2)
    assert fer("preprocess", *arguments, "--out", whole).returncode == 0
    killed = tmp_path / "killed"
    for delay_s in (0.3, 1.6, 2.4):
        process = subprocess.Popen(
            command("preprocess", *arguments, "--out", killed), start_new_session=True
        )
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert until(lambda group=process.pid: not processes_of(group)), (
            "workers outlive their parent"
        )
    assert fer("preprocess", *arguments, "--out", killed).returncode == 0
    assert hashes(killed) == hashes(whole)
    assert not list(killed.glob(".*.tmp"))


def test_a_job_that_is_killed_as_a_whole_leaves_no_memory(tmp_path: Path) -> None:
    def segments() -> set[str]:
        return {path.name for path in Path("/dev/shm").glob("psm_*")}

    def maps(pid: str) -> bool:
        with contextlib.suppress(OSError):
            return "memfd:faces" in (Path("/proc") / pid / "maps").read_text()
        return False

    before = segments()
    source = ("--source", "synthetic", "--count", 2000, "--workers", 2, "--out", tmp_path / "out")
    process = subprocess.Popen(command("preprocess", *source), start_new_session=True)
    assert until(lambda: segments() > before or any(map(maps, processes_of(process.pid))))
    os.killpg(process.pid, signal.SIGKILL)  # Python's own tracker of such memory as well
    process.wait()
    assert segments() <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_its_workers_start_is_one_line(number: int, tmp_path: Path) -> None:
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from fer_hpc.cli.main import main; sys.exit(main())"  # a shell's & ignores SIGINT
    source = ("--source", "synthetic", "--count", "100000", "--workers", "2")  # for minutes
    call = [sys.executable, "-c", code, "preprocess", *source, "--out", str(tmp_path / "out")]
    with subprocess.Popen(call, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stderr
        assert until(lambda: len(processes_of(process.pid)) > 2)
        while process.poll() is None:  # again, where an imported library has swallowed it
            os.killpg(process.pid, number)  # as a terminal or a scheduler sends it
            until(lambda: process.poll() is not None, 20)
        text = process.stderr.read().decode()
        assert process.returncode == 75, text
    assert "Traceback" not in text
    assert "the same command continues" in text


@pytest.mark.parametrize(
    ("when", "code"),
    [("atexit.register(interrupt)", 0), ("m._help = lambda: exec('interrupt()')", 75)],
)
def test_ctrl_c_at_the_end_keeps_the_exit_code(when: str, code: int, tmp_path: Path) -> None:
    """As Python ends; and in an exec, as of a dataclass that is imported."""
    lines = [
        "import atexit, signal, sys",
        "from fer_hpc.cli import main as m",
        "def interrupt(): signal.raise_signal(signal.SIGINT)",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        when,
        "sys.argv[1:] = ['--help']",
        "raise SystemExit(m.main())",
    ]
    (tmp_path / "ends.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "-m", "ends"], cwd=tmp_path, capture_output=True)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
