"""Which tables --input means: a CSV file, or those in a folder or an archive."""

from __future__ import annotations

from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data.classes import StatedClasses
from fer_hpc.data.readers.fer2013 import FER2013_CLASSES, Fer2013Csv
from fer_hpc.data.readers.folder_labels import label_tables
from fer_hpc.data.readers.folders import ClassFolders
from fer_hpc.data.readers.table import (
    AffectNetCsv,
    PictureTable,
    generic_table,
    image_tree,
    open_table,
)
from fer_hpc.data.split_names import split_of
from fer_hpc.data.tables import CsvTable
from fer_hpc.data.tree import Tree, is_archive, open_tree

PIXEL_TABLES = ("fer2013.csv", "icml_face_data.csv", "train.csv")  # the first that is there


def affectnet_csv(config: PreprocessConfig, stated: StatedClasses, scratch: Path) -> AffectNetCsv:
    """One table, or AffectNet's pair: training.csv, and validation.csv as the test split."""
    path = config.input
    assert path is not None
    if not path.is_dir() and not is_archive(path):
        return AffectNetCsv(path, config.image_root, stated)
    tree = open_tree(path, scratch)
    path_by_name = {
        n.rpartition("/")[2].lower(): n for n, _ in tree.files() if n.lower().endswith(".csv")
    }
    pair = {"training.csv": "train", "validation.csv": "test"}
    names = [name for name in pair if name in path_by_name]
    if not names:
        tree.close()
        raise UserError(f"--input {path}: no training.csv or validation.csv in it")
    tables = [
        (CsvTable(tree.local(path_by_name[n])), pair[n] if len(names) == 2 else "") for n in names
    ]
    images = tree if config.image_root is None else image_tree(config.image_root, path)
    return AffectNetCsv(tables, images, stated)


def table(config: PreprocessConfig, stated: StatedClasses, scratch: Path) -> PictureTable:
    """One table of paths and labels; or in a folder its only one, or train.csv, test.csv, ..."""
    path = config.input
    assert path is not None
    if not path.is_dir() and not is_archive(path):
        return generic_table([(open_table(path), "")], image_tree(config.image_root, path), stated)
    tree = open_tree(path, scratch)
    names = label_tables(tree)
    splits = [split_of(name.removesuffix(".csv").removesuffix("_labels")) for name in names]
    if not names or (len(names) > 1 and not (all(splits) and len(set(splits)) == len(names))):
        tree.close()
        which = f"{len(names)} tables ({', '.join(names[:4])})" if names else "no table"
        raise UserError(
            f"--input {path}: {which} with paths and labels in it; give one CSV file, and "
            "--image-root for its pictures"
        )
    tables = [(CsvTable(tree.local(n)), s) for n, s in zip(names, splits, strict=True)]
    if len(tables) == 1:
        tables = [(tables[0][0], "")]
    images = tree if config.image_root is None else image_tree(config.image_root, path)
    return generic_table(tables, images, stated)


def fer2013(
    config: PreprocessConfig, stated: StatedClasses, scratch: Path
) -> Fer2013Csv | ClassFolders:
    """Kaggle's CSV, also in a folder or an archive, or folders of pictures."""
    path = config.input
    assert path is not None
    if not path.is_dir() and not is_archive(path):
        return Fer2013Csv(path, scratch, stated)
    tree = open_tree(path, scratch)
    if name := pixel_table(tree):
        return Fer2013Csv(tree.local(name), scratch, stated, tree)
    return ClassFolders(tree, FER2013_CLASSES, stated)


def pixel_table(tree: Tree) -> str:
    """The table of pixels in a folder or archive, or ""."""
    path_by_name = {n.rpartition("/")[2].lower(): n for n in _csv_files(tree)}
    return next(
        (
            path_by_name[n]
            for n in PIXEL_TABLES
            if n in path_by_name and _has_pixels(tree, path_by_name[n])
        ),
        "",
    )


def _csv_files(tree: Tree) -> list[str]:
    """CSV files at the top, or in the folders there."""
    folders = ["", *tree.folders()]
    names = [f"{f}/{n}".lstrip("/") for f in folders for n in tree.folder(f)]
    return [name for name in names if name.lower().endswith(".csv")]


def _has_pixels(tree: Tree, name: str) -> bool:
    try:
        return {"emotion", "pixels"} <= set(CsvTable(tree.local(name)).names)
    except UserError:
        return False
