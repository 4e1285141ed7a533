"""Claiming a run folder: one writer at a time, by attempt number. Standard library only."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.files import copy_file, naming, process_tag, read_record, remove_leftovers, write_json
from fer_hpc.parallel.job import Job
from fer_hpc.run.folder import attempt_numbers, attempt_path, checkpoint_files
from fer_hpc.run.lease import (
    HEARTBEAT_S,
    LEASE_S,
    OWNER,
    heartbeat_age,
    holder_of,
    last_heartbeat,
    pid_scope,
    process_state,
)

# Files of the run folder itself that only the run's owner writes.
OWNERS_FILES = ("config.json", "status.json", "metrics.jsonl", "*.pt")


class Superseded(Exception):
    """The run is no longer this process's: another start has claimed it, or its folder is gone."""


class Attempt:
    """One start of a run that this process owns: its folder, its heartbeat, its status.

    The folder is known by the content of its owner.json: where a run folder was deleted or moved,
    another start may have made one of the same name, and nothing is written there.
    """

    def __init__(self, run: Path, number: int) -> None:
        self.run, self.number, self.path = run, number, attempt_path(run, number)
        self._owner = self._read_owner()
        self._parent: dict[str, Any] = {}  # {"parent": ...} once this start is in the history
        self._ended = threading.Event()
        self._checked = time.monotonic()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a full or absent file system: try again later
                if self._has_folder():
                    (self.path / "heartbeat").touch()

    def _read_owner(self) -> bytes:
        try:
            return (self.path / "owner.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b""

    def _has_folder(self) -> bool:
        """Whether the folder of this name is still the one that was claimed."""
        return self._read_owner() == self._owner != b""

    def is_newest(self) -> bool:
        """False once this process must stop writing, as the run or its folder is not its own."""
        return not attempt_path(self.run, self.number + 1).exists() and self._has_folder()

    def check_newest(self) -> None:
        """Raise Superseded where this process must stop writing."""
        if not self._has_folder():
            raise Superseded(f"{self.run}: its folder was deleted or moved; this start stops")
        if not self.is_newest():
            raise Superseded(f"{self.run}: another start has taken this run over; this one stops")

    def superseded(self) -> bool:
        """Whether another start has claimed the run; looks at most once a second."""
        if time.monotonic() - self._checked < 1.0:
            return False
        self._checked = time.monotonic()
        return not self.is_newest()

    def begin(self, environment: dict[str, Any], parent: tuple[int, int, Path] | None) -> None:
        """Enter the run's history: from here on readers follow this attempt.

        `parent` is the checkpoint it starts from, (attempt, images seen, file). It is linked into
        this folder first, so that no older attempt's cleaning can delete it.
        """
        self.check_newest()
        if parent:
            own = self.path / parent[2].name
            try:
                os.link(parent[2], own)
            except OSError:  # a file system without hard links
                copy_file(parent[2], own)
        entry = {"attempt": parent[0], "images_seen": parent[1]} if parent else None
        self._parent = {"parent": entry}
        write_json(self.path / "environment.json", {**environment, **self._parent})
        self.set_status("running", "")

    def prune(self, keep: int = 2) -> None:
        """Delete all but the newest `keep` checkpoints here; then also those of older attempts."""
        own = sorted(checkpoint_files(self.run, self.number), key=lambda p: int(p.stem))
        old = [
            p
            for n in attempt_numbers(self.run)
            if n < self.number
            for p in checkpoint_files(self.run, n)
        ]
        for path in own[:-keep]:
            path.unlink(missing_ok=True)
        for path in old if len(own) >= keep else []:
            with contextlib.suppress(PermissionError):  # of a start by another user
                path.unlink(missing_ok=True)

    def discard(self, parent: tuple[int, int, Path] | None) -> None:
        """Delete the checkpoints that this start has made: all but the one that it began from."""
        kept = parent[2].name if parent else ""
        for path in checkpoint_files(self.run, self.number) if self._has_folder() else ():
            if path.name != kept:
                path.unlink(missing_ok=True)

    def set_status(self, state: str, why: str, **more: Any) -> None:
        """Write status.json of this attempt, and the run's copy of it."""
        value = {
            "state": state,
            "why": why,
            "attempt": self.number,
            "time": round(time.time(), 1),
            **self._parent,  # for readers, where environment.json is damaged
            **more,
        }
        if self._has_folder():
            write_json(self.path / "status.json", value)
        if self.is_newest():
            write_json(self.run / "status.json", value)

    def publish(self, name: str) -> None:
        """Copy a file of this attempt to the top of the run folder, in one step."""
        self.check_newest()
        copy_file(self.path / name, self.run / name)

    def finish(self, why: str, **more: Any) -> None:
        """Record that the run has finished, and stop the heartbeat. Raises OSError."""
        self.set_status("finished", why, **more)
        self._ended.set()

    def end(self, state: str, why: str = "", **more: Any) -> None:
        """Record how this start ended and stop the heartbeat."""
        with contextlib.suppress(OSError):  # a full disk must not hide the reason
            self.set_status(state, why, **more)
        self._ended.set()


def claim_attempt(run: Path, job: Job | None = None, say: Callable[[str], None] = print) -> Attempt:
    """Claim the next attempt of `run` for this process.

    The folder appears with its owner.json inside by one rename, so of two starts exactly one gets a
    number. A living owner keeps the run: UserError names it. Where only a heartbeat can tell
    (another host), this waits until it beats again or its lease runs out.
    """
    (run / "attempts").mkdir(parents=True, exist_ok=True)
    name = f".claim-{threading.get_ident()}-{process_tag()}"
    claim = run / "attempts" / name
    shutil.rmtree(claim, ignore_errors=True)
    with naming(run / "attempts", claim):
        claim.mkdir()
    job_fields = {"job": job.id, "restarts": job.restarts} if job else {"job": "", "restarts": 0}
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process_state(os.getpid())[1],
        "place": pid_scope(),
        "token": uuid.uuid4().hex,  # no other start's owner.json has the same content
    }
    write_json(claim / "owner.json", {**owner, **job_fields})
    try:
        while True:
            newest = max(attempt_numbers(run), default=0)
            holder = living_holder(run, attempt_path(run, newest), job, say) if newest else ""
            if holder:
                raise UserError(
                    f"{run} is in use by {holder}; stop that first, or give another --run"
                )
            try:
                claim.rename(attempt_path(run, newest + 1))
            except OSError:
                if not attempt_path(run, newest + 1).exists():
                    raise
                continue  # another start was faster: look again who holds the run now
            _clean(run, newest + 1)
            return Attempt(run, newest + 1)
    finally:
        shutil.rmtree(claim, ignore_errors=True)


def _clean(run: Path, number: int) -> None:
    """Delete what earlier starts left half-written when they were killed, on this host or another.

    They have lost the run to start `number`: one that lives cannot complete its file any more.
    """
    for earlier in attempt_numbers(run):
        if earlier < number:
            remove_leftovers(attempt_path(run, earlier), anyones=True)
    for name in OWNERS_FILES:
        remove_leftovers(run, f".{name}.*.tmp", anyones=True)
    for folder, pattern in ((run, ".*.tmp"), (run, ".clock-*"), (run / "attempts", ".claim-*")):
        remove_leftovers(folder, pattern)


def living_holder(
    run: Path, attempt: Path, job: Job | None = None, say: Callable[[str], None] = print
) -> str:
    """Who holds `attempt`, as text, as soon as its owner is seen alive; "" when nobody holds it.

    A heartbeat in the future, as after a jump of a clock, is not waited for longer than others.
    """
    beat, deadline = last_heartbeat(attempt), 0.0
    while holder := holder_of(run, attempt, job):
        owner = read_record(attempt / "owner.json", OWNER)
        if (owner and owner["place"] == pid_scope()) or last_heartbeat(attempt) != beat:
            return holder
        if not deadline:
            deadline = time.monotonic() + LEASE_S
            age = heartbeat_age(run, attempt)
            when = f"{age:.0f} s ago" if age >= 0 else "at a time that is still to come"
            say(
                f"{run} was last written by {holder}, {when}; "
                f"waiting up to {LEASE_S:.0f} s for its heartbeat"
            )
        elif time.monotonic() > deadline:
            break
        time.sleep(1.0)
    return ""
