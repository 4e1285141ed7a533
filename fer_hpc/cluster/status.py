"""Status, logs and cancelling of jobs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fer_hpc.cluster.records import read_records
from fer_hpc.cluster.slurm import ENDED, command_lines, job_states
from fer_hpc.config import UserError
from fer_hpc.config.commands import LogsConfig
from fer_hpc.files import read_json
from fer_hpc.run.folder import read_rows, read_status


def job_status(paths: tuple[Path, ...]) -> list[dict[str, Any]]:
    """A row for every run and every other folder with jobs below `paths`, and one for each waiting job of no folder yet."""
    folders = _folders(paths)
    noted = {folder: [entry["job"] for entry in read_records(folder)] for folder in folders}
    states = job_states(
        [job for jobs in noted.values() for job in jobs if not job.startswith("local")]
    )
    rows = []
    for folder in folders:
        row: dict[str, Any] = {
            "folder": str(folder),
            "state": "waiting",
            "epoch": "",
            "val_accuracy": None,
            "why": "",
        }
        stored = read_json(folder / "config.json")
        if stored:
            state, history = read_status(folder), read_rows(folder)
            row |= {"state": state["state"], "why": state["why"]}
            row["epoch"] = (
                f"{history[-1]['epoch'] if history else 0} of {stored['science']['epochs']}"
            )
            row["val_accuracy"] = max(
                (r["val_accuracy"] for r in history if "val_accuracy" in r), default=None
            )
        row["jobs"] = [
            {
                "job": job,
                "state": states.get(job, ("", ""))[0],
                "reason": states.get(job, ("", ""))[1],
            }
            for job in noted[folder]
        ]
        if not stored and row["jobs"]:
            last = row["jobs"][-1]
            there = (folder / "manifest.json").exists()
            row["state"] = "finished" if there else last["state"].lower() or "unknown"
            row["why"] = last["reason"]
        rows.append(row)
    known = {job for jobs in noted.values() for job in jobs}
    for line in command_lines("squeue", "-h", "-r", "--me", "-t", "PENDING", "-o", "%i|%j|%r"):
        job, name, reason = line.split("|", 2)
        if name.startswith("fer-") and job not in known:
            rows.append(
                {
                    "folder": name,
                    "state": "waiting",
                    "epoch": "",
                    "val_accuracy": None,
                    "why": reason,
                    "jobs": [{"job": job, "state": "PENDING", "reason": reason}],
                }
            )
    return rows


def _folders(paths: tuple[Path, ...]) -> list[Path]:
    """Run folders and other folders with job records, among `paths` and below."""
    found: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"{path}: no such folder; give run folders or folders of them, or set FER_RUNS"
            )
        for pattern in ("config.json", "*/config.json", "*/*/config.json"):
            found |= {p.parent for p in path.glob(pattern)}
        for pattern in ("jobs", "*/jobs", "*/*/jobs"):
            found |= {p.parent for p in path.glob(pattern) if any(p.glob("[0-9]*.json"))}
    return sorted(found)


def format_status(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no run and no job"
    width = max(len(row["folder"]) for row in rows)
    lines = []
    for row in rows:
        best = "" if row["val_accuracy"] is None else f"best val {row['val_accuracy']:.4f}"
        last = row["jobs"][-1] if row["jobs"] else None
        job = f"job {last['job']} {last['state'].lower()}".rstrip() if last else ""
        lines.append(
            f"{row['folder']:<{width}}  {row['state']:<11} {row['epoch']:>10}  {best:<15}  {job:<22} {row['why']}"
        )
    return "\n".join(line.rstrip() for line in lines)


def follow_logs(config: LogsConfig) -> Iterator[str]:
    """The last lines of every rank's log of a folder's newest job; with --follow, what they get from then on."""
    if not config.run.is_dir():
        raise UserError(f"{config.run}: no such folder; give a run folder")
    found = read_records(config.run)
    if not found:
        raise UserError(f"{config.run}: no job has worked on it (it was started by hand)")
    newest = found[-1]
    places: dict[Path, int] = {}
    while True:
        for path in sorted(
            {
                *(p for job in newest["logs"] for p in (config.run / "logs").glob(f"{job}-*.log")),
                *(p for pattern in newest["logs"] for p in (config.run / "jobs").glob(pattern)),
            }
        ):
            with path.open(errors="replace") as f:
                if path not in places:
                    lines = f.read().splitlines()[-config.lines :]
                else:
                    f.seek(places[path])
                    lines = f.read().splitlines()
                places[path] = f.tell()
            yield from (f"{path.name}: {line}" for line in lines)
        if not config.follow:
            if not places:
                yield f"job {newest['job']} has written no log yet"
            return
        time.sleep(1.0)


def cancel(paths: tuple[Path, ...]) -> list[str]:
    """End every living job noted in the folders; gives a line for each."""
    jobs = [entry["job"] for folder in _folders(paths) for entry in read_records(folder)]
    states = job_states([job for job in jobs if job.replace("_", "").isdigit()])
    alive = [job for job in dict.fromkeys(jobs) if job in states and states[job][0] not in ENDED]
    if alive:
        done = subprocess.run(["scancel", *alive], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"scancel: {done.stderr.strip()}")
    return [f"cancelled job {job} ({states[job][0].lower()})" for job in alive] or [
        "no living job there"
    ]


def to_json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=1)
