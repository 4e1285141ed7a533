"""The folder of a sweep: its trials, the state of each, and what all of them share.

A trial is a run folder like any other, OUT/trials/NAME. OUT/sweep.json holds the settings that all
trials share and the list of trials. Everything else here is derived from the run folders, so the
folder may be copied, and several programs may run its trials. Needs neither ray nor torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.config import (
    TrainConfig,
    UserError,
    check_divides,
    fields_of,
    format_flag,
    science_hash,
)
from fer_hpc.config.aliases import current_science
from fer_hpc.config.commands import SweepConfig
from fer_hpc.config.fields import YOUNGER_THAN_RUNS, check_stored
from fer_hpc.data.manifest import find_manifest
from fer_hpc.evaluation.metrics import METRICS
from fer_hpc.files import REMEDIES, read_record, read_stored, remove_leftovers, write_json
from fer_hpc.parallel.job import current_job
from fer_hpc.run.attempts import living_holder
from fer_hpc.run.folder import HALTED_REASON, attempt_numbers, attempt_path, read_status
from fer_hpc.run.plugins import changed_files
from fer_hpc.run.trial import begun_trial
from fer_hpc.sweep.fields import parse_grid

Setting = tuple[Any, ...]  # a configuration: its value of each swept field but the seed
MAX_NAME = 120  # characters of a trial's name for the fields of --grid


@dataclass(frozen=True)
class Trial:
    """One run of the sweep; its name ends in the hash of its science fields."""

    name: str
    config: TrainConfig
    setting: Setting


def grid(sweep: SweepConfig, base: TrainConfig) -> list[Trial]:
    """The trials of a sweep, the seeds of a configuration side by side.

    `base` holds the fields that all trials share. A UserError where a trial could not run.
    """
    fingerprint = _fingerprint(sweep.data)
    if base.best_on.startswith("train"):
        raise UserError(
            f"--best-on {base.best_on}: a sweep is ranked on val; use val_accuracy or val_loss"
        )
    more = parse_grid(sweep.grid)
    if "epochs" in more and sweep.scheduler != "fifo":
        raise UserError("--grid epochs: --scheduler asha decides the epochs; leave one of them out")
    values = {"batch_size": sweep.batch_sizes, "lr": sweep.lrs, **more, "seed": sweep.seeds}
    base = _with_absolute_paths(dataclasses.replace(base, data=sweep.data))
    if stored := read_sweep(sweep.out):  # presets may have set a field since it began
        lacking = YOUNGER_THAN_RUNS - {*stored["science"], *more}
        fields = dataclasses.fields(base)
        defaults: dict[str, Any] = {f.name: f.default for f in fields if f.name in lacking}
        base = dataclasses.replace(base, **defaults)
    trials = []
    for point in itertools.product(*map(dict.fromkeys, values.values())):
        config = dataclasses.replace(base, **dict(zip(values, point, strict=True)))
        check_divides(config.batch_size, sweep.workers_per_trial, config.accumulate)
        name = _trial_name(config, list(more), science_hash(config, fingerprint))
        run = (sweep.out / "trials" / name).absolute()
        trials.append(Trial(name, dataclasses.replace(config, run=run), point[:-1]))
    return trials


def _fingerprint(data: Path) -> str:
    manifest = find_manifest(data)
    if manifest is None:
        raise UserError(f"--data {data} holds no shards (no manifest.json); preprocess first")
    return manifest.fingerprint


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """`config` for processes that have another working directory."""
    return dataclasses.replace(
        config,
        data=config.data.absolute(),
        init_from=config.init_from and config.init_from.absolute(),
        stage=config.stage and config.stage.absolute(),
        plugin=tuple(path.expanduser().absolute() for path in config.plugin),
    )


def _trial_name(config: TrainConfig, more: list[str], identity: str) -> str:
    """b64-lr0.01-seed0-1a2b3c4d; the fields of --grid follow the learning rate as key=value."""
    parts = "".join(f"-{field}={format_value(getattr(config, field))}" for field in more)
    parts = re.sub(r"[^\w.+=-]", "_", parts)[:MAX_NAME]  # a folder's name
    return f"b{config.batch_size}-lr{config.lr:g}{parts}-seed{config.seed}-{identity[:8]}"


def format_value(value: Any) -> str:
    """A field's value as one types it; a list with commas."""
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- sweep.json ----------------------------------------------------------------------------------


SWEEP = {
    "preset": str,
    "metric": str,
    "data": str,
    "fingerprint": str,
    "science": {"threads": int},
    "runtime": ({"init_from": (str, None)}, None),  # not in sweeps of older versions
    "trials": {str: {"batch_size": int, "lr": float, "seed": int}},
}


def read_sweep(out: Path) -> dict[str, Any] | None:
    """The content of OUT/sweep.json, or None where it is missing; a UserError where it is damaged.

    A trial's name is that of a folder in OUT/trials, and all trials have the same fields.
    """
    stored = read_stored(out / "sweep.json", SWEEP)
    if stored is None:
        return None
    trials = stored["trials"]
    for values in (stored["science"], *trials.values()):
        check_stored(TrainConfig, values, out / "sweep.json")
    fields = {tuple(sorted(swept)) for swept in trials.values()}
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    swept = set(next(iter(fields), ()))
    prefix = stored["metric"].partition("_")[0]
    if (
        len(fields) != 1
        or prefix not in ("train", "val")
        or stored["metric"].removeprefix(f"{prefix}_") not in METRICS
        or not all(re.fullmatch(r"\w[\w.+=-]{0,250}", name) for name in trials)
        or not swept <= known
        or "epochs" not in {*stored["science"], *swept}
        or any(value is None for values in trials.values() for value in values.values())
    ):
        why = "its trials or its metric are impossible"
        raise UserError(f"{out / 'sweep.json'} is damaged ({why}); {REMEDIES['sweep.json']}")
    return dict(stored)


def swept_fields(stored: dict[str, Any]) -> list[str]:
    """The fields that a stored sweep varies, without the seed."""
    return [field for field in next(iter(stored["trials"].values())) if field != "seed"]


def _listed(sweep: SweepConfig, trials: list[Trial]) -> dict[str, dict[str, Any]]:
    """The swept values of each trial, by its name."""
    fields = ["batch_size", "lr", "seed", *parse_grid(sweep.grid)]
    return {t.name: {field: getattr(t.config, field) for field in fields} for t in trials}


def _shared(sweep: SweepConfig, trials: list[Trial]) -> dict[str, Any]:
    """What all trials have in common, JSON-ready."""
    config, swept = trials[0].config, next(iter(_listed(sweep, trials).values()))
    runtime = fields_of(config, "runtime")
    return {
        "metric": config.best_on,
        "science": {k: v for k, v in fields_of(config, "science").items() if k not in swept},
        "fingerprint": _fingerprint(sweep.data),
        "runtime": {k: v for k, v in runtime.items() if k not in ("data", "run")},
    }


def check_sweep(sweep: SweepConfig, trials: list[Trial]) -> None:
    """A UserError where --out holds something else than this sweep."""
    stored = read_sweep(sweep.out)
    if stored is None:
        jobs_and_logs = ("jobs", "logs")
        if sweep.out.is_dir() and any(p.name not in jobs_and_logs for p in sweep.out.iterdir()):
            raise UserError(
                f"--out {sweep.out} holds other files and no sweep.json; give a new folder"
            )
        return
    shared = _shared(sweep, trials)
    if stored["fingerprint"] != shared["fingerprint"]:
        raise UserError(
            f"{sweep.out} is a sweep over other data (fingerprint {stored['fingerprint']}, now "
            f"{shared['fingerprint']} in --data {sweep.data}); give another --out"
        )
    before, now = swept_fields(stored), ["batch_size", "lr", *parse_grid(sweep.grid)]
    if sorted(before) != sorted(now):
        raise UserError(
            f"{sweep.out} sweeps {', '.join(before)} (now {', '.join(now)}): this would be another "
            "sweep; give another --out, or the same fields in --grid"
        )
    changed = _changed_fields(stored, shared)
    if changed:
        flags = ", ".join(
            f"{format_flag(k, then)} (now {format_flag(k, value)})" for k, then, value in changed
        )
        raise UserError(
            f"{sweep.out} was started with {flags}: this would be another sweep; give another --out"
        )
    config = trials[0].config
    if file := changed_files_of_trials(sweep.out, config.plugin, config.init_from):
        raise UserError(
            f"{file}: this would be another sweep; restore the file, or give another --out"
        )


def changed_files_of_trials(
    out: Path, plugins: Sequence[Path] = (), init_from: Path | None = None
) -> str:
    """`changed_files` of the first trial that has one, "" where none has.

    The trials' own config.json say that, whatever version has begun the sweep.
    """
    contents = set()
    for name in (read_sweep(out) or {"trials": ()})["trials"]:
        run = out / "trials" / name
        stored = begun_trial(run) or {"science": {}}
        content = json.dumps([stored.get("plugins"), stored["science"].get("init_hash")])
        if content not in contents and (changed := changed_files(run, plugins, init_from)):
            return changed[0]
        contents.add(content)
    return ""


def _changed_fields(stored: dict[str, Any], shared: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, stored value, present value) of the shared fields that decide the numbers."""
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    science = current_science(stored["science"])
    pairs = [  # a field younger than the sweep had its default
        (field, science.get(field, defaults[field]), value)
        for field, value in shared["science"].items()
    ]
    if stored["runtime"]:
        weights = (stored["runtime"]["init_from"], shared["runtime"]["init_from"])
        pairs.append(("init_from", *weights))
    return [(field, then, value) for field, then, value in pairs if then != value]


def prepare(sweep: SweepConfig, preset: str, trials: list[Trial]) -> None:
    """Write sweep.json, or add trials to it; a UserError where it holds another sweep."""
    check_sweep(sweep, trials)
    before = (read_sweep(sweep.out) or {}).get("trials", {})
    sweep.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(sweep.out)
    stored = {"preset": preset, **_shared(sweep, trials), "data": str(sweep.data.absolute())}
    write_json(sweep.out / "sweep.json", stored | {"trials": before | _listed(sweep, trials)})


def check_free(out: Path, names: list[str], wait_s: float = 0.0) -> None:
    """A UserError where a living process trains one of these trials, which must not end.

    Up to `wait_s` it may still end: the processes of a killed sweep do, a moment after it.
    """
    deadline = time.monotonic() + wait_s
    while True:
        held = []
        for name, (state, _) in zip(names, trial_states(out, names), strict=True):
            run = out / "trials" / name
            if state == "running" and (numbers := attempt_numbers(run)):
                holder = living_holder(run, attempt_path(run, numbers[-1]), current_job())
                held += [f"{name} by {holder}"] if holder else []
        if not held or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if held:
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        raise UserError(
            f"{out} is in use: trial {', '.join(held[:3])}{more}; wait until that has ended "
            f"(fer-hpc status {out}), or stop it first"
        )


# ---- the state of a trial ------------------------------------------------------------------------


def record_failure(out: Path, name: str, reason: str) -> None:
    """Keep why a trial's process died, where the trial itself could not; "" removes the entry."""
    failures = _failures(out)
    if failures.get(name, "") != reason:
        failures = {k: v for k, v in {**failures, name: reason}.items() if v}
        write_json(out / "failures.json", failures)


def _failures(out: Path) -> dict[str, str]:
    """Why processes of trials died, by trial; a damaged file counts as none."""
    wanted: dict[Any, Any] = {str: str}
    return read_record(out / "failures.json", wanted) or {}


def trial_states(out: Path, names: Iterable[str]) -> list[tuple[str, str]]:
    """(state, reason) of each trial: new, running, interrupted, halted, finished or failed.

    A halted trial has reached a rung of successive halving, and may or may not be promoted.
    """
    failures = _failures(out)
    return [_trial_state(out, name, failures.get(name)) for name in names]


def trial_state(out: Path, name: str) -> tuple[str, str]:
    """`trial_states` of one trial."""
    return trial_states(out, [name])[0]


def _trial_state(out: Path, name: str, died: str | None) -> tuple[str, str]:
    status = read_status(out / "trials" / name)
    state, reason = status["state"], status["why"]
    if state == "interrupted" and reason == HALTED_REASON:
        return "halted", ""
    return ("failed", died) if died and state not in ("finished", "running") else (state, reason)
