"""How the paths in a table lead to pictures: all of them without the same prefix.

A path of another machine (absolute, either separator, also with a drive letter) begins with folders
that are not here. They are cut off, the same ones from every row: row by row, equal file names in
other folders would be other people's pictures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.data.faces import Reject
from fer_hpc.data.split_names import named_split
from fer_hpc.data.tables import CsvTable
from fer_hpc.data.tree import Tree

SAMPLE = 512  # rows that decide about the prefix
_NEAR = 4  # folders above the pictures in which a split's name means these pictures


@dataclass(frozen=True)
class Prefix:
    """The folders that are cut off the paths of a table."""

    parts: tuple[str, ...] = ()
    note: str = ""

    @property
    def length(self) -> int:
        return len(self.parts)

    def name(self, text: str) -> str | Reject:
        """The picture's name below the root, or why the path means none."""
        parts = split_path(text)
        if not parts or ".." in parts:
            return Reject("path leaves the image root" if parts else "empty path")
        if tuple(parts[: self.length]) != self.parts or len(parts) == self.length:
            return Reject("path does not begin as those of the other rows")
        return "/".join(parts[self.length :])


def split_path(text: str) -> list[str]:
    """The parts of a path of any system."""
    return [p for p in re.split(r"[/\\]+", text.strip()) if p not in ("", ".")]


def find_prefix(table: CsvTable, column: str, tree: Tree) -> Prefix:
    """The shortest prefix without which the most paths of a table are pictures below the root.

    UserError where none is, and where the prefix names another split than the root.
    """
    paths = (split_path(line[column]) for line in table.sample(SAMPLE))
    sample = [p for p in paths if p and ".." not in p]
    if not sample:
        return Prefix()
    common = _common_folders(sample)
    hits = [sum(tree.has("/".join(parts[k:])) for parts in sample) for k in range(len(common) + 1)]
    k = hits.index(max(hits))
    if not hits[k]:
        return Prefix()  # every row will be a reject: missing image
    prefix = Prefix(tuple(common[:k]))
    if not k:
        return prefix
    theirs = _split_among(common[:k])
    ours = _split_among(Path(tree.root).absolute().parts)
    if theirs and ours and theirs[0] != ours[0]:
        raise UserError(
            f"--input {table.shown}: path is in {theirs[1]}, the image root in {ours[1]}: equal "
            f"file names there are other pictures; --image-root wanted: a folder that holds "
            f"{theirs[1]}/"
        )
    cut = "/".join(common[:k])
    return Prefix(prefix.parts, f"paths in {table.shown.name} are read without {cut}/")


def _common_folders(paths: Sequence[Sequence[str]]) -> list[str]:
    """The folders that all paths begin with."""
    shortest = min(len(p) for p in paths) - 1
    common: list[str] = []
    for i in range(shortest):
        if len({p[i] for p in paths}) > 1:
            break
        common.append(paths[0][i])
    return common


def _split_among(folders: Sequence[str]) -> tuple[str, str] | None:
    """(split, folder) of the last of a path's folders that names a split."""
    near = reversed(folders[-_NEAR:])
    return next(((s, folder) for folder in near if (s := named_split(folder))), None)
