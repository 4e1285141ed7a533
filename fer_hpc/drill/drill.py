"""`fer-hpc drill OUT`: faults one after the other, and a table of what was survived."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, UserError
from fer_hpc.config.commands import DrillConfig
from fer_hpc.drill.site import Site
from fer_hpc.drill.starts import prepare
from fer_hpc.drill.subjects import SUBJECTS
from fer_hpc.drill.table import format_summary, page, summarize
from fer_hpc.files import read_record, write_json, write_text

OURS = ("data", "reference", "jobs", "cases", "drill.json", "index.html")  # in OUT
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
    results, before = _earlier(config, out)
    if results:
        _to_stderr(f"goes on after fault {len(results)} of an earlier start")
    elif (out / "drill.json").exists():
        _to_stderr("begins anew: the earlier drill is complete, or of other code, flags or host")
    _remove_earlier(out, keep_cases=bool(results))
    out.mkdir(parents=True, exist_ok=True)
    numbers = [config.only] if config.only else list(range(len(results) + 1, config.faults + 1))
    prepare()
    began = time.time() - before
    with _site(config, out) as site:
        for name in dict.fromkeys(site.kind_and_subject(number)[1] for number in numbers):
            site.make_reference(SUBJECTS[name])
        for number in numbers:
            results.append(site.strike(number, config.seed))
            summary = summarize(config, results, time.time() - began)
            write_json(out / "drill.json", summary)
            write_text(out / "index.html", page(summary))
    print(json.dumps(summary, indent=1) if config.json else format_summary(summary, out))
    return EXIT_FINISHED if summary["survived"] == summary["tried"] else EXIT_FINDINGS


def _earlier(config: DrillConfig, out: Path) -> tuple[list[dict[str, Any]], float]:
    """The faults and seconds of a drill in OUT that was stopped: of the same flags and code."""
    new = summarize(config, [], 0.0)
    same = "seed", "cluster", "flags", "code", "host"
    found = read_record(out / "drill.json", SUMMARY)
    if config.only or found is None or any(found[key] != new[key] for key in same):
        return [], 0.0
    numbers = [fault["number"] for fault in found["faults"]]
    if numbers != list(range(1, len(numbers) + 1)) or len(numbers) >= config.faults:
        return [], 0.0
    return found["faults"], found["seconds"]


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


def _remove_earlier(out: Path, keep_cases: bool) -> None:
    for name in (*OURS[:3], *([] if keep_cases else ["cases"])):
        shutil.rmtree(out / name, ignore_errors=True)
