"""Records of the jobs that have worked on a results folder, one JSON file each."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from fer_hpc.config import GanConfig, TrainConfig
from fer_hpc.config.commands import (
    DoctorConfig,
    EvaluateConfig,
    PreprocessConfig,
    ReportConfig,
    SweepConfig,
)
from fer_hpc.files import read_json, write_json

JobCommand = (
    TrainConfig
    | GanConfig
    | EvaluateConfig
    | PreprocessConfig
    | DoctorConfig
    | ReportConfig
    | SweepConfig
)
TEXTS = ("job", "scheduler", "cluster", "name")


def results_dir(config: JobCommand) -> Path:
    """The folder that a command's results, logs and job records go to."""
    if isinstance(config, PreprocessConfig | ReportConfig | SweepConfig):
        return config.out
    if isinstance(config, DoctorConfig):
        return config.out.parent if config.out else config.folder
    return config.run


def record_job(folder: Path, job: str, command: list[str], logs: list[str], **more: Any) -> None:
    """Write FOLDER/jobs/JOB.json; `logs` are glob patterns of the job's log files.

    more: scheduler, cluster, name, submitted (seconds since 1970), starts, code
    """
    path = folder / "jobs" / f"{job}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = read_record(path) or {"time": round(time.time(), 1)}
    known = [log for log in record.get("logs", []) if log not in logs]
    record |= {"job": job, "command": command, "logs": known + logs, **more}
    write_json(path, record)


def read_record(path: Path) -> dict[str, Any] | None:
    """A job's record; None where the file is missing or is no record.

    A log's pattern that leaves the folder is left out.
    """
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("job"), str):
        return None
    if not _is_number(record.get("time")) or not isinstance(record.get("command", []), list):
        return None
    logs = record.get("logs")
    record["logs"] = [
        log
        for log in (logs if isinstance(logs, list) else [])
        if isinstance(log, str) and log and "/" not in log and log != ".."
    ]
    # Records of earlier versions name only the job.
    default = {"scheduler": "slurm" if record["job"][:1].isdigit() else "local", "submitted": 0.0}
    record = {"cluster": "", "name": "", "starts": [], **default, **record}
    good = all(isinstance(record[key], str) for key in TEXTS) and _is_number(record["submitted"])
    starts = record["starts"]
    good = good and isinstance(starts, list) and all(isinstance(s, dict) for s in starts)
    return record if good else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The job records of a folder, oldest first. What is no record is left out."""
    patterns = ("jobs/[0-9]*.json", "jobs/local-*.json")
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    records = [record for path in paths if (record := read_record(path))]
    return sorted(records, key=lambda record: record["time"])
