"""`fer-hpc drill OUT`: faults one after the other, and a table of what was survived."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, UserError
from fer_hpc.config.commands import DrillConfig
from fer_hpc.drill.places import STOPS
from fer_hpc.drill.site import Site
from fer_hpc.drill.starts import prepare
from fer_hpc.drill.subjects import SUBJECTS
from fer_hpc.drill.table import format_summary, page, summarize
from fer_hpc.files import read_record, write_json, write_text

WORK = ("data", "reference", "jobs")  # in OUT; made anew
OURS = (*WORK, "cases", "drill.json", "index.html")
# What an entry of drill.json must hold to be counted again.
FAULT = {
    "number": int,
    "fault": str,
    "subject": str,
    "struck": bool,
    "survived": bool,
    "why": str,
    "refused": [str, ...],
    "lost": [str, ...],
    "images_again": (int, None),
    "seconds": (float, None),
}
SUMMARY = {
    "seed": int,
    "cluster": str,
    "flags": str,
    "code": {str: str},
    "host": {"cores": int, "machine": str},
    "seconds": float,
    "faults": [FAULT, ...],
}


def drill(config: DrillConfig) -> int:
    """Run the faults; writes drill.json and index.html. EXIT_FINDINGS where one is not survived.

    A drill that was stopped goes on after its last fault when it is given again.
    """
    out = config.out.absolute()
    _check_out(out)
    results, seconds = _earlier(config, out)
    numbers = [config.only] if config.only else list(range(len(results) + 1, config.faults + 1))
    if numbers:
        if results:
            _to_stderr(f"goes on after fault {len(results)} of an earlier start")
        summary = _strike(config, out, numbers, results, seconds)
    else:
        _to_stderr(f"{out}: {len(results)} faults, nothing to do; a new folder repeats them")
        summary = summarize(config, results, seconds)
    print(json.dumps(summary, indent=1) if config.json else format_summary(summary, out))
    return EXIT_FINISHED if summary["survived"] == summary["tried"] else EXIT_FINDINGS


def _strike(
    config: DrillConfig,
    out: Path,
    numbers: list[int],
    results: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """The faults of these numbers, each with the files of the drill written anew; the last summary.

    results, seconds: of the faults before these
    """
    for name in WORK:
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    prepare()
    began = time.time() - seconds
    summary = summarize(config, results, seconds)
    with _interrupted_by_signals() as stops, _site(config, out) as site:
        for name in dict.fromkeys(site.kind_and_subject(number)[1] for number in numbers):
            site.make_reference(SUBJECTS[name])
        for number in numbers:
            if stops:
                raise KeyboardInterrupt
            results.append(site.strike(number, config.seed))
            summary = summarize(config, results, time.time() - began)
            write_json(out / "drill.json", summary)
            write_text(out / "index.html", page(summary))
    return summary


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[list[int]]:
    """Stop signals raise KeyboardInterrupt, so that the fault's processes end, too.

    The list holds those that came: what is raised within a finalizer, Python drops.
    """
    received: list[int] = []
    show = sys.unraisablehook

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def hide_interrupt(dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            show(dropped)

    sys.unraisablehook = hide_interrupt
    before = {number: signal.signal(number, interrupt) for number in STOPS}
    try:
        yield received
    finally:
        sys.unraisablehook = show
        for number, handler in before.items():
            signal.signal(number, handler)


def _earlier(config: DrillConfig, out: Path) -> tuple[list[dict[str, Any]], float]:
    """The faults and seconds of an earlier drill in OUT; a UserError where it is another one."""
    path = out / "drill.json"
    if not path.exists():
        return [], 0.0
    record, new = read_record(path, SUMMARY), summarize(config, [], 0.0)
    if record is None:
        raise UserError(f"{path} is damaged or of another version; give a new folder")
    if config.only:
        raise UserError(f"{out} holds an earlier drill; give a new folder for --only")
    others = [
        key for key in ("seed", "cluster", "flags", "code", "host") if record[key] != new[key]
    ]
    numbers = [fault["number"] for fault in record["faults"]]
    if others or numbers != list(range(1, len(numbers) + 1)):
        what = f"another {others[0]}" if others else "single faults"
        raise UserError(f"{out} holds a drill of {what}; give a new folder")
    return record["faults"], record["seconds"]


def _site(config: DrillConfig, out: Path) -> Site:
    if config.cluster == "here":
        return Site(out, _to_stderr)
    from fer_hpc.drill.job_site import JobSite

    return JobSite(out, _to_stderr, config)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_out(out: Path) -> None:
    """A UserError where OUT holds anything but an earlier drill."""
    if out.is_dir() and (others := [p.name for p in out.iterdir() if p.name not in OURS]):
        raise UserError(f"{out} holds other files ({others[0]}); give a new folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a new folder")
