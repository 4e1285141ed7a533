"""Run folders and sweeps to one HTML page: python -m fer_hpc.report RUNS... --out DIR. No torch."""

from __future__ import annotations

import functools
import glob
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jinja2

from fer_hpc.config import UserError
from fer_hpc.config.commands import ReportConfig
from fer_hpc.config.errors import one_line
from fer_hpc.evaluation.metrics import format_interval, higher_is_better
from fer_hpc.files import check_output, remove_leftovers, write_text
from fer_hpc.report.book import TAG, TableBook
from fer_hpc.report.choice import best_runs, oracles
from fer_hpc.report.extras import calibration_of, gaps_of, read_extras
from fer_hpc.report.figures import (
    MAX_DRAWN_RUNS,
    draw_figures,
    gan_figures,
    heat_map,
    overlaid_curves,
)
from fer_hpc.report.read import Collection, collect
from fer_hpc.report.study import study_section
from fer_hpc.report.study_text import to_markdown
from fer_hpc.report.tables import (
    RESULTS_HEAD,
    DataSet,
    class_tables,
    data_sets,
    result_tables,
    results_csv,
    with_more,
)
from fer_hpc.run.folder import check_outside_runs
from fer_hpc.sweep.grid import format_value
from fer_hpc.sweep.tables import recipe

TITLE = "<title>fer_hpc report</title>"  # of page.html.j2
HEADING = re.compile(r'<h([23]) id="([^"]+)"([^>]*)>(.*?)</h\1>', re.S)


def report(config: ReportConfig) -> Path:
    """Write index.html (self-contained), results.csv and the figures; gives the page's path.

    A run that cannot be read is listed on the page with the reason, and on stderr.
    """
    check_outside_runs(config.out)
    collection = collect(config.runs)
    _check_own(config.out, collection)
    for path, reason in collection.damaged:
        print(one_line(f"warning: {path} is left out: {reason}"), file=sys.stderr)
    config.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(config.out)
    known = data_sets([*collection.runs, *collection.gans])
    write_text(config.out / "results.csv", results_csv(collection.runs, known))
    page = _environment().get_template("page.html.j2").render(_content(config, collection, known))
    text = with_contents(page)
    write_text(config.out / "index.html", text)
    return config.out / "index.html"


def _content(
    config: ReportConfig, collection: Collection, known: dict[str, DataSet]
) -> dict[str, Any]:
    """What the page shows."""
    out, runs = config.out, collection.runs
    tables = result_tables(runs, known)
    extras = read_extras(runs, config.runs)
    for path, reason in extras.damaged:
        print(one_line(f"warning: {path} is left out: {reason}"), file=sys.stderr)
    collection.damaged += extras.damaged
    study = study_section(config.runs, collection, out)
    in_study: set[Path] = set()
    if study:
        write_text(out / "study.md", to_markdown(study))
        in_study = {run.path for model in study.models for run in model.runs}
    calibrations = {
        (r.path, name): calibration_of(scores) for r in runs for name, scores in r.scores.items()
    }
    cards = {(extra.run.path, extra.name): extra.content for extra in extras.robust}
    grouped = [
        (row, t.name, column, gap)
        for t in tables
        for row in t.rows
        for column, gap in gaps_of(row.scores)
    ]
    classes = class_tables(_data_folders(collection))
    folders = {run.trained_on: run.data_folder for run in [*runs, *collection.gans]}
    return {
        "found": collection,
        "known": known,
        "book": TableBook(out / "tables"),
        "best": best_runs(runs, known),
        "tables": tables,
        "oracles": oracles(tables) if config.oracle else [],
        "overlaid": overlaid_curves(runs, known, out),
        "calibrated": with_more(tables, "calibration", calibrations),
        "robust": with_more(tables, "robust", cards),
        "grouped": grouped,
        "extras": extras,
        "sweeps": [(sweep, heat_map(sweep.path, out)) for sweep in collection.sweeps],
        "figures": draw_figures(runs, out, in_study) | gan_figures(collection.gans, out),
        "max_drawn_runs": MAX_DRAWN_RUNS,
        "class_tables": classes,
        "folders": folders | {table["fingerprint"]: table["folder"] for table in classes},
        "study": study,
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }


def with_contents(page: str) -> str:
    """The page with links to its headings: sections in the bar, all of them in the contents."""
    headings = HEADING.findall(page)

    def link(name: str, title: str, more: str = "") -> str:
        return f'<a href="#{name}"{more}>{TAG.sub("", title.partition("<span")[0]).strip()}</a>'

    sections: list[str] = []
    contents: list[str] = []
    for level, name, more, title in headings:
        if level == "2":
            sections.append(link(name, title, more))
            contents.append("</ul></li>" * bool(contents) + f"<li>{link(name, title)}<ul>")
        else:
            contents.append(f"<li>{link(name, title)}</li>")
    listed = "<ul>" + "\n".join(contents) + "</ul></li></ul>"
    page = page.replace("<!-- sections -->", "\n".join(sections), 1)
    return page.replace("<!-- contents -->", listed.replace("<ul></ul>", ""), 1)


def _check_own(out: Path, collection: Collection) -> None:
    """UserError where the report would replace files that no report wrote."""
    own = {"results.csv": RESULTS_HEAD, "index.html": TITLE}
    for name, marker in own.items():
        check_output(out / name, marker)
    if any((out / name).exists() for name in own):
        return
    labels = [run.label for run in [*collection.runs, *collection.gans]]
    labels += [sweep.path.name for sweep in collection.sweeps]
    patterns = ["study.md", "study/*", "tables/*", "curves-*.svg"]
    patterns += [f"{glob.escape(label)}-*.{end}" for label in labels for end in ("png", "svg")]
    for path in (path for pattern in patterns for path in out.glob(pattern)):
        raise UserError(
            f"{path} was not written by a report and may be replaced: give another --out"
        )


def _data_folders(collection: Collection) -> list[Path]:
    return [run.data_folder for run in [*collection.runs, *collection.gans]] + [
        Path(sweep.summary["data"]) for sweep in collection.sweeps if sweep.summary
    ]


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fer_hpc.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        percent=_percent,
        number=lambda v: "–" if v is None else f"{v:,}",
        duration=_duration,
        decimals=lambda v, digits=4: "–" if v is None else f"{v:.{digits}f}",
        interval=format_interval,
        best_end=lambda metric: "max" if higher_is_better(metric) else "min",
        settings=_settings,
        recipe=recipe,
        shell=lambda path: shlex.quote(str(path)),
    )
    return environment


def _percent(share: float | None, digits: int = 2) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _settings(configuration: dict[str, Any]) -> dict[str, str]:
    """The swept fields of a configuration as text; older sweeps have these two only."""
    two = {name: configuration[name] for name in ("batch_size", "lr")}
    settings = configuration.get("settings") or two
    return {name: format_value(value) for name, value in settings.items()}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
