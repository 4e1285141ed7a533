"""The results of a sweep, derived from its run folders: tables, the best configuration, a plot."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from fer_hpc.config import PRESETS, TrainConfig, UserError
from fer_hpc.config.aliases import current_science
from fer_hpc.evaluation.intervals import clip_interval, mean_interval
from fer_hpc.evaluation.metrics import (
    MIN_SEEDS,
    find_metric,
    format_interval,
    higher_is_better,
    seeds_interval,
)
from fer_hpc.files import REMEDIES, check_shape, read_stored, write_json, write_text
from fer_hpc.run.folder import read_history, read_rows
from fer_hpc.sweep.differences import differences, file_hashes, resolved
from fer_hpc.sweep.grid import format_value, read_sweep, swept_fields, trial_states

MAX_HEAT_MAP_ROWS = 24
NUMBERS = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")
BEST = {
    "data": str,
    "science": {},
    "runtime": ({"init_from": (str, None), "plugin": ([str, ...], None)}, None),
}
SOURCE = ("preset", "metric", "data", "fingerprint")  # of sweep.json, in each result
TITLES = {"batch_size": "batch size", "lr": "learning rate"}


def sign(metric: str) -> int:
    """1 where larger values of a metric are better, else -1."""
    return 1 if higher_is_better(metric) else -1


def collect(out: Path) -> str:
    """Write results.csv, summary.json, best.json and heatmap.png; gives the table as text."""
    rows, summary = summarise(out)
    write_text(out / "results.csv", pd.DataFrame(rows).to_csv(index=False))
    write_json(out / "summary.json", summary)
    if summary["ranked"]:
        _draw_heat_map(out / "heatmap.png", summary)
        write_json(out / "best.json", _best_of(out, summary))
    else:
        (out / "best.json").unlink(missing_ok=True)
    return format_table(summary)


def summarise(out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of results.csv and the content of summary.json, by the trials as they are now.

    Ranked by their mean are the configurations of which every seed of the sweep is finished.
    """
    sweep = read_sweep(out)
    if sweep is None:
        raise UserError(
            f"{out} has no sweep.json; give the folder that --out named in fer_hpc.tune"
        )
    fields, metric = swept_fields(sweep), sweep["metric"]
    trials = sweep["trials"]
    rows = [
        _row(out, name, trials[name], metric, *state)
        for name, state in zip(trials, trial_states(out, trials), strict=True)
    ]
    rows.sort(key=lambda row: [row[field] for field in (*fields, "seed")])

    seeds = sorted({row["seed"] for row in rows})
    known = resolved(out, trials)
    configurations = []
    for values, group in itertools.groupby(rows, lambda row: [row[field] for field in fields]):
        settings, own = dict(zip(fields, values, strict=True)), list(group)
        differ = differences({row["trial"]: settings for row in own}, known)
        configurations.append(_configuration(settings, own, metric, len(seeds), differ))
    ranked = [c for c in configurations if c["complete"]]
    ranked.sort(key=lambda c: (-sign(metric) * c["mean"], *c["settings"].values()))
    source = {key: sweep[key] for key in SOURCE}
    epochs = sweep["science"].get("epochs") or sorted(
        {c["settings"]["epochs"] for c in configurations}
    )
    summary = source | {
        "model": sweep["science"].get("model"),
        "epochs": epochs,
        "threads": sweep["science"]["threads"],
        "seeds": seeds,
        "trials": len(rows),
        "finished": sum(row["state"] == "finished" for row in rows),
        "failed": [
            {"trial": row["trial"], "why": row["why"]} for row in rows if row["state"] == "failed"
        ],
        "differ": differences(trials, known),
        "best_two": None,
        "ranked": ranked,
        "not_ranked": [c for c in configurations if not c["complete"]],
    }
    if len(ranked) > 1:
        of_two = {
            name: swept
            for name, swept in trials.items()
            if {f: swept[f] for f in fields} in (ranked[0]["settings"], ranked[1]["settings"])
        }
        differ = differences(of_two, known)
        summary["best_two"] = _difference(ranked[0], ranked[1], metric, differ)
    return rows, summary


def _best_of(out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """The content of best.json: what the best configuration was trained with."""
    sweep = read_sweep(out)
    assert sweep
    best, known = _best(sweep, summary["ranked"][0]), resolved(out, sweep["trials"])
    hashes = file_hashes(sweep["trials"], best["settings"], known)
    best["science"] |= {key: values[0] for key, values in hashes.items()}
    return {key: sweep[key] for key in SOURCE} | best | {"seeds": summary["seeds"]}


def _row(
    out: Path, name: str, swept: dict[str, Any], metric: str, state: str, reason: str
) -> dict[str, Any]:
    """A trial's line of results.csv; its numbers are those of its best epoch."""
    run = out / "trials" / name
    (rows, damage), times = read_history(run), read_rows(run, "timing.jsonl")
    try:
        check_shape(rows, [{"epoch": int, metric: float, **dict.fromkeys(NUMBERS, float)}, ...], "")
        check_shape(times, [{"train_s": float, "val_s": float}, ...], "")
    except UserError as error:
        rows, times, state, reason = [], [], "damaged", f"{run}: its metrics or times{error}"
    for line in damage:
        print(f"warning: {line}", file=sys.stderr)
    best = max(rows, key=lambda row: sign(metric) * row[metric], default=None)
    return {
        "trial": name,
        **swept,
        "state": state,
        "why": reason.replace("\n", " "),
        "epochs_trained" if "epochs" in swept else "epochs": rows[-1]["epoch"] if rows else 0,
        "best_epoch": best["epoch"] if best else None,
        **{key: best[key] if best else None for key in NUMBERS},
        "seconds": round(sum(row["train_s"] + row["val_s"] for row in times), 1),
    }


def _configuration(
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    metric: str,
    seeds: int,
    differ: list[str],
) -> dict[str, Any]:
    """One configuration over its seeds; `seeds` is the number that the sweep has.

    `differ`: in what its trials differ beside the seed.
    """
    values = {str(row["seed"]): row[metric] for row in rows if row["state"] == "finished"}
    return {
        "batch_size": settings["batch_size"],
        "lr": settings["lr"],
        "settings": settings,
        "complete": len(values) == seeds,
        "values": values,
        "mean": sum(values.values()) / len(values) if values else None,
        "interval_95": seeds_interval(metric, list(values.values())),
        "epochs": min(row.get("epochs_trained", row["epochs"]) for row in rows),
        "states": sorted({row["state"] for row in rows}),
        "differ": differ,
    }


def _best(sweep: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    """What `train --from-sweep` needs of the best configuration."""
    kept = ("batch_size", "lr", "settings", "mean", "interval_95", "values")
    runtime = sweep["runtime"] or {}
    return {key: best[key] for key in kept} | {
        "science": sweep["science"] | best["settings"],
        "runtime": {key: runtime[key] for key in ("init_from", "plugin") if runtime.get(key)},
    }


def _difference(
    best: dict[str, Any], second: dict[str, Any], metric: str, differ: list[str]
) -> dict[str, Any]:
    """Best minus second, paired by seed: with the same batch size, both saw the same batches.

    `differ`: in what their trials differ beside the settings and the seed.
    """
    differences = [best["values"][seed] - second["values"][seed] for seed in best["values"]]
    low, high = find_metric(metric).bounds
    interval = mean_interval(differences) if len(differences) >= MIN_SEEDS else None
    if differ:
        interval, verdict = None, f"not tested, as the trials differ in {'; '.join(differ)}"
    elif interval is None:
        verdict = f"not tested, which needs {MIN_SEEDS} seeds"
    else:
        interval = clip_interval(interval, (low - high, high - low))
        verdict = "not distinguishable" if interval[0] <= 0 <= interval[1] else "distinguishable"
    return {
        "best": list(best["settings"].values()),
        "second": list(second["settings"].values()),
        "metric": metric,
        "mean": sum(differences) / len(differences),
        "interval_95": interval,
        "verdict": verdict,
    }


def best_of(folder: Path) -> dict[str, Any]:
    """The content of a sweep's best.json, with the hashes of the files that its trials had.

    A UserError where there is no best configuration.
    """
    best = read_stored(folder / "best.json", BEST)
    if best is None:
        reason = "it has no sweep.json"
        if (folder / "sweep.json").exists():
            reason = "no configuration has all its seeds finished yet"
        raise UserError(f"--from-sweep {folder}: {reason}; give the --out of a sweep")
    science = current_science(best["science"])
    if sweep := read_sweep(folder):  # best.json of older versions has no hashes
        settings = {field: science[field] for field in swept_fields(sweep) if field in science}
        hashes = file_hashes(sweep["trials"], settings, resolved(folder, sweep["trials"]))
        for field, values in hashes.items():
            if len(values) > 1:
                raise UserError(
                    f"--from-sweep {folder}: the trials of its best configuration were trained "
                    f"with different files ({field} {', '.join(v[:8] for v in values)}), so they "
                    "are no one recipe; sweep again into another --out"
                )
            science[field] = values[0]
    try:
        TrainConfig(data=Path(best["data"]), run=Path("run"), **science)
    except (UserError, TypeError) as error:
        raise UserError(
            f"{folder / 'best.json'} is damaged ({error}); {REMEDIES['best.json']}"
        ) from None
    return {**best, "science": science, "runtime": best["runtime"] or {}}


def recipe(summary: dict[str, Any]) -> str:
    """The preset of a sweep, and its network where that is not the preset's own."""
    preset, model = summary["preset"], summary.get("model")  # None: swept, or of an older version
    own = PRESETS.get(preset, {}).get("model")
    return f"{model} (other settings: {preset})" if model not in (None, own) else str(preset)


def _counted(number: Any, what: str) -> str:
    """`1 epoch`; `10, 30 epochs` where they are swept."""
    return f"{format_value(number)} {what}{'' if number == 1 else 's'}"


# ---- the plot ------------------------------------------------------------------------------------


def _draw_heat_map(path: Path, summary: dict[str, Any]) -> None:
    """Mean metric of the ranked configurations, in colours."""
    from fer_hpc.evaluation import plots

    ranked = summary["ranked"]
    rows, column = _axes([c["settings"] for c in ranked])
    by_row: dict[tuple[Any, ...], dict[Any, float]] = {}  # the best row first
    for c in ranked:
        row = tuple(c["settings"][field] for field in rows)
        by_row.setdefault(row, {})[c["settings"][column]] = c["mean"]
    shown = sorted(list(by_row)[:MAX_HEAT_MAP_ROWS])
    columns = sorted({value for row in shown for value in by_row[row]})
    table = pd.DataFrame([by_row[row] for row in shown]).reindex(columns=columns)
    title = (
        f"{recipe(summary)}, {_counted(summary['epochs'], 'epoch')}: "
        f"mean {summary['metric']} of {_counted(len(summary['seeds']), 'seed')}"
    )
    if len(shown) < len(by_row):
        title += f", the best {len(shown)} of {len(by_row)} rows"
    plots.heat_map(
        table.to_numpy(float),
        [", ".join(map(format_value, row)) for row in shown],
        [format_value(value) for value in columns],
        (", ".join(TITLES.get(field, field) for field in rows), TITLES.get(column, column), title),
        path,
    )


def _axes(settings: list[dict[str, Any]]) -> tuple[list[str], str]:
    """The fields of the rows, and that of the columns: batch size x learning rate, if only these
    vary; else the learning rate (or another field that varies) against all other varying fields."""
    varying = [field for field in settings[0] if len({s[field] for s in settings}) > 1]
    if set(varying) <= {"batch_size", "lr"}:
        return ["batch_size"], "lr"
    column = "lr" if "lr" in varying else varying[-1]
    return [field for field in varying if field != column] or ["batch_size"], column


# ---- the text ------------------------------------------------------------------------------------


def format_table(summary: dict[str, Any]) -> str:
    """The ranking as text, as `tune` prints it."""
    configurations = summary["ranked"] + summary["not_ranked"]
    headers = {field: field for field in configurations[0]["settings"]}
    headers |= {"batch_size": "batch size"}
    widths = {"batch_size": 10, "lr": 8}
    for field, header in headers.items():
        texts = [format_value(c["settings"][field]) for c in configurations]
        widths[field] = max(widths.get(field, 0), len(header), *map(len, texts))

    def aligned(texts: dict[str, Any]) -> str:
        return " ".join(f"{format_value(texts[field]):>{width}}" for field, width in widths.items())

    seeds = summary["seeds"]
    over = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"
    width = max(19, len(format_interval(None, len(seeds))) if len(seeds) < MIN_SEEDS else 0)
    lines = [
        f"{recipe(summary)}, {_counted(summary['epochs'], 'epoch')}, "
        f"{summary['finished']} of {summary['trials']} trials finished; {summary['metric']} of the "
        f"best epoch, mean and 95 % interval over {over}",
        f"rank {aligned(headers)} {'mean':>8}   {'95 % interval':<{width}}  seeds",
    ]
    for rank, c in enumerate(summary["ranked"], 1):
        values = " ".join(f"{value:.4f}" for value in c["values"].values())
        interval = f"{format_interval(c['interval_95'], len(seeds)):<{width}}"
        mixed = f"  (differ in {'; '.join(c['differ'])})" if c["differ"] else ""
        lines.append(
            f"{rank:>4} {aligned(c['settings'])} {c['mean']:>8.4f}   {interval}  {values}{mixed}"
        )
    for c in summary["not_ranked"]:
        lines.append(
            f"   - {aligned(c['settings'])} {'':>8}   not ranked: {len(c['values'])} of "
            f"{len(seeds)} seeds finished ({', '.join(c['states'])}; {c['epochs']} epochs)"
        )
    if summary["differ"]:
        lines.append(
            "warning: this is more than one experiment, and its means and ranks mix them: beside "
            f"what is swept, trials differ in {'; '.join(summary['differ'])}"
        )
    if two := summary["best_two"]:
        interval = " [{:.4f}, {:.4f}]".format(*two["interval_95"]) if two["interval_95"] else ""
        lines.append(
            f"best minus second, paired by seed: {two['mean']:+.4f}{interval}: {two['verdict']}"
        )
    lines += [f"failed: {failed['trial']}: {failed['why']}" for failed in summary["failed"]]
    return "\n".join(line.rstrip() for line in lines)
