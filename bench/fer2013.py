"""Which recipe is best on FER2013 within a given time: candidates of the preset `fer2013`.

    python bench/fer2013.py --data SHARDS --out DIR --minutes 60

SHARDS: FER2013 by `fer-hpc preprocess --source fer2013`. Every candidate trains with one seed, the
best three by their score on val with a second one, and the best by the mean of both with five.
Candidates are started while the minutes last; those that were not are named. The same command
continues. val selects everything and the test split is not opened. Results: DIR/table.json and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from fer_hpc.config import preset
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.evaluation.intervals import mean_interval
from fer_hpc.evaluation.score import evaluate
from fer_hpc.parallel.world import World
from fer_hpc.run.plugins import load_plugins
from fer_hpc.training.loop import train

NETWORKS = Path(__file__).with_name("fer2013_networks.py")
MILD = {"mixup": 0.1, "erase": 0.25}
CANDIDATES: dict[str, dict[str, Any]] = {
    "preset": {},
    "60 epochs": {"epochs": 60},
    "100 epochs": {"epochs": 100},
    "100 epochs, weight decay 1e-3": {"epochs": 100, "weight_decay": 1e-3},
    "100 epochs, mild mixup and erasing": {"epochs": 100, **MILD},
    "100 epochs, moving average .9995": {"epochs": 100, "ema": 0.9995},
    "100 epochs, dropout .5": {"epochs": 100, "model": "small_dropout"},
    "100 epochs, squeeze and excitation": {"epochs": 100, "model": "small_squeeze"},
    "100 epochs, 1.5 times as wide, mild": {"epochs": 100, "model": "small_wide", **MILD},
    "100 epochs, two blocks a stage, mild": {"epochs": 100, "model": "small_deep", **MILD},
    "200 epochs, mild mixup and erasing": {"epochs": 200, **MILD},
    "200 epochs, all of it": {
        "epochs": 200,
        "model": "small_wide_squeeze",
        "weight_decay": 1e-3,
        "ema": 0.9995,
        **MILD,
    },
}
SEEDS = 5


class Study:
    """Scores on val by candidate and seed; a run that is finished is not trained again."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.end = args, time.monotonic() + 60 * args.minutes
        self.scores: dict[str, dict[int, float]] = {}
        self.seconds: dict[str, float] = {}

    def score(self, name: str, seed: int) -> bool:
        """Train and score a candidate; False where the time is over before it begins."""
        if time.monotonic() > self.end:
            return False
        begin = time.monotonic()
        fields = {"epochs": preset("fer2013", data=".", run=".").epochs, **CANDIDATES[name]}
        fields["epochs"] = max(1, round(fields["epochs"] * self.args.scale))
        fields["warmup_epochs"] = min(2.0, fields["epochs"] / 4)
        if fields.get("model", "").startswith("small_"):
            fields["plugin"] = (NETWORKS,)
        folder = "".join(c if c.isalnum() else "-" for c in name)
        run = self.args.out / f"{folder}-seed{seed}"
        config = preset(
            "fer2013",
            data=self.args.data,
            run=run,
            seed=seed,
            device=self.args.device,
            tensorboard=False,
            **fields,
        )
        train(config, World())
        value = evaluate(EvaluateConfig(run, split="val", device=self.args.device))["accuracy"]
        self.scores.setdefault(name, {})[seed] = value
        self.seconds[name] = time.monotonic() - begin
        print(f"{name}, seed {seed}: val {value:.4f}, {self.seconds[name]:.0f} s", flush=True)
        self.write()
        return True

    def ranking(self) -> list[str]:
        """Candidates by their mean over the seeds that they have, those with more seeds first."""
        means = {name: sum(s.values()) / len(s) for name, s in self.scores.items()}
        return sorted(means, key=lambda n: (len(self.scores[n]), means[n]), reverse=True)

    def write(self) -> None:
        rows = []
        for name in self.ranking():
            values = list(self.scores[name].values())
            interval = mean_interval(values)
            rows.append(
                {
                    "candidate": name,
                    "fields": CANDIDATES[name],
                    "mean": sum(values) / len(values),
                    "interval": interval,
                    "seeds": values,
                    "seconds": round(self.seconds[name]),
                }
            )
        (self.args.out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
        lines = ["| candidate | val, mean | 95 % interval | seeds |", "|---|---|---|---|"]
        for row in rows:
            low_high = row["interval"]
            text = f"[{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else "one seed"
            seeds = " ".join(f"{v:.4f}" for v in row["seeds"])
            lines.append(f"| {row['candidate']} | {row['mean']:.4f} | {text} | {seeds} |")
        (self.args.out / "table.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on all epochs, for a trial"
    )
    parser.add_argument("--candidates", nargs="+", default=[*CANDIDATES], choices=[*CANDIDATES])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    load_plugins((NETWORKS,))
    study = Study(args)
    left_out = [name for name in args.candidates if not study.score(name, 0)]
    for name in study.ranking()[:3]:
        study.score(name, 1)
    best = study.ranking()[0]
    missing = [seed for seed in range(2, SEEDS) if not study.score(best, seed)]
    print((args.out / "table.md").read_text())
    print(f"best on val: {best}")
    if left_out or missing:
        print(
            f"not in {args.minutes:g} minutes: {', '.join(left_out) or 'none left out'}; "
            f"seeds of the best without a score: {missing or 'none'}"
        )


if __name__ == "__main__":
    main()
