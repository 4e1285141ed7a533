"""Thousands of runs and tasks: what looks at each of them once."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest

from fer_hpc.cluster import sge, slurm
from fer_hpc.files import read_record, write_json
from fer_hpc.run.folder import find_runs
from fer_hpc.sweep import grid


def test_paths_given_one_by_one_are_compared_a_few_times_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tmp_path / f"run{k:03d}" for k in range(300)]
    for run in runs:
        run.mkdir()
        (run / "config.json").touch()
    compared, equal = [], PurePath.__eq__

    def counted(one: PurePath, other: object) -> bool:
        compared.append(1)
        return bool(equal(one, other))

    monkeypatch.setattr(PurePath, "__eq__", counted)
    found = find_runs((*runs, tmp_path, runs[0]))
    assert len(compared) < 10 * len(runs)
    monkeypatch.undo()
    assert found == runs


def test_the_failures_of_a_sweep_are_read_once_for_all_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"trial{k}" for k in range(50)]
    write_json(tmp_path / "failures.json", dict.fromkeys(names[:20], "out of memory"))
    read: list[Path] = []

    def counted(path: Path, shape: object) -> object:
        read.append(path)
        return read_record(path, shape)

    monkeypatch.setattr(grid, "read_record", counted)
    states = grid.trial_states(tmp_path, names)
    assert states == [("failed", "out of memory")] * 20 + [("new", "")] * 30
    assert len(read) == 1
    assert grid.trial_state(tmp_path, "trial3") == ("failed", "out of memory")


def test_slurm_is_asked_for_arrays_not_for_each_of_their_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An argument of more than 128 kB never reaches squeue, and every state was unknown."""
    asked = {}
    when, name = "2026-01-01T00:00:00", "fer-sweep"
    printed = {
        "squeue": f"12_0|RUNNING|None|{when}|{name}\n",
        "sacct": f"12_0|COMPLETED|0:0|{when}|{name}\n12_1|FAILED|1:0|{when}|{name}\n"
        f"7|COMPLETED|0:0|{when}|fer-train\n",
    }

    def answer(program: str, *args: str) -> str:
        asked[program] = args[args.index("-j") + 1]
        return printed[program]

    monkeypatch.setattr(slurm, "output_of", answer)
    states = slurm.Slurm().states([*(f"12_{k}" for k in range(20_000)), "7"])
    assert asked == {"squeue": "12,7", "sacct": "12,7"}
    found = {job: (state.state, state.alive) for job, state in states.items()}
    assert found == {
        "12_0": ("RUNNING", True),
        "12_1": ("FAILED", False),
        "7": ("COMPLETED", False),
    }


def test_grid_engine_knows_living_and_ended_tasks_of_an_array(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each task was looked for among all tasks; one in error cost a call of qstat."""
    calls: list[str] = []

    def job(state: str, tasks: str) -> str:
        number = "<JB_job_number>5</JB_job_number>"
        return f"<job_list>{number}<state>{state}</state><tasks>{tasks}</tasks></job_list>"

    def answer(*command: str) -> str:
        calls.append(" ".join(command))
        if command[:2] == ("qstat", "-j"):
            return "<x><QIM_message>no such folder</QIM_message></x>"
        jobs = job("r", "1") + job("qw", "2-4:1") + job("Eqw", "5-9:1")
        return f"<job_info>{jobs}</job_info>"

    def ended(number: str) -> dict[str, list[dict[str, str]]]:
        calls.append(f"qacct {number}")
        good, bad = ({"exit_status": code, "failed": "0"} for code in ("0", "2"))
        return {"10": [bad, good], "11": [bad]}

    monkeypatch.setattr(sge, "output_of", answer)
    monkeypatch.setattr(sge, "accounting", ended)
    states = sge.GridEngine().states([*(f"5.{k}" for k in range(1, 13)), "5", "6"])
    found = [states[f"5.{k}"].state for k in (1, 2, 4, 5, 10, 11)]
    assert found == ["RUNNING", "PENDING", "PENDING", "ERROR", "COMPLETED", "FAILED"]
    assert "5.12" not in states
    assert states["5"].alive
    assert states["6"].state == "FAILED"  # an array's number: failed if one task has
    assert "no such folder" in states["5.9"].reason
    assert sorted(calls) == ["qacct 5", "qacct 6", "qstat -j 5 -xml", "qstat -u * -xml"]
