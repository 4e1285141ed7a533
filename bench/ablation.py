"""What label smoothing, mirrored faces and even classes each bring: python bench/ablation.py --data SHARDS --out DIR

All eight combinations x --seeds, as many at a time as there are cores; run again, it goes on. The learning rate falls along a
cosine, so that a small budget ends settled. An effect is the mean difference with and without, over the other two, seed by
seed; its interval is Student's t over the seeds. Chosen and scored on val.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fer_hpc.config import TrainConfig, preset
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.evaluation.intervals import mean_interval
from fer_hpc.parallel.process import end_with_parent
from fer_hpc.parallel.world import World

FACTORS: dict[str, dict[str, Any]] = {
    "label smoothing .1": {"label_smoothing": 0.1},
    "mirrored faces": {"flip": True},
    "balanced classes": {"balanced": True},
}
SCORES = ("accuracy", "balanced_accuracy", "macro_f1")


def scores_of(chosen: TrainConfig) -> dict[str, float]:
    """Train a run, or go on with it, and score its best weights on val."""
    from fer_hpc.evaluation.score import evaluate
    from fer_hpc.training.loop import train

    train(chosen, World())
    scored = evaluate(EvaluateConfig(chosen.run))
    return {name: scored[name] for name in SCORES}


def all_scores(runs: dict[Any, TrainConfig]) -> dict[Any, dict[str, float]]:
    """The scores of runs by their keys, trained beside each other."""
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"), end_with_parent
    ) as pool:
        return dict(zip(runs, pool.map(scores_of, runs.values()), strict=True))


def said(name: str, differences: Iterable[float]) -> str:
    """A mean difference in points, its interval, and whether that leaves the sign open."""
    values = [100 * d for d in differences]
    low, high = mean_interval(values) or (-np.inf, np.inf)
    verdict = "not distinguishable" if low <= 0 <= high else ("better" if low > 0 else "worse")
    return f"  {name:<20}{np.mean(values):+6.2f}  [{low:+.2f}, {high:+.2f}]  {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="cnn_improved")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--lr", type=float, help="instead of the preset's, which may be too slow for few epochs"
    )
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    rate = {} if given.lr is None else {"lr": given.lr}
    runs = {}
    for *used, seed in itertools.product(*[(False, True)] * len(FACTORS), range(given.seeds)):
        fields = {
            k: v
            for on, factor in zip(used, FACTORS.values(), strict=True)
            if on
            for k, v in factor.items()
        }
        name = "-".join(
            [
                *(k for on, k in zip(used, ("smooth", "flip", "balanced"), strict=True) if on),
                f"seed{seed}",
            ]
        )
        runs[*used, seed] = preset(
            given.preset,
            data=given.data,
            run=given.out / name,
            epochs=given.epochs,
            batch_size=given.batch_size,
            seed=seed,
            schedule="cosine",
            threads=1,
            tensorboard=False,
            hang_factor=0.0,
            **rate,
            **fields,
        )
    found = all_scores(runs)
    print(f"{given.preset}, {given.epochs} epochs, {given.seeds} seeds, {given.data}")
    for score in SCORES:
        print(f"{score}, points")
        for used in itertools.product(*[(False, True)] * len(FACTORS)):
            values = [100 * found[*used, seed][score] for seed in range(given.seeds)]
            print(
                f"  {' + '.join(n for n, on in zip(FACTORS, used, strict=True) if on) or 'none':<56}{np.mean(values):6.2f}"
            )
        for k, name in enumerate(FACTORS):
            with_it = [key for key in runs if key[k]]
            differences = [
                np.mean(
                    [
                        found[key][score] - found[*key[:k], False, *key[k + 1 :]][score]
                        for key in with_it
                        if key[-1] == seed
                    ]
                )
                for seed in range(given.seeds)
            ]
            print(said(name, map(float, differences)))


if __name__ == "__main__":
    main()
