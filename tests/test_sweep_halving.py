"""Successive halving prunes whole configurations, as a plain reference does."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from pathlib import Path

import pytest

from fer_hpc.cli.parse import configure
from fer_hpc.config.commands import SweepConfig
from fer_hpc.run.folder import HALTED_REASON
from fer_hpc.sweep import grid as sweep
from fer_hpc.sweep import halving
from fer_hpc.sweep.halving import SuccessiveHalving
from fer_hpc.sweep.tables import collect
from tests.helpers.sweeps import trained, trials_of


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
