"""Is one set of seeds better than another? Seeds are the samples. No torch."""

from __future__ import annotations

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fer_hpc.config import UserError
from fer_hpc.config.errors import counted
from fer_hpc.evaluation.metrics import MIN_SEEDS
from fer_hpc.evaluation.predictions import Predictions
from fer_hpc.run.folder import read_run_config

LEVEL, POWER = 0.05, 0.8
SAME = "not distinguishable"
SHARES = ("accuracy", "balanced_accuracy", "macro_f1")


class SeedSet(NamedTuple):
    """Runs of one configuration: their predictions, and `SHARES` with the run by name."""

    predictions: Sequence[Predictions]
    scores: Sequence[dict[str, Any]]


def compare_seeds(a: SeedSet, b: SeedSet) -> dict[str, Any]:
    """Differences of the means, their intervals, the verdict, and notes on what was compared.

    UserError where a set has one network twice.
    """
    sets: dict[str, Any] = {
        "a": [row["run"] for row in a.scores],
        "b": [row["run"] for row in b.scores],
        "test": "Welch's t test, seeds as samples",
        "notes": [*_notes("first", a.predictions), *_notes("second", b.predictions)],
    }
    for key in SHARES:
        sets[key] = welch([row[key] for row in a.scores], [row[key] for row in b.scores])
    interval = sets["accuracy"]["difference_95"]
    if interval is None:
        sets["verdict"] = f"{SAME}: {MIN_SEEDS} seeds of each are wanted for an interval"
    elif interval[0] > 0 or interval[1] < 0:
        sets["verdict"] = f"the {'first' if interval[0] > 0 else 'second'} set is better"
    else:
        sets["verdict"] = SAME
    return sets


def _notes(which: str, runs: Sequence[Predictions]) -> list[str]:
    """What beside the seed differs between the runs of a set, and seeds that occur again."""
    for one, other in itertools.combinations(runs, 2):
        if np.array_equal(one.logits, other.logits):
            raise UserError(
                f"{one.run} and {other.run} of the {which} set give equal outputs: they are one "
                "network and would count as two seeds; give each once"
            )
    configs = [read_run_config(each.run) for each in runs]
    fields = [{**c["science"], "data": c["data"]["fingerprint"]} for c in configs]
    seeds = Counter(each.pop("seed", None) for each in fields)
    differing = [
        name
        for name in sorted({name for each in fields for name in each})
        if len({json.dumps(each.get(name), sort_keys=True) for each in fields}) > 1
    ]
    notes = []
    if differing:
        notes.append(f"the runs of the {which} set differ in {', '.join(differing)}")
    notes += [
        f"seed {seed} is {counted(count, 'run')} of the {which} set"
        for seed, count in seeds.items()
        if count > 1 and seed is not None
    ]
    return notes


def welch(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Difference of means, its 95 % interval and p (Welch 1947), the smallest that would be found.

    The last is at 5 % and 80 % power with this spread. None for fewer than MIN_SEEDS values.
    """
    means = float(np.mean(a)), float(np.mean(b))
    row: dict[str, Any] = {
        "means": means,
        "difference": means[0] - means[1],
        "difference_95": None,
        "p": None,
        "smallest_difference": None,
    }
    if min(len(a), len(b)) < MIN_SEEDS:
        return row
    from scipy.special import stdtrit
    from scipy.stats import ttest_ind

    variances = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    if not sum(variances):  # every seed has the same score: no spread to test against
        return row
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a set whose seeds score the same
        test = ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(1 - LEVEL)
    t = stdtrit(test.df, 1 - LEVEL / 2) + stdtrit(test.df, POWER)
    return {
        **row,
        "difference_95": [float(low), float(high)],
        "p": float(test.pvalue),
        "smallest_difference": float(t * np.sqrt(sum(variances))),
    }
