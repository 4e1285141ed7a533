"""The effect of label smoothing, horizontal flips and class balancing on val scores.

    python bench/ablation.py --data SHARDS --out DIR

Trains all eight combinations with each seed, as many at a time as there are cores. The same command
continues an interrupted ablation. The learning rate follows a cosine, so that a short training also
ends at a low rate. An effect is the mean difference between the runs with and without a factor,
averaged over the other two factors, for each seed; its interval is Student's t over the seeds. The
epoch is chosen and scored on val.
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


def train_and_score(config: TrainConfig) -> dict[str, float]:
    """Train a run, or continue it, and score its best weights on val."""
    from fer_hpc.evaluation.score import evaluate
    from fer_hpc.training.loop import train

    train(config, World())
    values = evaluate(EvaluateConfig(config.run))
    return {name: values[name] for name in SCORES}


def all_scores(runs: dict[Any, TrainConfig]) -> dict[Any, dict[str, float]]:
    """The scores of runs by their keys; the runs are trained in parallel."""
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"), end_with_parent
    ) as pool:
        return dict(zip(runs, pool.map(train_and_score, runs.values()), strict=True))


def format_effect(name: str, differences: Iterable[float]) -> str:
    """A mean difference in points, its 95 % interval, and whether that contains zero."""
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
        "--lr", type=float, help="default: the preset's, which may be too low for few epochs"
    )
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rate = {} if args.lr is None else {"lr": args.lr}
    runs = {}
    for *used, seed in itertools.product(*[(False, True)] * len(FACTORS), range(args.seeds)):
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
            args.preset,
            data=args.data,
            run=args.out / name,
            epochs=args.epochs,
            batch_size=args.batch_size,
            seed=seed,
            schedule="cosine",
            threads=1,
            tensorboard=False,
            hang_factor=0.0,
            **rate,
            **fields,
        )
    scores = all_scores(runs)
    print(f"{args.preset}, {args.epochs} epochs, {args.seeds} seeds, {args.data}")
    for metric in SCORES:
        print(f"{metric}, points")
        for used in itertools.product(*[(False, True)] * len(FACTORS)):
            values = [100 * scores[*used, seed][metric] for seed in range(args.seeds)]
            label = " + ".join(n for n, on in zip(FACTORS, used, strict=True) if on) or "none"
            print(f"  {label:<56}{np.mean(values):6.2f}")
        for k, name in enumerate(FACTORS):
            with_it = [key for key in runs if key[k]]
            differences = [
                np.mean(
                    [
                        scores[key][metric] - scores[*key[:k], False, *key[k + 1 :]][metric]
                        for key in with_it
                        if key[-1] == seed
                    ]
                )
                for seed in range(args.seeds)
            ]
            print(format_effect(name, map(float, differences)))


if __name__ == "__main__":
    main()
