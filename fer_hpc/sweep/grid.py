"""A sweep's folder: which trials there are, where each stands, which configuration is best. No ray, no torch.

A trial is a run folder like any other, OUT/trials/NAME. OUT/sweep.json says what all trials share and what was asked for;
everything else here is derived from the run folders, so the folder may be moved, and any number of programs may fill it.
"""

from __future__ import annotations

import dataclasses
import itertools
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
from fer_hpc.config.commands import SweepConfig
from fer_hpc.files import read_json, write_json
from fer_hpc.parallel.world import array_task
from fer_hpc.run.folder import HALTED_REASON, read_status

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
    manifest = read_json(sweep.data / "manifest.json")
    if manifest is None:
        raise UserError(f"--data {sweep.data} holds no shards (no manifest.json); preprocess first")
    if base.best_on.startswith("train"):
        raise UserError(
            f"--best-on {base.best_on}: a sweep chooses on val; use val_accuracy or val_loss"
        )
    found = []
    values = (
        dict.fromkeys(sweep.batch_sizes),
        dict.fromkeys(sweep.lrs),
        dict.fromkeys(sweep.seeds),
    )
    for batch_size, lr, seed in itertools.product(*values):
        check_divides(batch_size, sweep.workers_per_trial, base.accumulate)
        config = dataclasses.replace(base, batch_size=batch_size, lr=lr, seed=seed)
        name = (
            f"b{batch_size}-lr{lr:g}-seed{seed}-{science_hash(config, manifest['fingerprint'])[:8]}"
        )
        config = dataclasses.replace(
            config, data=sweep.data.absolute(), run=(sweep.out / "trials" / name).absolute()
        )
        found.append(Trial(name, config))
    return found


def _shared(sweep: SweepConfig, trials: list[Trial]) -> dict[str, Any]:
    """What all trials have in common, as sweep.json says it."""
    science = {k: v for k, v in fields_of(trials[0].config, "science").items() if k not in SWEPT}
    return {
        "metric": trials[0].config.best_on,
        "science": science,
        "fingerprint": read_json(sweep.data / "manifest.json")["fingerprint"],
    }


def trial_of_array(out: Path, listed: Path) -> TrainConfig:
    """What the present task of a Slurm array trains; `listed` is a JSON file of trials' names, in the array's order."""
    names, stored = read_json(listed), read_json(out / "sweep.json")
    if names is None or stored is None:
        raise UserError(
            f"{out} is not a sweep's folder, or {listed} is gone; submit the sweep again"
        )
    name = names[array_task()]
    return TrainConfig(
        data=Path(stored["data"]),
        run=out / "trials" / name,
        **stored["science"],
        **stored["trials"][name],
    )


def check_sweep(sweep: SweepConfig, trials: list[Trial]) -> None:
    """A UserError where --out holds something else than this sweep."""
    shared = _shared(sweep, trials)
    science, fingerprint = shared["science"], shared["fingerprint"]
    stored = read_json(sweep.out / "sweep.json")
    if (
        stored is None
        and sweep.out.is_dir()
        and any(p for p in sweep.out.iterdir() if p.name not in ("jobs", "logs"))
    ):
        raise UserError(
            f"--out {sweep.out} holds other things and no sweep.json; give a new folder"
        )
    if stored:
        changed = [
            (k, stored["science"].get(k, v), v)
            for k, v in science.items()
            if stored["science"].get(k, v) != v
        ]
        if stored["fingerprint"] != fingerprint:
            raise UserError(
                f"{sweep.out} is a sweep over other data (fingerprint {stored['fingerprint']}, now {fingerprint} in "
                f"--data {sweep.data}); give another --out"
            )
        if changed:
            now = ", ".join(
                f"{format_flag(k, then)} (now {format_flag(k, v)})" for k, then, v in changed
            )
            raise UserError(
                f"{sweep.out} was begun with {now}: that would be another sweep; give another --out"
            )


def prepare(sweep: SweepConfig, preset: str, trials: list[Trial]) -> None:
    """Begin the folder, or add trials to it; a UserError where it holds another sweep."""
    check_sweep(sweep, trials)
    stored = read_json(sweep.out / "sweep.json")
    listed = {t.name: {k: getattr(t.config, k) for k in SWEPT} for t in trials}
    sweep.out.mkdir(parents=True, exist_ok=True)
    all_ = {"preset": preset, **_shared(sweep, trials), "data": str(sweep.data.absolute())}
    write_json(
        sweep.out / "sweep.json", all_ | {"trials": (stored["trials"] if stored else {}) | listed}
    )


def record_failure(out: Path, name: str, why: str) -> None:
    """Say why a trial's process died where the trial itself could not; an empty `why` forgets it."""
    found = read_json(out / "failures.json") or {}
    if found.get(name, "") != why:
        write_json(out / "failures.json", {k: v for k, v in {**found, name: why}.items() if v})


def trial_state(out: Path, name: str) -> tuple[str, str]:
    """(state, why) of a trial: new, running, interrupted, halted (perhaps for good), finished, failed."""
    status = read_status(out / "trials" / name)
    state, why = status["state"], status["why"]
    died = (read_json(out / "failures.json") or {}).get(name)
    if state == "interrupted" and why == HALTED_REASON:
        return "halted", ""
    return ("failed", died) if died and state not in ("finished", "running") else (state, why)
