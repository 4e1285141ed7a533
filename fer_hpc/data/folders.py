"""A folder per class, by itself or below a folder per split."""

from __future__ import annotations

import collections
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import StatedClasses, label_key, map_classes
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import PICTURES, printable, read_picture

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
# Further forms that the decoder reads; GIF only from OpenCV 4.11 on, else they are rejects.
READABLE = (*PICTURES, ".bmp", ".tif", ".tiff", ".webp", ".gif")
MERGED_TEST = "test merges FER2013's PublicTest and PrivateTest: it is not the challenge's test"


class ClassFolders:
    """`angry/x.jpg`, or `train/angry/x.jpg` with `val/`, `test/`, `test-private/` and so on.

    A class folder carries an expression's name, in any case, maybe after a number (`2 fear`), or
    what --classes names. `classes` fixes those of FER2013. Rows come in a fixed mixed order, so
    that no shard holds one class only. All else in the folder is counted in the notes.
    """

    def __init__(
        self,
        root: Path,
        classes: tuple[str, ...] = (),
        stated: StatedClasses | None = None,
    ) -> None:
        if not root.is_dir():
            raise UserError(f"--input {root}: no such folder")
        self.root, self.classes, self.stated = root, classes, stated or StatedClasses()
        self._fixed = classes
        self._left_out: list[str] = []  # files and folders that are not read

    def rows(self) -> Rows:
        """List the pictures below the class folders."""
        folders = self._class_folders()
        files = []
        for folder, split in folders:
            for path in self._pictures(folder):
                files.append((os.path.relpath(path, self.root), path, split, folder.name))
        files.sort(key=lambda f: hashlib.blake2b(os.fsencode(f[0])).digest())
        found, sizes = Collector(), []
        for source_id, path, split, name in files:
            size = _size_inside(path, self.root)
            label = size if isinstance(size, Reject) else label_key(printable(name))
            sizes += [] if isinstance(size, Reject) else [size]
            found.add(source_id, label, split, path)
        names = {label_key(printable(folder.name)): 0 for folder, _ in folders}
        place = f"--input {self.root}"
        class_map = map_classes(names | found.labels(), self.stated, place, classes=self._fixed)
        self.classes = class_map.classes
        return found.rows(self.root, class_map, repr(sizes), self._notes(folders))

    def face(self, locator: str) -> Face:
        """Read one picture."""
        return Face(read_picture(locator))

    def _class_folders(self) -> list[tuple[Path, str]]:
        """(class folder, split) of every class folder; UserError where that is not clear."""
        top = self._folders_in(self.root)
        splits = [(p, SPLIT_NAMES[key]) for p in top if (key := _letters(p.name)) in SPLIT_NAMES]
        if not splits:
            if self._fixed:
                raise UserError(
                    f"--input {self.root}: no train/ or test/ folder in it, as FER2013's forms "
                    "have; use --source folder"
                )
            if not top:
                names = ", ".join(CLASSES[:4])
                raise UserError(
                    f"--input {self.root}: no class folders in it; wanted names such as {names}"
                )
            return [(folder, "") for folder in top]
        known = [p for p, _ in splits]
        for other in (p for p in top if p not in known):
            if next(self._pictures(other), None) is not None:
                raise UserError(
                    f"--input {self.root}: {other.name}/ holds pictures beside {known[0].name}/, "
                    "but is not the name of a split; rename it to train, val or test, or move it "
                    "away"
                )
        return [(folder, split) for p, split in splits for folder in self._folders_in(p)]

    def _folders_in(self, folder: Path) -> list[Path]:
        """The visible folders in a folder; files are left out."""
        visible = []
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                visible.append(path)
            else:
                self._left_out.append(str(path))
        return visible

    def _pictures(self, folder: Path) -> Iterator[str]:
        """The paths of all pictures below a folder, hidden ones excepted."""

        def fail(error: OSError) -> None:
            raise UserError(f"--input {error.filename}: cannot be read ({error.strerror})")

        for place, folders, files in os.walk(folder, onerror=fail):
            for name in [*folders, *files]:
                path = f"{place}/{name}"
                is_folder = name in folders
                if name.startswith(".") or (is_folder and Path(path).is_symlink()):
                    self._left_out.append(path)
                elif not is_folder and name.lower().endswith(READABLE):
                    yield path
                elif not is_folder:
                    self._left_out.append(path)
            folders[:] = [name for name in folders if not name.startswith(".")]

    def _notes(self, folders: list[tuple[Path, str]]) -> list[str]:
        notes = []
        if self._fixed and {split for _, split in folders} == {"train", "test"}:
            notes.append(MERGED_TEST)
        if self._left_out:
            kinds = collections.Counter(_kind(path) for path in sorted(set(self._left_out)))
            counts = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common(6))
            first = printable(os.path.relpath(min(self._left_out), self.root))
            notes.append(f"not read: {counts}; for example {first}")
        return notes


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _kind(path: str) -> str:
    """How to name a file or folder that is not read."""
    name = Path(path).name
    if name.startswith("."):
        return "hidden"
    if Path(path).is_dir():
        return "linked folders"
    return printable(Path(path).suffix.lower() or "without a suffix")


def _size_inside(path: str, root: Path) -> int | Reject:
    """A file's bytes; Reject where it is no ordinary file inside the root, links followed."""
    try:
        info = os.stat(path)  # noqa: PTH116  a Path for each of a million files costs seconds
    except OSError as error:
        return Reject(f"unreadable image: {error.strerror}")
    if not Path(path).resolve().is_relative_to(root.resolve()):
        return Reject("path leaves the folder")
    return info.st_size if stat.S_ISREG(info.st_mode) else Reject("not an ordinary file")
