"""Sweeps over further fields: --grid and --epochs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.config import UserError
from fer_hpc.sweep import grid as sweep
from fer_hpc.sweep.fields import parse_grid
from fer_hpc.sweep.halving import SuccessiveHalving
from fer_hpc.sweep.tables import collect
from tests.helpers.sweeps import prepared, trained, trials_of


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
