"""The plan, graph and states of a study; tests/test_study_run.py runs one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cli.main import main
from fer_hpc.cluster.scheduler import Request
from fer_hpc.cluster.slurm import Slurm
from fer_hpc.config import EXIT_FINISHED, EXIT_USER_ERROR, UserError
from fer_hpc.config.jobs import JobConfig
from fer_hpc.config.study import StudyConfig
from fer_hpc.data.manifest import write_manifest
from fer_hpc.files import read_json, sha256, write_json
from fer_hpc.study import estimate, jobs
from fer_hpc.study.graph import Part, parts_of
from fer_hpc.study.machine import Room
from fer_hpc.study.plan import NAME, Plan, new_plan, read_plan, to_text, write_plan
from fer_hpc.study.recipes import new_tables
from fer_hpc.study.state import PartState, check_edits, record_part, states_of_parts
from fer_hpc.study.status import format_study

LOCAL = JobConfig(cluster="local")
DAMAGED = "study.toml"


def tiny(out: Path, **fields: Any) -> Plan:
    """The plan of a tiny study, written to OUT/study.toml."""
    plan = new_plan(StudyConfig(out=out, source="synthetic", scale="tiny", **fields), LOCAL)
    write_plan(plan)
    return plan


def by_name(plan: Plan) -> dict[str, Part]:
    return {part.name: part for part in parts_of(plan)}


def states(plan: Plan) -> dict[str, PartState]:
    return states_of_parts(plan, parts_of(plan), {})


def edit(plan: Plan, old: str, new: str) -> Plan:
    """The plan after a person's edit of study.toml."""
    path = plan.out / NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return read_plan(plan.out)


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """Exit code and output of `fer-hpc study ARGS` in this process."""
    code = main(["study", *map(str, args)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


# ---- study.toml ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "scale", "products"),
    [
        ("affectnet", "1", ["48x48x1", "224x224x3", "128x128x3"]),
        ("fer2013", "0.05", ["48x48x1", "96x96x1", "64x64x1"]),
        ("synthetic", "tiny", ["32x32x1", "64x64x3"]),
    ],
)
def test_the_plan_is_written_as_it_is_read(
    tmp_path: Path, source: str, scale: str, products: list[str]
) -> None:
    tables = new_tables(StudyConfig(out=tmp_path, source=source, scale=scale), LOCAL)
    assert tomllib.loads(to_text(tables, tmp_path)) == tables
    assert Plan(tmp_path, tables).products == products
    assert all(len(model["seeds"]) == 3 for model in tables["models"].values())
    assert not set(tables["winner"]["seeds"]) & set(tables["grid"]["seeds"])


def test_scale_multiplies_the_epochs_of_the_recipes(tmp_path: Path) -> None:
    tables = new_tables(StudyConfig(out=tmp_path, source="fer2013", scale="0.05"), LOCAL)
    epochs = {name: table["epochs"] for name, table in tables["models"].items()}
    assert epochs["cnn_baseline"] == 5
    assert epochs["resnet_improved"] == 2  # of 50
    with pytest.raises(UserError, match="--scale huge: wanted a number"):
        StudyConfig(out=tmp_path, source="fer2013", scale="huge")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("leave_out", "leaveout", "did you mean 'leave_out'"),
        ("leave_out = []", 'leave_out = ["grit"]', "did you mean 'grid'"),
        ("epochs = 2", "epoch = 2", "did you mean 'epochs'"),
        ("epochs = 2", 'epochs = "two"', "[models.cnn_baseline]: --epochs 'two'"),
        ("epochs = 2", "lr = -1", "[models.cnn_baseline]: --lr -1"),
        ("seeds = [0, 1, 2]", "seeds = [0, 0]", "each once"),
        ('data = "32x32x1"', 'data = "32x31x1"', "wanted HEIGHTxWIDTHxCHANNELS"),
        ('data = "64x64x3"', 'data = "48x48x3"', "resnet_improved takes 64 to 1024 pixels"),
        ('data = "32x32x1"', 'data = "256x256x1"', "cnn_baseline takes 32 to 128 pixels"),
        ('[gan]\ndata = "32x32x1"', '[gan]\ndata = "48x48x1"', "the GAN takes faces of 32, 64,"),
        ("[models.vgg]", "[models.vgd]", "unknown preset"),
        ("[winner]", "[winners]", "did you mean 'winner'"),
        ("lrs = [", "lrs = [0.1, ", ""),
        ("count = 240", 'count = "240"', "wanted a whole number"),
        ("gan_pairs", "pairs", "gan_pairs"),
        ('"cnn_improved-seed0"', '"cnn_improved-seed9"', "did you mean 'cnn_improved-seed"),
        ("epochs = 2", "epochs = ", "not TOML"),
    ],
)
def test_a_mistake_in_the_plan_is_one_message(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    plan = tiny(tmp_path)
    if not message:
        assert edit(plan, old, new).tables["grid"]["lrs"][0] == 0.1
        return
    with pytest.raises(UserError) as error:
        edit(plan, old, new)
    assert message in str(error.value)


# ---- the graph -----------------------------------------------------------------------------------


def test_parts_come_after_what_they_need(tmp_path: Path) -> None:
    parts = parts_of(tiny(tmp_path))
    places = {part.name: i for i, part in enumerate(parts)}
    for part in parts:
        assert all(places[n] < places[part.name] for n in (*part.needs, *part.after)), part.name
    count = {kind: sum(p.kind == kind for p in parts) for kind in {p.kind for p in parts}}
    assert count == {
        "shards": 2,
        "doctor": 2,
        "train": 18,
        "grid": 1,
        "gan": 1,
        "val": 19,
        "test": 19,
        "report": 1,
    }


def test_test_is_opened_when_everything_is_chosen(tmp_path: Path) -> None:
    parts = by_name(tiny(tmp_path))
    test = parts["test/cnn_baseline-seed0"]
    assert test.needs == ("train/cnn_baseline-seed0",)
    chosen = {name for name, p in parts.items() if p.kind in ("train", "grid", "gan", "val")}
    assert set(test.after) == chosen


def test_what_is_left_out_takes_along_what_needs_it(tmp_path: Path) -> None:
    plan = edit(tiny(tmp_path), "leave_out = []", 'leave_out = ["grid", "gan", "models.vgg"]')
    names = set(by_name(plan))
    assert not {n for n in names if any(word in n for word in ("grid", "winner", "gan", "vgg"))}
    assert "train/resnet_improved-seed0" in names


def test_commands_are_those_of_the_suite(tmp_path: Path) -> None:
    from fer_hpc.cli.parse import configure

    parts = by_name(tiny(tmp_path))
    one_of_each = {part.kind: part for part in parts.values() if "winner" not in part.name}
    for part in one_of_each.values():
        if part.kind != "grid":
            configure(part.command[0], part.command[1:])
    grid = by_name(tiny(tmp_path))["grid/grid"]
    assert configure(grid.command[0], grid.command[1:])[0].batch_sizes == (16, 32, 64)


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


# ---- what it costs -------------------------------------------------------------------------------


def test_a_dry_run_starts_nothing_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    code, text = call(
        capsys, out, "--source", "synthetic", "--count", 1000, "--scale", 0.1, "--dry-run"
    )
    assert code == EXIT_FINISHED
    assert [p.name for p in out.iterdir()] == [NAME]
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["train/cnn_baseline"][:2] == ["3", "21,000"]  # 3 seeds x 10 epochs x 700 faces
    assert rows["grid/grid"][:2] == ["1", "189,000"]  # 27 trials
    assert rows["val/vgg"][:2] == ["3", "450"]
    assert "rates: figures of two EPYC cores" in text
    code, text = call(capsys, out, "--dry-run", "--cluster", "slurm")
    assert "hours of one GPU; rates: an H200's figures" in text
    assert "GPU h" in text.splitlines()[1]


def test_the_critical_path_is_the_longest_chain(tmp_path: Path) -> None:
    parts = parts_of(tiny(tmp_path))
    costs = {part.name: estimate.Cost(None, 0.0, None, 0) for part in parts}
    for name in ("shards/32x32x1", "grid/grid", "train/winner-seed4", "test/gan-seed0", "report"):
        costs[name] = dataclasses.replace(costs[name], hours=1.0)
    costs["train/vgg-seed1"] = dataclasses.replace(costs["train/vgg-seed1"], hours=1.5)
    hours, path = estimate.critical_path(parts, costs)
    assert hours == 5
    assert [n for n in path if costs[n].hours] == [
        "shards/32x32x1",
        "grid/grid",
        "train/winner-seed4",
        "test/gan-seed0",
        "report",
    ]


def test_the_time_left_falls_as_parts_finish(tmp_path: Path) -> None:
    parts = parts_of(tiny(tmp_path))
    costs = {part.name: estimate.Cost(None, 1.0, None, 0) for part in parts}
    found = {part.name: PartState("waiting") for part in parts}
    room = Room(cores=2, memory_gb=64)
    before = estimate.hours_left(parts, found, costs, room)
    found["train/vgg-seed0"] = PartState("running", share=0.5)
    assert before - estimate.hours_left(parts, found, costs, room) == pytest.approx(0.25)
    found["grid/grid"] = PartState("finished", share=1.0)
    start = estimate.START_S / 3600
    assert before - estimate.hours_left(parts, found, costs, room) == pytest.approx(1.25 + start)
    as_jobs = estimate.hours_left(parts, found, costs, None)
    # shards, training, val, test, page: one after the other
    assert as_jobs == pytest.approx(5 * (1 + start))


def test_small_trainings_share_a_machine_and_large_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    parts = by_name(tiny(tmp_path))
    small = [parts[f"train/cnn_baseline-seed{i}"] for i in range(3)]
    large = dataclasses.replace(parts["gan/gan-seed0"], alone=True)
    grid = parts["grid/grid"]
    room = Room(cores=2, memory_gb=64)
    assert [room.place(part) for part in small] == [{}, {}, None]
    assert room.place(large) is None
    for part in small:
        room.leave(part.name)
    assert room.place(large) == {}
    assert room.place(small[0]) is None

    gpus = Room(cores=16, memory_gb=256, gpus={"0": 80.0, "1": 80.0}, shared={"MPS": "x"})
    assert gpus.place(large) == {"CUDA_VISIBLE_DEVICES": "0"}
    shared = {"CUDA_VISIBLE_DEVICES": "1", "FER_PROCESSES_PER_GPU": "4", "MPS": "x"}
    assert [gpus.place(part) for part in small] == [shared] * 3
    assert gpus.place(grid) is None, "it takes the whole machine"

    gpus = Room(cores=16, memory_gb=256, gpus={"0": 80.0, "1": 80.0})
    places = [gpus.place(part) or {} for part in small]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1", "0"], "the emptiest"

    gpus = Room(cores=16, memory_gb=256, gpus={"0": 80.0, "1": 80.0})
    gpus.occupy(large, "1")  # it runs there since before the driver's start
    other = dataclasses.replace(large, name="gan/gan-seed1")
    assert gpus.place(other) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert gpus.place(dataclasses.replace(large, name="gan/gan-seed2")) is None

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # numbers of nvidia-smi then
    gpus = Room(cores=16, memory_gb=256, gpus={"0": 80.0})
    assert gpus.place(large) == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_parts_on_one_gpu_use_the_service_that_a_driver_starts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fer_hpc.parallel.mps.PLACES", ())
    monkeypatch.setenv("PATH", "")
    with Room(cores=2).open() as room:
        assert room.shared == {}
    assert capfd.readouterr().err == ""
    with Room(cores=2, gpus={"0": 80.0}).open() as room:
        assert room.shared == {}
    assert "take turns: this node has no" in capfd.readouterr().err


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
