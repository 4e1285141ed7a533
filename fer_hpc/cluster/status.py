"""Status, logs and cancelling of jobs. Everything but `cancel` only reads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fer_hpc.cluster.records import read_records
from fer_hpc.cluster.scheduler import JobState, Usage, scheduler
from fer_hpc.cluster.summary import usage_line
from fer_hpc.config import UserError
from fer_hpc.config.commands import LogsConfig
from fer_hpc.config.errors import one_line
from fer_hpc.data.pictures import printable
from fer_hpc.files import DAMAGE, check_shape, damage_reason
from fer_hpc.run.folder import (
    best_row,
    damaged_records,
    read_history,
    read_run_config,
    read_status,
    say_unreadable,
)

SCHEDULERS = ("slurm", "sge")
CLOCK_S = 120.0  # by which clocks may differ: a record is made before its job is numbered
TRIALS = "*/trials/*/config.json"  # of sweeps in a folder


def job_status(paths: tuple[Path, ...]) -> list[dict[str, Any]]:
    """A row for each run and each other folder with jobs among `paths` and below.

    Waiting jobs of this user that have no folder yet follow, a row each.
    """
    folders = _folders(paths)
    records = {folder: read_records(folder) for folder in folders}
    states = states_of([record for group in records.values() for record in group])
    rows = [_row_of_folder(folder, records[folder], states) for folder in folders]
    known = {job for _, job in states}
    for job, state in [pair for name in SCHEDULERS for pair in scheduler(name).waiting()]:
        if state.job_name.startswith("fer-") and job not in known:
            row = _new_row(state.job_name)
            shown = {"job": job, "state": state.state, "reason": state.reason}
            rows.append(row | {"why": state.reason, "jobs": [shown]})
    if len(rows) == 1:
        rows[0]["usage"] = usage_line(_usage(records[folders[0]])) if folders else ""
    return rows


def states_of(records: list[dict[str, Any]]) -> dict[tuple[str, str], JobState]:
    """The state of each recorded job, by scheduler and job; one that another cluster numbered alike
    is not among them."""
    state_by_job: dict[tuple[str, str], JobState] = {}
    for name in ("local", *SCHEDULERS):
        by, group = scheduler(name), [r for r in records if r["scheduler"] == name]
        states = by.states(list(dict.fromkeys(r["job"] for r in group)))
        cluster = by.cluster() if states else ""
        for record in group:
            state = states.get(record["job"])
            if state and _is_same_job(record, state, cluster):
                state_by_job[name, record["job"]] = state
    return state_by_job


def _is_same_job(record: dict[str, Any], state: JobState, cluster: str) -> bool:
    """Whether the scheduler's job is the recorded one: cluster, name and time of submission fit."""
    if record["cluster"] and record["cluster"] != cluster:
        return False
    if record["name"] and state.job_name and record["name"] != state.job_name:
        return False
    if not record["cluster"]:  # of an earlier version, whose jobs were called fer-...
        return (state.job_name or record["job"]).startswith(("fer-", "local"))
    return not state.submitted or state.submitted >= record["submitted"] - CLOCK_S


def _usage(records: list[dict[str, Any]]) -> Usage | None:
    for name in SCHEDULERS:
        jobs = [r["job"] for r in records if r["scheduler"] == name]
        if jobs and (usage := scheduler(name).usage(jobs)):
            return usage
    return None


def _new_row(folder: str) -> dict[str, Any]:
    return {"folder": folder, "state": "waiting", "epoch": "", "val_accuracy": None, "why": ""}


def _row_of_folder(
    folder: Path, records: list[dict[str, Any]], states: dict[tuple[str, str], JobState]
) -> dict[str, Any]:
    row = _new_row(str(folder))
    stored = (folder / "config.json").exists()
    if stored:
        try:
            row |= _progress(folder)
        except DAMAGE as error:
            row |= {"state": "damaged", "why": damage_reason(error)}
    row["jobs"] = []
    for record in records:
        state = states.get((record["scheduler"], record["job"]), JobState(""))
        reason = record.get("refused", state.reason)
        shown = {"job": record["job"], "state": state.state, "reason": reason}
        row["jobs"].append(shown | {"starts": len(record["starts"])})
    row["jobs"] = [row["jobs"][i] for i in _by_weight(records, states)]
    if not stored and records:
        newest = row["jobs"][-1]
        has_shards = (folder / "manifest.json").exists()
        row["state"] = "finished" if has_shards else newest["state"].lower() or "unknown"
        row["why"] = newest["reason"]
    return row


def _by_weight(records: list[dict[str, Any]], states: dict[tuple[str, str], JobState]) -> list[int]:
    """The places of the records, what counts most last: a living job, then one that has started."""

    def weight(i: int) -> tuple[bool, bool, int]:
        state = states.get((records[i]["scheduler"], records[i]["job"]))
        return bool(state and state.alive), "refused" not in records[i], i

    return sorted(range(len(records)), key=weight)


def _progress(folder: Path) -> dict[str, Any]:
    """What a row says of a run's folder; an error of DAMAGE where that cannot be read."""
    science = read_run_config(folder)["science"]
    state, (history, damage) = read_status(folder), read_history(folder)
    check_shape(history, [{"epoch": int, "val_accuracy": (float, None)}, ...], "metrics.jsonl")
    return {
        "state": state["state"],
        "epoch": f"{history[-1]['epoch'] if history else 0} of {science['epochs']}",
        "val_accuracy": (best_row(history) or {}).get("val_accuracy"),
        "why": "; ".join(filter(None, [state["why"], *damaged_records(folder), *damage])),
    }


def _folders(paths: tuple[Path, ...]) -> list[Path]:
    """Run folders and other folders with job records, among `paths` and below."""
    folders: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"{path}: no such folder; give run folders or folders of them, or set FER_RUNS"
            )
        say_unreadable(path, levels=2)
        for pattern in ("config.json", "*/config.json", "*/*/config.json", TRIALS):
            folders |= {p.parent for p in path.glob(pattern)}
        for pattern in ("jobs", "*/jobs", "*/*/jobs"):
            folders |= {p.parent for p in path.glob(pattern) if read_records(p.parent)}
    return sorted(folders)


def format_status(rows: list[dict[str, Any]]) -> str:
    """The rows of `job_status` as aligned lines."""
    if not rows:
        return "no run and no job"
    names = [one_line(printable(row["folder"])) for row in rows]
    width = max(map(len, names))
    lines = []
    for name, row in zip(names, rows, strict=True):
        best = "" if row["val_accuracy"] is None else f"best val {row['val_accuracy']:.4f}"
        newest = row["jobs"][-1] if row["jobs"] else None
        job = f"job {newest['job']} {newest['state'].lower()}".rstrip() if newest else ""
        starts = newest.get("starts", 0) if newest else 0
        job += f", {starts} starts" if starts > 1 else ""
        progress = f"{row['state']:<11} {row['epoch']:>10}  {best:<15}"
        why = one_line(row["why"])
        lines.append(f"{name:<{width}}  {progress}  {job:<22} {why}".rstrip())
        lines += [f"    {row['usage']}"] if row.get("usage") else []
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
    newest = records[_by_weight(records, states_of(records))[-1]]
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
    """The files that a job record's `logs` name, in RUN/logs and RUN/jobs.

    Records of earlier versions have JOB for JOB-*.log.
    """
    kinds = [f"logs/{{}}{end}" for end in ("", "-*.log")] + ["jobs/{}"]
    files = {p for kind in kinds for name in patterns for p in folder.glob(kind.format(name))}
    return sorted(files)


def cancel(paths: tuple[Path, ...]) -> list[str]:
    """End every living job recorded in the folders; gives a line for each."""
    records = [record for folder in _folders(paths) for record in read_records(folder)]
    states = states_of(records)
    lines = []
    for name in ("local", *SCHEDULERS):
        alive = [job for (by, job), state in states.items() if by == name and state.alive]
        if alive:
            scheduler(name).cancel(alive)
        lines += [f"cancelled job {job} ({states[name, job].state.lower()})" for job in alive]
    known = {job for _, job in states}
    foreign = [r["job"] for r in records if r["job"] not in known and r["cluster"]]
    if not lines and foreign:
        return [f"no living job there (of another cluster or gone: {', '.join(foreign)})"]
    return lines or ["no living job there"]
