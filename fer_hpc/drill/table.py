"""The table of a drill: for drill.json, a terminal and a page."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

import jinja2

from fer_hpc.config.commands import DrillConfig
from fer_hpc.run.version import code_version

COLUMNS = ("fault", "tried", "survived", "refused", "images again", "seconds")


def summarize(config: DrillConfig, results: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
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
        "cluster": config.cluster,
        "flags": _flags(config),
        "code": code_version(),
        "host": {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine()},
        "seconds": round(seconds, 1),
        "tried": sum(row["tried"] for row in table),
        "survived": sum(row["survived"] for row in table),
        "not_reached": sum(not r["struck"] and r["survived"] for r in results),
        "table": table,
        "faults": results,
    }


def _flags(config: DrillConfig) -> str:
    """The flags beside seed and number that a repetition needs."""
    if config.cluster == "here":
        return ""
    settings = {"--partition": config.partition, "--account": config.account}
    values = [word for flag, value in settings.items() if value for word in (flag, value)]
    values += [word for option in config.sbatch for word in ("--sbatch", option)]
    values += [word for option in config.qsub for word in ("--qsub", option)]
    values += ["--breaker", str(config.breaker)] if config.breaker else []
    return f" --cluster {shlex.join([config.cluster, *values])}"


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
        f"fer-hpc drill NEW_FOLDER --only {r['number']} --seed {summary['seed']}{summary['flags']}"
        for r in summary["faults"]
        if not r["survived"]
    ]
    lines.append(f"images again, seconds: median (largest)    {out}/index.html  drill.json")
    return "\n".join(lines)


def page(summary: dict[str, Any]) -> str:
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
    works = [", ".join(row["subjects"]) for row in summary["table"]]
    rows = list(zip(works, table_rows(summary), strict=True))
    return template.render(summary=summary, columns=COLUMNS, rows=rows, when=when)
