"""A sweep's folder without Ray: identity, order, halving, tables."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.cluster.pipeline import _train_args
from fer_hpc.config import UserError, fields_of
from fer_hpc.config.commands import SweepConfig
from fer_hpc.data.shards import read_manifest
from fer_hpc.evaluation.intervals import mean_interval
from fer_hpc.files import to_jsonl, write_json
from fer_hpc.models.registry import MODELS
from fer_hpc.parallel.device import pick_device
from fer_hpc.parallel.world import StepNode, World
from fer_hpc.run.attempts import claim_attempt
from fer_hpc.run.folder import HALTED_REASON, attempt_path
from fer_hpc.sweep import grid as sweep
from fer_hpc.sweep import halving, ray_nodes
from fer_hpc.sweep.fields import parse_grid
from fer_hpc.sweep.halving import SuccessiveHalving
from fer_hpc.sweep.tables import best_of, collect
from fer_hpc.training.resolve import resolve_config
from tests.conftest import Fer


def trials_of(shards: Path, out: Path, *flags: str) -> tuple[SweepConfig, list[sweep.Trial]]:
    config, _, base = configure(
        "tune", ["cnn_baseline", "--data", str(shards), "--out", str(out), *flags]
    )
    return config, sweep.grid(config, base)


def prepared(shards: Path, out: Path, *flags: str) -> tuple[SweepConfig, list[sweep.Trial]]:
    config, trials = trials_of(shards, out, *flags)
    sweep.prepare(config, "cnn_baseline", trials)
    return config, trials


def trained(trial: sweep.Trial, *accuracies: float, state: str = "finished", why: str = "") -> None:
    """A run folder as if the trial had had these epochs."""
    folder = attempt_path(trial.config.run, 1)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"val_loss": 1.0, "train_loss": 1.0, "train_accuracy": 0.5}
    rows = [
        {"epoch": i, "images_seen": 100 * i, "val_accuracy": a, **numbers}
        for i, a in enumerate(accuracies, 1)
    ]
    write_json(folder / "environment.json", {"parent": None})
    (folder / "metrics.jsonl").write_bytes(to_jsonl(rows))
    write_json(folder / "status.json", {"state": state, "why": why})


def test_a_trial_is_its_science_fields(shards: Path, tmp_path: Path) -> None:
    names = [trial.name for trial in trials_of(shards, tmp_path, "--epochs", "3")[1]]
    assert len(set(names)) == 27
    assert names[:2] == [n for n in names if n.startswith("b64-lr0.001-")][:2], (
        "the seeds of a configuration are neighbours"
    )
    assert [
        t.name
        for t in trials_of(shards, tmp_path / "elsewhere", "--epochs", "3", "--device", "cpu")[1]
    ] == names
    assert not set(names) & {t.name for t in trials_of(shards, tmp_path, "--epochs", "4")[1]}
    assert not set(names) & {
        t.name for t in trials_of(shards, tmp_path, "--epochs", "3", "--threads", "2")[1]
    }
    more = [
        t.name
        for t in trials_of(shards, tmp_path, "--epochs", "3", "--seeds", "0", "1", "2", "3")[1]
    ]
    assert set(names) < set(more)


def test_another_sweep_in_the_folder_is_refused_by_name(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(shards, out, "--epochs", "3")
    with pytest.raises(UserError, match=r"--epochs 3 \(now --epochs 4\)"):
        sweep.check_sweep(*trials_of(shards, out, "--epochs", "4"))
    sweep.check_sweep(*trials_of(shards, out, "--epochs", "3", "--lrs", "0.5"))
    (tmp_path / "full" / "thesis").mkdir(parents=True)
    with pytest.raises(UserError, match="holds other files"):
        sweep.check_sweep(*trials_of(shards, tmp_path / "full"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "0.1"], "give --lrs with one or more values"),
        (["--run", "x"], "--run belongs to train"),
        (["--gpus-per-worker", "0.5", "--workers-per-trial", "2"], "cannot share a GPU"),
        (["--gpus-per-worker", "2"], "wanted 0"),
        (["--threads", "0"], "say how many"),
        (["--best-on", "train_loss"], "ranked on val"),
        (
            ["--batch-sizes", "64", "33", "--workers-per-trial", "2"],
            "--batch-size 33 does not divide by world size 2",
        ),
        (["--data", "nowhere"], "holds no shards"),
    ],
)
def test_a_trial_that_cannot_run_is_refused_at_once(
    shards: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trials_of(shards, tmp_path / "out", *flags)


def test_the_grid_runs_in_order_and_finished_trials_do_not(shards: Path, tmp_path: Path) -> None:
    config, trials = trials_of(
        shards, tmp_path, "--epochs", "3", "--batch-sizes", "64", "--seeds", "0", "1"
    )
    trained(trials[0], 0.1, 0.2, 0.3)
    trained(trials[1], 0.1, 0.2, 0.3, state="interrupted")  # killed before it wrote its weights
    trained(trials[2], 0.1, state="interrupted")
    plan = SuccessiveHalving(config, trials)
    order = []
    while found := plan.next():
        order.append(found[0])
        assert found[1] == 3
    assert order == trials[1:]
    assert not plan.over
    for trial in order:
        plan.ended(trial, failed=False)
    assert plan.over


def test_halving_prunes_whole_configurations(shards: Path, tmp_path: Path) -> None:
    flags = "--epochs 9 --batch-sizes 64 --lrs 0.1 0.2 0.3 0.4 --seeds 0 1".split()
    config, trials = trials_of(
        shards, tmp_path, *flags, "--scheduler", "asha", "--asha-first-rung", "3"
    )
    sweep.prepare(config, "cnn_baseline", trials)
    score = {
        0.1: (0.6, 0.1),
        0.2: (0.4, 0.4),
        0.3: (0.2, 0.3),
        0.4: (0.5, 0.5),
    }  # .1 has the best seed but not the best mean
    plan, epochs = SuccessiveHalving(config, trials), []
    assert plan.rungs == [3, 9]
    while found := plan.next():
        trial, halt = found
        epochs.append((trial.config.lr, trial.config.seed, halt))
        accuracy = score[trial.config.lr][trial.config.seed]
        done = ("finished", "") if halt == 9 else ("interrupted", HALTED_REASON)
        trained(trial, *[accuracy] * halt, state=done[0], why=done[1])
        plan.ended(trial, failed=False)
        plan = SuccessiveHalving(config, trials)  # a new object makes the same decisions
    assert len(epochs) == 12
    whole = {(lr, seed) for lr, seed, halt in epochs if halt == 9}
    assert whole == {(0.2, 0), (0.2, 1), (0.4, 0), (0.4, 1)}
    words = collect(tmp_path)
    assert "not ranked: 0 of 2 seeds finished (halted; 3 epochs)" in words
    assert [s["lr"] for s in json.loads((tmp_path / "summary.json").read_text())["ranked"]] == [
        0.4,
        0.2,
    ]


def test_tables_rank_means_and_say_when_a_difference_is_not_one(
    shards: Path, tmp_path: Path
) -> None:
    config, trials = trials_of(
        shards, tmp_path, "--batch-sizes", "64", "--lrs", "0.1", "0.2", "0.3"
    )
    sweep.prepare(config, "cnn_baseline", trials)
    accuracies = iter(
        [0.50, 0.60, 0.55, 0.56, 0.58, 0.57, 0.9, 0.9]
    )  # lr .3: two seeds good, one broken
    for trial in trials[:8]:
        trained(trial, 0.1, next(accuracies), 0.2)
    trained(trials[8], state="failed", why="UserError: loss is not a finite number")
    words = collect(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(s["lr"], s["mean"]) for s in summary["ranked"]] == [
        (0.2, pytest.approx(0.57)),
        (0.1, pytest.approx(0.55)),
    ]
    assert summary["best_two"]["mean"] == pytest.approx(0.02)
    assert summary["best_two"]["interval_95"] == pytest.approx(
        list(mean_interval([0.06, -0.02, 0.02]) or [])
    )
    assert summary["best_two"]["verdict"] == "not distinguishable"
    assert "not distinguishable" in words
    assert "failed: " + trials[8].name + ": UserError: loss is not a finite number" in words
    assert (tmp_path / "heatmap.png").stat().st_size > 5000
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 10
    best = best_of(tmp_path)
    assert (best["batch_size"], best["lr"], best["preset"]) == (64, 0.2, "cnn_baseline")
    config = configure("train", ["--from-sweep", str(tmp_path), "--run", "r", "--seed", "5"])
    assert config == dataclasses.replace(trials[3].config, run=Path("r"), seed=5, data=config.data)


class ReferenceHalving:
    """The decisions of successive halving, written down without any regard for time."""

    def __init__(self, trials: list[sweep.Trial], rungs: list[int], factor: int) -> None:
        self.trials, self.rungs, self.factor = trials, rungs, factor
        self.values: dict[str, list[float]] = {trial.name: [] for trial in trials}
        self.running: set[str] = set()
        self.failed: set[str] = set()

    def next(self) -> tuple[sweep.Trial, int] | None:
        for k in reversed(range(len(self.rungs))):
            for trial in self.trials:
                free = trial.name not in self.running | self.failed
                at_rung = len(self.values[trial.name]) == k
                if free and at_rung and trial.setting in self.promoted(k):
                    self.running.add(trial.name)
                    return trial, self.rungs[k]
        return None

    def promoted(self, k: int) -> set[sweep.Setting]:
        settings = {trial.setting for trial in self.trials}
        if k == 0:
            return settings
        means = {}
        for setting in settings:
            seeds = [self.values[t.name] for t in self.trials if t.setting == setting]
            if all(len(values) >= k for values in seeds):
                means[setting] = sum(values[k - 1] for values in seeds) / len(seeds)
        broken = {t.setting for t in self.trials if t.name in self.failed}
        to_come = self.promoted(k - 1) - set(means) - broken
        best_first = sorted(means, key=lambda setting: (-means[setting], setting))
        return set(best_first[: max(0 if to_come else 2, len(means) // self.factor)])


@pytest.mark.parametrize("seed", range(12))
def test_halving_decides_as_a_plain_reference_does(
    shards: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random outcomes: ties, failures, interruptions, trials that end in any order."""
    draw = random.Random(seed)
    lrs = [str(i / 100) for i in range(1, draw.randint(4, 14))]
    seeds = [str(i) for i in range(draw.randint(1, 3))]
    factor = draw.choice([2, 3, 4])
    flags = ["--epochs", "27", "--batch-sizes", "32", "64", "--lrs", *lrs, "--seeds", *seeds]
    asha = ["--scheduler", "asha", "--asha-reduction-factor", str(factor)]
    first_rung = ["--asha-first-rung", str(draw.choice([0, 1, 5]))]
    config, trials = trials_of(shards, tmp_path, *flags, *asha, *first_rung)
    reference = ReferenceHalving(trials, halving.rungs(config, 27), factor)
    names = {trial.config.run: trial.name for trial in trials}
    monkeypatch.setattr(halving, "values_at_rungs", lambda run, *_: reference.values[names[run]][:])
    plan = SuccessiveHalving(config, trials)
    running: list[sweep.Trial] = []
    ended = 0
    while True:
        decision = plan.next()
        assert decision == reference.next()
        if decision:
            running.append(decision[0])
        if not running:
            break
        if decision and draw.random() < 0.7:
            continue  # another one starts at the same time
        trial = running.pop(draw.randrange(len(running)))
        outcome = draw.choices(["rung", "failed", "interrupted"], [20, 1, 2])[0]
        if outcome == "rung":
            reference.values[trial.name].append(draw.choice([0.25, 0.5, draw.random()]))
        if outcome == "failed":
            reference.failed.add(trial.name)
        reference.running.discard(trial.name)
        assert plan.ended(trial, outcome == "failed") == (outcome == "rung")
        ended += 1
        if not running and not reference.failed:  # as if the sweep had been started again
            plan = SuccessiveHalving(config, trials)
    assert plan.over
    assert ended >= len(trials)


def test_a_decision_among_5000_trials_takes_no_time(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = configure("train", ["cnn_baseline", "--data", str(shards), "--run", "r"])
    config = SweepConfig(data=shards, out=tmp_path, scheduler="asha")
    trials = [
        sweep.Trial(f"{i}-{seed}", dataclasses.replace(base, run=Path(f"{i}-{seed}")), (64, i))
        for i in range(1000)
        for seed in range(5)
    ]
    values: dict[str, list[float]] = {trial.name: [] for trial in trials}
    monkeypatch.setattr(halving, "values_at_rungs", lambda run, *_: values[run.name][:])
    plan = SuccessiveHalving(config, trials)
    started = time.process_time()
    for i in range(1000):
        decision = plan.next()
        assert decision
        values[decision[0].name].append(i % 97)
        plan.ended(decision[0], failed=False)
    assert time.process_time() - started < 20  # one call took 3.6 s


# ---- further fields ------------------------------------------------------------------------------


def test_the_values_of_grid_have_the_types_of_their_fields() -> None:
    grid = parse_grid(
        ("weight-decay=1e-4,5e-4", "--flip=true,no", "optimizer=adamw,sgd", "warmup_epochs=1", "2")
    )
    assert grid == {
        "weight_decay": [1e-4, 5e-4],
        "flip": [True, False],
        "optimizer": ["adamw", "sgd"],
        "warmup_epochs": [1.0, 2.0],
    }
    assert parse_grid(("early_stop=3,3",)) == {"early_stop": [3]}
    assert parse_grid(("deterministic=true",)) == {"deterministic": [True]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("weight_decy=1", "did you mean 'weight_decay'"),
        ("lr=0.1", "--lrs"),
        ("batch-size=32", "--batch-sizes"),
        ("seed=1", "--seeds"),
        ("device=cpu", "does not change the results"),
        ("threads=1", "--threads"),
        ("best_on=val_loss", "--best-on"),
        ("optimizer=adam", "adamw"),
        ("flip=maybe", "true or false"),
        ("early_stop=1.5", "whole number"),
        ("rotate=left", "a number"),
        ("rotate=", "at least one value"),
        ("rotate", "FIELD=VALUE"),
        ("rotate=500", "--rotate 500.0: wanted"),
        ("accumulate=7", "does not divide"),
    ],
)
def test_a_mistake_in_grid_is_one_message(
    shards: Path, tmp_path: Path, entry: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trials_of(shards, tmp_path / "out", "--grid", entry)


def test_a_sweep_over_further_fields(shards: Path, tmp_path: Path) -> None:
    """Names, identity, ranking, the best configuration as a training, and an extension."""
    flags = ["--batch-sizes", "64", "--lrs", "0.1", "0.2", "--seeds", "0", "1", "2"]
    grid = ["--grid", "weight_decay=0,0.0005", "--grid", "model=cnn_baseline,cnn_improved"]
    config, trials = trials_of(shards, tmp_path, *flags, *grid)
    classic = trials_of(shards, tmp_path, *flags)[1]
    assert len(trials) == 24
    assert trials[0].name.startswith("b64-lr0.1-model=cnn_baseline-weight_decay=0-seed0-")
    assert [t.name.rsplit("-", 1)[1] for t in trials[:3]] == [
        t.name.rsplit("-", 1)[1] for t in classic[:3]
    ], "the hash depends on what is trained, not on what is swept"
    sweep.prepare(config, "cnn_baseline", trials)
    for trial in trials:
        good = (trial.config.weight_decay, trial.config.model) == (0.0005, "cnn_improved")
        trained(trial, 0.8 if good else 0.5, 0.7 * trial.config.lr + 0.01 * trial.config.seed)
    text = collect(tmp_path)
    assert "weight_decay" in text.splitlines()[1]
    summary = json.loads((tmp_path / "summary.json").read_text())
    first = summary["ranked"][0]
    winner = {"batch_size": 64, "lr": 0.1, "weight_decay": 0.0005, "model": "cnn_improved"}
    assert first["settings"] == winner
    assert (first["batch_size"], first["lr"]) == (64, 0.1)
    assert summary["best_two"]["second"] == [64, 0.2, "cnn_improved", 0.0005]
    header = (tmp_path / "results.csv").read_text().splitlines()[0]
    assert header.startswith("trial,batch_size,lr,seed,model,weight_decay,state")
    assert (tmp_path / "heatmap.png").stat().st_size > 5000
    config = configure("train", ["--from-sweep", str(tmp_path), "--run", "r"])
    assert {field: getattr(config, field) for field in winner} == winner

    longer = [*flags, "--grid", "model=cnn_baseline,cnn_improved", "weight_decay=0.01,0"]
    prepared(shards, tmp_path, *longer)
    assert len(json.loads((tmp_path / "sweep.json").read_text())["trials"]) == 36, (
        "a field's place on the line is no part of a trial"
    )
    with pytest.raises(UserError, match="now batch_size, lr"):
        sweep.check_sweep(*trials_of(shards, tmp_path, *flags))


def test_a_sweep_over_epochs(shards: Path, tmp_path: Path) -> None:
    flags = ["--batch-sizes", "64", "--lrs", "0.1", "--seeds", "0", "--grid", "epochs=2,5"]
    with pytest.raises(UserError, match="--scheduler asha"):
        trials_of(shards, tmp_path, *flags, "--scheduler", "asha")
    config, trials = trials_of(shards, tmp_path, *flags)
    sweep.prepare(config, "cnn_baseline", trials)
    plan = SuccessiveHalving(config, trials)
    assert [plan.next(), plan.next(), plan.next()] == [(trials[0], 2), (trials[1], 5), None]
    trained(trials[0], 0.1, 0.2)
    trained(trials[1], 0.1, 0.2, 0.3, state="interrupted")
    assert "not ranked: 0 of 1 seeds finished (interrupted; 3 epochs)" in collect(tmp_path)


def test_the_heat_map_shows_what_varies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fer_hpc.evaluation import plots
    from fer_hpc.sweep.tables import _draw_heat_map

    drawn: list[Any] = []
    monkeypatch.setattr(plots, "heat_map", lambda *args: drawn.append(args))
    ranked: list[Any] = [
        {"settings": {"batch_size": b, "lr": lr, "flip": flip}, "mean": b / 100 + lr + flip}
        for flip in (True, False)
        for b in (32, 64)
        for lr in (0.1, 0.2)
    ]
    about = {"preset": "p", "epochs": 3, "metric": "val_accuracy", "seeds": [0]}
    _draw_heat_map(tmp_path / "x.png", about | {"ranked": ranked})
    values, rows, columns, titles, _ = drawn.pop()
    assert (rows, columns) == (["32, false", "32, true", "64, false", "64, true"], ["0.1", "0.2"])
    assert titles[:2] == ("batch size, flip", "learning rate")
    assert values[3].tolist() == pytest.approx([1.74, 1.84])
    _draw_heat_map(tmp_path / "x.png", about | {"ranked": [ranked[0], ranked[4]]})  # flip only
    assert drawn.pop()[1:3] == (["32"], ["false", "true"])


# ---- one experiment ------------------------------------------------------------------------------

NETWORK = """
from torch import nn
from fer_hpc import register_model

@register_model("of_the_sweep", sides=(16, 64), face=(32, 1))
def build(outputs, channels, side):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, outputs))
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """A file that registers a network."""
    path, known = tmp_path / "net.py", dict(MODELS)
    path.write_text(NETWORK)
    yield path
    MODELS.clear()
    MODELS.update(known)


def begun(trial: sweep.Trial) -> None:
    """config.json as the trial's first start writes it."""
    config, manifest = trial.config, read_manifest(trial.config.data)
    resolved, identity = resolve_config(config, manifest, pick_device("cpu"), World())
    config.run.mkdir(parents=True, exist_ok=True)
    content = {"science": fields_of(resolved, "science"), **identity}
    write_json(config.run / "config.json", content)


def rewrite(trial: sweep.Trial, fingerprint: str = "", **science: Any) -> None:
    """Change science fields or the fingerprint of the data in a trial's config.json."""
    stored = json.loads((trial.config.run / "config.json").read_text())
    stored["science"] |= science
    stored["data"]["fingerprint"] = fingerprint or stored["data"]["fingerprint"]
    write_json(trial.config.run / "config.json", stored)


def test_a_sweep_whose_plugin_was_edited_is_refused(
    shards: Path, tmp_path: Path, plugin: Path
) -> None:
    """sweep.json has no hash of it, as in 0.1.0: the trials' own config.json have."""
    flags = ["--model", "of_the_sweep", "--plugin", str(plugin), "--batch-sizes", "64"]
    _, trials = prepared(shards, tmp_path / "out", *flags, "--lrs", "0.1", "--seeds", "0", "1")
    begun(trials[0])
    more = trials_of(shards, tmp_path / "out", *flags, "--lrs", "0.1", "0.2", "--seeds", "0", "1")
    sweep.check_sweep(*more)
    plugin.write_text(f"{NETWORK}# edited\n")
    with pytest.raises(UserError, match=r"started with other code .*net\.py.* another sweep"):
        sweep.check_sweep(*more)
    with pytest.raises(UserError, match=r"the other trials of this sweep were .*net\.py"):
        begun(trials[1])  # edited while the sweep runs
    plugin.unlink()
    sweep.check_sweep(*more)  # a finished sweep does not need it


def test_a_sweep_from_before_presets_set_a_field_goes_on_without_it(
    shards: Path, tmp_path: Path
) -> None:
    _, _, base = configure("tune", ["resnet_baseline", "--data", str(shards), "--out", "unused"])
    assert base.bn_images
    config = SweepConfig(shards, tmp_path, batch_sizes=(64,), lrs=(0.1,), seeds=(0,))
    old = sweep.grid(config, dataclasses.replace(base, bn_images=0))
    sweep.prepare(config, "resnet_baseline", old)
    stored = json.loads((tmp_path / "sweep.json").read_text())
    del stored["science"]["bn_images"]
    write_json(tmp_path / "sweep.json", stored)
    config = dataclasses.replace(config, seeds=(0, 1))
    trials = sweep.grid(config, base)
    sweep.check_sweep(config, trials)
    assert trials[0].name == old[0].name
    assert [trial.config.bn_images for trial in trials] == [0, 0]


def test_a_sweep_whose_initial_weights_were_replaced_is_refused(
    shards: Path, tmp_path: Path, finished_run: Path
) -> None:
    weights = shutil.copytree(finished_run, tmp_path / "weights")
    flags = ["--init-from", str(weights), "--batch-sizes", "64", "--lrs", "0.1"]
    config, trials = prepared(shards, tmp_path / "out", *flags, "--seeds", "0", "1")
    begun(trials[0])
    sweep.check_sweep(config, trials)
    (best,) = weights.glob("attempts/*/best.pt")
    shutil.copy(best.with_name("final.pt"), best)
    with pytest.raises(UserError, match=r"other weights than .*/weights"):
        sweep.check_sweep(config, trials)
    with pytest.raises(UserError, match=r"--init-from .*/weights have"):
        begun(trials[1])


def test_new_trials_take_what_the_first_one_resolved(shards: Path, tmp_path: Path) -> None:
    """Precision auto is another on other hardware; data may be made again before a task starts."""
    flags = ["--batch-sizes", "64", "--lrs", "0.1", "--seeds", "0", "1"]
    _, trials = prepared(shards, tmp_path, *flags, "--grid", "precision=auto,fp64")
    first, new, other, _ = trials
    begun(other)
    begun(first)
    rewrite(first, precision="fp16")
    begun(new)
    stored = json.loads((new.config.run / "config.json").read_text())
    assert stored["science"]["precision"] == "fp16"
    shutil.rmtree(new.config.run)
    rewrite(first, fingerprint="0" * 16)
    with pytest.raises(UserError, match="other trials of this sweep were trained on other data"):
        begun(new)


@pytest.mark.parametrize("in_a_row", [True, False])
def test_trials_of_two_networks_are_not_called_distinguishable(
    shards: Path, tmp_path: Path, in_a_row: bool
) -> None:
    """A sweep that an older version mixed, within the best row or between two rows."""
    _, trials = prepared(shards, tmp_path, "--batch-sizes", "64", "--lrs", "0.1", "0.2")
    for trial in trials:
        begun(trial)
    for trial in trials:
        edited = trial.config.lr == 0.2 and (trial.config.seed == 2 or not in_a_row)
        rewrite(trial, plugin_hash=("b" if edited else "a") * 64)
        trained(trial, 0.5 + trial.config.lr)
    text = collect(tmp_path)
    assert "more than one experiment" in text
    best = text.splitlines()[2]
    assert ("differ in their plugins (aaaaaaaa: 2, bbbbbbbb: 1)" in best) == in_a_row
    two = json.loads((tmp_path / "summary.json").read_text())["best_two"]
    assert two["verdict"].startswith("not tested, as the trials differ in their plugins")
    assert two["interval_95"] is None
    if in_a_row:
        with pytest.raises(UserError, match="trained with different files"):
            best_of(tmp_path)
    else:
        assert best_of(tmp_path)["science"]["plugin_hash"] == "b" * 64


def test_the_winner_of_a_sweep_is_trained_with_its_plugin(
    fer: Fer, shards: Path, tmp_path: Path, plugin: Path
) -> None:
    flags = ["--model", "of_the_sweep", "--plugin", str(plugin), "--batch-sizes", "64"]
    _, trials = prepared(shards, tmp_path / "out", *flags, "--lrs", "0.1", "--seeds", "0")
    begun(trials[0])
    trained(trials[0], 0.5)
    assert collect(tmp_path / "out").startswith("of_the_sweep (other settings: cnn_baseline), 100")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["preset"], summary["model"]) == ("cnn_baseline", "of_the_sweep")
    plugin.write_text(f"{NETWORK}# edited\n")
    recipe = ("--from-sweep", tmp_path / "out", "--run", tmp_path / "run", "--epochs", 1)
    for older in (False, True):
        if older:  # best.json of 0.1.0
            best = json.loads((tmp_path / "out" / "best.json").read_text())
            best["science"]["plugin_hash"] = ""
            write_json(tmp_path / "out" / "best.json", best)
        done = fer("train", *recipe)
        assert done.returncode == 2
        assert f"{plugin} has changed" in done.stderr
    done = fer("train", *recipe, "--model", "cnn_baseline", "--no-tensorboard")
    assert done.returncode == 0, done.stderr


def test_trials_in_use_are_named_with_their_holder(shards: Path, tmp_path: Path) -> None:
    flags = ["--batch-sizes", "64", "--lrs", "0.1", "--seeds", "0", "1"]
    _, trials = prepared(shards, tmp_path, *flags)
    names = [trial.name for trial in trials]
    attempt = claim_attempt(trials[1].config.run)
    with pytest.raises(UserError, match=f"in use: trial {names[1]} by process {os.getpid()} on"):
        sweep.check_free(tmp_path, names)
    sweep.check_free(tmp_path, names[:1])  # another job may train other trials
    with ThreadPoolExecutor(1) as threads:  # a killed sweep's process ends a moment later
        waits = threads.submit(sweep.check_free, tmp_path, names, 60)
        attempt.end("interrupted")
        waits.result()


# ---- what an array and --from-sweep need ---------------------------------------------------------


def test_an_arrays_trial_has_the_sweeps_own_flags(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    flags = ["--init-from", "w.pt", "--device", "cpu", "--no-tensorboard", "--grid", "flip=true"]
    config, trials = trials_of(shards, out, *flags)
    sweep.prepare(config, "cnn_baseline", trials)
    arguments = _train_args("cnn_baseline", trials[7].config)
    assert configure("train", ["cnn_baseline", *arguments]) == trials[7].config
    assert trials[7].config.init_from == tmp_path / "w.pt"
    with pytest.raises(UserError, match=r"--init-from .*w.pt \(now --init-from .*v.pt"):
        sweep.check_sweep(*trials_of(shards, out, *flags, "--init-from", "v.pt"))


def test_a_sweep_of_an_older_version_goes_on(shards: Path, tmp_path: Path) -> None:
    """Its sweep.json knows neither the newer fields nor the runtime flags."""
    config, trials = trials_of(shards, tmp_path, "--epochs", "3")
    sweep.prepare(config, "cnn_baseline", trials)
    stored = json.loads((tmp_path / "sweep.json").read_text())
    del stored["runtime"]
    for field in ("loss", "pretrained", "plugin_hash"):
        del stored["science"][field]
    write_json(tmp_path / "sweep.json", stored)
    sweep.check_sweep(config, trials)
    for trial in trials:
        trained(trial, 0.1, 0.2, 0.2 + trial.config.lr)
    collect(tmp_path)
    assert best_of(tmp_path)["lr"] == 0.01
    with pytest.raises(UserError, match=r"--loss cross_entropy \(now --loss mine\)"):
        sweep.check_sweep(*trials_of(shards, tmp_path, "--epochs", "3", "--loss", "mine"))
    for swept, value in zip(stored["trials"].values(), (True, "x", False), strict=False):
        swept["flip"] = value
    write_json(tmp_path / "sweep.json", stored)
    with pytest.raises(UserError, match=r"sweep\.json is damaged: --flip 'x'"):
        collect(tmp_path)


def test_the_interval_is_students() -> None:
    assert mean_interval([1.0]) is None
    low, high = mean_interval([0.50, 0.60, 0.55]) or (0, 0)
    assert (low, high) == pytest.approx(
        (0.55 - 4.302653 * 0.05 / 3**0.5, 0.55 + 4.302653 * 0.05 / 3**0.5), abs=1e-6
    )


# ---- the nodes of a Slurm job --------------------------------------------------------------------


def test_a_strangers_connection_is_no_node_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of this job")
    own = ray_nodes._job_code()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another job")
    other = ray_nodes._job_code()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of this job")
    for sent, expected in ((own, True), (other, False), (own[:8], False), (b"", False)):
        here, there = socket.socketpair()
        with here, there:
            there.sendall(sent)
            there.shutdown(socket.SHUT_WR)
            assert ray_nodes._is_from_job(here) == expected


def test_nodes_of_a_job_without_work_are_let_go() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1] - 1
    node = StepNode(0, 2, "localhost", port, gpus=0)
    with ThreadPoolExecutor(1) as threads:
        released = threads.submit(ray_nodes.release, node)
        with ray_nodes._connect("localhost", port + 1) as lifeline:
            assert not released.done()
            lifeline.sendall(ray_nodes._job_code())
            assert lifeline.recv(1) == b""
        released.result()


def test_the_folder_of_a_killed_sweeps_ray_is_removed_by_the_next_one() -> None:
    with ray_nodes.temporary_folder("test-") as living:
        killed = Path(tempfile.mkdtemp(prefix="fer-ray-test-", dir="/tmp"))
        (killed / "lock").touch()
        beginning = Path(tempfile.mkdtemp(prefix="fer-ray-test-", dir="/tmp"))  # not locked yet
        with ray_nodes.temporary_folder("test-") as folder:
            assert folder.is_dir()
            assert living.is_dir()
            assert beginning.is_dir()
            assert not killed.exists()
        beginning.rmdir()
    assert not living.exists()
    assert not folder.exists()
