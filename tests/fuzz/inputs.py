"""Bad inputs: bytes of a good file changed, cells, JSON values, and lines that no one expects."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

BIG = "9" * 5000
TRAVERSALS = ["../victim", "../../victim", "/dev/shm/victim", "a/../../victim", "..", "/", "~", "."]
CELLS = ["", "0", "1.0", "nan", "-1e39", BIG, "\r", '"', "é", "[[1,2]]", "[" * 3000, "a/b.png"]
CELLS += ["x" * 300, "1;2;3", "Training", "\0", "99999999999999999999", "\u202e", *TRAVERSALS]

cell = st.one_of(st.sampled_from(CELLS), st.text(max_size=12))
line = st.lists(cell, min_size=1, max_size=9).map(",".join)


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """The bytes of a good file: cut, with other bytes in it, or with bytes twice."""

    def change(data: bytes, at: int, how: int, piece: bytes) -> bytes:
        at %= len(data) + 1
        if how == 0:
            return data[:at]
        if how == 1:
            return data[:at] + piece + data[at + len(piece) :]
        return data[:at] + piece + data[at:]

    step = st.tuples(st.integers(0, 1 << 20), st.integers(0, 2), st.binary(max_size=6))

    def all_of(steps: list[tuple[int, int, bytes]]) -> bytes:
        data = good
        for at, how, piece in steps:
            data = change(data, at, how, piece)
        return data

    return st.lists(step, min_size=1, max_size=4).map(all_of)


def table(head: str, good: list[str]) -> st.SearchStrategy[bytes]:
    """A CSV file: further lines, another head, other bytes, or nothing like it."""
    columns = head.split(",")
    whole = "\n".join([head, *good]).encode()
    rows = st.lists(line, max_size=4).map(lambda x: "\n".join([head, *good, *x]).encode())
    swapped = line.map(lambda x: f"{x}\n{good[0]}\n".encode())
    heads = st.lists(st.sampled_from(columns) | cell, max_size=len(columns) + 1)
    renamed = heads.map(lambda x: "\n".join([",".join(x), *good]).encode())
    replaced = st.builds(
        lambda at, text: "\n".join([head, _with_cell(good[0], at, text), *good[1:]]).encode(),
        st.integers(0, len(columns) - 1),
        cell,
    )
    return st.one_of(rows, swapped, renamed, replaced, mutated(whole), st.binary(max_size=60))


def _with_cell(text: str, at: int, new: str) -> str:
    cells = text.split(",")
    return ",".join([*cells[:at], new, *cells[at + 1 :]])


def lines(good: list[str], separator: str = " ") -> st.SearchStrategy[bytes]:
    """A text file of lines: one more line of odd cells, a cell replaced, or other bytes."""
    more = st.lists(cell, max_size=9).map(separator.join)
    added = more.map(lambda x: "\n".join([*good, x]).encode())
    replaced = st.builds(
        lambda at, text: "\n".join([_replaced(good[0], separator, at, text), *good[1:]]).encode(),
        st.integers(0, 9),
        cell,
    )
    return st.one_of(added, replaced, mutated("\n".join(good).encode()), st.binary(max_size=60))


def _replaced(text: str, separator: str, at: int, new: str) -> str:
    cells = text.split(separator)
    at %= len(cells)
    return separator.join([*cells[:at], new, *cells[at + 1 :]])


# ---- JSON ----------------------------------------------------------------------------------------

# Values as they stand in the file: some are none that Python's json would write.
RAW = ["null", "true", "0", "-1", "1", "2.5", "1e999", "-Infinity", "NaN", "9" * 30, BIG, '""']
RAW += ["[]", "{}", "[[[]]]", "[" * 3000 + "]" * 3000, "[" * 100_000, "[1,2,3,4]", '{"a": {}}']
RAW += [json.dumps(t) for t in (*TRAVERSALS, "x" * 5000, "\n", "\0", "\u202e", "1", "nan", "é")]
RAW += [r'"\ud800"', '"unclosed', "//", "1e308", "-1e308", str(1 << 63), str(-(1 << 63) - 1)]
MARK = "@@%d@@"
values = st.one_of(
    st.sampled_from(RAW),
    st.integers().map(str),
    st.floats().map(json.dumps),
    st.text(max_size=8).map(json.dumps),
)


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """The paths to all parts of a JSON value."""
    yield before
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = list(enumerate(value))[:4]
    for key, part in inner:
        yield from places(part, (*before, key))


def json_text(good: Any) -> st.SearchStrategy[str]:
    """A JSON value with parts replaced, deleted, renamed or twice."""
    paths = list(places(good))
    how = st.sampled_from(["replace", "replace", "replace", "delete", "rename", "twice"])
    step = st.tuples(st.sampled_from(paths), how, values)

    def all_of(steps: list[tuple[tuple[Any, ...], str, str]]) -> str:
        changed, raw = json.loads(json.dumps(good)), []
        for path, kind, text in steps:
            mark = MARK % len(raw)
            if not path:
                changed = mark
            elif not _change(changed, path, kind, mark):
                continue
            raw.append(text)
        written = json.dumps(changed)
        for i, text in enumerate(raw):
            written = written.replace(f'"{MARK % i}"', text)
        return written

    return st.lists(step, min_size=1, max_size=3).map(all_of)


def _change(value: Any, path: tuple[Any, ...], kind: str, mark: str) -> bool:
    """Change the part at `path`; False where an earlier step took it away."""
    for key in path[:-1]:
        try:
            value = value[key]
        except (LookupError, TypeError):
            return False
    last = path[-1]
    if not isinstance(value, dict | list) or isinstance(value, list) != isinstance(last, int):
        return False
    if isinstance(value, list) and last >= len(value):
        return False
    if kind == "delete":
        value.pop(last, None) if isinstance(value, dict) else value.pop(last)
    elif kind == "rename" and isinstance(value, dict):
        value[f"{last}x"] = value.pop(last, None)
    elif kind == "twice" and isinstance(value, list):
        value.append(value[last])
    else:
        value[last] = mark
    return True


def json_file(good: Any) -> st.SearchStrategy[bytes]:
    """A JSON file: parts of it, its bytes, or nothing like it."""
    raw = json.dumps(good, indent=1).encode()
    changed = json_text(good).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return st.one_of(changed, changed, mutated(raw), st.binary(max_size=20), st.just(b""))


def jsonl_file(good: list[Any]) -> st.SearchStrategy[bytes]:
    """A file of JSON lines of which one is changed, or its bytes."""
    written = [json.dumps(row) for row in good]
    raw = ("\n".join(written) + "\n").encode()

    def placed(at: int, text: str) -> bytes:
        rows = [*written[:at], text, *written[at + 1 :]]
        return ("\n".join(rows) + "\n").encode("utf-8", "surrogatepass")

    changed = st.builds(placed, st.integers(0, len(good) - 1), json_text(good[0]))
    return st.one_of(changed, changed, mutated(raw), st.binary(max_size=20), st.just(b""))
