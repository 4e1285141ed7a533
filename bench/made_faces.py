"""Whether a GAN's faces of rare classes help a classifier: python bench/made_faces.py --data SHARDS --more SHARDS --out DIR

`--more` is what fer_hpc.generate made of `--data`. The same preset with balanced classes on both, seed by seed, as many at a
time as there are cores; run again, it goes on. The learning rate falls along a cosine. Chosen and scored on val; the interval
is Student's t over the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ablation import SCORES, all_scores, said

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
    given = parser.parse_args()
    rate = {} if given.lr is None else {"lr": given.lr}
    runs = {
        (name, seed): preset(
            given.preset,
            data=folder,
            run=given.out / f"{name}-seed{seed}",
            epochs=given.epochs,
            batch_size=given.batch_size,
            seed=seed,
            schedule="cosine",
            threads=1,
            tensorboard=False,
            flip=True,
            balanced=True,
            hang_factor=0.0,
            **rate,
        )
        for name, folder in (("plain", given.data), ("more", given.more))
        for seed in range(given.seeds)
    }
    found = all_scores(runs)
    print(
        f"{given.preset}, balanced classes, {given.epochs} epochs, {given.seeds} seeds: {given.more} against {given.data}"
    )
    for score in SCORES:
        plain, more = (
            [found[name, seed][score] for seed in range(given.seeds)] for name in ("plain", "more")
        )
        print(
            f"{score}, points: plain {100 * np.mean(plain):.2f}, with made faces {100 * np.mean(more):.2f}"
        )
        print(said("difference", (b - a for a, b in zip(plain, more, strict=True))))


if __name__ == "__main__":
    main()
