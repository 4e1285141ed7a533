"""`--source auto`: which form of data an input is, and why; never a guess between two."""

from __future__ import annotations

import collections
from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.data.classes import expression
from fer_hpc.data.pictures import is_picture
from fer_hpc.data.readers.ckplus import emotion_of
from fer_hpc.data.readers.folder_labels import LABELS, PATHS, first_of, label_tables
from fer_hpc.data.sequences import NAME_CODES, stem
from fer_hpc.data.split_names import named_split, split_of
from fer_hpc.data.tables import CsvTable
from fer_hpc.data.tree import Tree, is_archive, open_tree

LISTS = {"list_patition_label.txt": "rafdb", "label.lst": "expw", "fer2013new.csv": "ferplus"}
SHOWN = 6


def detect(path: Path, scratch: Path, has_classes: bool) -> tuple[str, str]:
    """(source, why) of an input; UserError where none or several fit.

    `has_classes`: --classes is given, so that folders may have any names.
    """
    if path.is_file() and not is_archive(path):
        fits = _forms_of_file(path)
    else:
        tree = open_tree(path, scratch)
        try:
            fits = _forms_of_tree(tree, has_classes)
        finally:
            tree.close()
    if not fits:
        raise UserError(
            f"--source auto: no form that is read fits {path}; see the table of forms in "
            "docs/data.md, or write a CSV of path,label and give --source table"
        )
    if len(fits) > 1:
        which = "; ".join(f"--source {name}: {why}" for name, why in fits.items())
        raise UserError(f"--source auto: {path} fits several forms; give one of: {which}")
    return next(iter(fits.items()))


def _forms_of_file(path: Path) -> dict[str, str]:
    if path.name in LISTS:
        return {LISTS[path.name]: f"the file's name is {path.name}"}
    if path.suffix == ".parquet":
        return {"parquet": "a Parquet file"}
    if path.name.endswith(".csv.gz"):
        return {"fer2013": "a .csv.gz, which only FER2013 has"}
    return _forms_of_table(CsvTable(path))


def _forms_of_table(table: CsvTable) -> dict[str, str]:
    names = set(table.names)
    if {"emotion", "pixels"} <= names:
        return {"fer2013": "columns emotion and pixels"}
    if {"image name", "nf"} <= names:
        return {"ferplus": "columns of votes"}
    if "subdirectory_filepath" in names:
        return {"affectnet_csv": "a column subDirectory_filePath"}
    path, label = first_of(table.names, PATHS), first_of(table.names, LABELS)
    fits = {"table": f"columns {path} and {label}"} if path and label else {}
    if {"image_path", "expression"} <= names and names & {"landmarks", "x_min"}:
        fits["affectnet_csv"] = "numbers are AffectNet's, if the table is of AffectNet"
    return fits


def _forms_of_tree(tree: Tree, has_classes: bool) -> dict[str, str]:
    special = _special(tree)
    return special or _general(tree, has_classes)


def _special(tree: Tree) -> dict[str, str]:
    """Forms that their own file names give away."""
    for part in ("train_set", "val_set", "test_set"):
        if f"{part}/annotations" in tree.folders(part):
            return {"affectnet": f"{part}/annotations"}
    names = [name for name, _ in tree.files()]
    last = {name.rpartition("/")[2]: name for name in reversed(names)}
    fits = {source: last[n] for n, source in LISTS.items() if n in last}
    emotions = [n for n in names if n.endswith("_emotion.txt") and emotion_of(n)]
    if emotions:
        fits["ckplus"] = emotions[0]
    pixels = [n for n in ("fer2013.csv", "icml_face_data.csv") if n in last]
    if pixels:
        fits["fer2013"] = last[pixels[0]]
    if any(n.endswith(".parquet") for n in names):
        fits["parquet"] = next(n for n in names if n.endswith(".parquet"))
    if "X_train.npy" in last or "X_test.npy" in last:
        fits["arrays"] = "X_train.npy or X_test.npy"
    pair = [n for n in ("training.csv", "validation.csv") if n in last]
    if pair and "subdirectory_filepath" in CsvTable(tree.local(last[pair[0]])).names:
        fits["affectnet_csv"] = f"{last[pair[0]]}, a column subDirectory_filePath"
    pictures = [n for n in names if is_picture(n)]
    if any("images" in n.split("/")[:-1] for n in pictures) and any(
        "labels" in n.split("/")[:-1] and n.endswith(".txt") for n in names
    ):
        fits["yolo"] = "images/ beside labels/ with .txt files"
    fits |= _by_folders(tree, names, pictures)
    for code in NAME_CODES:
        named = sum(1 for n in pictures if code.pattern.fullmatch(stem(n)))
        if code.classes and named > 0.9 * len(pictures):
            fits[code.form.lower()] = f"{named:,} file names such as {stem(pictures[0])}"
    return fits


def _by_folders(tree: Tree, names: list[str], pictures: list[str]) -> dict[str, str]:
    """Forms that the names of their folders give away."""
    folders = collections.Counter(tuple(n.split("/")[-3:-1]) for n in pictures)
    numbered = {f[1] for f in folders if len(f) == 2 and split_of(f[0])}
    tables = [n for n in names if n.endswith("_labels.csv")]
    fits = {}
    if numbered == set("1234567") and tables:
        fits["rafdb"] = f"folders 1 to 7 with {tables[0]}"
    lists = [n for n in names if n.rpartition("/")[2] == "label.csv"]
    if any(n.split("/")[-2].startswith("FER2013") for n in lists if "/" in n):
        fits["ferplus"] = lists[0]
    return fits


def _general(tree: Tree, has_classes: bool) -> dict[str, str]:
    """A table of pictures, or class folders."""
    fits = {}
    tables = label_tables(tree)
    if tables:
        fits["table"] = f"{tables[0]} has paths and labels"
    top = tree.folders()
    splits = [name for name in top if split_of(name)]
    classes = [f for name in splits for f in tree.folders(name)] if splits else top
    named = [f for f in classes if expression(f.rpartition("/")[2])]
    if classes and (has_classes or len(named) > len(classes) / 2):
        shown = ", ".join(f.rpartition("/")[2] for f in classes[:SHOWN])
        fits["folder"] = f"class folders {shown}"
    elif not fits and classes and not named and not any(map(named_split, classes)):
        shown = ",".join(f.rpartition("/")[2] for f in classes[:SHOWN])
        raise UserError(
            f"--source auto: {tree.root} has folders {shown}, which are no expressions; state what "
            f"they mean with --source folder --classes"
        )
    return fits
