"""The tables of a page: what a template writes as rows becomes an accessible table, and files.

Each table is also OUT/tables/NAME.csv, .md and .tex, with the cells that the page shows.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from fer_hpc.files import remove_leftovers, write_text

ROW = re.compile(r"<tr([^>]*)>(.*?)</tr>", re.S)
CELL = re.compile(r"<(t[hd])([^>]*)>(.*?)</\1>", re.S)
TAG = re.compile(r"<[^>]+>")
SPACE = re.compile(r"\s+")
NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?")
WITH_INTERVAL = re.compile(r"(\S+) \[([^,\]]+), ([^\]]+)\]")
BEST = '<span class="best" role="img" aria-label="best of its column:">★</span>'
NOT_COMPARED = ("member", "total", "unfinished")  # classes of rows
TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "×": r"$\times$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass
class Cell:
    """A cell: its HTML, and what files get."""

    attributes: str
    inner: str
    text: str
    is_best: bool = False

    @property
    def span(self) -> int:
        match = re.search(r'colspan="(\d+)"', self.attributes)
        return int(match[1]) if match else 1

    @property
    def is_drawing(self) -> bool:
        """Whether it holds a picture of a number that stands beside it."""
        return "plot-cell" in self.attributes


@dataclass
class Row:
    """A row, and the attributes of its tag."""

    attributes: str
    cells: list[Cell]

    def is_of(self, kind: str) -> bool:
        return re.search(rf"\b{kind}\b", self.attributes) is not None


class TableBook:
    """Shows tables and writes their files into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.names: list[str] = []

    def show(
        self, name: str, caption: str, css: str = "", caller: Callable[[], str] = str
    ) -> Markup:
        """`caller` gives the rows, the first of which is the heading; for `{% call %}` in a page.

        A heading may say which value of its column is the best: data-best="max" or "min". Rows of
        the class `member` belong to the mean above them, `total` is the last one; neither can be
        the best, nor can an `unfinished` run.
        """
        rows = parse_rows(caller())
        if len(rows) < 2:
            return Markup("")
        mark_best(rows)
        name = self._unique(name)
        head, *body = rows
        lines = [_row_html(head, "th", "col"), "</thead>\n<tbody>"]
        lines += [_row_html(row, "td", "row") for row in body]
        self._write(name, caption, rows)
        shown = escape(caption)
        links = ", ".join(
            f'<a href="tables/{name}.{end}" download aria-label="{shown} as {kind}">{kind}</a>'
            for end, kind in (("csv", "CSV"), ("md", "Markdown"), ("tex", "LaTeX"))
        )
        return Markup(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{shown}">'
            f'<table class="{css}" id="table-{name}">\n<thead>'
            + "\n".join(lines)
            + f'</tbody></table></div>\n<p class="downloads">Table as {links}</p>'
        )

    def _unique(self, name: str) -> str:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "table"
        unique, k = stem, 2
        while unique in self.names:
            unique, k = f"{stem}-{k}", k + 1
        self.names.append(unique)
        return unique

    def _write(self, name: str, caption: str, rows: list[Row]) -> None:
        if not self._folder.exists():
            self._folder.mkdir(parents=True)
            remove_leftovers(self._folder)
        for end, text in (
            ("csv", as_csv(rows)),
            ("md", as_markdown(rows, caption)),
            ("tex", as_latex(rows, caption)),
        ):
            write_text(self._folder / f"{name}.{end}", text)


# ---- rows ----------------------------------------------------------------------------------------


def parse_rows(text: str) -> list[Row]:
    """The rows of a table that a template wrote; its texts are escaped, so tags are tags."""
    return [
        Row(attributes, [Cell(c[2], c[3], cell_text(c[3])) for c in CELL.finditer(cells)])
        for attributes, cells in ROW.findall(text)
    ]


def cell_text(inner: str) -> str:
    return SPACE.sub(" ", html.unescape(TAG.sub(" ", inner))).strip()


def number(text: str) -> float | None:
    """The number that a cell begins with."""
    match = NUMBER.match(text)
    return float(match[0].replace(",", "")) if match else None


def mark_best(rows: Sequence[Row]) -> None:
    """Mark the best values of the columns whose heading asks for it, where they differ."""
    head, *body = rows
    body = [row for row in body if not any(map(row.is_of, NOT_COMPARED))]
    for k, title in enumerate(head.cells):
        wanted = re.search(r'data-best="(max|min)"', title.attributes)
        if not wanted:
            continue
        cells = [row.cells[k] for row in body if k < len(row.cells)]
        known = [(value, c) for c in cells if (value := number(c.text)) is not None]
        values = {value for value, _ in known}
        if len(values) > 1:
            best = max(values) if wanted[1] == "max" else min(values)
            for value, cell in known:
                cell.is_best = value == best


def _row_html(row: Row, tag: str, first_scope: str) -> str:
    cells = []
    for k, cell in enumerate(row.cells):
        inner = BEST + cell.inner if cell.is_best else cell.inner
        attributes = (
            cell.attributes.replace(' class="', ' class="is-best ')
            if cell.is_best
            else (cell.attributes)
        )
        if cell.is_best and "class=" not in attributes:
            attributes += ' class="is-best"'
        if first_scope == "col" or not k:
            cells.append(f'<th scope="{first_scope}"{attributes}>{inner}</th>')
        else:
            cells.append(f"<{tag}{attributes}>{inner}</{tag}>")
    return f"<tr{row.attributes}>{''.join(cells)}</tr>"


# ---- files ---------------------------------------------------------------------------------------


def _texts(row: Row, drawings: set[int]) -> list[Cell]:
    """The cells of a row without drawings; one that spans several columns is followed by empty."""
    cells: list[Cell] = []
    for cell in row.cells:
        cells += [cell, *(Cell("", "", "") for _ in range(cell.span - 1))]
    return [cell for k, cell in enumerate(cells) if k not in drawings]


def _grid(rows: Sequence[Row]) -> list[list[Cell]]:
    drawings = {k for k, cell in enumerate(rows[0].cells) if cell.is_drawing}
    return [_texts(row, drawings) for row in rows]


def as_csv(rows: Sequence[Row]) -> str:
    """With numbers and the ends of intervals in columns of their own."""
    head, *body = _grid(rows)
    split = {
        k
        for k in range(len(head))
        if any(k < len(line) and WITH_INTERVAL.fullmatch(line[k].text) for line in body)
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles: list[str] = []
    for k, cell in enumerate(head):
        ends = [f"{cell.text} low", f"{cell.text} high"] if k in split else []
        titles += [cell.text, *ends]
    writer.writerow(titles)
    for line in body:
        values: list[str] = []
        for k, cell in enumerate(line):
            plain = "" if cell.text == "–" else cell.text
            if match := WITH_INTERVAL.fullmatch(plain):
                values += match.groups()
            elif k in split:  # a number with a remark instead of its interval
                first = NUMBER.match(plain)
                values += [first[0] if first else plain, "", ""]
            else:
                values.append(plain)
        writer.writerow([no_formula(value) for value in values])
    return text.getvalue()


def no_formula(value: str) -> str:
    """A spreadsheet takes text that begins with one of these for a formula; numbers stay."""
    is_text = value[:1] in ("=", "+", "-", "@", "\t") and not NUMBER.fullmatch(value)
    return f"'{value}" if is_text else value


def as_markdown(rows: Sequence[Row], caption: str) -> str:
    """The best of a column is bold."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def text(cell: Cell) -> str:
        plain = cell.text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
        return f"**{plain}**" if cell.is_best else plain

    head, *body = _grid(rows)
    rule = ["---", *("---:" for _ in head[1:])]
    lines = [f"{caption}", "", line([text(c) for c in head]), line(rule)]
    return "\n".join([*lines, *(line([text(c) for c in cells]) for cells in body)]) + "\n"


def tex(text: str) -> str:
    return "".join(TEX.get(c, c) for c in text)


def as_latex(rows: Sequence[Row], caption: str) -> str:
    """A `table` without packages; the best of a column is bold."""

    def line(cells: Sequence[Cell]) -> str:
        texts = [rf"\textbf{{{tex(c.text)}}}" if c.is_best else tex(c.text) for c in cells]
        return " & ".join(texts) + r" \\"

    head, *body = _grid(rows)
    lines = [
        r"\begin{table}",
        rf"\caption{{{tex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\hline",
        line(head),
        r"\hline",
        *(line(cells) for cells in body),
        r"\hline",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
