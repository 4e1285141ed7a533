"""Whether generated faces of rare classes help a classifier.

    python bench/made_faces.py --data SHARDS --more SHARDS --out DIR

`--more` is the output of fer_hpc.generate for `--data`. Trains the same preset with class balancing
on both, with each seed, as many at a time as there are cores. The same command continues an
interrupted comparison. The learning rate follows a cosine. The epoch is chosen and scored on val;
the interval is Student's t over the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ablation import SCORES, all_scores, format_effect

from fer_hpc.config import preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "more", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--preset", default="cnn_improved")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, help="default: the preset's")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rate = {} if args.lr is None else {"lr": args.lr}
    runs = {
        (name, seed): preset(
            args.preset,
            data=folder,
            run=args.out / f"{name}-seed{seed}",
            epochs=args.epochs,
            batch_size=args.batch_size,
            seed=seed,
            schedule="cosine",
            threads=1,
            tensorboard=False,
            flip=True,
            balanced=True,
            hang_factor=0.0,
            **rate,
        )
        for name, folder in (("plain", args.data), ("more", args.more))
        for seed in range(args.seeds)
    }
    scores = all_scores(runs)
    print(f"{args.preset}, balanced classes, {args.epochs} epochs, {args.seeds} seeds")
    print(f"{args.more} compared with {args.data}")
    for metric in SCORES:
        plain, more = (
            [scores[name, seed][metric] for seed in range(args.seeds)] for name in ("plain", "more")
        )
        means = f"plain {100 * np.mean(plain):.2f}, with generated faces {100 * np.mean(more):.2f}"
        print(f"{metric}, points: {means}")
        print(format_effect("difference", (b - a for a, b in zip(plain, more, strict=True))))


if __name__ == "__main__":
    main()
