"""Records of the jobs that have worked on a results folder, one JSON file each."""

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
    if isinstance(config, PreprocessConfig | ReportConfig | SweepConfig):
        return config.out
    return config.run


def record_job(folder: Path, job: str, command: list[str], logs: list[str]) -> None:
    """Write FOLDER/jobs/JOB.json; `logs` are glob patterns of the job's log files."""
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    record = {"job": job, "command": command, "logs": logs, "time": round(time.time(), 1)}
    write_json(folder / "jobs" / f"{job}.json", record)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The job records of a folder, oldest first."""
    records = [read_json(p) for p in (folder / "jobs").glob("[0-9]*.json")]
    return sorted((record for record in records if record), key=lambda record: record["time"])
