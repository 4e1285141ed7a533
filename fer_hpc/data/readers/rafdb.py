"""RAF-DB: its own list of labels with aligned pictures, and Kaggle's numbered folders."""

from __future__ import annotations

from collections.abc import Iterable

from fer_hpc.config import UserError
from fer_hpc.data.annotations import Collector, Face, Rows
from fer_hpc.data.classes import NO_CLASSES, ORDERS, ClassMap, StatedClasses, label_key, map_classes
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import is_picture, kind_of, printable
from fer_hpc.data.split_names import split_of
from fer_hpc.data.tables import CsvTable
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import Tree

LIST = "list_patition_label.txt"  # as it is spelled there
NUMBERS = {str(i + 1): name for i, name in enumerate(ORDERS["rafdb"])}
CLASSES = tuple(sorted(NUMBERS.values(), key=ORDERS["affectnet"].index))


class RafDb:
    """`EmoLabel/list_patition_label.txt` (`train_00001.jpg 5`) with `Image/aligned/`, or
    `DATASET/train/1` to `7` with `train_labels.csv`, `test_labels.csv` (image, label).

    Numbers are RAF-DB's (1 Surprise to 7 Neutral). Splits are those of the names or folders. Where
    a table and a folder disagree, the table counts.
    """

    def __init__(self, tree: Tree, stated: StatedClasses = NO_CLASSES) -> None:
        self.tree, self.stated, self.classes = tree, stated, CLASSES
        self._files = dict(tree.files())
        lists = [n for n in self._files if n.rpartition("/")[2] == LIST]
        self._list = lists[0] if lists else ""
        self._folders = not lists and _numbered(self._files)
        if not self._list and not self._folders:
            raise UserError(f"--input {tree.root}: neither {LIST} nor folders train/1 to 7 in it")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}

    def rows(self) -> Rows:
        """List the pictures."""
        collector, ignored = Collector(), Tally()
        notes: list[str] = []
        list_rows = self._rows_of_list if self._list else self._rows_of_folders
        used = list_rows(collector, notes)
        for name in sorted(self._files.keys() - used):
            left = is_picture(name)
            kind = "pictures without a label" if left else f"{kind_of(name)} files"
            limited = left and self._folders
            ignored.add(kind, printable(name), limited=limited)
        refusal = "label {label}, wanted 1 to 7"
        class_map = ClassMap(CLASSES, NUMBERS, {}, refusal, "RAF-DB's numbers")
        if self.stated:
            class_map = map_classes(collector.labels(), self.stated, f"--input {self.tree.root}")
        self.classes = class_map.classes
        ignored.update(self.tree.ignored)
        return collector.rows(self.tree.root, class_map, "", notes, ignored)

    def _rows_of_list(self, collector: Collector, notes: list[str]) -> set[str]:
        used = {self._list}
        pictures = {n.rpartition("/")[2]: n for n in sorted(self._files) if is_picture(n)}
        aligned = sum(1 for name in pictures if name.rpartition(".")[0].endswith("_aligned"))
        text = self.tree.read(self._list, 1 << 28).decode("utf-8", "replace")
        for number, line in enumerate(text.splitlines()):
            cells = line.split()
            if not cells:
                continue
            if len(cells) != 2:
                collector.add(f"line {number + 1}", Reject(f"{len(cells)} columns, wanted 2"))
                continue
            stem, _, suffix = cells[0].rpartition(".")
            wanted = f"{stem}_aligned.{suffix}" if aligned else cells[0]
            name = pictures.get(wanted, "")
            used.add(name)
            stamp = self._files.get(name, Reject("missing image"))
            split = split_of(stem.partition("_")[0])
            label = stamp if isinstance(stamp, Reject) else label_key(cells[1])
            if not split:
                label = Reject("its name begins with neither train_ nor test_")
            collector.add(cells[0], label, split, name, stamp=stamp)
        notes.append("aligned faces are taken" if aligned else "whole pictures are taken, not cut")
        return used

    def _rows_of_folders(self, collector: Collector, notes: list[str]) -> set[str]:
        used, differ, example = self._tables(), 0, ""
        for name, stamp in sorted(self._files.items()):
            parts = name.split("/")
            split = split_of(parts[-3]) if len(parts) >= 3 else ""
            if not split or not is_picture(name) or parts[-2] not in NUMBERS:
                continue
            used.add(name)
            label: str | Reject = parts[-2]
            stated = self._stated_in_tables.get((split, parts[-1]))
            if stated is not None and stated != label:
                differ, example = differ + 1, example or name
                label = stated
            collector.add(
                name, stamp if isinstance(stamp, Reject) else label, split, name, stamp=stamp
            )
        if differ:
            notes.append(
                f"the tables name another class than the folder for {differ:,} pictures (for "
                f"example {example}); the tables count"
            )
        return used

    def _tables(self) -> set[str]:
        """Read train_labels.csv and test_labels.csv; gives the names of those that are there."""
        used = set()
        self._stated_in_tables: dict[tuple[str, str], str] = {}
        for name in self._files:
            last = name.rpartition("/")[2].lower()
            split = split_of(last.removesuffix("_labels.csv"))
            if split and last.endswith("_labels.csv"):
                table = CsvTable(self.tree.local(name))
                table.require("image", "label")
                used.add(name)
                for _, line in table:
                    if not isinstance(line, str):
                        self._stated_in_tables[split, line["image"]] = label_key(line["label"])
        return used

    def face(self, locator: str) -> Face:
        """Read one picture."""
        return Face(self.tree.picture(locator))

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()


def _numbered(files: Iterable[str]) -> bool:
    """Whether there are folders train/1 to train/7, and none of another number."""
    folders = {tuple(n.split("/")[-3:-1]) for n in files if n.count("/") >= 2 and is_picture(n)}
    numbers = {f[1] for f in folders if split_of(f[0]) == "train"}
    return numbers == set(NUMBERS)
