"""A folder per class, by itself or below a folder per split."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.affectnet import PICTURES
from fer_hpc.data.annotations import ALIASES, Collector, Face, Rows, read_picture

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "publictest": "val",
    "testpublic": "val",
    "test": "test",
    "testing": "test",
    "privatetest": "test",
    "testprivate": "test",
}


class ClassFolders:
    """`angry/x.jpg`, or `train/angry/x.jpg` with `val/`, `test/`, `test-public/`, `test-private/` beside it.

    A class folder carries the expression's name, in any case, maybe after a number (`2 fear`); numbers alone mean
    nothing, since data sets count differently. Rows come in a fixed mixed order, so that no shard holds one class only.
    """

    def __init__(self, root: Path, classes: tuple[str, ...] | None = None) -> None:
        if not root.is_dir():
            raise UserError(f"--input {root}: no such folder")
        self.root, self._wanted = root, classes
        top = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
        parts = [
            (p, SPLIT_NAMES[key])
            for p in top
            if (key := re.sub(r"[^a-z]", "", p.name.lower())) in SPLIT_NAMES
        ]
        folders = [(c, split) for p, split in parts for c in sorted(p.iterdir()) if c.is_dir()] or [
            (c, "") for c in top
        ]
        if classes and not parts:
            raise UserError(
                f"--input {root}: no train/ or test/ folder in it, as FER2013's forms have; use --source folder"
            )
        self._folders = [(folder, split, _class_of(folder)) for folder, split in folders]
        present = {name for *_, name in self._folders}
        self.classes: tuple[str, ...] = classes or tuple(c for c in CLASSES if c in present)
        if not self._folders:
            raise UserError(
                f"--input {root}: no class folders in it; wanted names such as {', '.join(CLASSES[:4])}"
            )

    def rows(self) -> Rows:
        files = []
        for folder, split, name in self._folders:
            pictures = (p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
            files += [(str(p.relative_to(self.root)), p, split, name) for p in pictures]
        found = Collector()
        for source_id, path, split, name in sorted(
            files, key=lambda f: hashlib.blake2b(f[0].encode()).digest()
        ):
            label: int | str = (
                self.classes.index(name)
                if name in self.classes
                else f"class {name} is not of this data set"
            )
            if not path.resolve().is_relative_to(self.root.resolve()):
                label = "path leaves the folder"
            found.add(source_id, label, split, str(path))
        notes = []
        if self._wanted and {s for _, s, _ in self._folders} == {"train", "test"}:
            notes.append(
                "test merges FER2013's PublicTest and PrivateTest: it is not the challenge's test"
            )
        return found.rows(self.root, repr([Path(p).stat().st_size for p in found.locators]), notes)

    def face(self, locator: str) -> Face:
        return Face(read_picture(locator))


def _class_of(folder: Path) -> str:
    name = re.sub(r"^[\d\s._-]+", "", folder.name).strip().lower()
    if name not in ALIASES:
        known = ", ".join(CLASSES)
        raise UserError(
            f"--input: folder {folder} is not named after an expression; rename it to one of {known}, or move it away"
        )
    return ALIASES[name]
