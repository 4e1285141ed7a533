"""The run folder: who writes it, what its history is. Standard library only.

    config.json                     what the run is (science fields, data fingerprint)
    attempts/0001/ 0002/ ...        one per start; only its owner writes there
        owner.json                  host, process and scheduler job that claimed it
        heartbeat                   touched while the owner lives
        environment.json            versions, devices, and the parent checkpoint it started from
        000000004096.pt             checkpoints, named by images seen
        metrics.jsonl timing.jsonl  a row per epoch (reproducible / not)
        status.json                 running | interrupted | finished | failed | superseded, and why
    tb/                             TensorBoard events
    final.pt best.pt metrics.jsonl  the outcome, once finished       status.json   a copy for people

Each start claims the next number, and a reader follows the newest attempt back through the parents. So whatever a
paused or cut-off older writer still does, it does in a folder whose later part nobody reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.commands import EvaluateConfig
from fer_hpc.config import UserError

HEARTBEAT_S = 5.0
HALTED = "halted, as the sweep asked"
MAX_STARTS = 3  # in a row without a gained image; then a scheduler's restarts end
LEASE_S = 30.0  # a heartbeat older than this, seen from another host, belongs to a dead process


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` in one step: readers see the old content or the new, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- reading -----------------------------------------------------------------------------------------------------


def attempts(run: Path) -> list[int]:
    """Numbers of all attempts, oldest first."""
    folder = run / "attempts"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def attempt_path(run: Path, number: int) -> Path:
    return run / "attempts" / f"{number:04d}"


def config(run: Path) -> dict[str, Any]:
    """The stored configuration; a UserError where `run` is not a run folder."""
    stored = read_json(run / "config.json")
    if stored is None:
        what = "has no config.json" if run.is_dir() else "does not exist"
        raise UserError(f"{run} is not a run folder: it {what}; give the folder that --run named at training")
    return stored


def find_runs(paths: tuple[Path, ...]) -> list[Path]:
    """The run folders among `paths` and below them, in order."""
    found: list[Path] = []
    for path in paths:
        here = [path] if (path / "config.json").exists() else sorted(p.parent for p in path.glob("**/config.json"))
        if not here:
            raise UserError(
                f"{path}: no run folder there or below ({'no config.json in it' if path.is_dir() else 'no such folder'})"
            )
        found += [p for p in here if p not in found]
    return found


def chain(run: Path) -> Iterator[tuple[int, float]]:
    """(attempt, images) newest first: the run's history holds that attempt's records up to that many images seen."""
    limit, numbers = math.inf, attempts(run)
    while numbers:
        number = numbers.pop()
        environment = read_json(attempt_path(run, number) / "environment.json")
        if environment is None:  # claimed, but killed before it began: no part of the history
            continue
        yield number, limit
        parent = environment["parent"]
        if parent is None:
            return
        limit = min(limit, parent["images_seen"])
        numbers = [n for n in numbers if n <= parent["attempt"]]


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The merged rows of all attempts, in order, each image count once."""
    merged: list[dict[str, Any]] = []
    for number, limit in chain(run):
        merged = [row for row in _jsonl(attempt_path(run, number) / name) if row["images_seen"] <= limit] + merged
    return merged


def _jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    complete = path.read_text().split("\n")[:-1]  # a line without its newline was cut off by a kill
    return [json.loads(line) for line in complete]


def checkpoints(run: Path) -> list[tuple[int, int, Path]]:
    """(attempt, images_seen, file) of every checkpoint in the run's history, newest first."""
    return [
        (number, images, path)
        for number, limit in chain(run)
        for images, path in sorted(((int(p.stem), p) for p in _files(run, number)), reverse=True)
        if images <= limit
    ]


def jsonl(values: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in values).encode()


def _files(run: Path, number: int) -> list[Path]:
    return [p for p in attempt_path(run, number).glob("*.pt") if p.stem.isdigit()]


def environment(run: Path) -> dict[str, Any]:
    """environment.json of the newest attempt that began; empty where none did."""
    for number, _ in chain(run):
        return read_json(attempt_path(run, number) / "environment.json")
    return {}


def data_path(run: Path) -> Path:
    """Where the run's data was at its newest start."""
    return Path(environment(run).get("data", config(run)["data"]["path"]))


def status(run: Path) -> dict[str, Any]:
    """{"state", "why", ...} of the newest attempt; a `running` one whose process is gone reads as interrupted."""
    numbers = attempts(run)
    if not numbers:
        return {"state": "new", "why": ""}
    path = attempt_path(run, numbers[-1])
    found = read_json(path / "status.json") or {"state": "running", "why": "starting"}
    if found["state"] == "running" and not _holder(run, path):
        found = {**found, "state": "interrupted", "why": "its process is gone"}
    return found


def no_gain(run: Path) -> str:
    """Why a scheduler does not start this run again."""
    return (
        f"{run}: {MAX_STARTS} starts in a row gained no image, so the job is not requeued; see their logs in {run / 'logs'}, "
        "mend the cause (a time limit below the start-up time?), and submit again"
    )


def starts_without_gain(run: Path) -> int:
    """How many starts in a row, up to the newest, left no checkpoint beyond the one they began with."""
    count, reached = 0, max((images for _, images, _ in checkpoints(run)), default=0)
    for number in reversed(attempts(run)):
        environment = read_json(attempt_path(run, number) / "environment.json")
        parent = environment["parent"] if environment else None
        if environment and (parent["images_seen"] if parent else 0) < reached:
            break
        count += 1
    return count


def result_name(config: EvaluateConfig, trained_on: str) -> str:
    """What the files of a scoring are called after: the split, the views averaged, and a data set that is not the run's
    own (`trained_on`: the fingerprint of that)."""
    name = config.split if config.tta == "none" else f"{config.split}-{config.tta}"
    if config.data is None or (read_json(config.data / "manifest.json") or {}).get("fingerprint") == trained_on:
        return name
    return f"{name}-on-{re.sub(r'[^A-Za-z0-9_-]+', '_', config.data.absolute().name)}"


def outcome(run: Path, name: str) -> Path | None:
    """`final.pt` or `best.pt` of a finished run, from its newest attempt."""
    for number, _ in chain(run):
        path = attempt_path(run, number) / name
        return path if path.exists() else None
    return None


# ---- owning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """The scheduler's job this process belongs to."""

    id: str
    restarts: int = 0
    end: float = math.inf  # when it will be ended, seconds since 1970


def _place() -> str:
    """Where process ids mean the same: host, boot and pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "unknown"


def _process(pid: int) -> tuple[str, str]:
    """(state letter, start time) of a process; ("", "") where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def _heartbeat_age(run: Path, attempt: Path) -> float:
    """Seconds since the last heartbeat, both ends read from the file system's clock: hosts' clocks differ."""
    probe = run / f".clock-{socket.gethostname()}-{os.getpid()}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink(missing_ok=True)
    beat = attempt / "heartbeat"
    return now - (beat if beat.exists() else attempt).stat().st_mtime


def _holder(run: Path, attempt: Path, job: Job | None = None) -> str:
    """Who still holds `attempt`, in words; "" where the next start may have it."""
    state = (read_json(attempt / "status.json") or {}).get("state", "running")
    owner = read_json(attempt / "owner.json")
    if state != "running" or owner is None:
        return ""
    who = f"process {owner['pid']} on {owner['host']}" + (f", job {owner['job']}" if owner["job"] else "")
    if job and job.id == owner["job"] and job.restarts > owner["restarts"]:
        return ""  # the scheduler restarted this job: the earlier start is gone or cut off
    if owner["place"] == _place() != "unknown":
        letter, started = _process(owner["pid"])
        return who if started == owner["started"] and letter not in "TtZX" else ""  # stopped or dead: not holding
    return who if _heartbeat_age(run, attempt) < LEASE_S else ""


class Attempt:
    """This process's place in a run: its own folder, a heartbeat, and the end of it."""

    def __init__(self, run: Path, number: int) -> None:
        self.run, self.number, self.path = run, number, attempt_path(run, number)
        self._ended = threading.Event()
        self._checked = time.monotonic()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a full or absent file system must not end the thread
                (self.path / "heartbeat").touch()

    def is_newest(self) -> bool:
        """False once another start has claimed the run: this one must stop and write nothing more."""
        return not attempt_path(self.run, self.number + 1).exists()

    def superseded(self) -> bool:
        """The same question at most once a second, cheap enough to ask at every step."""
        if time.monotonic() - self._checked < 1.0:
            return False
        self._checked = time.monotonic()
        return not self.is_newest()

    def began(self, environment: dict[str, Any], parent: tuple[int, int, Path] | None) -> None:
        """Enter the history: from here on readers follow this attempt, back through `parent` (a `checkpoints` item).

        The parent checkpoint is linked into this folder first, so that no older attempt's cleaning can take it away.
        """
        if parent:
            own = self.path / parent[2].name
            try:
                os.link(parent[2], own)
            except OSError:  # a file system without hard links
                shutil.copyfile(parent[2], own)
        from_ = {"attempt": parent[0], "images_seen": parent[1]} if parent else None
        write_json(self.path / "environment.json", {**environment, "parent": from_})
        self.set_status("running", "")

    def prune(self, keep: int = 2) -> None:
        """Delete all but the newest `keep` checkpoints here, and older attempts' once there are that many here."""
        own = sorted(_files(self.run, self.number), key=lambda p: int(p.stem))
        old = [p for n in attempts(self.run) if n < self.number for p in _files(self.run, n)]
        for path in own[:-keep] + (old if len(own) >= keep else []):
            path.unlink(missing_ok=True)

    def set_status(self, state: str, why: str, **more: Any) -> None:
        value = {"state": state, "why": why, "attempt": self.number, "time": round(time.time(), 1), **more}
        write_json(self.path / "status.json", value)
        if self.is_newest():
            write_json(self.run / "status.json", value)

    def publish(self, name: str) -> None:
        """Copy a file of this attempt to the top of the run folder, in one step."""
        if self.is_newest():
            temporary = self.run / f".{name}.{self.number}.tmp"
            temporary.unlink(missing_ok=True)
            shutil.copyfile(self.path / name, temporary)
            temporary.replace(self.run / name)

    def end(self, state: str, why: str = "", **more: Any) -> None:
        """Record how this start ended and stop the heartbeat."""
        with contextlib.suppress(OSError):  # a full disk must not hide the reason that is being reported
            self.set_status(state, why, **more)
        self._ended.set()


def claim(run: Path, job: Job | None = None, say: Callable[[str], None] = print) -> Attempt:
    """Make the next attempt of `run` this process's own.

    The folder appears with its owner.json inside by one rename, so of two starts exactly one gets a number. A living
    owner is not displaced: UserError says who it is. Where only a heartbeat can tell (another host), waits until it
    beats again or its lease runs out.
    """
    (run / "attempts").mkdir(parents=True, exist_ok=True)
    claims = run / "attempts" / f".claim-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    shutil.rmtree(claims, ignore_errors=True)
    claims.mkdir()
    job_fields = {"job": job.id, "restarts": job.restarts} if job else {"job": "", "restarts": 0}
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": _process(os.getpid())[1], "place": _place()}
    write_json(claims / "owner.json", {**owner, **job_fields})
    try:
        while True:
            newest = max(attempts(run), default=0)
            if newest:
                _wait_until_free(run, attempt_path(run, newest), job, say)
            try:
                claims.rename(attempt_path(run, newest + 1))
            except OSError:
                if not attempt_path(run, newest + 1).exists():
                    raise
                continue  # another start was faster: look again who holds the run now
            return Attempt(run, newest + 1)
    finally:
        shutil.rmtree(claims, ignore_errors=True)


def _wait_until_free(run: Path, attempt: Path, job: Job | None, say: Callable[[str], None]) -> None:
    holder, told, age = _holder(run, attempt, job), False, _heartbeat_age(run, attempt)
    while holder:
        owner = read_json(attempt / "owner.json")
        now = _heartbeat_age(run, attempt)
        if owner["place"] == _place() or now < age:
            raise UserError(f"{run} is in use by {holder}; stop that first, or give another --run")
        if not told:
            say(f"{run} was last written by {holder}, {now:.0f} s ago; waiting up to {LEASE_S:.0f} s for a sign of life")
            told = True
        age = now
        time.sleep(1.0)
        holder = _holder(run, attempt, job)
