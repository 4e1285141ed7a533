"""Asynchronous successive halving (ASHA) over whole configurations."""

from __future__ import annotations

import itertools
from pathlib import Path

from fer_hpc.config.commands import SweepConfig
from fer_hpc.run.folder import read_rows, read_status
from fer_hpc.sweep.grid import Setting, Trial
from fer_hpc.sweep.tables import _sign

# ---- successive halving ------------------------------------------------------------------------------------------------


def rungs(sweep: SweepConfig, epochs: int) -> list[int]:
    """Epochs at which configurations are compared; the last is the end."""
    if sweep.scheduler == "fifo":
        return [epochs]
    found, next_ = [], sweep.asha_first_rung or max(1, epochs // sweep.asha_reduction_factor**2)
    while next_ < epochs:
        found.append(next_)
        next_ *= sweep.asha_reduction_factor
    return [*found, epochs]


def value_at_rung(run: Path, metric: str, epoch: int) -> float | None:
    """The best validated value up to `epoch`, larger being better; None before the run has got there."""
    rows = read_rows(run)
    status = read_status(run)
    if not rows or (
        rows[-1]["epoch"] < epoch and status["state"] != "finished"
    ):  # finished early: --early-stop
        return None
    return max(_sign(metric) * row[metric] for row in rows if row["epoch"] <= epoch)


def promote(scores: dict[Setting, float], keep: int, at_least: int) -> list[Setting]:
    """The configurations that go on from a halt: of those that have reached it, the best one in `keep`."""
    best_first = sorted(scores, key=lambda setting: (-scores[setting], setting))
    return best_first[: max(at_least, len(best_first) // keep)]


class SuccessiveHalving:
    """Which trial runs next, and for how many epochs: asynchronous successive halving (Li et al. 2020) of whole configurations.

    A configuration goes on from a halt only by the mean over its seeds, and then with all of them. With a single halt, the
    end, it is the grid in its order. Begun anew from the run folders, it decides the same.
    """

    def __init__(self, sweep: SweepConfig, trials: list[Trial]) -> None:
        self.keep, self.halts, self.trials = (
            sweep.asha_reduction_factor,
            rungs(sweep, trials[0].config.epochs),
            trials,
        )
        self.running: set[str] = set()
        self.failed: set[str] = set()
        self.values: dict[str, list[float]] = {}  # by trial, at each halt that it has reached
        for trial in trials:
            self._look(trial)

    def next(self) -> tuple[Trial, int] | None:
        """A trial and the epoch it shall halt at; None while there is nothing to do (`over` says whether for good)."""
        for k, halt in reversed(list(enumerate(self.halts))):
            going_on = self._going_on(k)
            for trial in self.trials:
                free = trial.name not in self.running | self.failed
                if free and len(self.values[trial.name]) == k and trial.setting in going_on:
                    self.running.add(trial.name)
                    return trial, halt
        return None

    @property
    def over(self) -> bool:
        return not self.running

    def ended(self, trial: Trial, failed: bool) -> None:
        """Take note that a trial's process has ended."""
        self.running.discard(trial.name)
        self._look(trial)
        if failed:
            self.failed.add(trial.name)

    def _look(self, trial: Trial) -> None:
        found = (value_at_rung(trial.config.run, trial.config.best_on, halt) for halt in self.halts)
        self.values[trial.name] = list(itertools.takewhile(lambda value: value is not None, found))  # type: ignore[arg-type]

    def _going_on(self, k: int) -> set[Setting]:
        """The configurations that may train beyond halt k - 1."""
        settings = {trial.setting for trial in self.trials}
        if k == 0:
            return settings
        there: dict[Setting, float] = {}
        for setting in settings:
            seeds = [self.values[t.name] for t in self.trials if t.setting == setting]
            if all(len(values) >= k for values in seeds):
                there[setting] = sum(values[k - 1] for values in seeds) / len(seeds)
        broken = {t.setting for t in self.trials if t.name in self.failed}
        to_come = self._going_on(k - 1) - set(there) - broken
        return set(promote(there, self.keep, at_least=0 if to_come else 2))
