"""Damaged run folders: a start goes on from what is good, readers show all others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fer_hpc.cluster.status import job_status
from fer_hpc.config import UserError
from fer_hpc.files import process_place, process_tag, read_json, to_jsonl, write_json
from fer_hpc.parallel.world import World
from fer_hpc.run import checkpoint
from fer_hpc.run.attempts import Attempt, Superseded, claim_attempt
from fer_hpc.run.folder import (
    damage_of,
    find_runs,
    list_checkpoints,
    read_environment,
    read_rows,
    read_status,
)
from fer_hpc.run.restore import restore
from fer_hpc.run.state import TrainState
from fer_hpc.run.trial import swept_fields
from tests.conftest import Fer

DEEP = "[" * 100_000
SCIENCE = {"seed": 0, "lr": 0.1, "epochs": 3}


def fresh_state() -> TrainState:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer}
    return TrainState.fresh(parts, 2, torch.device("cpu"))


def step(state: TrainState) -> None:
    model, optimizer = state.parts["model"], state.parts["optimizer"]
    model(torch.ones(1, 3)).sum().backward()  # type: ignore[operator]
    optimizer.step()  # type: ignore[attr-defined]
    state.images_seen += 10


def content_of(state: TrainState, **other: Any) -> dict[str, Any]:
    context = {"science": SCIENCE, "data": {"fingerprint": "ab"}}
    return state.state_dict(World()) | context | other


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with good checkpoints at 10 and 20 images."""
    folder = tmp_path / "trials" / "run"  # as in a sweep
    attempt = claim_attempt(folder)
    data = {"path": "d", "fingerprint": "ab"}
    write_json(folder / "config.json", {"science": SCIENCE, "data": data})
    attempt.begin({}, None)
    state = fresh_state()
    for images in (10, 20):
        step(state)
        checkpoint.save(attempt.path / f"{images:012d}.pt", content_of(state))
    attempt.end("interrupted")
    return folder


def odd(**changes: Any) -> dict[str, Any]:
    """The content of the checkpoint at 20 images, with a right checksum, but changed."""
    state = fresh_state()
    step(state)
    step(state)
    return content_of(state) | changes


def moments(shape: tuple[int, ...]) -> dict[str, Any]:
    saved = odd()["optimizer"]
    saved["state"][0]["momentum_buffer"] = torch.zeros(shape)
    return dict(saved)


ODD: dict[str, tuple[Any, str]] = {
    "no weights": ({"model": None}, "unexpected content"),
    "other weights": ({"model": {"weight": torch.zeros(9, 9)}}, "unexpected content"),
    "a list of weights": ({"model": [1, 2]}, "unexpected content"),
    "moments of another shape": ({"optimizer": moments((7, 7))}, "momentum_buffer"),
    "no optimiser": ({"optimizer": {"state": 3}}, "unexpected content"),
    "another image count": ({"images_seen": 10}, "unexpected content"),
    "a text as image count": ({"images_seen": "20"}, "unexpected content"),
    "other sums": ({"sums": torch.zeros(9, dtype=torch.int64)}, "number of sums"),
    "another seed": ({"science": {**SCIENCE, "seed": 1}}, "another experiment .--seed 1, not 0"),
    "other data": ({"data": {"fingerprint": "cd"}}, "another experiment .--data cd, not ab"),
    "a tensor as seed": ({"science": {"seed": torch.zeros(0)}}, "no settings of a run"),
    "no settings": ({"science": 3}, "no settings of a run"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_checkpoint_with_a_right_checksum_and_odd_content_is_passed_over(
    run: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, words = ODD[kind]
    newest = list_checkpoints(run)[0][2]
    checkpoint.save(newest, odd(**changes))
    state, good = fresh_state(), fresh_state()
    found = restore(state, run, World())
    step(good)
    assert found
    assert found[:2] == (1, 10)
    assert state.images_seen == 10
    assert torch.equal(weight(state), weight(good))
    error = capsys.readouterr().err
    assert "falling back to the checkpoint before it" in error
    assert words.replace(".", "(") in error


def weight(state: TrainState) -> torch.Tensor:
    return state.parts["model"].weight  # type: ignore[attr-defined, no-any-return]


def test_a_run_whose_checkpoints_fit_another_network_does_not_begin_again(run: Path) -> None:
    """As after a change of what its plugin imports: its weights would be replaced."""
    for _, images, path in list_checkpoints(run):
        checkpoint.save(path, odd(images_seen=images, **{"model": {"weight": torch.zeros(9, 9)}}))
    with pytest.raises(UserError, match="no checkpoint fits the network that the code builds now"):
        restore(fresh_state(), run, World())


def test_a_run_of_which_no_checkpoint_is_whole_begins_again(run: Path) -> None:
    for _, _, path in list_checkpoints(run):
        path.write_bytes(path.read_bytes()[:-9])
    state, untouched = fresh_state(), fresh_state()
    assert restore(state, run, World()) is None
    assert torch.equal(weight(state), weight(untouched))


def test_more_epochs_and_younger_fields_are_the_same_experiment(run: Path) -> None:
    stored = read_json(run / "config.json")
    stored["science"] = {**SCIENCE, "epochs": 9, "younger": True}
    write_json(run / "config.json", stored)
    assert restore(fresh_state(), run, World())


# ---- the folder of a living process is deleted or moved ------------------------------------------


def test_a_start_whose_folder_was_replaced_writes_nothing_into_the_new_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    old = claim_attempt(run)
    old.begin({}, None)
    assert old.is_newest()
    shutil.rmtree(run)
    new = claim_attempt(run)
    new.begin({}, None)
    (new.path / "000000000010.pt").write_text("the new one's")
    (old.path / "final.pt").write_text("as if it were the old one's")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    assert new.is_newest()
    assert not old.is_newest()
    for write in (
        lambda: old.begin({}, None),
        lambda: old.publish("final.pt"),
        lambda: old.check_newest(),
    ):
        with pytest.raises(Superseded, match="its folder was deleted or moved"):
            write()
    old.end("finished")
    old.discard(None)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    assert read_status(run)["state"] == "running"


def test_a_start_whose_folder_was_moved_stops(tmp_path: Path) -> None:
    attempt = claim_attempt(tmp_path / "run")
    attempt.begin({}, None)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(Superseded, match="deleted or moved"):
        attempt.check_newest()
    attempt.end("finished")
    assert not (tmp_path / "run").exists()
    assert Attempt(tmp_path / "elsewhere", 1).is_newest()


# ---- one bad byte --------------------------------------------------------------------------------

ROW = {"epoch": 1, "images_seen": 10}


def test_torn_lines_are_left_out_and_counted(run: Path) -> None:
    rows = [json.dumps({**ROW, "images_seen": 10 * k, "epoch": k}) for k in (1, 2, 3)]
    torn = [rows[0], rows[1][:9], rows[2], "\0\0\0", "[]", "3", '{"images_seen": "4"}', DEEP]
    file = run / "attempts" / "0001" / "metrics.jsonl"
    file.write_bytes("\n".join(torn).encode() + b'\n\xff\xfe\n{"images_se')
    assert [row["epoch"] for row in read_rows(run)] == [1, 3]
    assert damage_of(run) == [f"{file}: 7 damaged line(s) left out"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '"running"', '{"state": 3}', DEEP, "\xff"])
@pytest.mark.parametrize("name", ["status.json", "owner.json", "environment.json"])
def test_records_of_another_shape_are_no_tracebacks(run: Path, name: str, content: str) -> None:
    attempt = run / "attempts" / "0001"
    (attempt / name).write_text(content, encoding="latin-1")
    if name != "owner.json":  # a process that is gone
        owner = read_json(attempt / "owner.json")
        write_json(attempt / "owner.json", {**owner, "pid": 4194305})
    os.utime(attempt, (0, 0))
    (run.parent.parent / "sweep.json").write_text(content, encoding="latin-1")
    assert read_status(run)["state"] in ("interrupted", "running")
    read_environment(run), read_rows(run), swept_fields(run)
    bad = damage_of(run)
    assert len(bad) == (name != "owner.json"), bad
    assert claim_attempt(run).number == 2


def test_an_owner_that_cannot_be_read_holds_the_run_while_its_heart_beats(tmp_path: Path) -> None:
    attempt = claim_attempt(tmp_path)
    attempt.begin({}, None)
    (attempt.path / "owner.json").write_text("{")
    assert read_status(tmp_path)["state"] == "running"
    (attempt.path / "heartbeat").touch()
    os.utime(attempt.path / "heartbeat", (0, 0))
    assert read_status(tmp_path)["state"] == "interrupted"


def test_what_killed_starts_left_half_written_is_deleted_by_the_next(run: Path) -> None:
    here = f"{process_place()}-4194305"  # a process id above the largest
    alive = process_tag()
    attempts = run / "attempts"
    left = [
        attempts / "0001" / f".000000000030.pt.{here}.tmp",
        run / f".final.pt.{here}.tmp",
        run / f".clock-{here}",
        attempts / "0001" / ".000000000040.pt.4194305.tmp",  # as older versions named them
        attempts / "0001" / ".000000000050.pt.elsewhere-77.tmp",
    ]
    for path in left:
        path.write_text("half")
    for path in left[3:]:
        os.utime(path, (0, 0))
    claim = attempts / f".claim-5-{here}"
    claim.mkdir()
    (claim / "owner.json").write_text("{}")
    container = f"{os.uname().nodename}-1-4194305"  # with this host's name
    kept = [run / f".eval-val.json.{each}.tmp" for each in (alive, "elsewhere-77", container)]
    for path in kept:
        path.write_text("being written")
    claim_attempt(run)
    assert not [p for p in (*left, claim) if p.exists()]
    assert all(p.exists() for p in kept)


def test_runs_that_are_reached_by_links_are_found_once(tmp_path: Path) -> None:
    runs, linked = tmp_path / "runs", tmp_path / "linked"
    for run in (runs / "a", runs / "b"):
        run.mkdir(parents=True)
        (run / "config.json").touch()
    linked.mkdir()
    (linked / "a").symlink_to(runs / "a")
    (linked / "circle").symlink_to(linked)
    assert find_runs((linked,)) == [linked / "a"]
    (runs / "again").symlink_to(runs / "b")
    assert find_runs((runs,)) == [runs / "a", runs / "b"]


@pytest.mark.parametrize("place", [".", "person", "person/paper"])
def test_a_folder_that_cannot_be_read_is_named(
    place: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shutil.copytree(finished_run, tmp_path / "good")
    secret = tmp_path / place / "secret"
    secret.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "secret")  # root reads all
    assert find_runs((tmp_path,)) == [tmp_path / "good"]
    assert capsys.readouterr().err == f"warning: {secret} cannot be read: left out\n"
    if place != "person/paper":  # deeper than status looks
        assert [row["folder"] for row in job_status((tmp_path,))] == [str(tmp_path / "good")]
        assert capsys.readouterr().err == f"warning: {secret} cannot be read: left out\n"


def test_epochs_of_which_no_line_is_left_are_named(tmp_path: Path) -> None:
    """A file that is cut between two lines has no damaged line."""

    def attempt(rows: list[int], **status: object) -> list[str]:
        found = claim_attempt(tmp_path)
        found.begin({}, None)
        lines = [{"epoch": n, "images_seen": 10 * n} for n in rows]
        (found.path / "metrics.jsonl").write_text(to_jsonl(lines).decode())
        found.end(**{"state": "interrupted", **status})  # type: ignore[arg-type]
        return damage_of(tmp_path)

    assert attempt([1, 2, 3]) == []
    assert "of epoch 2 are lost" in attempt([1, 3])[0]
    assert "of epoch 1 to 2 are lost" in attempt([3, 4])[0]
    assert "of epoch 2 to 56281993 are lost" in attempt([1, 56281994])[0]
    assert attempt([1, 2], state="finished", images_seen=20) == []
    assert "of epoch 3 are lost" in attempt([1, 2], state="finished", images_seen=30)[0]


def test_a_damaged_run_is_one_line_of_status_and_the_others_follow(
    fer: Fer, run: Path, tmp_path: Path
) -> None:
    for name in ("good", "config", "rows", "job", "text"):
        shutil.copytree(run, tmp_path / "runs" / name)
    (tmp_path / "runs" / "config" / "config.json").write_text('{"science": [], "data": 3}')
    rows = tmp_path / "runs" / "rows" / "attempts" / "0001" / "metrics.jsonl"
    rows.write_text('{"images_seen": 10, "epoch": {}}\n{"images_s\n')
    half_a_pair = '{"state": "failed", "why": "a name \\ud800"}'
    (tmp_path / "runs" / "text" / "attempts" / "0001" / "status.json").write_text(half_a_pair)
    jobs = tmp_path / "runs" / "job" / "jobs"
    jobs.mkdir()
    for number, content in enumerate(("[]", "{", '"job"', DEEP)):
        (jobs / f"{number}.json").write_text(content)
    done = fer("cli", "status", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    lines = {Path(line.split()[0]).name: line for line in done.stdout.splitlines()}
    assert set(lines) >= {"good", "config", "rows", "job"}
    assert "interrupted" in lines["good"]
    assert "a name \ufffd" in lines["text"]
    assert "damaged" in lines["config"]
    assert "damaged" in lines["rows"]
    assert "Traceback" not in done.stderr
