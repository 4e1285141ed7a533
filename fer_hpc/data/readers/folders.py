"""A folder per class, by itself or below a folder per split."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import NO_CLASSES, StatedClasses, label_key, map_classes
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import UNREADABLE, is_picture, kind_of, printable
from fer_hpc.data.readers.folder_labels import disagreement
from fer_hpc.data.sequences import persons, sequence_note
from fer_hpc.data.split_names import split_of
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import Tree

MERGED_TEST = "test merges FER2013's PublicTest and PrivateTest: it is not the challenge's test"


class ClassFolders:
    """`angry/x.jpg`, or `train/angry/x.jpg` with `val/`, `test/`, `test-private/` and so on.

    A class folder carries an expression's name, in any case, maybe after a number (`2 fear`), or
    what --classes names. `classes` fixes those of FER2013. Rows come in a fixed mixed order, so
    that no shard holds one class only. All else in the folder is counted. File names of CK+, JAFFE
    and KDEF give the persons.
    """

    def __init__(
        self,
        root: Path | Tree,
        classes: tuple[str, ...] = (),
        stated: StatedClasses = NO_CLASSES,
    ) -> None:
        self.tree = root if isinstance(root, Tree) else Tree(root)
        self.root, self.classes, self.stated = self.tree.root, classes, stated
        self._fixed = classes
        self._ignored = Tally()

    def rows(self) -> Rows:
        """List the pictures below the class folders."""
        folders = self._class_folders()
        files = []
        for folder, split in folders:
            name = folder.rpartition("/")[2]
            for path, stamp in self.tree.files(folder):
                if is_picture(path):
                    files.append((path, stamp, split, name))
                else:
                    self._ignore(path)
        files.sort(key=lambda f: hashlib.blake2b(os.fsencode(f[0])).digest())
        form, people = persons([f[0] for f in files])
        collector = Collector()
        for i, (path, stamp, split, name) in enumerate(files):
            label = stamp if isinstance(stamp, Reject) else label_key(printable(name))
            group = people[i] if people else ""
            collector.add(path, label, split, path, stamp=stamp, group=group)
        names = {label_key(printable(folder.rpartition("/")[2])): 0 for folder, _ in folders}
        place = f"--input {self.root}"
        class_map = map_classes(names | collector.labels(), self.stated, place, classes=self._fixed)
        self.classes = class_map.classes
        notes = []
        if self._fixed and {split for _, split in folders} == {"train", "test"}:
            notes.append(MERGED_TEST)
        if form:
            notes.append(f"persons (group) are those in {form}'s file names")
        notes += [] if form else [sequence_note([f[0] for f in files])]
        notes.append(disagreement(self.tree, [(f[0], f[3]) for f in files], class_map))
        self._ignored.update(self.tree.ignored)
        return collector.rows(self.root, class_map, "", list(filter(None, notes)), self._ignored)

    def face(self, locator: str) -> Face:
        """Read one picture."""
        return Face(self.tree.picture(locator))

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()

    def _class_folders(self) -> list[tuple[str, str]]:
        """(class folder, split) of every class folder; UserError where that is not clear."""
        top = self._folders_in("")
        splits = [(name, split) for name in top if (split := split_of(name))]
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
        known = [name for name, _ in splits]
        for other in (name for name in top if name not in known):
            for path, _ in self.tree.files(other):
                if is_picture(path):
                    raise UserError(
                        f"--input {self.root}: {printable(other)}/ holds pictures beside "
                        f"{known[0]}/, but is not the name of a split; rename it to train, val or "
                        "test, or move it away"
                    )
                self._ignore(path)
        return [(folder, split) for name, split in splits for folder in self._folders_in(name)]

    def _folders_in(self, folder: str) -> list[str]:
        """The visible folders in a folder; files in it are counted. Links to folders are errors."""
        prefix = f"{folder}/" if folder else ""
        for name in self.tree.folder(folder):
            self._ignore(prefix + name)
        folders = self.tree.folders(folder)
        for linked in self.tree.linked:
            if linked.rpartition("/")[0] == folder:
                raise UserError(
                    f"--input {self.root}: {printable(linked)} is a link to a folder; links are "
                    "not followed: give the folder that it leads to, or move it here"
                )
        return folders

    def _ignore(self, path: str) -> None:
        """Count a file that is not read; pictures among them count towards --max-rejects."""
        limited = is_picture(path) or path.lower().endswith(UNREADABLE)
        kind = kind_of(path)
        stray = " outside class folders" if is_picture(path) else ""
        self._ignored.add(f"{kind} files{stray}", printable(path), limited=limited)
