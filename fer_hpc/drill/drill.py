"""`fer-hpc drill OUT`: faults one after the other, and a table of what was survived."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, UserError
from fer_hpc.config.commands import DrillConfig
from fer_hpc.drill.site import Site
from fer_hpc.drill.starts import prepare
from fer_hpc.drill.subjects import SUBJECTS
from fer_hpc.drill.table import format_summary, page, summarize
from fer_hpc.files import write_json, write_text


def drill(config: DrillConfig) -> int:
    """Run the faults; writes drill.json and index.html. EXIT_FINDINGS where one is not survived."""
    out = config.out.absolute()
    _check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    numbers = [config.only] if config.only else list(range(1, config.faults + 1))
    prepare()
    began = time.time()
    results = []
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


def _site(config: DrillConfig, out: Path) -> Site:
    if config.cluster == "here":
        return Site(out, _to_stderr)
    from fer_hpc.drill.job_site import JobSite

    return JobSite(out, _to_stderr, config)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_out(out: Path) -> None:
    """A UserError where OUT holds anything but an earlier drill, whose folders are replaced."""
    ours = ("cases", "data", "reference", "jobs", "drill.json", "index.html")
    if out.is_dir() and (others := [p.name for p in out.iterdir() if p.name not in ours]):
        raise UserError(f"{out} holds other files ({others[0]}); give a new folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a new folder")
    for name in ours[:4]:
        shutil.rmtree(out / name, ignore_errors=True)
