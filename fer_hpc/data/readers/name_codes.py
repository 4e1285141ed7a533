"""JAFFE and KDEF: person and expression are in the name of the file."""

from __future__ import annotations

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import ClassMap
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import UNREADABLE, is_picture, kind_of, printable
from fer_hpc.data.sequences import NAME_CODES, NameCode, stem
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import Tree


class NamedFiles:
    """`KA.AN1.39.tiff` (JAFFE) or `AF01ANS.JPG` (KDEF), in any folders; persons become the group.

    A picture whose name is not of the form is ignored, and counted.
    """

    def __init__(self, tree: Tree, form: str) -> None:
        self.tree = tree
        self._code = code_of(form)
        self.classes = tuple(c for c in CLASSES if c in self._code.classes.values())

    def rows(self) -> Rows:
        """List the pictures."""
        collector, ignored, form = Collector(), Tally(), self._code.form
        for name, stamp in self.tree.files():
            match = self._code.pattern.fullmatch(stem(name))
            if match and is_picture(name):
                label = stamp if isinstance(stamp, Reject) else match["code"]
                collector.add(name, label, "", name, stamp=stamp, group=match["person"])
            elif is_picture(name) or name.lower().endswith(UNREADABLE):
                ignored.add(f"pictures not named as in {form}", printable(name), limited=True)
            else:
                ignored.add(f"{kind_of(name)} files", printable(name))
        class_map = ClassMap(
            self.classes, self._code.classes, source=f"the codes in {form}'s file names"
        )
        ignored.update(self.tree.ignored)
        notes = [f"persons (group) are those in {form}'s file names"]
        return collector.rows(self.tree.root, class_map, "", notes, ignored)

    def face(self, locator: str) -> Face:
        """Read one picture."""
        return Face(self.tree.picture(locator))

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()


def code_of(form: str) -> NameCode:
    """The code of a form, in any case."""
    for code in NAME_CODES:
        if code.form.lower() == form.lower() and code.classes:
            return code
    raise UserError(f"no file names are known of {form}")
