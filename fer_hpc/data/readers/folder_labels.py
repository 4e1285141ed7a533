"""A table of labels beside class folders: in how many pictures the two disagree."""

from __future__ import annotations

from collections.abc import Sequence

from fer_hpc.config import UserError
from fer_hpc.data.classes import ClassMap, expression, label_key
from fer_hpc.data.tables import CsvTable
from fer_hpc.data.tree import Tree

# Names of the columns of a table of pictures, the first that occurs counts.
PATHS = tuple(
    "path image_path file_path filepath pth file_name filename file image img name".split()
)
LABELS = tuple("label expression emotion class target labels category".split())


def first_of(names: Sequence[str], wanted: Sequence[str]) -> str:
    """The first wanted column that a table has, or ""."""
    return next((name for name in wanted if name in names), "")


def label_tables(tree: Tree) -> list[str]:
    """The CSV files at the top of a tree that hold paths and labels."""
    tables = []
    for name in tree.folder():
        if name.lower().endswith(".csv"):
            try:
                names = CsvTable(tree.local(name)).names
            except (UserError, OSError):
                continue
            if first_of(names, PATHS) and first_of(names, LABELS):
                tables.append(name)
    return tables


def disagreement(tree: Tree, files: Sequence[tuple[str, str]], class_map: ClassMap) -> str:
    """A note on `labels.csv` and the like beside class folders; "" where there is none.

    `files` are (picture, its class folder).
    """
    stated: dict[str, str] = {}
    for table_name in label_tables(tree):
        table = CsvTable(tree.local(table_name))
        path, label = first_of(table.names, PATHS), first_of(table.names, LABELS)
        for _, line in table:
            if not isinstance(line, str):
                stated[line[path].replace("\\", "/").removeprefix("./")] = line[label]
    if not stated:
        return ""
    known, differ, example = 0, 0, ""
    for picture, folder in files:
        text = stated.get(picture) or stated.get(picture.rpartition("/")[2])
        mine = class_map.class_of.get(label_key(folder))
        other = None if text is None else class_map.class_of.get(label_key(text))
        other = other or (expression(text) if text else None)
        if mine and other:
            known += 1
            differ += mine != other
            example = example or (f"{picture}: {other}" if mine != other else "")
    if not known:
        return ""
    first = f" (for example {example})" if example else ""
    return (
        f"the folders' names are the labels; {table_name} names another class for {differ:,} of "
        f"{known:,} pictures{first}; to take the table instead: --source table --input "
        f"{tree.root / table_name}"
    )
