"""The state of every part of a study, derived from the files of its results and jobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.cluster.records import read_records
from fer_hpc.cluster.status import states_of
from fer_hpc.config import UserError
from fer_hpc.data.manifest import Manifest, find_manifest
from fer_hpc.files import DAMAGE, damage_reason, read_json, read_record, write_json
from fer_hpc.run.folder import find_run_config, read_rows, read_status
from fer_hpc.run.plugins import changed_files
from fer_hpc.study.graph import Part
from fer_hpc.study.plan import Plan
from fer_hpc.sweep.grid import changed_files_of_trials

RECORD = {"part": str, "settings": {}, "hash": str, "failed": str, "starts": int}
OVER = ("finished", "failed", "blocked", "left out")  # nothing will change by itself
STOPPING = ("failed", "blocked", "left out")  # what needs such a part cannot run


@dataclass(frozen=True)
class PartState:
    """waiting, running, finished, failed, blocked (by one that failed) or left out; and why."""

    state: str
    why: str = ""
    share: float = 0.0  # of the work that is done
    note: str = ""  # how far it is, in words
    job: str = ""


@dataclass(frozen=True)
class JobOfPart:
    """The newest job of a part, as its scheduler shows it."""

    job: str
    scheduler: str
    state: str
    alive: bool
    reason: str


# ---- records -------------------------------------------------------------------------------------


def record_path(plan: Plan, part: Part) -> Path:
    return plan.out / "parts" / f"{part.name.replace('/', '.')}.json"


def read_part(plan: Plan, part: Part) -> dict[str, Any] | None:
    """What was recorded when the part was started; None where it never was."""
    return read_record(record_path(plan, part), RECORD)


def record_part(plan: Plan, part: Part, failed: str = "", started: bool = False) -> None:
    """Keep the settings that a part starts with, or why it failed."""
    path = record_path(plan, part)
    before = read_part(plan, part) or {"starts": 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "part": part.name,
        "settings": part.settings,
        "hash": part.hash,
        "starts": before["starts"] + started,
        "failed": failed,
    }
    write_json(path, content)


def check_edits(plan: Plan, parts: list[Part]) -> None:
    """A UserError where study.toml has changed for a part that has results, or OUT holds the
    results of another study."""
    for part in parts:
        if part.kind == "report" or not _has_results(part):
            continue
        stored = read_part(plan, part)
        if stored is None:
            raise UserError(
                f"{part.folder} has results that this study did not make: it is a part of another "
                "study; move it away, or give a new OUT"
            )
        if stored["hash"] == part.hash:
            if changed := changed_file(part):
                raise UserError(
                    f"{changed}: restore the file, or delete {part.folder} to run it again, or "
                    "start another study in a new OUT"
                )
            continue
        then, now = stored["settings"], part.settings
        key = next((k for k in {**then, **now} if then.get(k) != now.get(k)), "")
        raise UserError(
            f"study.toml: {key} = {now.get(key)!r}, but {part.name} has run with "
            f"{then.get(key)!r}: change it back, or delete {part.folder} to run it again, or "
            "start another study in a new OUT"
        )


def changed_file(part: Part) -> str:
    """Which plugin or initial weights are not what they were when a training began; "" for none."""
    files = {key.rpartition(".")[2]: value for key, value in part.settings.items()}
    plugins = [Path(path).expanduser() for path in files.get("plugin", ())]
    init_from = Path(files["init_from"]) if files.get("init_from") else None
    if part.kind == "grid":
        return changed_files_of_trials(part.folder, plugins, init_from)
    return next(iter(changed_files(part.folder, plugins, init_from)), "")


def _has_results(part: Part) -> bool:
    """Whether the folder of a part holds more than jobs and logs that came to nothing."""
    if part.kind in ("val", "test"):
        return (part.folder / f"eval-{part.kind}.json").exists()
    first = {"shards": "parts", "grid": "sweep.json", "doctor": "findings.json"}
    return (part.folder / first.get(part.kind, "config.json")).exists()


# ---- results -------------------------------------------------------------------------------------


def result_file(part: Part) -> Path:
    """The file that stands for a finished part."""
    name = {
        "shards": "manifest.json",
        "doctor": "findings.json",
        "grid": "summary.json",
        "val": "eval-val.json",
        "test": "eval-test.json",
        "report": "index.html",
    }
    return part.folder / name.get(part.kind, "metrics.jsonl")


def manifest_of(plan: Plan, part: Part) -> Manifest | None:
    """The shards that a part reads; None before they are made."""
    return find_manifest(plan.out / "shards" / part.product) if part.product else None


def is_finished(plan: Plan, part: Part, parts: Iterable[Part] = ()) -> bool:
    """Whether the results of a part are complete. `parts`: all, which the page must be newer than.

    Raises UserError for a damaged file.
    """
    file = result_file(part)
    if not file.exists():
        return False
    if part.kind == "report":
        page_time = file.stat().st_mtime
        files = [result_file(other) for other in parts if other.kind != "report"]
        return all(other.stat().st_mtime <= page_time for other in files if other.exists())
    manifest = manifest_of(plan, part)
    if manifest is None or part.kind == "shards":
        return manifest is not None
    if part.kind in ("train", "gan"):
        stored = find_run_config(part.folder)
        same = stored and stored["data"]["fingerprint"] == manifest.fingerprint
        return bool(same) and read_status(part.folder)["state"] == "finished"
    content = read_json(file) or {}
    if part.kind == "grid":
        expected = trials_of(part)
        best = (part.folder / "best.json").exists()
        done = content.get("finished") == content.get("trials") and best
        return bool(done and content.get("trials", 0) >= expected)
    if part.kind == "doctor":
        return bool(content.get("fingerprint") == manifest.fingerprint)
    if read_status(part.folder)["state"] != "finished":
        return False
    return content.get("data") == manifest.fingerprint and content.get("finished") is not False


def trials_of(grid: Part) -> int:
    """The number of a grid's trials."""
    lists = [grid.settings[f"grid.{key}"] for key in ("batch_sizes", "lrs", "seeds")]
    return len(lists[0]) * len(lists[1]) * len(lists[2])


def lacking(plan: Plan, part: Part) -> str:
    """Why the data has not what a part needs; "" where it has, or is not there yet."""
    manifest = manifest_of(plan, part)
    if manifest is None or part.kind in ("shards", "doctor"):
        return ""
    if part.is_gan:
        if "Neutral" not in manifest.classes:
            return f"the data has no class Neutral (classes: {', '.join(manifest.classes)})"
        neutral = manifest.class_counts("train")[manifest.classes.index("Neutral")]
        if not 0 < neutral < manifest.n("train"):
            return "the data needs neutral and other faces for training"
    if part.kind in ("val", "test") and not manifest.n(part.kind):
        return f"the data has no {part.kind} split (study.toml: split)"
    return ""


# ---- states --------------------------------------------------------------------------------------


def jobs_of(plan: Plan, parts: list[Part]) -> dict[str, JobOfPart]:
    """The newest job of every part that has one; a living job counts as newest."""
    folders = dict.fromkeys([plan.out, *(part.folder for part in parts)])
    records = [record for folder in folders for record in read_records(folder)]
    states = states_of(records) if records else {}
    job_by_part: dict[str, JobOfPart] = {}
    for record in sorted(records, key=lambda r: r["time"]):
        state = states.get((record["scheduler"], record["job"]))
        alive = bool(state and state.alive)
        ends = [line for s in record["starts"][-1:] for line in s.get("end", {}).get("lines", [])]
        reason = record.get("refused") or error_line(ends) or (state.reason if state else "")
        word = state.state if state else ""
        for name in record.get("parts", []):
            if alive or name not in job_by_part or not job_by_part[name].alive:
                job_by_part[name] = JobOfPart(
                    record["job"], record["scheduler"], word, alive, reason
                )
    return job_by_part


def error_line(lines: list[str]) -> str:
    """The line of a log that says what went wrong; else its last one."""
    named = [line for line in lines if "error:" in line.lower()]
    return (named or [line for line in lines if line.strip()] or [""])[-1].strip()


def states_of_parts(
    plan: Plan, parts: list[Part], jobs: dict[str, JobOfPart], known: Iterable[str] = ()
) -> dict[str, PartState]:
    """The state of each part. `known`: parts that were found finished before, not looked at."""
    states: dict[str, PartState] = {}
    done = set(known)
    for part in parts:
        if part.name in done:
            states[part.name] = PartState("finished", share=1.0)
            continue
        states[part.name] = _state(plan, part, parts, jobs.get(part.name), states)
    return states


def _state(
    plan: Plan,
    part: Part,
    parts: list[Part],
    job: JobOfPart | None,
    before: dict[str, PartState],
) -> PartState:
    try:
        if is_finished(plan, part, parts) and not (job and job.alive and part.kind == "report"):
            return PartState("finished", share=1.0)
        lack = lacking(plan, part)
        share, note = progress(plan, part)
    except DAMAGE as error:
        return PartState("failed", damage_reason(error))
    if lack:
        return PartState("left out", lack)
    if job and job.alive:
        waits = job.state in ("PENDING", "QW", "HQW", "HOLD", "WAITING")
        word = f"job {job.job} {job.state.lower()}" if job.scheduler != "local" else ""
        note = ", ".join(filter(None, [note, word]))
        return PartState("waiting" if waits else "running", "", share, note, job.job)
    if part.kind in ("train", "gan") and read_status(part.folder)["state"] == "running":
        return PartState("running", "", share, note)
    for name in part.needs:
        if before[name].state in STOPPING:
            kind = before[name].state
            state = "left out" if kind == "left out" else "blocked"
            return PartState(state, f"needs {name}, which {_has(kind)}")
    stored = read_part(plan, part)
    if stored and stored["failed"]:
        return PartState("failed", stored["failed"], share, note)
    if job and job.scheduler != "local" and job.state:
        why = f"job {job.job} {job.state.lower()}" + (f": {job.reason}" if job.reason else "")
        return PartState("failed", why, share, note)
    return PartState("waiting", "", share, note)


def _has(state: str) -> str:
    return {"failed": "has failed", "blocked": "is blocked", "left out": "is left out"}[state]


def progress(plan: Plan, part: Part) -> tuple[float, str]:
    """The share of a part's work that is done, and the same in words."""
    if part.kind in ("train", "gan"):
        if not (part.folder / "config.json").exists():
            return 0.0, ""
        stored = find_run_config(part.folder) or {"science": {}}
        rows, epochs = read_rows(part.folder), stored["science"].get("epochs") or part.epochs
        epoch = rows[-1].get("epoch") or 0 if rows else 0
        return epoch / max(epochs, 1), f"epoch {epoch} of {epochs}"
    if part.kind == "grid":
        trials = [path.parent for path in part.folder.glob("trials/*/config.json")]
        done = sum(read_status(trial)["state"] == "finished" for trial in trials)
        if not trials:
            return 0.0, ""
        return done / trials_of(part), f"{done} of {trials_of(part)} trials"
    return 0.0, ""
