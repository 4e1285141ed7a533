"""Asynchronous successive halving (ASHA, Li et al. 2020) of whole configurations."""

from __future__ import annotations

import bisect
from pathlib import Path

from fer_hpc.config.commands import SweepConfig
from fer_hpc.run.folder import read_rows, read_status
from fer_hpc.sweep.grid import Setting, Trial
from fer_hpc.sweep.tables import sign

Ranking = list[tuple[float, Setting]]  # (-score, setting), the best first


def rungs(sweep: SweepConfig, epochs: int) -> list[int]:
    """Epochs at which configurations are compared; the last is the end of the training."""
    if sweep.scheduler == "fifo":
        return [epochs]
    milestones, rung = [], sweep.asha_first_rung or max(1, epochs // sweep.asha_reduction_factor**2)
    while rung < epochs:
        milestones.append(rung)
        rung *= sweep.asha_reduction_factor
    return [*milestones, epochs]


def values_at_rungs(run: Path, metric: str, epochs: list[int]) -> list[float]:
    """The best value of a val metric up to each of these epochs that the run has reached.

    Larger is better: the sign of a loss is changed. The last rung is reached by a run that has
    finished, also early (--early-stop): one may be killed between its last epoch and its end.
    """
    rows = [
        row
        for row in read_rows(run)
        if isinstance(row.get("epoch"), int) and isinstance(row.get(metric), int | float)
    ]  # a damaged one counts as not trained
    if not rows:
        return []
    finished = read_status(run)["state"] == "finished"
    return [
        max(sign(metric) * row[metric] for row in rows if row["epoch"] <= epoch)
        for epoch in epochs
        if finished or epoch <= min(rows[-1]["epoch"], epochs[-1] - 1)
    ]


def promote(ranking: Ranking, reduction_factor: int, at_least: int) -> set[Setting]:
    """The best one in `reduction_factor` of the configurations that have reached a rung."""
    count = max(at_least, len(ranking) // reduction_factor)
    return {setting for _, setting in ranking[:count]}


class SuccessiveHalving:
    """Which trial runs next, and up to which rung.

    A configuration is promoted to the next rung by its mean over the seeds, and then with all of
    them; at least two are promoted. With a single rung, the end, this is the grid in its order.
    The decisions depend on the run folders only, so a new object makes the same decisions.
    """

    def __init__(self, sweep: SweepConfig, trials: list[Trial]) -> None:
        self.reduction_factor = sweep.asha_reduction_factor
        self.rungs = rungs(sweep, trials[0].config.epochs)
        self.trials: dict[Setting, list[Trial]] = {}  # the seeds of a configuration
        self.position = {trial.name: i for i, trial in enumerate(trials)}  # in the grid
        self.running: set[str] = set()
        self.broken: set[Setting] = set()  # configurations of which a trial has failed
        self.values: dict[str, list[float]] = {}  # of a trial, at each rung that it has reached
        # For each rung: trials that may start towards it, and configurations that have reached it.
        self.waiting: list[dict[Setting, list[Trial]]] = [{} for _ in self.rungs]
        self.rankings: list[Ranking] = [[] for _ in self.rungs]
        for trial in trials:
            self.trials.setdefault(trial.setting, []).append(trial)
            self.values[trial.name] = []
        for trial in trials:
            self._read_values(trial)
            self._wait(trial)

    def next(self) -> tuple[Trial, int] | None:
        """A trial and the epoch up to which it runs; None where none may start now.

        After None, `over` is True at the end of the sweep, and False while trials are running whose
        results may allow others to start.
        """
        promoted = self._promoted()
        for k in reversed(range(len(self.rungs))):
            ready = self.waiting[k].keys() & promoted[k]
            if ready:
                waiting = self.waiting[k]
                setting = min(ready, key=lambda s: self.position[waiting[s][0].name])
                trial = waiting[setting].pop(0)
                if not waiting[setting]:
                    del waiting[setting]
                self.running.add(trial.name)
                return trial, self._epochs(trial)[k]
        return None

    @property
    def over(self) -> bool:
        return not self.running

    def ended(self, trial: Trial, failed: bool) -> bool:
        """Update the rankings after a trial's process ended; gives whether it reached a rung."""
        before = len(self.values[trial.name])
        self.running.discard(trial.name)
        self._read_values(trial)
        if failed:
            self.broken.add(trial.setting)
        else:
            self._wait(trial)
        return len(self.values[trial.name]) > before

    def _epochs(self, trial: Trial) -> list[int]:
        """The trial's rungs; its end is its own where a fifo sweep varies the epochs."""
        return [*self.rungs[:-1], trial.config.epochs]

    def _read_values(self, trial: Trial) -> None:
        """Read the trial's values; rank its configuration at the rungs that all seeds reached."""
        config = trial.config
        before = len(self.values[trial.name])
        values = values_at_rungs(config.run, config.best_on, self._epochs(trial))
        self.values[trial.name] = values
        seeds = [self.values[t.name] for t in self.trials[trial.setting]]
        for k in range(before, min(map(len, seeds))):
            mean = sum(values[k] for values in seeds) / len(seeds)
            bisect.insort(self.rankings[k], (-mean, trial.setting))

    def _wait(self, trial: Trial) -> None:
        """Let the trial wait for the next rung."""
        k = len(self.values[trial.name])
        if k < len(self.rungs):
            waiting = self.waiting[k].setdefault(trial.setting, [])
            bisect.insort(waiting, trial, key=lambda t: self.position[t.name])

    def _promoted(self) -> list[set[Setting]]:
        """For each rung, the configurations that may train up to it."""
        promoted = [set(self.trials)]
        for ranking in self.rankings[:-1]:
            to_come = promoted[-1] - {setting for _, setting in ranking} - self.broken
            at_least = 0 if to_come else 2
            promoted.append(promote(ranking, self.reduction_factor, at_least))
        return promoted
