"""The run folder: its layout, and how it is read. Standard library only.

    config.json                     what the run is (science fields, data fingerprint)
    attempts/0001/ 0002/ ...        one per start; only its owner writes there
        owner.json                  host, process and scheduler job that claimed it
        heartbeat                   touched while the owner lives
        environment.json            versions, devices, and the parent checkpoint it started from
        000000004096.pt             checkpoints, named by images seen
        metrics.jsonl timing.jsonl  a row per epoch (reproducible / not)
        chain.jsonl                 a row per epoch: hashes of samples, losses and weights so far
        status.json                 running | interrupted | finished | failed | superseded, and why
    tb/                             TensorBoard events
    final.pt best.pt metrics.jsonl  the outcome, once finished       status.json   a copy for people

Each start claims the next number, and a reader follows the newest attempt back through the parents.
So an older writer that was paused or cut off writes only where nobody reads any more.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from fer_hpc.config import GanConfig, TrainConfig, UserError
from fer_hpc.config.aliases import current_science
from fer_hpc.config.errors import one_line
from fer_hpc.config.fields import check_stored
from fer_hpc.files import check_shape, from_json, read_record, read_stored
from fer_hpc.run.lease import STATUS, holder_of

IDENTITY_RUN = "identity"  # folder, within a GAN's run, of its judge of persons

HALTED_REASON = "halted, as the sweep asked"  # `why` in status.json, compared by sweeps
ROW = {"images_seen": int, "epoch": (int, None), "images_per_s": (float, None)}
CONFIG = {
    "science": {},
    "data": {
        "path": str,
        "fingerprint": str,
        "image_shape": ([int, int, int], None),
        "classes": ([str, ...], None),
    },
}
PARENT = {"attempt": int, "images_seen": int}
ENVIRONMENT = {"parent": (PARENT, NoneType), "data": (str, None)}  # its parent is always stated


def attempt_numbers(run: Path) -> list[int]:
    """Numbers of all attempts, oldest first."""
    folder = run / "attempts"
    return (
        sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
    )


def attempt_path(run: Path, number: int) -> Path:
    """The folder of an attempt."""
    return run / "attempts" / f"{number:04d}"


def check_outside_runs(out: Path, flag: str = "--out") -> None:
    """UserError where a folder of results is a run folder, or lies in one."""
    for folder in (out.absolute(), *out.absolute().parents):
        if (folder / "config.json").exists() and (folder / "attempts").is_dir():
            raise UserError(f"{flag} {out} is inside the run folder {folder}; give another folder")


def find_run_config(run: Path) -> dict[str, Any] | None:
    """The stored configuration, or None where there is none; a UserError where it is damaged."""
    stored = read_stored(run / "config.json")
    if stored is None:
        return None
    check_shape(stored, CONFIG, str(run / "config.json"))
    height, width, channels = stored["data"].get("image_shape") or (1, 1, 1)
    if height != width or height < 1 or channels not in (1, 3):
        raise UserError(
            f"{run / 'config.json'}: image_shape is {[height, width, channels]}; "
            "wanted side, side, 1 or 3"
        )
    science = current_science(stored["science"])
    config_class = GanConfig if stored.get("kind") == "GAN" else TrainConfig
    check_stored(config_class, science, run / "config.json")
    return {**stored, "science": science}


def read_run_config(run: Path) -> dict[str, Any]:
    """The stored configuration; a UserError where `run` is not a run folder."""
    stored = find_run_config(run)
    if stored is None:
        absent = "is a file" if run.exists() else "does not exist"
        what = "has no config.json" if run.is_dir() else absent
        raise UserError(
            f"{run} is not a run folder: it {what}; give the folder that --run named at training"
        )
    return stored


def say_unreadable(path: Path, levels: int) -> None:
    """Name the folders so many levels below `path` that cannot be read: a search passes them."""
    if not levels or not _can_search(path) or (path / "config.json").exists():
        return
    for entry in sorted(path.iterdir()):
        if entry.is_dir():
            say_unreadable(entry, levels - 1 if _can_search(entry, say=True) else 0)


def _can_search(folder: Path, say: bool = False) -> bool:
    is_possible = os.access(folder, os.R_OK | os.X_OK)
    if say and not is_possible:
        print(one_line(f"warning: {folder} cannot be read: left out"), file=sys.stderr)
    return is_possible


def find_runs(paths: tuple[Path, ...]) -> list[Path]:
    """The run folders among `paths` and below them, in order."""
    runs: dict[Path, None] = {}
    for path in paths:
        folders = (
            [path]
            if (path / "config.json").exists()
            else sorted(_folders_with(path, "config.json"))
        )
        if not folders:
            why = "no config.json in it" if path.is_dir() else "no such folder"
            raise UserError(f"{path}: no run folder there or below ({why})")
        runs |= dict.fromkeys(folders)
    return list(runs)


def _folders_with(path: Path, name: str) -> Iterator[Path]:
    """The folders below `path` that have a file `name`, also those that are reached by a link."""
    seen = set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()  # a second way to it, or a circle
            continue
        seen.add(real)
        paths = [Path(folder, each) for each in subfolders]
        subfolders[:] = [
            each.name
            for each in sorted(paths, key=lambda each: (each.is_symlink(), each))
            if _can_search(each, say=True)
        ]
        if name in files:
            yield Path(folder)


def is_identity_judge(run: Path) -> bool:
    """Whether a run is a GAN's own judge of persons: RUN/identity."""
    return run.name == IDENTITY_RUN and (run.parent / "config.json").exists()


def attempt_lineage(run: Path) -> Iterator[tuple[int, float]]:
    """(attempt, images) newest first: what of an attempt belongs to the run's history.

    That is everything up to so many images seen.
    """
    limit, numbers = math.inf, attempt_numbers(run)
    while numbers:
        number = numbers.pop()
        environment = _environment(run, number)
        if environment is None:  # killed between claim and start: no part of the history
            continue
        yield number, limit
        parent = environment["parent"]
        if parent is None:
            return
        limit = min(limit, parent["images_seen"])
        numbers = [n for n in numbers if n <= parent["attempt"]]


def _environment(run: Path, number: int) -> dict[str, Any] | None:
    """environment.json of an attempt; None where it never began, or what it came from is lost.

    Where the file is missing or damaged, its parent is that of status.json; the first has none.
    """
    folder = attempt_path(run, number)
    for name in ("environment.json", "status.json"):
        if record := read_record(folder / name, ENVIRONMENT):
            return record if name == "environment.json" else {"parent": record["parent"]}
    is_first = number == attempt_numbers(run)[0]
    return {"parent": None} if is_first and has_results(run, number) else None


def has_results(run: Path, number: int) -> bool:
    """Whether an attempt has weights of its own, not only the checkpoint that it began from."""
    before = [n for n in attempt_numbers(run) if n < number]
    earlier = {path.name for n in before for path in checkpoint_files(run, n)}
    return any(path.name not in earlier for path in attempt_path(run, number).glob("*.pt"))


def read_rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The merged rows of all attempts, in order, each image count once.

    Damaged lines are left out; `read_history` names them.
    """
    return read_history(run, name)[0]


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the epoch that is best by --best-on, whose weights are best.pt."""
    return next((row for row in reversed(rows) if row.get("best")), None)


def read_history(run: Path, name: str = "metrics.jsonl") -> tuple[list[dict[str, Any]], list[str]]:
    """`read_rows`, and a line for each file of which lines are left out."""
    merged: list[dict[str, Any]] = []
    damage, left_out = [], 0
    for number, limit in attempt_lineage(run):
        path = attempt_path(run, number) / name
        rows, damaged = _jsonl(path)
        merged = [row for row in rows if row["images_seen"] <= limit] + merged
        damage += [f"{path}: {damaged} damaged line(s) left out"] if damaged else []
        left_out += damaged
    lost = _lost_epochs(run, merged) if name == "metrics.jsonl" else []
    if sum(last - first + 1 for first, last in lost) > left_out:  # cut between two lines
        epochs = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in lost)
        damage.append(f"{run}: the lines of {name} of epoch {epochs} are lost")
    return merged, damage


def _lost_epochs(run: Path, rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(first, last) of epochs before the last row, or the end of a finished run, without a row."""
    known = [row["epoch"] for row in rows if isinstance(row.get("epoch"), int)]
    if not known or len(known) != len(rows) or known[-1] < 1:
        return []
    last, numbers = max(known), attempt_numbers(run)
    status = read_record(attempt_path(run, numbers[-1]) / "status.json", STATUS) or {}
    images = status.get("images_seen")
    if status.get("state") == "finished" and isinstance(images, int):
        seen = max(rows[-1]["images_seen"], 1)
        last = max(last, (images * known[-1] + seen // 2) // seen)  # in integers of any size
    ends = [0, *sorted({epoch for epoch in known if epoch > 0}), last + 1]
    return [(a + 1, b - 1) for a, b in itertools.pairwise(ends) if b - a > 1]


def _jsonl(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a file, and the number of its damaged lines."""
    if not path.exists():
        return [], 0
    complete = path.read_bytes().split(b"\n")[:-1]  # a line without its newline was cut by a kill
    rows: list[dict[str, Any]] = []
    for line in complete:
        with contextlib.suppress(ValueError, RecursionError, UserError):
            row = from_json(line)
            check_shape(copy.copy(row), ROW, path.name)  # a copy: rows stay as they are written
            rows.append(row)
    return rows, len(complete) - len(rows)


def damaged_records(run: Path) -> list[str]:
    """The attempts' JSON files that readers pass over because they are damaged, a line for each."""
    problems, numbers = [], attempt_numbers(run)
    for number in numbers:
        path = attempt_path(run, number) / "environment.json"
        known = _environment(run, number)
        if known and read_record(path, ENVIRONMENT) is None:
            problems.append(f"{path} is missing or damaged: where and how it ran is unknown")
        elif not known and (path.exists() or has_results(run, number)):
            problems.append(f"{path} is missing or damaged: this attempt is left out")
    status = attempt_path(run, numbers[-1]) / "status.json" if numbers else run / "status.json"
    if status.exists() and read_record(status, STATUS) is None:
        problems.append(f"{status} is damaged: how this start ended is unknown")
    return problems


def damage_of(run: Path) -> list[str]:
    """What of a run's history cannot be read and is left out, a line for each file."""
    names = ("metrics.jsonl", "timing.jsonl", "chain.jsonl")
    return damaged_records(run) + [line for name in names for line in read_history(run, name)[1]]


def list_checkpoints(run: Path) -> list[tuple[int, int, Path]]:
    """(attempt, images_seen, file) of every checkpoint in the run's history, newest first."""
    return [
        (number, images, path)
        for number, limit in attempt_lineage(run)
        for images, path in sorted(
            ((int(p.stem), p) for p in checkpoint_files(run, number)), reverse=True
        )
        if images <= limit
    ]


def checkpoint_files(run: Path, number: int) -> list[Path]:
    """The checkpoints in an attempt's folder, in any order."""
    return [p for p in attempt_path(run, number).glob("*.pt") if p.stem.isdigit()]


def read_attempt(run: Path, number: int) -> dict[str, Any]:
    """environment.json of one attempt; empty where it is missing or damaged."""
    return _environment(run, number) or {}


def rank_counts(run: Path) -> list[int]:
    """The number of ranks of each start in the run's history, oldest first, without repeats."""
    counts: list[int] = []
    for number, _ in reversed(list(attempt_lineage(run))):
        count = read_attempt(run, number).get("world_size")
        if isinstance(count, int) and counts[-1:] != [count]:
            counts.append(count)
    return counts


def read_environment(run: Path) -> dict[str, Any]:
    """environment.json of the newest attempt in the history; empty where none did."""
    for number, _ in attempt_lineage(run):
        return _environment(run, number) or {}
    return {}


def data_folder(run: Path) -> Path:
    """Where the run's data was at its newest start."""
    return Path(read_environment(run).get("data") or read_run_config(run)["data"]["path"])


def read_status(run: Path) -> dict[str, Any]:
    """{"state", "why", ...} of the newest attempt.

    One that is `running` according to its file, but whose process is gone, is `interrupted`.
    """
    numbers = attempt_numbers(run)
    if not numbers:
        return {"state": "new", "why": ""}
    path = attempt_path(run, numbers[-1])
    status = read_record(path / "status.json", STATUS) or {"state": "running", "why": "starting"}
    if status["state"] == "running" and not holder_of(run, path, read_only=True):
        status = {**status, "state": "interrupted", "why": "its process is gone"}
    return status


def outcome_file(run: Path, name: str) -> Path | None:
    """`final.pt` or `best.pt` of a finished run, from its newest attempt."""
    for number, _ in attempt_lineage(run):
        path = attempt_path(run, number) / name
        return path if path.exists() else None
    return None
