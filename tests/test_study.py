"""The plan of a study, its graph and what it costs; tests/test_study_run.py runs one."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from fer_hpc.config import EXIT_FINISHED, UserError
from fer_hpc.config.study import StudyConfig
from fer_hpc.study import estimate
from fer_hpc.study.graph import parts_of
from fer_hpc.study.machine import Room
from fer_hpc.study.plan import NAME, Plan, to_text
from fer_hpc.study.recipes import new_tables
from fer_hpc.study.state import PartState
from tests.helpers.studies import LOCAL, by_name, call, edit, tiny

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
