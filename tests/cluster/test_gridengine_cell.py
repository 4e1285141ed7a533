"""What the tests of Grid Engine rely on: the cell is a site as the documentation describes it."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.gridengine import Cell
from tests.helpers.waiting import until

OPTIONS = ("-cwd", "-j", "y", "-S", "/bin/bash")


@pytest.fixture
def users_folder(cell: Cell) -> Iterator[Path]:
    """A folder of an ordinary user: pytest's own are closed to all but their owner."""
    folder = Path(tempfile.mkdtemp(prefix="fer-user-", dir="/tmp"))
    os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    yield folder
    shutil.rmtree(folder)


def test_two_jobs_on_a_host_get_different_gpus(cell: Cell, tmp_path: Path) -> None:
    script = "echo got $CUDA_VISIBLE_DEVICES\ntouch here.$JOB_ID\n"
    script += "for i in $(seq 1200); do [ $(ls here.* | wc -l) = 2 ] && exit; sleep 0.1; done\n"
    (tmp_path / "job.sh").write_text(f"{script}exit 1  # the other one has not come beside it\n")
    jobs = [cell.qsub(*OPTIONS, "-l", "gpus=2", "job.sh", cwd=tmp_path) for _ in range(2)]
    for job in jobs:
        cell.wait(job)
        assert cell.account(job)[-1]["exit_status"] == "0"
    lines = [(tmp_path / f"job.sh.o{job}").read_text() for job in jobs]
    shown = [line.removeprefix("got ").strip().split(",") for line in lines]
    assert [len(gpus) for gpus in shown] == [2, 2]
    # Prologs that run at once may take turns: any two each, and none twice.
    assert sorted(shown[0] + shown[1]) == ["0", "1", "2", "3"]


def test_a_job_that_ends_with_99_runs_again_and_one_that_is_deleted_gets_usr2(
    cell: Cell, tmp_path: Path
) -> None:
    (tmp_path / "again.sh").write_text("echo $RESTARTED\n[ $RESTARTED = 1 ] || exit 99\n")
    script = "trap 'echo usr2; exit 5' USR2\necho up\nsleep 60 & wait\n"
    (tmp_path / "long.sh").write_text(script)
    again = cell.qsub(*OPTIONS, "again.sh", cwd=tmp_path)
    deleted = cell.qsub(*OPTIONS, "-notify", "long.sh", cwd=tmp_path)
    output = tmp_path / f"long.sh.o{deleted}"
    until(lambda: output.exists() and output.read_text(), 20, "the job's first line")
    cell.cancel(deleted)
    cell.wait(deleted)
    cell.wait(again)
    assert output.read_text().split() == ["up", "usr2"]
    assert (tmp_path / f"again.sh.o{again}").read_text().split() == ["0", "1"]
    assert [row["exit_status"] for row in cell.account(again)] == ["99", "0"]


def test_jobs_run_on_while_the_master_is_away_and_move_when_their_host_dies(
    cell: Cell, tmp_path: Path
) -> None:
    (tmp_path / "job.sh").write_text("echo $RESTARTED\n[ $RESTARTED = 1 ] || sleep 300\n")
    job = cell.qsub(*OPTIONS, "-r", "y", "-l", "gpus=4", "job.sh", cwd=tmp_path)
    cell.wait(job, "r")
    cell.stop_qmaster()
    assert cell.ask("qstat") == ""
    cell.start_qmaster()
    assert cell.state(job) == "r"
    cell.kill_host()
    cell.ask("qmod", "-rj", job)  # by itself only 50 s after the last sign of the host
    cell.start_host("n1")
    cell.wait(job, seconds=90)
    assert (tmp_path / f"job.sh.o{job}").read_text().split() == ["0", "1"]
    assert [row["failed"] for row in cell.account(job)] == ["25  : rescheduling", "0"]


CHILD = """\
import signal, time
signal.signal(signal.SIGUSR2, lambda *_: print("child", flush=True))
print("up", flush=True)
while True:
    time.sleep(0.1)
"""


def test_a_users_warning_reaches_every_process_of_the_job(
    users_folder: Path,
) -> None:
    with Cell(user="nobody") as cell:
        (users_folder / "child.py").write_text(CHILD)
        (users_folder / "job.sh").write_text(
            "trap 'echo shell' USR2\n"
            f"setsid {sys.executable} child.py &\n"
            "while :; do wait; sleep 0.1; done\n"
        )
        job = cell.qsub(*OPTIONS, "-notify", "job.sh", cwd=users_folder)
        output = users_folder / f"job.sh.o{job}"
        until(lambda: output.exists() and "up" in output.read_text(), 20, "the child")
        cell.cancel(job)
        cell.wait(job)
        # the shell may get two, and may name the signal that its sleep got
        assert {"child", "shell", "up"} <= set(output.read_text().split())
        assert cell.account(job)[-1]["owner"] == "nobody"
