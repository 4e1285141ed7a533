"""The folder of a sweep, and trials as if they had run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fer_hpc.cli.parse import configure
from fer_hpc.config import fields_of
from fer_hpc.config.commands import SweepConfig
from fer_hpc.data.shards import read_manifest
from fer_hpc.files import to_jsonl, write_json
from fer_hpc.parallel.device import pick_device
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import attempt_path
from fer_hpc.sweep import grid as sweep
from fer_hpc.training.resolve import resolve_config


def trials_of(shards: Path, out: Path, *flags: str) -> tuple[SweepConfig, list[sweep.Trial]]:
    config, _, base = configure(
        "tune", ["cnn_baseline", "--data", str(shards), "--out", str(out), *flags]
    )
    return config, sweep.grid(config, base)


def prepared(shards: Path, out: Path, *flags: str) -> tuple[SweepConfig, list[sweep.Trial]]:
    config, trials = trials_of(shards, out, *flags)
    sweep.prepare(config, "cnn_baseline", trials)
    return config, trials


def trained(trial: sweep.Trial, *accuracies: float, state: str = "finished", why: str = "") -> None:
    """A run folder as if the trial had had these epochs."""
    folder = attempt_path(trial.config.run, 1)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"val_loss": 1.0, "train_loss": 1.0, "train_accuracy": 0.5}
    rows = [
        {"epoch": i, "images_seen": 100 * i, "val_accuracy": a, **numbers}
        for i, a in enumerate(accuracies, 1)
    ]
    write_json(folder / "environment.json", {"parent": None})
    (folder / "metrics.jsonl").write_bytes(to_jsonl(rows))
    write_json(folder / "status.json", {"state": state, "why": why})


def begun(trial: sweep.Trial) -> None:
    """config.json as the trial's first start writes it."""
    config, manifest = trial.config, read_manifest(trial.config.data)
    resolved, identity = resolve_config(config, manifest, pick_device("cpu"), World())
    config.run.mkdir(parents=True, exist_ok=True)
    content = {"science": fields_of(resolved, "science"), **identity}
    write_json(config.run / "config.json", content)


def rewrite(trial: sweep.Trial, fingerprint: str = "", **science: Any) -> None:
    """Change science fields or the fingerprint of the data in a trial's config.json."""
    stored = json.loads((trial.config.run / "config.json").read_text())
    stored["science"] |= science
    stored["data"]["fingerprint"] = fingerprint or stored["data"]["fingerprint"]
    write_json(trial.config.run / "config.json", stored)
