"""`fer-hpc drill OUT`: faults one after the other, and a table of what was survived."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, UserError
from fer_hpc.config.commands import DrillConfig
from fer_hpc.drill.case import Case, Failed
from fer_hpc.drill.faults import kind_and_subject
from fer_hpc.drill.starts import Start, prepare, rank_variables
from fer_hpc.drill.subjects import NETWORK, SUBJECTS, Subject, commands, runs_of, shards_command
from fer_hpc.files import write_bytes, write_json
from fer_hpc.run.folder import list_checkpoints
from fer_hpc.run.version import code_version

COLUMNS = ("fault", "tried", "survived", "refused", "images again", "seconds")


def drill(config: DrillConfig) -> int:
    """Run the faults; writes drill.json and index.html. EXIT_FINDINGS where one is not survived."""
    out = config.out.absolute()
    _check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    numbers = [config.only] if config.only else list(range(1, config.faults + 1))
    prepare()
    began = time.time()
    site = _Site(out, _to_stderr)
    for name in dict.fromkeys(kind_and_subject(number)[1] for number in numbers):
        site.make_reference(SUBJECTS[name])
    results = []
    for number in numbers:
        results.append(site.strike(number, config.seed))
        summary = _summary(config, results, time.time() - began)
        write_json(out / "drill.json", summary)
        write_bytes(out / "index.html", _page(summary).encode())
    print(json.dumps(summary, indent=1) if config.json else format_summary(summary, out))
    return EXIT_FINISHED if summary["survived"] == summary["tried"] else EXIT_FINDINGS


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_out(out: Path) -> None:
    """A UserError where OUT holds anything but an earlier drill, whose folders are replaced."""
    ours = ("cases", "data", "reference", "drill.json", "index.html")
    if out.is_dir() and (others := [p.name for p in out.iterdir() if p.name not in ours]):
        raise UserError(f"{out} holds other files ({others[0]}); give a new folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a new folder")
    for name in ours[:3]:
        shutil.rmtree(out / name, ignore_errors=True)


class _Site:
    """The folder of a drill: shards, undisturbed runs, and a folder for each fault."""

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self.out, self.say = out, say
        self.total: dict[str, int] = {}

    def data(self, subject: Subject) -> Path:
        return self.out / "data" / (subject.needs or "none")

    def reference(self, subject: Subject) -> Path:
        return self.out / "reference" / subject.name.replace(" ", "-")

    def make_reference(self, subject: Subject) -> None:
        """Run a subject's commands undisturbed, with the shards that it needs."""
        data, folder = self.data(subject), self.reference(subject)
        if subject.needs and not (data / "manifest.json").exists():
            data.parent.mkdir(parents=True, exist_ok=True)
            self._run([shards_command(subject.needs, data)], data)
            shutil.copy(NETWORK, data)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if subject.name == "evaluate":
            classifier = SUBJECTS["classifier"]
            if not self.reference(classifier).exists():
                self.make_reference(classifier)
            shutil.copytree(self.reference(classifier), folder)
        began = time.monotonic()
        self._run(commands(subject, folder, data), folder, subject.ranks)
        if subject.batch:
            run = runs_of(subject, folder)[0]
            self.total[subject.name] = list_checkpoints(run)[0][1]
        self.say(f"undisturbed: {subject.name}, {time.monotonic() - began:.1f} s")

    def _run(self, arguments: list[list[str]], folder: Path, ranks: int = 1) -> None:
        output = self.out / "reference" / "output"
        output.parent.mkdir(parents=True, exist_ok=True)
        for args in arguments:
            starts = [
                Start(args, folder, output.with_suffix(f".{rank}.txt"), variables=variables)
                for rank, variables in enumerate(rank_variables(ranks))
            ]
            try:
                ended = all([start.wait() for start in starts])
            finally:
                for start in starts:
                    start.end()
            if not ended or any(start.code for start in starts):
                last = (starts[0].text().splitlines() or ["no output"])[-1]
                raise UserError(f"{' '.join(args[:2])} failed without any fault: {last}")

    def strike(self, number: int, seed: int) -> dict[str, Any]:
        """One fault, by its number; its folder is kept where it was not survived."""
        kind, name = kind_and_subject(number)
        subject = SUBJECTS[name]
        folder = self.out / "cases" / f"{number:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        case = Case(
            number,
            kind.name,
            subject,
            folder,
            self.data(subject),
            self.reference(subject),
            self.total.get(name, 0),
            random.Random(f"{seed} {number}"),
        )
        why, began = "", time.monotonic()
        try:
            kind.act(case)
            case.finish()
            case.check()
        except Failed as failure:
            why = str(failure)
        finally:
            case.end()
        if not why:
            shutil.rmtree(folder)
        outcome = "NOT SURVIVED: " + why if why else "survived" if case.struck else "not reached"
        self.say(f"{number:4d}  {kind.name}, {name}: {case.detail}: {outcome}")
        return {
            "number": number,
            "fault": kind.name,
            "subject": name,
            "detail": case.detail,
            "struck": case.struck,
            "survived": not why,
            "why": why,
            "refused": case.refused,
            "lost": case.lost,
            "starts": len(case.starts),
            "images_again": case.cost.images if case.struck else None,
            "seconds": case.cost.seconds if case.struck else None,
            "took_s": round(time.monotonic() - began, 2),
        }


def _summary(config: DrillConfig, results: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What drill.json holds: the table, and every fault."""
    table = []
    for name in sorted({r["fault"] for r in results}):
        cases = [r for r in results if r["fault"] == name]
        tried = [r for r in cases if r["struck"] or not r["survived"]]
        table.append(
            {
                "fault": name,
                "subjects": sorted({r["subject"] for r in cases}),
                "tried": len(tried),
                "survived": sum(r["survived"] for r in tried),
                "refused": sum(bool(r["refused"]) for r in tried),
                "lost": sum(bool(r["lost"]) for r in tried),
                "images_again": _range([r["images_again"] for r in tried]),
                "seconds": _range([r["seconds"] for r in tried]),
            }
        )
    return {
        "seed": config.seed,
        "code": code_version(),
        "host": {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine()},
        "seconds": round(seconds, 1),
        "tried": sum(row["tried"] for row in table),
        "survived": sum(row["survived"] for row in table),
        "not_reached": sum(not r["struck"] and r["survived"] for r in results),
        "table": table,
        "faults": results,
    }


def _range(values: list[Any]) -> dict[str, float] | None:
    known = [v for v in values if v is not None]
    return {"median": statistics.median(known), "max": max(known)} if known else None


def table_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table as text, a tuple for each kind of fault."""

    def cell(values: dict[str, float] | None, digits: int) -> str:
        if values is None:
            return "-"
        return f"{values['median']:.{digits}f} ({values['max']:.{digits}f})"

    return [
        (
            row["fault"],
            str(row["tried"]),
            str(row["survived"]),
            str(row["refused"]),
            cell(row["images_again"], 0),
            cell(row["seconds"], 1),
        )
        for row in summary["table"]
    ]


def format_summary(summary: dict[str, Any], out: Path) -> str:
    """The table for a terminal, and what was not survived."""
    rows = [COLUMNS, *table_rows(summary)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [""]
    for row in rows:
        cells = [
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.append("")
    lines.append(
        f"{summary['survived']} of {summary['tried']} faults survived in "
        f"{summary['seconds']:,.0f} s; {summary['not_reached']} did not reach their event"
    )
    lines += [
        f"NOT SURVIVED: {r['number']} ({r['fault']}, {r['subject']}): {r['why']}; again: "
        f"fer-hpc drill NEW_FOLDER --only {r['number']} --seed {summary['seed']}"
        for r in summary["faults"]
        if not r["survived"]
    ]
    lines.append(f"images again, seconds: median (largest)    {out}/index.html  drill.json")
    return "\n".join(lines)


def _page(summary: dict[str, Any]) -> str:
    loaders = [
        jinja2.PackageLoader("fer_hpc.drill", "."),
        jinja2.PackageLoader("fer_hpc.report", "."),
    ]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("drill.html.j2")
    when = time.strftime("%Y-%m-%d %H:%M")
    return template.render(summary=summary, columns=COLUMNS, rows=table_rows(summary), when=when)
