"""A sweep's tables: means, intervals, differences that are none, the heat map."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.config import UserError
from fer_hpc.evaluation.intervals import mean_interval
from fer_hpc.sweep import grid as sweep
from fer_hpc.sweep.tables import best_of, collect
from tests.helpers.sweeps import begun, prepared, rewrite, trained, trials_of


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


def test_the_interval_is_students() -> None:
    assert mean_interval([1.0]) is None
    low, high = mean_interval([0.50, 0.60, 0.55]) or (0, 0)
    assert (low, high) == pytest.approx(
        (0.55 - 4.302653 * 0.05 / 3**0.5, 0.55 + 4.302653 * 0.05 / 3**0.5), abs=1e-6
    )
