"""YOLO: pictures in images/, and a text file in labels/ with a line for each face."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from fer_hpc.config import UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import (
    NO_CLASSES,
    Numbering,
    StatedClasses,
    canonical_names,
    map_classes,
)
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import is_picture, kind_of, printable
from fer_hpc.data.split_names import split_of
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import DAMAGED, Tree

MAX_LABEL_BYTES = 1 << 16


class Yolo:
    """`train/images/x.png` with `train/labels/x.txt` (`class cx cy width height`, in shares), or
    `images/train/x.png` with `labels/train/x.txt`; `valid` and `test` likewise.

    The names of the numbers come from `names` in data.yaml, or from --classes.
    """

    def __init__(self, tree: Tree, stated: StatedClasses = NO_CLASSES) -> None:
        self.tree, self.stated = tree, stated
        self.classes: tuple[str, ...] = ()
        if not any(_label_file(n) for n, _ in tree.files() if is_picture(n)):
            raise UserError(f"--input {tree.root}: no images/ beside labels/ in it")

    def rows(self) -> Rows:
        """List the lines of all label files."""
        collector, ignored, used = Collector(), Tally(), set()
        files = dict(self.tree.files())
        for name in sorted(n for n in files if is_picture(n)):
            labels = _label_file(name)
            if labels not in files:
                ignored.add("pictures without a label file", printable(name), limited=True)
                continue
            used.add(labels)
            split = next((s for p in name.split("/")[:-1] if (s := split_of(p))), "")
            self._add(collector, ignored, name, files[name], labels, split)
        for name in files:
            if not is_picture(name) and name not in used:
                kind = kind_of(name)
                ignored.add(f"{kind} files without a picture", printable(name), limited=False)
        place = f"--input {self.tree.root}"
        names = self._names(files)
        numbering = Numbering("data.yaml", names) if names else None
        if numbering and not self.stated:
            stated = StatedClasses(names=tuple(canonical_names(list(names))))
            class_map = map_classes(collector.labels(), stated, place, numbering)
            class_map = dataclasses.replace(class_map, source="data.yaml's names")
        else:
            class_map = map_classes(collector.labels(), self.stated, place)
        self.classes = class_map.classes
        ignored.update(self.tree.ignored)
        return collector.rows(self.tree.root, class_map, "", [], ignored)

    def _add(
        self,
        collector: Collector,
        ignored: Tally,
        name: str,
        stamp: object,
        labels: str,
        split: str,
    ) -> None:
        """Add the faces of one picture."""
        try:
            text = self.tree.read(labels, MAX_LABEL_BYTES).decode("utf-8", "replace")
        except DAMAGED as error:
            collector.add(name, Reject(f"unreadable label file: {error}"))
            return
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if not lines:
            ignored.add("pictures with an empty label file", printable(name), limited=True)
        for i, cells in enumerate(lines):
            source_id = name if len(lines) == 1 else f"{name}#{i}"
            try:
                _, cx, cy, width, height = (float(cell) for cell in cells[:5])
            except ValueError:
                collector.add(source_id, Reject("wanted class, center x, y, width, height"), split)
                continue
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            label: str | Reject = stamp if isinstance(stamp, Reject) else cells[0]
            if not all(-0.01 <= side <= 1.01 for side in box):
                label = Reject("box is not in shares of the picture")
            stamps = (stamp, box)
            collector.add(source_id, label, split, (name, box), stamp=stamps, picture=name, box=box)

    def _names(self, files: Iterable[str]) -> tuple[str, ...]:
        """The class names of data.yaml: a list in brackets, or lines `- name` or `0: name`."""
        path = next((n for n in sorted(files) if n.endswith((".yaml", ".yml"))), "")
        if not path:
            return ()
        text = self.tree.read(path, MAX_LABEL_BYTES).decode("utf-8", "replace")
        if listed := re.search(r"^names:\s*\[([^]]*)\]", text, re.M):
            return tuple(n.strip().strip("'\"") for n in listed[1].split(",") if n.strip())
        block = re.search(r"^names:\s*\n((?:[ \t-]+.*\n?)+)", text, re.M)
        lines = block[1].splitlines() if block else []
        entries = [re.sub(r"^[\s-]*(?:\d+\s*:)?\s*", "", line) for line in lines]
        return tuple(n.strip().strip("'\"") for n in entries if n.strip())

    def face(self, locator: tuple[str, tuple[float, float, float, float]]) -> Face:
        """Read one picture."""
        name, box = locator
        return Face(self.tree.picture(name), box=box, box_in_shares=True)

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()


def _label_file(name: str) -> str:
    """The label file of a picture, or "" where it is not in a folder images."""
    parts = name.split("/")
    if "images" not in parts[:-1]:
        return ""
    at = len(parts) - 2 - parts[-2::-1].index("images")
    stem = parts[-1].rpartition(".")[0]
    return "/".join([*parts[:at], "labels", *parts[at + 1 : -1], f"{stem}.txt"])
