"""Which process holds an attempt, and whether it is alive. Standard library only."""

from __future__ import annotations

import time
from pathlib import Path

from fer_hpc.files import is_process, process_tag, read_record
from fer_hpc.parallel.job import Job

HEARTBEAT_S = 5.0
OWNER = {"host": str, "pid": int, "started": str, "place": str, "job": str, "restarts": int}
STATUS = {"state": str, "why": str}
LEASE_S = 30.0  # a heartbeat older than this, seen from another host, belongs to a dead process


def pid_scope() -> str:
    """Where process ids mean the same: host, boot and pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "unknown"


def process_state(pid: int) -> tuple[str, str]:
    """(state letter, start time) of a process; ("", "") where there is none.

    ("?", "") for one of another user that /proc does not show (mounted with hidepid).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "?" if is_process(pid) else "", ""
    return fields[0], fields[19]


def heartbeat_age(run: Path, attempt: Path) -> float:
    """Seconds since the last heartbeat by the file system's clock: the clocks of hosts differ.

    Writes a probe file into the run folder for a moment; for those who may write there.
    """
    probe = run / f".clock-{process_tag()}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink(missing_ok=True)
    return now - last_heartbeat(attempt)


def heartbeat_age_by_local_clock(attempt: Path) -> float:
    """Seconds since the last heartbeat by this host's clock, which may differ; writes nothing."""
    return time.time() - last_heartbeat(attempt)


def last_heartbeat(attempt: Path) -> float:
    """When an attempt's owner last wrote its heartbeat, by the file system's clock."""
    beat = attempt / "heartbeat"
    return (beat if beat.exists() else attempt).stat().st_mtime


def holder_of(run: Path, attempt: Path, job: Job | None = None, read_only: bool = False) -> str:
    """Who still holds `attempt`, as text; "" where the next start may have it.

    `read_only` writes nothing, for status and other readers: it judges another host's process by
    this host's clock. A start that claims the run must not use it.
    """
    if (read_record(attempt / "status.json", STATUS) or {}).get("state", "running") != "running":
        return ""
    owner = read_record(attempt / "owner.json", OWNER)
    if owner is None and not (attempt / "owner.json").exists():
        return ""
    who = "an unknown process: its owner.json is damaged"  # its heartbeat shows whether it lives
    if owner:
        who = f"process {owner['pid']} on {owner['host']}"
        if owner["job"]:
            who += f", job {owner['job']}"
        if job and job.id == owner["job"] and job.restarts > owner["restarts"]:
            return ""  # the scheduler restarted this job: the earlier start is gone or cut off
        if owner["place"] == pid_scope() != "unknown":
            letter, started = process_state(owner["pid"])
            if letter != "?":  # a stopped or dead process does not hold the run
                return who if started == owner["started"] and letter not in "TtZX" else ""
    age = heartbeat_age_by_local_clock(attempt) if read_only else heartbeat_age(run, attempt)
    return who if age < LEASE_S else ""
