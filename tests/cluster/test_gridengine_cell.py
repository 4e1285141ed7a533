"""What the tests of Grid Engine rely on: the cell is a site as the documentation describes it."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.gridengine import Cell
from tests.helpers.slurm import until

OPTIONS = ("-cwd", "-j", "y", "-S", "/bin/bash")


def test_two_jobs_on_a_host_get_different_gpus(cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("echo got $CUDA_VISIBLE_DEVICES\nsleep 3\n")
    jobs = [cell.qsub(*OPTIONS, "-l", "gpus=2", "job.sh", cwd=tmp_path) for _ in range(2)]
    for job in jobs:
        cell.wait(job)
        assert cell.account(job)[-1]["exit_status"] == "0"
    lines = {(tmp_path / f"job.sh.o{job}").read_text().strip() for job in jobs}
    assert lines == {"got 0,1", "got 2,3"}


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
