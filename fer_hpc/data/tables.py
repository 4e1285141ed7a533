"""CSV files: the source's own table, and further columns joined by source_id."""

from __future__ import annotations

import collections
import csv
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.errors import counted

csv.field_size_limit(1 << 24)

MAX_HEADER = 1 << 20  # bytes
MAX_ROW = 1 << 20  # bytes of a row that goes on over several lines
SEPARATORS = ",;\t"

Line = dict[str, str]  # cells by column name

# The first bytes of files that are not CSV.
_MAGIC = {
    b"PAR1": "a Parquet file; --source parquet reads pictures from it, a table must be a CSV",
    b"PK\x03\x04": "a ZIP archive (or an Excel sheet); unpack it, or export the sheet as CSV",
    b"\x1f\x8b": "a gzip file; unpack it with gunzip (FER2013: its name must end in .gz)",
    b"BZh": "a bzip2 file; unpack it with bunzip2",
    b"\xfd7zXZ": "an xz file; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; unpack it with unzstd",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\xd0\xcf\x11\xe0": "an old Excel sheet; export it as CSV",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}


class CsvTable:
    """A CSV file of any size, read row by row, and again from the offset of any row.

    `shown` is the path for messages, where `path` is an unpacked copy of it, and `flag` the option
    that names it. `note` says which separator was taken, if it is no comma.
    """

    def __init__(self, path: Path, shown: Path | None = None, flag: str = "--input") -> None:
        self.path, self.shown, self.flag = path, shown or path, flag
        with path.open("rb") as f:
            header = f.readline(MAX_HEADER)
            self._start = f.tell()
            f.seek(0)
            self._refuse_other_files(f.read(1 << 16))
        header = header.removeprefix(b"\xef\xbb\xbf")
        self.separator = separator_of(header.decode("utf-8", "replace"))
        self.note = separator_note(self.shown, self.separator)
        try:
            self.names = [n.lower() for n in self._cells(header)]
        except csv.Error as error:
            raise UserError(
                f"{self.flag} {self.shown}: its first line is not CSV ({error})"
            ) from None
        self.empty = not header.strip()
        if len(header) == MAX_HEADER:
            raise UserError(
                f"{self.flag} {self.shown}: its first line has over {MAX_HEADER:,} bytes; "
                "leave out columns"
            )
        if twice := _twice(self.names):
            raise UserError(
                f"{self.flag} {self.shown}: its first line has the column {twice!r} twice; "
                "rename or delete one"
            )

    def _refuse_other_files(self, data: bytes) -> None:
        """UserError for the start of a file that is not a CSV with one line a row."""
        for magic, what in _MAGIC.items():
            if data.startswith(magic):
                raise UserError(f"{self.flag} {self.shown}: wanted a CSV file, this is {what}")
        if data[257:262] == b"ustar":
            raise UserError(f"{self.flag} {self.shown}: wanted a CSV file, this is a tar archive")
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(
                f"{self.flag} {self.shown}: UTF-16 text; write it as UTF-8 (iconv -t utf-8)"
            )
        if b"\0" in data:
            raise UserError(f"{self.flag} {self.shown}: wanted a CSV file, this is binary data")
        if b"\r" in data and b"\n" not in data:
            raise UserError(
                f"{self.flag} {self.shown}: its lines end with carriage returns only (CSV of an "
                r"old Mac); convert it: tr '\r' '\n' < old.csv > new.csv"
            )

    def require(self, *names: str) -> None:
        """UserError where a column is missing."""
        missing = [n for n in names if n.lower() not in self.names]
        if missing:
            header = "".join(c if c.isprintable() else "?" for c in ", ".join(self.names)[:60])
            content = "the file is empty" if self.empty else f"its first line has {header}"
            raise UserError(
                f"{self.flag} {self.shown}: no column {missing[0]!r}: {content}; "
                f"wanted {', '.join(names)}"
            )

    def __iter__(self) -> Iterator[tuple[int, Line | str]]:
        """(offset in bytes, cells by column name) of every row that is not blank.

        Instead of the cells, a text says what is wrong with the row.
        """
        with self.path.open("rb") as f:
            f.seek(self._start)
            offset = self._start
            for line in f:
                row = self._whole(line, f) if line.count(b'"') % 2 else line
                if row.strip():
                    yield offset, self._row(row)
                offset += len(row)

    def _whole(self, line: bytes, f: BinaryIO) -> bytes:
        """A line with an odd number of quotes, and those that belong to its row.

        The lines that follow are taken if they make a row without a mistake; else one quote too
        many would take away good rows, and they stay where they are.
        """
        start, row = f.tell(), line
        while len(row) < MAX_ROW and (more := f.readline(MAX_ROW)):
            row += more
            if more.count(b'"') % 2:
                try:
                    if len(self._cells(row, strict=True)) == len(self.names):
                        return row
                except csv.Error:
                    pass
                break
        f.seek(start)
        return line

    def _row(self, line: bytes) -> Line | str:
        try:
            cells = self._cells(line)
        except csv.Error as error:
            return f"not a line of CSV: {error}"
        if len(cells) != len(self.names):
            return f"{len(cells)} columns, wanted {len(self.names)}"
        return dict(zip(self.names, cells, strict=True))

    def sample(self, count: int) -> list[Line]:
        """About `count` lines from all over the file, always the same ones; a small file's all."""
        size = self.path.stat().st_size
        if size - self._start < count << 8:
            return [line for _, line in self if not isinstance(line, str)]
        lines = []
        with self.path.open("rb") as f:
            for k in range(count):
                f.seek(self._start + (size - self._start) * k // count - 1)
                f.readline(1 << 20)  # the rest of a line, or the line break before one
                line = self._row(self._read_row(f))
                lines += [] if isinstance(line, str) else [line]
        return lines

    def line(self, offset: int) -> Line:
        """The cells of the row at an offset that the iterator gave."""
        with self.path.open("rb") as f:
            f.seek(offset)
            return dict(zip(self.names, self._cells(self._read_row(f)), strict=True))

    def _read_row(self, f: BinaryIO) -> bytes:
        line = f.readline()
        return self._whole(line, f) if line.count(b'"') % 2 else line

    def _cells(self, row: bytes, strict: bool = False) -> list[str]:
        text = row.decode("utf-8", "replace")  # as one: a line break outside quotes is an error
        rows = csv.reader([text], _dialect(self.separator, strict))
        return [cell.strip() for cell in next(rows, [])]


@functools.cache  # it is made once, not for each row
def _dialect(separator: str, strict: bool) -> Any:
    return csv.reader([], delimiter=separator, skipinitialspace=True, strict=strict).dialect


def separator_of(header: str) -> str:
    """A comma; where the first line of a table has none, its semicolon or tab."""
    return max(SEPARATORS, key=header.count) if "," not in header else ","


def separator_note(path: Path, separator: str) -> str:
    """What to say of a table that is not separated by commas; "" for others."""
    names = {";": "semicolons", "\t": "tabs"}
    return f"{path.name} is separated by {names[separator]}" if separator != "," else ""


def _twice(names: list[str]) -> str | None:
    """The first name that is there twice; columns without a name are ignored."""
    counts = collections.Counter(filter(None, names))
    return next((name for name, count in counts.items() if count > 1), None)


def read_columns(path: Path, ids: list[str], notes: list[str]) -> dict[str, NDArray[Any]]:
    """Columns of a CSV file, joined to `ids` by its source_id; a note of rows that are left out.

    Each is int64 (absent: -1), float32 (absent: NaN) or text (absent: "").
    """
    if not path.is_file():
        raise UserError(f"--columns {path}: no such file; wanted a CSV with a column source_id")
    with path.open(newline="", encoding="utf-8-sig") as f:
        try:
            separator = separator_of(f.readline())
            f.seek(0)
            notes += filter(None, [separator_note(path, separator)])
            table = csv.DictReader(f, delimiter=separator)
            names = [n for n in table.fieldnames or [] if n != "source_id"]
            if "source_id" not in (table.fieldnames or []):
                header = ", ".join(names)[:120]
                raise UserError(f"--columns {path}: no column source_id in its header ({header})")
            if twice := _twice([*(table.fieldnames or [])]):
                raise UserError(f"--columns {path}: its header has the column {twice!r} twice")
            by_id: dict[str, dict[str, str]] = {}
            for line in table:
                if by_id.setdefault(line["source_id"], line) != line:
                    raise UserError(
                        f"--columns {path}: two rows of {line['source_id']!r} that differ; "
                        "delete the wrong one"
                    )
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"--columns {path}: not a CSV file in UTF-8 ({error})") from None
    if not any(i in by_id for i in ids):
        raise UserError(
            f"--columns {path}: none of its source_id values is one of this source's; "
            f"these look like {ids[0]!r}"
        )
    known = set(ids)
    if left := [name for name in by_id if name not in known]:
        rows = counted(len(left), "row")
        notes.append(f"--columns {path}: {rows} of no face here, for example {left[0]}")
    return {
        name: _typed([(by_id[i][name] or "") if i in by_id else "" for i in ids]) for name in names
    }


def _typed(texts: list[str]) -> NDArray[Any]:
    for dtype, absent in ((np.int64, "-1"), (np.float32, "nan")):
        try:
            return np.array([t or absent for t in texts]).astype(dtype)
        except (ValueError, OverflowError):
            continue
    return np.array(texts, dtype=object)
