"""Status, logs and cancelling of jobs. Everything but `cancel` only reads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fer_hpc.cluster.records import read_records
from fer_hpc.cluster.slurm import ENDED, cancel_jobs, job_states, waiting_jobs
from fer_hpc.config import UserError
from fer_hpc.config.commands import LogsConfig
from fer_hpc.files import read_json
from fer_hpc.run.folder import read_rows, read_status

JobStates = dict[str, tuple[str, str]]


def job_status(paths: tuple[Path, ...]) -> list[dict[str, Any]]:
    """A row for each run and each other folder with jobs among `paths` and below.

    Waiting jobs of this user that have no folder yet follow, a row each.
    """
    folders = _folders(paths)
    jobs_of = {folder: [record["job"] for record in read_records(folder)] for folder in folders}
    known = {job for jobs in jobs_of.values() for job in jobs}
    states = job_states([job for job in known if not job.startswith("local")])
    rows = [_row_of_folder(folder, jobs_of[folder], states) for folder in folders]
    for job, name, reason in waiting_jobs():
        if name.startswith("fer-") and job not in known:
            row = _new_row(name)
            row |= {"why": reason, "jobs": [{"job": job, "state": "PENDING", "reason": reason}]}
            rows.append(row)
    return rows


def _new_row(folder: str) -> dict[str, Any]:
    return {"folder": folder, "state": "waiting", "epoch": "", "val_accuracy": None, "why": ""}


def _row_of_folder(folder: Path, jobs: list[str], states: JobStates) -> dict[str, Any]:
    row = _new_row(str(folder))
    stored = read_json(folder / "config.json")
    if stored:
        state, history = read_status(folder), read_rows(folder)
        epochs_done = history[-1]["epoch"] if history else 0
        accuracies = [r["val_accuracy"] for r in history if "val_accuracy" in r]
        row |= {
            "state": state["state"],
            "epoch": f"{epochs_done} of {stored['science']['epochs']}",
            "val_accuracy": max(accuracies, default=None),
            "why": state["why"],
        }
    row["jobs"] = []
    for job in jobs:
        state_of_job, reason = states.get(job, ("", ""))
        row["jobs"].append({"job": job, "state": state_of_job, "reason": reason})
    if not stored and jobs:
        newest = row["jobs"][-1]
        has_shards = (folder / "manifest.json").exists()
        row["state"] = "finished" if has_shards else newest["state"].lower() or "unknown"
        row["why"] = newest["reason"]
    return row


def _folders(paths: tuple[Path, ...]) -> list[Path]:
    """Run folders and other folders with job records, among `paths` and below."""
    folders: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"{path}: no such folder; give run folders or folders of them, or set FER_RUNS"
            )
        for pattern in ("config.json", "*/config.json", "*/*/config.json"):
            folders |= {p.parent for p in path.glob(pattern)}
        for pattern in ("jobs", "*/jobs", "*/*/jobs"):
            folders |= {p.parent for p in path.glob(pattern) if any(p.glob("[0-9]*.json"))}
    return sorted(folders)


def format_status(rows: list[dict[str, Any]]) -> str:
    """The rows of `job_status` as aligned lines."""
    if not rows:
        return "no run and no job"
    width = max(len(row["folder"]) for row in rows)
    lines = []
    for row in rows:
        best = "" if row["val_accuracy"] is None else f"best val {row['val_accuracy']:.4f}"
        newest = row["jobs"][-1] if row["jobs"] else None
        job = f"job {newest['job']} {newest['state'].lower()}".rstrip() if newest else ""
        progress = f"{row['state']:<11} {row['epoch']:>10}  {best:<15}"
        lines.append(f"{row['folder']:<{width}}  {progress}  {job:<22} {row['why']}".rstrip())
    return "\n".join(lines)


def to_json(rows: list[dict[str, Any]]) -> str:
    """The rows of `job_status` for programs."""
    return json.dumps(rows, indent=1)


def follow_logs(config: LogsConfig) -> Iterator[str]:
    """The last lines of every rank's log of a folder's newest job.

    With --follow, also every line that is written from then on.
    """
    if not config.run.is_dir():
        raise UserError(f"{config.run}: no such folder; give a run folder")
    records = read_records(config.run)
    if not records:
        raise UserError(f"{config.run}: no job has worked on it (it was started by hand)")
    newest = records[-1]
    offsets: dict[Path, int] = {}  # how much of each file has been shown
    while True:
        for path in _log_files(config.run, newest["logs"]):
            with path.open(errors="replace") as f:
                if path in offsets:
                    f.seek(offsets[path])
                    lines = f.read().splitlines()
                else:
                    lines = f.read().splitlines()[-config.lines :]
                offsets[path] = f.tell()
            yield from (f"{path.name}: {line}" for line in lines)
        if not config.follow:
            if not offsets:
                yield f"job {newest['job']} has written no log yet"
            return
        time.sleep(1.0)


def _log_files(folder: Path, patterns: list[str]) -> list[Path]:
    """The files that a job record's `logs` name: RUN/logs/JOB-RANK.log or RUN/jobs/PATTERN."""
    files = {p for pattern in patterns for p in (folder / "logs").glob(f"{pattern}-*.log")}
    files |= {p for pattern in patterns for p in (folder / "jobs").glob(pattern)}
    return sorted(files)


def cancel(paths: tuple[Path, ...]) -> list[str]:
    """End every living job recorded in the folders; gives a line for each."""
    jobs = [record["job"] for folder in _folders(paths) for record in read_records(folder)]
    states = job_states([job for job in jobs if job.replace("_", "").isdigit()])
    alive = [job for job in dict.fromkeys(jobs) if job in states and states[job][0] not in ENDED]
    if not alive:
        return ["no living job there"]
    cancel_jobs(alive)
    return [f"cancelled job {job} ({states[job][0].lower()})" for job in alive]
