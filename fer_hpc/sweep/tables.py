"""Tables and plots of a sweep, derived from its run folders."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from fer_hpc.config import UserError
from fer_hpc.evaluation.intervals import mean_interval
from fer_hpc.evaluation.metrics import higher_is_better, seeds_interval
from fer_hpc.files import read_json, write_bytes, write_json
from fer_hpc.run.folder import read_rows
from fer_hpc.sweep.grid import Setting, trial_state


def _sign(metric: str) -> int:
    return 1 if higher_is_better(metric) else -1


# ---- results -----------------------------------------------------------------------------------------------------------


def collect(out: Path) -> str:
    """Write results.csv, summary.json, best.json and heatmap.png from the trials' run folders; gives the table in words.

    Ranked are configurations all of whose seeds (every seed that the sweep has) are finished, by their mean.
    """
    from fer_hpc.evaluation import plots

    sweep = read_json(out / "sweep.json")
    if sweep is None:
        raise UserError(
            f"{out} is not a sweep's folder: it has no sweep.json; give the folder that --out named"
        )
    metric = sweep["metric"]
    trials = [_row(out, name, swept, metric) for name, swept in sweep["trials"].items()]
    trials.sort(key=lambda row: (row["batch_size"], row["lr"], row["seed"]))
    write_bytes(out / "results.csv", pd.DataFrame(trials).to_csv(index=False).encode())

    seeds = sorted({row["seed"] for row in trials})
    settings = [
        _setting(
            pair, [row for row in trials if (row["batch_size"], row["lr"]) == pair], metric, seeds
        )
        for pair in dict.fromkeys((row["batch_size"], row["lr"]) for row in trials)
    ]
    ranked = sorted(
        (s for s in settings if s["complete"]),
        key=lambda s: (-_sign(metric) * s["mean"], s["batch_size"], s["lr"]),
    )
    pair = _difference(ranked[0], ranked[1], metric) if len(ranked) > 1 else None
    rest = [s for s in settings if not s["complete"]]
    about = {key: sweep[key] for key in ("preset", "metric", "data", "fingerprint")} | {
        "epochs": sweep["science"]["epochs"],
        "threads": sweep["science"]["threads"],
        "seeds": seeds,
        "trials": len(trials),
        "finished": sum(row["state"] == "finished" for row in trials),
        "failed": [
            {"trial": row["trial"], "why": row["why"]} for row in trials if row["state"] == "failed"
        ],
    }
    write_json(
        out / "summary.json", about | {"best_two": pair, "ranked": ranked, "not_ranked": rest}
    )
    if ranked:
        _draw(plots, out, metric, ranked, about)
        best = {
            key: ranked[0][key] for key in ("batch_size", "lr", "mean", "interval_95", "values")
        }
        science = sweep["science"] | {key: best[key] for key in ("batch_size", "lr")}
        write_json(
            out / "best.json",
            {key: sweep[key] for key in ("preset", "metric", "data", "fingerprint")}
            | best
            | {"seeds": seeds, "science": science},
        )
    else:
        (out / "best.json").unlink(missing_ok=True)
    return format_table(about, ranked, rest, pair)


def _row(out: Path, name: str, swept: dict[str, Any], metric: str) -> dict[str, Any]:
    run = out / "trials" / name
    state, why = trial_state(out, name)
    rows, times = read_rows(run), read_rows(run, "timing.jsonl")
    best = max(rows, key=lambda row: _sign(metric) * row[metric], default=None)
    numbers = {
        key: best[key] if best else None
        for key in ("epoch", "val_accuracy", "val_loss", "train_accuracy", "train_loss")
    }
    return {
        "trial": name,
        **swept,
        "state": state,
        "why": why.replace("\n", " "),
        "epochs": rows[-1]["epoch"] if rows else 0,
        "best_epoch": numbers.pop("epoch"),
        **numbers,
        "seconds": round(sum(row["train_s"] + row["val_s"] for row in times), 1),
    }


def _setting(
    pair: Setting, rows: list[dict[str, Any]], metric: str, seeds: list[int]
) -> dict[str, Any]:
    """One configuration over its seeds."""
    values = {str(row["seed"]): row[metric] for row in rows if row["state"] == "finished"}
    complete = len(values) == len(seeds)
    mean = sum(values.values()) / len(values) if values else math.nan
    return {
        "batch_size": pair[0],
        "lr": pair[1],
        "complete": complete,
        "values": values,
        "mean": mean if values else None,
        "interval_95": seeds_interval(metric, list(values.values())),
        "epochs": min(row["epochs"] for row in rows),
        "states": sorted({row["state"] for row in rows}),
    }


def _difference(best: dict[str, Any], second: dict[str, Any], metric: str) -> dict[str, Any]:
    """Best minus second, seed by seed (both saw the same order of faces where their batch sizes are the same)."""
    differences = [best["values"][seed] - second["values"][seed] for seed in best["values"]]
    interval = mean_interval(differences)
    if interval is None:
        words = "one seed says nothing about it"
    else:
        words = "not distinguishable" if interval[0] <= 0 <= interval[1] else "distinguishable"
    return {
        "best": [best["batch_size"], best["lr"]],
        "second": [second["batch_size"], second["lr"]],
        "metric": metric,
        "mean": sum(differences) / len(differences),
        "interval_95": interval,
        "verdict": words,
    }


def _draw(
    plots: Any, out: Path, metric: str, ranked: list[dict[str, Any]], about: dict[str, Any]
) -> None:
    batch_sizes, lrs = (sorted({s[key] for s in ranked}) for key in ("batch_size", "lr"))
    table = (
        pd.DataFrame(ranked)
        .pivot(index="batch_size", columns="lr", values="mean")
        .reindex(index=batch_sizes, columns=lrs)
    )
    title = f"{about['preset']}, {about['epochs']} epochs: mean {metric} of {len(about['seeds'])} seed(s)"
    axes = ("batch size", "learning rate", title)
    plots.heat_map(
        table.to_numpy(float),
        [str(b) for b in batch_sizes],
        [f"{lr:g}" for lr in lrs],
        axes,
        out / "heatmap.png",
    )


def format_table(
    about: dict[str, Any],
    ranked: list[dict[str, Any]],
    rest: list[dict[str, Any]],
    pair: dict[str, Any] | None,
) -> str:
    head = f"{about['preset']}, {about['epochs']} epochs, {about['finished']} of {about['trials']} trials finished; "
    lines = [
        head
        + f"{about['metric']} of the best epoch, mean and 95 % interval over seeds {_listed(about['seeds'])}"
    ]
    lines.append(
        f"{'rank':>4} {'batch size':>10} {'lr':>8} {'mean':>8}   {'95 % interval':<19}  seeds"
    )
    for place, s in enumerate(ranked, 1):
        values = " ".join(f"{value:.4f}" for value in s["values"].values())
        lines.append(
            f"{place:>4} {s['batch_size']:>10} {s['lr']:>8g} {s['mean']:>8.4f}   {format_interval(s['interval_95']):<19}  {values}"
        )
    for s in rest:
        lines.append(
            f"   - {s['batch_size']:>10} {s['lr']:>8g} {'':>8}   not ranked: {len(s['values'])} of {len(about['seeds'])} seeds "
            f"finished ({', '.join(s['states'])}; {s['epochs']} epochs)"
        )
    if pair:
        lines.append(
            f"best minus second, paired by seed: {pair['mean']:+.4f} {format_interval(pair['interval_95'])}: {pair['verdict']}"
        )
    lines += [f"failed: {failed['trial']}: {failed['why']}" for failed in about["failed"]]
    return "\n".join(line.rstrip() for line in lines)


def format_interval(interval: Iterable[float] | None) -> str:
    return "[{:.4f}, {:.4f}]".format(*interval) if interval else "(too few seeds)"


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def best_of(folder: Path) -> dict[str, Any]:
    """The winner of a sweep, as best.json has it."""
    found = read_json(folder / "best.json")
    if found is None:
        what = (
            "no configuration has all its seeds finished yet"
            if (folder / "sweep.json").exists()
            else "it has no sweep.json"
        )
        raise UserError(f"--from-sweep {folder}: {what}; give the --out of a sweep of fer_hpc.tune")
    return dict(found)
