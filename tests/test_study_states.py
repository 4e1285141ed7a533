"""A study that has begun: the states of its parts, what is refused then, its jobs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cluster.scheduler import Request
from fer_hpc.cluster.slurm import Slurm
from fer_hpc.config import EXIT_FINISHED, EXIT_USER_ERROR, UserError
from fer_hpc.config.jobs import JobConfig
from fer_hpc.data.manifest import write_manifest
from fer_hpc.files import read_json, sha256, write_json
from fer_hpc.study import estimate, jobs
from fer_hpc.study.graph import parts_of
from fer_hpc.study.plan import Plan, read_plan
from fer_hpc.study.state import check_edits, record_part
from fer_hpc.study.status import format_study
from tests.helpers.studies import by_name, call, edit, states, tiny

# ---- states --------------------------------------------------------------------------------------


@pytest.fixture
def started_study(tmp_path: Path, shards: Path, finished_run: Path) -> Plan:
    """A study with one of its products made and one of its runs finished, by other tests."""
    plan = tiny(tmp_path / "study")
    parts = by_name(plan)
    (plan.out / "shards").mkdir()
    (plan.out / "shards" / "32x32x1").symlink_to(shards)
    shutil.copytree(finished_run, parts["train/cnn_baseline-seed0"].folder)
    for name in ("shards/32x32x1", "train/cnn_baseline-seed0"):
        record_part(plan, parts[name], started=True)
    return plan


def test_states_come_from_result_files(started_study: Plan) -> None:
    found = states(started_study)
    assert found["shards/32x32x1"].state == found["train/cnn_baseline-seed0"].state == "finished"
    assert {found[n].state for n in ("shards/64x64x3", "grid/grid", "report")} == {"waiting"}
    for file in by_name(started_study)["train/cnn_baseline-seed0"].folder.glob(
        "attempts/*/status.json"
    ):
        file.unlink()
    assert states(started_study)["train/cnn_baseline-seed0"].state != "finished"


def test_scores_of_other_data_do_not_count(started_study: Plan) -> None:
    part = by_name(started_study)["val/cnn_baseline-seed0"]
    fingerprint = read_json(started_study.out / "shards" / "32x32x1" / "manifest.json")[
        "fingerprint"
    ]
    for data, state in (("0" * 16, "waiting"), (fingerprint, "finished")):
        write_json(part.folder / "eval-val.json", {"data": data, "finished": True})
        assert states(started_study)[part.name].state == state


def test_a_failed_part_stops_only_what_needs_it(started_study: Plan) -> None:
    parts = by_name(started_study)
    record_part(started_study, parts["grid/grid"], failed="3 of 27 trials failed")
    found = states(started_study)
    assert found["grid/grid"].state == "failed"
    stopped = {name for name, s in found.items() if s.state == "blocked"}
    assert {n.partition("/")[2].partition("-")[0] for n in stopped} == {"winner"}
    assert len(stopped) == 9, "three trainings, and their scores on val and test"
    text = format_study(started_study, parts_of(started_study), found, None)
    assert text.splitlines()[1] == "failed: grid/grid: 3 of 27 trials failed"
    assert "needs grid/grid, which has failed" in text


def data_without(folder: Path, shards: Path, drop: str, split: str = "") -> None:
    """A copy of a manifest without a class, or with an empty split."""
    manifest = json.loads((shards / "manifest.json").read_text())
    if split:
        manifest["splits"].pop(split)
    if drop:
        manifest["classes"].remove(drop)
        for entry in manifest["splits"].values():
            entry["class_counts"].pop(drop)
    folder.mkdir(parents=True)
    write_manifest(folder, manifest)


def test_what_the_data_has_not_is_left_out(tmp_path: Path, shards: Path) -> None:
    plan = tiny(tmp_path)
    data_without(tmp_path / "shards" / "32x32x1", shards, drop="Neutral", split="test")
    found = states(plan)
    assert found["gan/gan-seed0"].state == "left out"
    assert "no class Neutral" in found["gan/gan-seed0"].why
    assert found["val/gan-seed0"].state == "left out"
    assert found["test/vgg-seed0"].state == "left out"
    assert "no test split" in found["test/vgg-seed0"].why
    assert found["train/vgg-seed0"].state == "waiting"


# ---- refusals ------------------------------------------------------------------------------------


def test_an_edit_of_a_part_that_has_run_is_refused(started_study: Plan) -> None:
    check_edits(started_study, parts_of(started_study))
    edited = edit(started_study, "epochs = 2\nthreads = 1", "epochs = 9\nthreads = 1")
    with pytest.raises(UserError, match=r"cnn_baseline.epochs = 9, but train/cnn_baseline-seed0"):
        check_edits(edited, parts_of(edited))
    shutil.rmtree(by_name(started_study)["train/cnn_baseline-seed0"].folder)
    check_edits(edited, parts_of(edited))  # its results are gone: it runs again


def test_an_edited_plugin_or_other_weights_of_a_part_that_has_run_are_refused(
    started_study: Plan, tmp_path: Path
) -> None:
    run = by_name(started_study)["train/cnn_baseline-seed0"].folder
    stored = read_json(run / "config.json")
    plugin, weights = tmp_path / "net.py", tmp_path / "weights.pt"
    for file in (plugin, weights):
        file.write_text("# as it was")
    entry = {"path": str(plugin), "sha256": sha256(plugin), "is_plugin": True}
    stored["plugins"] = {"model": entry}
    stored["science"]["init_hash"] = sha256(weights)
    stored["runtime"]["init_from"] = str(weights)
    write_json(run / "config.json", stored)
    for file in (plugin, weights):
        check_edits(started_study, parts_of(started_study))
        file.write_text("# edited")
        with pytest.raises(UserError, match=f"{file.name} .*delete {run} to run it again"):
            check_edits(started_study, parts_of(started_study))
        file.write_text("# as it was")


def test_seeds_may_be_added_later(started_study: Plan) -> None:
    edited = edit(started_study, "seeds = [0, 1, 2]", "seeds = [0, 1, 2, 7]")
    check_edits(edited, parts_of(edited))
    assert states(edited)["train/cnn_baseline-seed0"].state == "finished"
    assert states(edited)["train/cnn_baseline-seed7"].state == "waiting"


def test_a_run_of_another_study_is_refused(started_study: Plan) -> None:
    run = by_name(started_study)["train/cnn_baseline-seed0"].folder
    shutil.copytree(run, run.with_name("vgg-seed1"))
    with pytest.raises(UserError, match="vgg-seed1 has results that this study did not make"):
        check_edits(started_study, parts_of(started_study))


def test_wrong_calls_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    tiny(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    for args, message in (
        ((tmp_path / "new",), "the first call needs --source"),
        ((tmp_path / "new", "--source", "fer2013"), "needs --input"),
        ((tmp_path / "new", "--source", "fer213", "--input", tmp_path), "'fer2013'"),
        ((tmp_path / "new", "--source", "fer2013", "--input", tmp_path / "no"), "does not exist"),
        ((tmp_path / "other", "--source", "synthetic"), "holds other files (thesis.tex)"),
        ((out, "--source", "affectnet", "--input", tmp_path), "--source synthetic (now"),
        ((out, "--scale", "0.5"), "--scale tiny (now --scale 0.5)"),
    ):
        code, text = call(capsys, *args)
        assert code == EXIT_USER_ERROR
        assert message in text
        assert text.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_source_that_is_recognised_decides_the_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "fer2013.csv"
    table.write_text(f"emotion,pixels,Usage\n0,{' '.join(['7'] * 2304)},Training\n")
    out = tmp_path / "study"
    for _ in range(2):  # the same command goes on
        code, text = call(capsys, out, "--source", "auto", "--input", table, "--dry-run")
        assert code == EXIT_FINISHED, text
    assert read_plan(out).tables["source"] == "fer2013"
    assert "96x96x1" in read_plan(out).products


def test_no_room_for_the_shards_is_said_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: usage)
    args = ("--source", "synthetic", "--count", 300_000)
    code, text = call(capsys, tmp_path / "study", *args)
    assert code == EXIT_USER_ERROR
    assert "224x224x3 45.3 GB" in text
    assert not (tmp_path / "study" / "shards").exists()


# ---- on a scheduler ------------------------------------------------------------------------------


def test_a_job_may_wait_for_success_and_for_an_end(tmp_path: Path) -> None:
    job = JobConfig(cluster="slurm")
    request = Request(
        job, tmp_path, [["report"]], ["--job", "report"], after=["7"], launch=tmp_path
    )
    both = dataclasses.replace(request, also_after=("8", "9"))
    assert "--dependency=afterok:7\n" in Slurm().script(request)
    assert "--dependency=afterok:7,afterany:8:9\n" in Slurm().script(both)


class Recorder:
    """A scheduler that only counts."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[list[list[str]], list[str], list[str], int]] = {}

    def check_installed(self) -> None: ...

    def dependency(self, names: list[str]) -> list[str]:
        return [name.partition("_")[0] for name in names[:1]]

    def submit(
        self, job: Any, folder: Any, commands: Any, config: Any, after: Any, gpus: int, **more: Any
    ) -> list[str]:
        number = str(len(self.jobs))
        self.jobs[more["parts"][0]] = (commands, after, more["also_after"], gpus)
        return [number] if len(commands) == 1 else [f"{number}_{i}" for i in range(len(commands))]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(jobs, "scheduler", lambda name: made)
    monkeypatch.setattr(jobs, "submit", made.submit)
    return made


def submitted(plan: Plan, recorder: Recorder, configure: Callable[..., Any]) -> list[str]:
    resources = JobConfig(cluster="slurm", gpus_per_node=4, nodes=2)
    return list(jobs.submit_study(plan, parts_of(plan), resources, 3, configure))


def test_jobs_wait_for_those_that_they_need(started_study: Plan, recorder: Recorder) -> None:
    from fer_hpc.cli.parse import configure

    submitted(started_study, recorder, configure)
    numbers = {name: str(i) for i, name in enumerate(recorder.jobs)}
    commands, after, _, gpus = recorder.jobs["shards/64x64x3"]
    assert [command[-2:] for command in commands] == [["--task", str(i)] for i in range(3)]
    assert (after, gpus) == ([], 0)
    assert "shards/32x32x1" not in recorder.jobs, "it is finished"
    _, after, _, gpus = recorder.jobs["train/resnet_improved-seed0"]
    assert (after, gpus) == ([numbers["shards/64x64x3"]], 1)
    assert recorder.jobs["train/winner-seed3"][1] == [numbers["grid/grid"]]
    assert recorder.jobs["grid/grid"][3] == 4
    _, after, also, gpus = recorder.jobs["test/vgg-seed1"]
    assert (after, gpus) == ([numbers["train/vgg-seed1"]], 1)
    assert numbers["grid/grid"] in also
    assert not set(after) & set(also)
    assert set(recorder.jobs["report"][2]) == set(numbers.values()) - {numbers["report"]}
