"""The starts of a job: how far each came, how it ended, and when to give up.

A scheduler starts a job again as often as it is asked to. A start counts from the moment at which
launch.sh has asked about the job, before any process of the run exists, so that starts which die
early count as well.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fer_hpc.cluster.records import JobCommand, read_record, record_job, results_dir
from fer_hpc.cluster.scheduler import Allocation, Scheduler
from fer_hpc.config import (
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_USER_ERROR,
    GanConfig,
    TrainConfig,
    UserError,
)
from fer_hpc.config.commands import PreprocessConfig, SweepConfig
from fer_hpc.files import remove_leftovers
from fer_hpc.run.folder import list_checkpoints

MAX_STARTS = 3  # in a row without a gain
ACCOUNTED_WITHIN_S = 30.0  # Grid Engine writes the records of ended jobs every 15 s
LAST_LINES = 8  # of a failed rank's log


def gained(config: JobCommand) -> int:
    """How far the work has come: images of a training, of a sweep's trials, files of shards."""
    if isinstance(config, TrainConfig | GanConfig):
        return max((images for _, images, _ in list_checkpoints(config.run)), default=0)
    if isinstance(config, SweepConfig):
        trials = (path.parent for path in config.out.glob("trials/*/config.json"))
        return sum(max((i for _, i, _ in list_checkpoints(t)), default=0) for t in trials)
    if isinstance(config, PreprocessConfig):
        return sum(1 for _ in config.out.glob("**/*.h5"))
    return 0


def record_start(
    config: JobCommand, allocation: Allocation, command: list[str], logs: list[str], code: str
) -> None:
    """Add this start to the job's record; a start that is recorded already is not added again."""
    folder = results_dir(config)
    remove_leftovers(folder / "jobs")
    path = folder / "jobs" / f"{allocation.name}.json"
    starts = [s for s in starts_of(path) if s["restarts"] != allocation.restarts]
    this = {
        "restarts": allocation.restarts,
        "time": round(time.time(), 1),
        "before": gained(config),
    }
    record_job(
        folder,
        allocation.name,
        command,
        logs,
        scheduler=allocation.scheduler,
        cluster=allocation.cluster,
        name=allocation.job_name,
        submitted=allocation.submitted,
        starts=[*starts, this],
        code=code,
    )


def record_refusal(
    config: JobCommand, allocation: Allocation, command: list[str], why: str
) -> None:
    """Add a job that ends before its processes start to the records of an existing folder."""
    folder = results_dir(config)
    if folder.is_dir():
        known = {"scheduler": allocation.scheduler, "cluster": allocation.cluster}
        known |= {"name": allocation.job_name, "refused": why}
        when = allocation.submitted
        record_job(folder, allocation.name, command, [], submitted=when, **known)


def starts_of(path: Path) -> list[dict[str, Any]]:
    """The recorded starts of a job, oldest first."""
    record = read_record(path) or {"starts": []}
    return [s for s in record["starts"] if {"restarts", "before", "time"} <= s.keys()]


def record_end(config: JobCommand, job: str, end: dict[str, Any]) -> list[dict[str, Any]]:
    """Add how the newest start ended; gives all starts."""
    folder = results_dir(config)
    path = folder / "jobs" / f"{job}.json"
    record, starts = read_record(path), starts_of(path)
    if record and starts:
        starts[-1] = {**starts[-1], "end": end}
        more = {key: record[key] for key in record if key not in ("job", "command", "logs")}
        record_job(folder, job, record["command"], record["logs"], **more | {"starts": starts})
    return starts


def without_gain(starts: list[dict[str, Any]], reached: int) -> list[dict[str, Any]]:
    """The newest starts in a row during which nothing was gained, the oldest of them first."""
    fruitless: list[dict[str, Any]] = []
    for start in reversed(starts):
        if start["before"] < reached:
            break
        fruitless.insert(0, start)
    return fruitless


def give_up_message(folder: Path, fruitless: list[dict[str, Any]]) -> str:
    """Why the job is not started again, with how the first of these starts ended."""
    first = fruitless[0].get("end", {})
    how = first.get("how") or "its node was lost, or the job was ended, before it could say why"
    lines = [f"    {line}" for line in first.get("lines", [])]
    return "\n".join(
        [
            f"{folder}: {len(fruitless)} starts in a row gained nothing, so the job is not started "
            f"again. The first of them: {how}.",
            *lines,
            f"Correct the cause (logs: {folder / 'logs'}; a time limit below the start-up time?), "
            "and submit again",
        ]
    )


def may_start_again(starts: list[dict[str, Any]], reached: int) -> bool:
    return len(without_gain(starts, reached)) < MAX_STARTS


def check_predecessors(by: Scheduler) -> None:
    """Raise a UserError where a job that this one waits for has failed.

    Slurm does not start it then; Grid Engine does, and its jobs name them in FER_AFTER.
    """
    after = os.environ.get("FER_AFTER", "").split()
    states, until = by.states(after), time.monotonic() + ACCOUNTED_WITHIN_S
    while set(after) - set(states) and time.monotonic() < until:
        time.sleep(1.0)
        states = by.states(after)
    for job in sorted(set(after) - set(states)):
        print(
            f"fer-hpc: how job {job}, whose result this one needs, ended is not known here",
            file=sys.stderr,
        )
    for job, state in states.items():
        if not state.alive and state.state != "COMPLETED":
            raise UserError(
                f"job {job}, whose result this one needs, {state.state.lower()} ({state.reason}); "
                "correct its cause and submit both again"
            )


def exit_in_words(code: int) -> str:
    """What an exit code of the ranks means."""
    known = {
        EXIT_FINISHED: "it ended with exit code 0",
        EXIT_RUN_AGAIN: "it was interrupted (exit code 75)",
        EXIT_USER_ERROR: "a mistake to correct (exit code 2)",
        127: "a program or library was not found (exit code 127)",
    }
    if code in known:
        return known[code]
    number = code - 128 if code > 128 else -code
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"it ended with exit code {code}"
    hint = ", often because memory ran out" if name == "SIGKILL" else ""
    return f"a process was ended by {name}{hint} (exit code {code})"


def last_lines(logs: Path, job: str) -> list[str]:
    """The end of the log that tells most: of srun's messages, and of the rank that wrote last."""
    messages: list[str] = []
    paths = sorted(logs.glob(f"{job}-*.log"), key=lambda path: path.stat().st_mtime)
    ranks = [path for path in paths if not path.name.endswith("-srun.log")]
    for path in [*ranks[-1:], *(p for p in paths if p.name.endswith("-srun.log"))]:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        messages += [f"{path.name}: {line[:300]}" for line in lines[-LAST_LINES:]]
    return messages
