"""A sweep's folder without Ray: identity, order, halving, tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.config import UserError
from fer_hpc.config.commands import SweepConfig
from fer_hpc.evaluation.intervals import mean_interval
from fer_hpc.files import to_jsonl, write_json
from fer_hpc.run.folder import HALTED_REASON, attempt_path
from fer_hpc.sweep import grid as sweep
from fer_hpc.sweep.halving import SuccessiveHalving
from fer_hpc.sweep.tables import best_of, collect


def trials_of(shards: Path, out: Path, *flags: str) -> tuple[SweepConfig, list[sweep.Trial]]:
    config, _, base = configure(
        "tune", ["cnn_baseline", "--data", str(shards), "--out", str(out), *flags]
    )
    return config, sweep.grid(config, base)


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
    sweep.prepare(*(lambda c, t: (c, "cnn_baseline", t))(*trials_of(shards, out, "--epochs", "3")))
    with pytest.raises(UserError, match=r"--epochs 3 \(now --epochs 4\)"):
        sweep.check_sweep(*trials_of(shards, out, "--epochs", "4"))
    sweep.check_sweep(*trials_of(shards, out, "--epochs", "3", "--lrs", "0.5"))
    (tmp_path / "full" / "thesis").mkdir(parents=True)
    with pytest.raises(UserError, match="holds other things"):
        sweep.check_sweep(*trials_of(shards, tmp_path / "full"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lr", "0.1"], "give --lrs with one or more values"),
        (["--run", "x"], "--run belongs to train"),
        (["--gpus-per-worker", "0.5", "--workers-per-trial", "2"], "cannot share a GPU"),
        (["--gpus-per-worker", "2"], "wanted 0"),
        (["--threads", "0"], "say how many"),
        (["--best-on", "train_loss"], "a sweep chooses on val"),
        (
            ["--batch-sizes", "64", "33", "--workers-per-trial", "2"],
            "--batch-size 33 does not divide by world size 2",
        ),
        (["--data", "nowhere"], "holds no shards"),
    ],
)
def test_what_cannot_run_is_said_at_once(
    shards: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        trials_of(shards, tmp_path / "out", *flags)


def test_the_grid_runs_in_order_and_finished_trials_do_not(shards: Path, tmp_path: Path) -> None:
    config, trials = trials_of(
        shards, tmp_path, "--epochs", "3", "--batch-sizes", "64", "--seeds", "0", "1"
    )
    trained(trials[0], 0.1, 0.2, 0.3)
    trained(trials[1], 0.1, state="interrupted")
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
    flags = (
        "--epochs",
        "9",
        "--batch-sizes",
        "64",
        "--lrs",
        "0.1",
        "0.2",
        "0.3",
        "0.4",
        "--seeds",
        "0",
        "1",
    )
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
    assert plan.halts == [3, 9]
    while found := plan.next():
        trial, halt = found
        epochs.append((trial.config.lr, trial.config.seed, halt))
        accuracy = score[trial.config.lr][trial.config.seed]
        done = ("finished", "") if halt == 9 else ("interrupted", HALTED_REASON)
        trained(trial, *[accuracy] * halt, state=done[0], why=done[1])
        plan.ended(trial, failed=False)
        plan = SuccessiveHalving(config, trials)  # begun anew at any moment, it goes on alike
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


def test_the_interval_is_students() -> None:
    assert mean_interval([1.0]) is None
    low, high = mean_interval([0.50, 0.60, 0.55]) or (0, 0)
    assert (low, high) == pytest.approx(
        (0.55 - 4.302653 * 0.05 / 3**0.5, 0.55 + 4.302653 * 0.05 / 3**0.5), abs=1e-6
    )
