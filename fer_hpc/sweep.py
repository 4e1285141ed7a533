"""A sweep's folder: which trials there are, where each stands, which configuration is best. No ray, no torch.

A trial is a run folder like any other, OUT/trials/NAME. OUT/sweep.json says what all trials share and what was asked for;
everything else here is derived from the run folders, so the folder may be moved, and any number of programs may fill it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fer_hpc import rundir
from fer_hpc.commands import SweepConfig
from fer_hpc.config import TrainConfig, UserError, check_divides, fields_of, said, science_hash
from fer_hpc.metrics import mean_interval

SWEPT = ("batch_size", "lr", "seed")
Setting = tuple[int, float]  # a configuration: batch size and learning rate


@dataclass(frozen=True)
class Trial:
    """One run of the sweep; its name ends in the hash of its science fields."""

    name: str
    config: TrainConfig

    @property
    def setting(self) -> Setting:
        return self.config.batch_size, self.config.lr


def grid(sweep: SweepConfig, base: TrainConfig) -> list[Trial]:
    """The trials asked for, the seeds of a configuration together; `base` is what all share. A UserError if one cannot run."""
    manifest = rundir.read_json(sweep.data / "manifest.json")
    if manifest is None:
        raise UserError(f"--data {sweep.data} holds no shards (no manifest.json); preprocess first")
    if base.best_on.startswith("train"):
        raise UserError(f"--best-on {base.best_on}: a sweep chooses on val; use val_accuracy or val_loss")
    found = []
    values = (dict.fromkeys(sweep.batch_sizes), dict.fromkeys(sweep.lrs), dict.fromkeys(sweep.seeds))
    for batch_size, lr, seed in itertools.product(*values):
        check_divides(batch_size, sweep.workers_per_trial, base.accumulate)
        config = dataclasses.replace(base, batch_size=batch_size, lr=lr, seed=seed)
        name = f"b{batch_size}-lr{lr:g}-seed{seed}-{science_hash(config, manifest['fingerprint'])[:8]}"
        config = dataclasses.replace(config, data=sweep.data.absolute(), run=(sweep.out / "trials" / name).absolute())
        found.append(Trial(name, config))
    return found


def _shared(sweep: SweepConfig, trials: list[Trial]) -> dict[str, Any]:
    """What all trials have in common, as sweep.json says it."""
    science = {k: v for k, v in fields_of(trials[0].config, "science").items() if k not in SWEPT}
    return {"metric": trials[0].config.best_on, "science": science,
            "fingerprint": rundir.read_json(sweep.data / "manifest.json")["fingerprint"]}  # fmt: skip


def trial_of_array(out: Path, listed: Path) -> TrainConfig:
    """What the present task of a Slurm array trains; `listed` is a JSON file of trials' names, in the array's order."""
    names, stored = rundir.read_json(listed), rundir.read_json(out / "sweep.json")
    task = os.environ.get("SLURM_ARRAY_TASK_ID", "0")
    if names is None or stored is None:
        raise UserError(f"{out} is not a sweep's folder, or {listed} is gone; submit the sweep again")
    name = names[int(task)]
    return TrainConfig(data=Path(stored["data"]), run=out / "trials" / name, **stored["science"], **stored["trials"][name])


def check(sweep: SweepConfig, trials: list[Trial]) -> None:
    """A UserError where --out holds something else than this sweep."""
    shared = _shared(sweep, trials)
    science, fingerprint = shared["science"], shared["fingerprint"]
    stored = rundir.read_json(sweep.out / "sweep.json")
    if stored is None and sweep.out.is_dir() and any(p for p in sweep.out.iterdir() if p.name not in ("jobs", "logs")):
        raise UserError(f"--out {sweep.out} holds other things and no sweep.json; give a new folder")
    if stored:
        changed = [(k, stored["science"].get(k, v), v) for k, v in science.items() if stored["science"].get(k, v) != v]
        if stored["fingerprint"] != fingerprint:
            raise UserError(
                f"{sweep.out} is a sweep over other data (fingerprint {stored['fingerprint']}, now {fingerprint} in "
                f"--data {sweep.data}); give another --out"
            )
        if changed:
            now = ", ".join(f"{said(k, then)} (now {said(k, v)})" for k, then, v in changed)
            raise UserError(f"{sweep.out} was begun with {now}: that would be another sweep; give another --out")


def prepare(sweep: SweepConfig, preset: str, trials: list[Trial]) -> None:
    """Begin the folder, or add trials to it; a UserError where it holds another sweep."""
    check(sweep, trials)
    stored = rundir.read_json(sweep.out / "sweep.json")
    listed = {t.name: {k: getattr(t.config, k) for k in SWEPT} for t in trials}
    sweep.out.mkdir(parents=True, exist_ok=True)
    all_ = {"preset": preset, **_shared(sweep, trials), "data": str(sweep.data.absolute())}
    rundir.write_json(sweep.out / "sweep.json", all_ | {"trials": (stored["trials"] if stored else {}) | listed})


def note_failure(out: Path, name: str, why: str) -> None:
    """Say why a trial's process died where the trial itself could not; an empty `why` forgets it."""
    found = rundir.read_json(out / "failures.json") or {}
    if found.get(name, "") != why:
        rundir.write_json(out / "failures.json", {k: v for k, v in {**found, name: why}.items() if v})


def state_of(out: Path, name: str) -> tuple[str, str]:
    """(state, why) of a trial: new, running, interrupted, halted (perhaps for good), finished, failed."""
    status = rundir.status(out / "trials" / name)
    state, why = status["state"], status["why"]
    died = (rundir.read_json(out / "failures.json") or {}).get(name)
    if state == "interrupted" and why == rundir.HALTED:
        return "halted", ""
    return ("failed", died) if died and state not in ("finished", "running") else (state, why)


# ---- successive halving ------------------------------------------------------------------------------------------------


def halts(sweep: SweepConfig, epochs: int) -> list[int]:
    """Epochs at which configurations are compared; the last is the end."""
    if sweep.scheduler == "fifo":
        return [epochs]
    found, next_ = [], sweep.asha_first or max(1, epochs // sweep.asha_keep**2)
    while next_ < epochs:
        found.append(next_)
        next_ *= sweep.asha_keep
    return [*found, epochs]


def value_at(run: Path, metric: str, epoch: int) -> float | None:
    """The best validated value up to `epoch`, larger being better; None before the run has got there."""
    rows = rundir.rows(run)
    status = rundir.status(run)
    if not rows or (rows[-1]["epoch"] < epoch and status["state"] != "finished"):  # finished early: --early-stop
        return None
    return max(_sign(metric) * row[metric] for row in rows if row["epoch"] <= epoch)


def chosen(scores: dict[Setting, float], keep: int, at_least: int) -> list[Setting]:
    """The configurations that go on from a halt: of those that have reached it, the best one in `keep`."""
    best_first = sorted(scores, key=lambda setting: (-scores[setting], setting))
    return best_first[: max(at_least, len(best_first) // keep)]


class Plan:
    """Which trial runs next, and for how many epochs: asynchronous successive halving (Li et al. 2020) of whole configurations.

    A configuration goes on from a halt only by the mean over its seeds, and then with all of them. With a single halt, the
    end, it is the grid in its order. Begun anew from the run folders, it decides the same.
    """

    def __init__(self, sweep: SweepConfig, trials: list[Trial]) -> None:
        self.keep, self.halts, self.trials = sweep.asha_keep, halts(sweep, trials[0].config.epochs), trials
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
        found = (value_at(trial.config.run, trial.config.best_on, halt) for halt in self.halts)
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
        return set(chosen(there, self.keep, at_least=0 if to_come else 2))


def _sign(metric: str) -> int:
    return 1 if metric.endswith("accuracy") else -1


# ---- results -----------------------------------------------------------------------------------------------------------


def collect(out: Path) -> str:
    """Write results.csv, summary.json, best.json and heatmap.png from the trials' run folders; gives the table in words.

    Ranked are configurations all of whose seeds (every seed that the sweep has) are finished, by their mean.
    """
    from fer_hpc import plots

    sweep = rundir.read_json(out / "sweep.json")
    if sweep is None:
        raise UserError(f"{out} is not a sweep's folder: it has no sweep.json; give the folder that --out named")
    metric = sweep["metric"]
    trials = [_row(out, name, swept, metric) for name, swept in sweep["trials"].items()]
    trials.sort(key=lambda row: (row["batch_size"], row["lr"], row["seed"]))
    rundir.write_bytes(out / "results.csv", pd.DataFrame(trials).to_csv(index=False).encode())

    seeds = sorted({row["seed"] for row in trials})
    settings = [_setting(pair, [row for row in trials if (row["batch_size"], row["lr"]) == pair], metric, seeds)
                for pair in dict.fromkeys((row["batch_size"], row["lr"]) for row in trials)]  # fmt: skip
    ranked = sorted(
        (s for s in settings if s["complete"]), key=lambda s: (-_sign(metric) * s["mean"], s["batch_size"], s["lr"])
    )
    pair = _difference(ranked[0], ranked[1], metric) if len(ranked) > 1 else None
    rest = [s for s in settings if not s["complete"]]
    about = {key: sweep[key] for key in ("preset", "metric", "data", "fingerprint")} | {
        "epochs": sweep["science"]["epochs"], "threads": sweep["science"]["threads"], "seeds": seeds,
        "trials": len(trials), "finished": sum(row["state"] == "finished" for row in trials),
        "failed": [{"trial": row["trial"], "why": row["why"]} for row in trials if row["state"] == "failed"],
    }  # fmt: skip
    rundir.write_json(out / "summary.json", about | {"best_two": pair, "ranked": ranked, "not_ranked": rest})
    if ranked:
        _draw(plots, out, metric, ranked, about)
        best = {key: ranked[0][key] for key in ("batch_size", "lr", "mean", "interval_95", "values")}
        science = sweep["science"] | {key: best[key] for key in ("batch_size", "lr")}
        rundir.write_json(out / "best.json", {key: sweep[key] for key in ("preset", "metric", "data", "fingerprint")} | best
                          | {"seeds": seeds, "science": science})  # fmt: skip
    else:
        (out / "best.json").unlink(missing_ok=True)
    return _in_words(about, ranked, rest, pair)


def _row(out: Path, name: str, swept: dict[str, Any], metric: str) -> dict[str, Any]:
    run = out / "trials" / name
    state, why = state_of(out, name)
    rows, times = rundir.rows(run), rundir.rows(run, "timing.jsonl")
    best = max(rows, key=lambda row: _sign(metric) * row[metric], default=None)
    numbers = {
        key: best[key] if best else None for key in ("epoch", "val_accuracy", "val_loss", "train_accuracy", "train_loss")
    }
    return {
        "trial": name, **swept, "state": state, "why": why.replace("\n", " "), "epochs": rows[-1]["epoch"] if rows else 0,
        "best_epoch": numbers.pop("epoch"), **numbers, "seconds": round(sum(row["train_s"] + row["val_s"] for row in times), 1),
    }  # fmt: skip


def _setting(pair: Setting, rows: list[dict[str, Any]], metric: str, seeds: list[int]) -> dict[str, Any]:
    """One configuration over its seeds."""
    values = {str(row["seed"]): row[metric] for row in rows if row["state"] == "finished"}
    complete = len(values) == len(seeds)
    mean = sum(values.values()) / len(values) if values else math.nan
    return {
        "batch_size": pair[0], "lr": pair[1], "complete": complete, "values": values, "mean": mean if values else None,
        "interval_95": mean_interval(list(values.values())),
        "epochs": min(row["epochs"] for row in rows), "states": sorted({row["state"] for row in rows}),
    }  # fmt: skip


def _difference(best: dict[str, Any], second: dict[str, Any], metric: str) -> dict[str, Any]:
    """Best minus second, seed by seed (both saw the same order of faces where their batch sizes are the same)."""
    differences = [best["values"][seed] - second["values"][seed] for seed in best["values"]]
    interval = mean_interval(differences)
    if interval is None:
        words = "one seed says nothing about it"
    else:
        words = "not distinguishable" if interval[0] <= 0 <= interval[1] else "distinguishable"
    return {"best": [best["batch_size"], best["lr"]], "second": [second["batch_size"], second["lr"]], "metric": metric,
            "mean": sum(differences) / len(differences), "interval_95": interval, "verdict": words}  # fmt: skip


def _draw(plots: Any, out: Path, metric: str, ranked: list[dict[str, Any]], about: dict[str, Any]) -> None:
    batch_sizes, lrs = (sorted({s[key] for s in ranked}) for key in ("batch_size", "lr"))
    table = pd.DataFrame(ranked).pivot(index="batch_size", columns="lr", values="mean").reindex(index=batch_sizes, columns=lrs)
    title = f"{about['preset']}, {about['epochs']} epochs: mean {metric} of {len(about['seeds'])} seed(s)"
    axes = ("batch size", "learning rate", title)
    plots.heat_map(table.to_numpy(float), [str(b) for b in batch_sizes], [f"{lr:g}" for lr in lrs], axes, out / "heatmap.png")


def _in_words(
    about: dict[str, Any], ranked: list[dict[str, Any]], rest: list[dict[str, Any]], pair: dict[str, Any] | None
) -> str:
    head = f"{about['preset']}, {about['epochs']} epochs, {about['finished']} of {about['trials']} trials finished; "
    lines = [head + f"{about['metric']} of the best epoch, mean and 95 % interval over seeds {_listed(about['seeds'])}"]
    lines.append(f"{'rank':>4} {'batch size':>10} {'lr':>8} {'mean':>8}   {'95 % interval':<19}  seeds")
    for place, s in enumerate(ranked, 1):
        values = " ".join(f"{value:.4f}" for value in s["values"].values())
        lines.append(
            f"{place:>4} {s['batch_size']:>10} {s['lr']:>8g} {s['mean']:>8.4f}   {_interval(s['interval_95']):<19}  {values}"
        )
    for s in rest:
        lines.append(
            f"   - {s['batch_size']:>10} {s['lr']:>8g} {'':>8}   not ranked: {len(s['values'])} of {len(about['seeds'])} seeds "
            f"finished ({', '.join(s['states'])}; {s['epochs']} epochs)"
        )
    if pair:
        lines.append(
            f"best minus second, paired by seed: {pair['mean']:+.4f} {_interval(pair['interval_95'])}: {pair['verdict']}"
        )
    lines += [f"failed: {failed['trial']}: {failed['why']}" for failed in about["failed"]]
    return "\n".join(line.rstrip() for line in lines)


def _interval(interval: Iterable[float] | None) -> str:
    return "[{:.4f}, {:.4f}]".format(*interval) if interval else "(one seed: none)"


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def best_of(folder: Path) -> dict[str, Any]:
    """The winner of a sweep, as best.json has it."""
    found = rundir.read_json(folder / "best.json")
    if found is None:
        what = "no configuration has all its seeds finished yet" if (folder / "sweep.json").exists() else "it has no sweep.json"
        raise UserError(f"--from-sweep {folder}: {what}; give the --out of a sweep of fer_hpc.tune")
    return dict(found)
