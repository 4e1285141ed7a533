"""Parquet files as data sets on Hugging Face have them: picture bytes and labels in columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from fer_hpc.config import UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import (
    NO_CLASSES,
    StatedClasses,
    canonical_names,
    label_key,
    map_classes,
)
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import kind_of, printable
from fer_hpc.data.readers.folder_labels import LABELS, first_of
from fer_hpc.data.split_names import split_of
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import Tree

IMAGES = ("image", "img", "picture", "photo", "face")
BATCH = 64  # rows that are decoded at a time
BAD_PARQUET = (pyarrow.ArrowException, OSError, ValueError, KeyError, EOFError, OverflowError)


class Parquet:
    """`train-00000-of-00001.parquet`, `test-...` and so on, anywhere below the input.

    Pictures are bytes, or structs with `bytes` and `path`; labels are names, or numbers whose names
    stand in the files' metadata or in README.md. The files are read row group by row group.
    """

    def __init__(self, tree: Tree, stated: StatedClasses = NO_CLASSES, only: str = "") -> None:
        self.tree, self.stated = tree, stated
        self.classes: tuple[str, ...] = ()
        names = [n for n, _ in tree.files() if n.endswith(".parquet") and (n == only or not only)]
        if not names:
            raise UserError(f"--input {tree.root}: no .parquet files in it")
        self._paths = {name: tree.local(name) for name in names}
        self._cursor: tuple[str, int, int, Iterator[Any], list[Any]] | None = None
        self._open: dict[str, Any] = {}
        schema = self._file(names[0]).schema_arrow
        self._image, self._label = _columns(schema, f"--input {tree.root / names[0]}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursor": None, "_open": {}}

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = pyarrow.parquet.ParquetFile(self._paths[name])
            except BAD_PARQUET as error:
                raise UserError(
                    f"--input {self._paths[name]}: not a Parquet file ({str(error)[:120]}); "
                    "is the download whole?"
                ) from None
        return self._open[name]

    def rows(self) -> Rows:
        """List the rows of all files; only the column of labels is read."""
        collector = Collector()
        for name in self._paths:
            split = split_of(re.split(r"[-_.]", name.rpartition("/")[2])[0])
            split = split or next((s for p in name.split("/") if (s := split_of(p))), "")
            file = self._file(name)
            stamp: object = self.tree.stamp(name)
            for group in range(file.num_row_groups):
                labels = self._labels(name, group)
                for i, label in enumerate(labels):
                    text = Reject("no label") if label is None else label_key(str(label))
                    locator = (name, group, i)
                    collector.add(f"{name}#{group}.{i}", text, split, locator, stamp=stamp)
                    stamp = ""
        place = f"--input {self.tree.root}"
        names = self._class_names()
        if names and not self.stated:
            table = dict(zip(map(str, range(len(names))), canonical_names(names), strict=True))
            named = StatedClasses(table=table | {n.lower(): n for n in table.values()})
            class_map = map_classes(collector.labels(), named, place)
        else:
            class_map = map_classes(collector.labels(), self.stated, place)
        self.classes = class_map.classes
        ignored = Tally()
        for name, _ in self.tree.files():
            if name not in self._paths:
                ignored.add(f"{kind_of(name)} files", printable(name))
        ignored.update(self.tree.ignored)
        rows = collector.rows(self.tree.root, class_map, repr(names), [], ignored)
        if names and not self.stated:
            object.__setattr__(class_map, "source", "names of the label column")
        return rows

    def _labels(self, name: str, group: int) -> list[Any]:
        try:
            table = self._file(name).read_row_group(group, columns=[self._label])
            return list(table.column(0).to_pylist())
        except BAD_PARQUET as error:
            raise UserError(
                f"--input {self._paths[name]}: no column {self._label} can be read "
                f"({str(error)[:120]})"
            ) from None

    def _class_names(self) -> list[str]:
        """The names of the label's numbers, in order; [] where nothing states them."""
        metadata = self._file(next(iter(self._paths))).schema_arrow.metadata or {}
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            return [str(name) for name in features[self._label]["names"]]
        except (KeyError, ValueError, TypeError, RecursionError):
            pass
        readme = "README.md" if self.tree.has("README.md") else ""
        text = self.tree.read(readme, 1 << 20).decode("utf-8", "replace") if readme else ""
        block = re.search(
            rf"- name: {re.escape(self._label)}\s+dtype:\s+class_label:\s+names:\s+"
            r"((?:\s*'?\d+'?: .+\n)+)",
            text,
        )
        pairs = re.findall(r"'?(\d+)'?: (.+)", block[1]) if block else []
        return [name.strip().strip("'\"") for _, name in pairs]

    def face(self, locator: tuple[str, int, int]) -> Face:
        """Read one picture; rows that come in order are decoded once."""
        name, group, row = locator
        try:
            value = self._value(name, group, row)
        except BAD_PARQUET as error:
            raise Reject(f"unreadable row: {str(error)[:80]}") from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise Reject("no picture's bytes in this row")
        return Face(data)

    def _value(self, name: str, group: int, row: int) -> Any:
        """A cell of the image column; the cursor goes on in the same row group."""
        if not self._cursor or self._cursor[:2] != (name, group) or self._cursor[2] > row:
            batches = self._file(name).iter_batches(
                BATCH, row_groups=[group], columns=[self._image]
            )
            self._cursor = (name, group, 0, batches, [])
        first, batches, values = self._cursor[2:]
        while row >= first + len(values):
            first += len(values)
            batch = next(batches, None)
            if batch is None:
                raise ValueError("no such row")
            values = batch.column(0).to_pylist()
            self._cursor = (name, group, first, batches, values)
        return values[row - first]

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()


def _columns(schema: Any, place: str) -> tuple[str, str]:
    """The names of the columns of pictures and labels; UserError where that is not clear."""
    types = pyarrow.types
    images = [
        f.name
        for f in schema
        if types.is_binary(f.type)
        or types.is_large_binary(f.type)
        or (types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0)
    ]
    image = first_of(images, IMAGES) or (images[0] if len(images) == 1 else "")
    label = first_of(schema.names, LABELS)
    if not image or not label:
        what = "picture bytes" if not image else "labels"
        raise UserError(
            f"{place}: no column of {what} among {', '.join(schema.names)[:120]}; wanted image "
            "(bytes) and label"
        )
    return image, label
