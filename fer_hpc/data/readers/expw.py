"""ExpW: label.lst, several faces a picture, with boxes."""

from __future__ import annotations

from fer_hpc.config import UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import NO_CLASSES, ORDERS, Numbering, StatedClasses, map_classes
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import is_picture
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import Tree

NUMBERING = Numbering("ExpW", ORDERS["expw"])
CLASSES = tuple(sorted(NUMBERING.names, key=ORDERS["affectnet"].index))
LIST = "label.lst"
COLUMNS = 8  # picture, face in it, top, left, right, bottom, confidence, label


class ExpW:
    """Lines `name face_id top left right bottom confidence label`; an id is `name#face_id`.

    The pictures lie anywhere below the input.
    """

    def __init__(self, tree: Tree, list_name: str = "", stated: StatedClasses = NO_CLASSES) -> None:
        self.tree, self.stated, self.classes = tree, stated, CLASSES
        names = [n for n, _ in tree.files() if n.rpartition("/")[2] == (list_name or LIST)]
        if not names:
            raise UserError(f"--input {tree.root}: no {LIST} in it")
        self._list = names[0]

    def rows(self) -> Rows:
        """List the faces."""
        collector, ignored = Collector(), Tally()
        pictures = {n.rpartition("/")[2]: (n, s) for n, s in self.tree.files() if is_picture(n)}
        used = set()
        text = self.tree.read(self._list, 1 << 28).decode("utf-8", "replace")
        for number, line in enumerate(text.splitlines()):
            cells = line.split()
            if not cells:
                continue
            if len(cells) != COLUMNS:
                reason = f"{len(cells)} columns, wanted {COLUMNS}: name face_id top left right ..."
                collector.add(f"line {number + 1}", Reject(reason))
                continue
            name, stamp = pictures.get(cells[0], ("", Reject("missing image")))
            used.add(name)
            try:
                top, left, right, bottom = (float(cell) for cell in cells[2:6])
            except ValueError:
                stamp = Reject("box is not of numbers")
                top = left = right = bottom = 0.0
            label = stamp if isinstance(stamp, Reject) else cells[7]
            locator = (name, (left, top, right, bottom))
            face, stamps = f"{cells[0]}#{cells[1]}", (stamp, cells[2:6])
            collector.add(face, label, "", locator, stamp=stamps, picture=name, box=locator[1])
        place = f"--input {self.tree.root}"
        class_map = map_classes(collector.labels(), self.stated, place, NUMBERING, CLASSES)
        self.classes = class_map.classes
        for name, _ in pictures.values():
            if name not in used:
                ignored.add("pictures without a row in the list", name)
        ignored.update(self.tree.ignored)
        return collector.rows(self.tree.root, class_map, "", [], ignored)

    def face(self, locator: tuple[str, tuple[float, float, float, float]]) -> Face:
        """Read one picture."""
        name, box = locator
        if not all(abs(side) < 1e6 for side in box):
            raise Reject("box is not in pixels of a picture")
        return Face(self.tree.picture(name), box=box)

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()
