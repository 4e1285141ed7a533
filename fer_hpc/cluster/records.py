"""Which jobs have worked on a results folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fer_hpc.config import GanConfig, TrainConfig
from fer_hpc.config.commands import EvaluateConfig, PreprocessConfig, ReportConfig, SweepConfig
from fer_hpc.files import read_json, write_json

JobCommand = (
    TrainConfig | GanConfig | EvaluateConfig | PreprocessConfig | ReportConfig | SweepConfig
)


def results_dir(config: JobCommand) -> Path:
    """The folder that a command's results, logs and job records go to."""
    return (
        config.out
        if isinstance(config, PreprocessConfig | ReportConfig | SweepConfig)
        else config.run
    )


def record_job(folder: Path, job: str, command: list[str], logs: list[str]) -> None:
    """Note in a results folder that `job` works on it; `logs` are patterns of its log files."""
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    entry = {"job": job, "command": command, "logs": logs, "time": round(time.time(), 1)}
    write_json(folder / "jobs" / f"{job}.json", entry)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The jobs noted in a folder, oldest first."""
    found = [read_json(p) for p in (folder / "jobs").glob("[0-9]*.json")]
    return sorted((entry for entry in found if entry), key=lambda entry: entry["time"])
