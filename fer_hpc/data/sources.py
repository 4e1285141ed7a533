"""Which forms of data there are: one SourceSpec each, built in or registered by a plugin.

The readers are imported when they are used: listing the names loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_hpc.config import UserError, unknown_name_error
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.plugins import (
    MISTAKES,
    Origin,
    check_name,
    check_name_free,
    describe,
    error_line,
    origin_of_caller,
)

if TYPE_CHECKING:
    from fer_hpc.data.annotations import Source
    from fer_hpc.data.classes import StatedClasses
    from fer_hpc.data.tree import Tree

# Gives a Source, or a context manager that gives one; a Source's `close`, if any, is called.
Opener = Callable[[PreprocessConfig], Any]


@dataclass(frozen=True)
class SourceSpec:
    """A form of data that `--source NAME` reads."""

    name: str
    open: Opener
    help: str = ""  # one line
    needs_input: bool = False  # whether --input must be given
    reads_classes: bool = False  # whether the reader applies --classes itself
    origin: Origin | None = None  # the plugin that registered it; None: built in


SOURCES: dict[str, SourceSpec] = {}


def register_source(
    name: str, *, help: str = "", needs_input: bool = False
) -> Callable[[Opener], Opener]:
    """Decorator: make a class or function (config) -> Source known as `--source NAME`.

    See fer_hpc.data.annotations for what a Source is. `config` is the PreprocessConfig of the
    command, with `input`, `seed`, `count` and so on. Raises UserError where the name is taken.
    """

    check_name("source", name)

    def register(opener: Opener) -> Opener:
        if not callable(opener):
            raise UserError(
                f"register_source({name!r}) stands above {opener!r}: wanted a class or function "
                "that takes the configuration and gives a source"
            )
        spec = SourceSpec(name, opener, help, needs_input, origin=origin_of_caller())
        check_name_free("source", name, spec.origin, SOURCES.get(name))
        SOURCES[name] = spec
        return opener

    return register


def source_spec(name: str) -> SourceSpec:
    """The spec of `--source NAME`; a UserError with the known names where there is none."""
    if name not in SOURCES:
        raise unknown_name_error("source", name, ["auto", *SOURCES])
    return SOURCES[name]


def error_of_plugin(spec: SourceSpec, error: BaseException) -> BaseException:
    """A UserError with the place in the plugin where an error of its code arose; else `error`."""
    if spec.origin is None or isinstance(error, UserError | OSError):
        return error
    line = error_line(error, spec.origin.path)
    return UserError(f"--source {spec.name}: {spec.origin.path}: {line}{describe(error)}")


@contextlib.contextmanager
def open_source(spec: SourceSpec, config: PreprocessConfig) -> Iterator[Source]:
    """Open the reader of a form, and close it at the end."""
    if spec.needs_input and config.input is None:
        raise UserError(f"--source {spec.name} needs --input PATH ({spec.help})")
    with contextlib.ExitStack() as stack:
        try:
            opened = source = spec.open(config)
            if not _is_source(opened) and hasattr(opened, "__enter__"):
                source = stack.enter_context(opened)
        except MISTAKES as error:
            raise error_of_plugin(spec, error) from error
        if not _is_source(source):
            raise UserError(
                f"--source {spec.name}: {type(source).__name__} has no methods rows() and "
                "face(locator); register what has them"
            )
        if source is opened and hasattr(source, "close"):
            stack.callback(_close, spec, source)
        yield source


def _is_source(opened: Any) -> bool:
    return hasattr(opened, "rows") and hasattr(opened, "face")


def _close(spec: SourceSpec, source: Any) -> None:
    try:
        source.close()
    except MISTAKES as error:
        raise error_of_plugin(spec, error) from error


def _built_in(name: str, help: str, needs_input: bool = True) -> Callable[[Opener], Opener]:
    def register(opener: Opener) -> Opener:
        SOURCES[name] = SourceSpec(name, opener, help, needs_input, reads_classes=needs_input)
        return opener

    return register


@_built_in("affectnet", "AffectNet's folder: train_set/images, train_set/annotations, val_set")
def _affectnet(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.affectnet import AffectNetFolder

    return AffectNetFolder(_tree(config), _stated(config))


@_built_in("affectnet_csv", "AffectNet's CSV, or a folder of training.csv and validation.csv")
def _affectnet_csv(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.open_tables import affectnet_csv

    return affectnet_csv(config, _stated(config), _scratch(config))


@_built_in("table", "a CSV of path,label[,split][,x_min,y_min,x_max,y_max][,group]")
def _table(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.open_tables import table

    return table(config, _stated(config), _scratch(config))


@_built_in("fer2013", "FER2013's CSV file of pixels (or .csv.gz), or its folders of pictures")
def _fer2013(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.open_tables import fer2013

    return fer2013(config, _stated(config), _scratch(config))


@_built_in("ferplus", "FER+: fer2013new.csv beside fer2013.csv, or FER2013Train/ with label.csv")
def _ferplus(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.ferplus import FerPlus

    if config.classes:
        raise UserError("--classes: FER+ names its classes itself; leave it out")
    return FerPlus(_tree(config, beside=True), config.labels == "distribution")


@_built_in("rafdb", "RAF-DB: EmoLabel/list_patition_label.txt, or train/1 to train/7")
def _rafdb(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.rafdb import RafDb

    return RafDb(_tree(config, beside=True), _stated(config))


@_built_in("expw", "ExpW: label.lst, and the pictures anywhere below its folder")
def _expw(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.expw import ExpW

    return ExpW(_tree(config, beside=True), _file_name(config), _stated(config))


@_built_in("yolo", "YOLO: images/ beside labels/, names in data.yaml or --classes")
def _yolo(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.yolo import Yolo

    return Yolo(_tree(config, beside=True), _stated(config))


@_built_in("parquet", "Hugging Face's .parquet files with picture bytes and labels")
def _parquet(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.parquet import Parquet

    return Parquet(_tree(config, beside=True), _stated(config), _file_name(config))


@_built_in("arrays", "a folder of X_train.npy, y_train.npy (one-hot or numbers), val and test")
def _arrays(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.arrays import Arrays

    return Arrays(_tree(config), _stated(config))


@_built_in("folder", "a folder per class, by itself or below train/, val/, test/")
def _folder(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.folders import ClassFolders

    return ClassFolders(_tree(config), stated=_stated(config))


@_built_in("ckplus", "CK+: cohn-kanade-images/ beside Emotion/, and maybe Landmarks/")
def _ckplus(config: PreprocessConfig) -> Source:
    from fer_hpc.data.readers.ckplus import CkPlus

    return CkPlus(_tree(config), _stated(config))


@_built_in("jaffe", "JAFFE: KA.AN1.39.tiff; person and expression are in the name")
def _jaffe(config: PreprocessConfig) -> Source:
    return _named_files(config, "JAFFE")


@_built_in("kdef", "KDEF: AF01ANS.JPG; person and expression are in the name")
def _kdef(config: PreprocessConfig) -> Source:
    return _named_files(config, "KDEF")


def _named_files(config: PreprocessConfig, form: str) -> Source:
    from fer_hpc.data.readers.name_codes import NamedFiles

    if config.classes:
        raise UserError(f"--classes: the names of {form}'s files state the classes; leave it out")
    return NamedFiles(_tree(config), form)


@_built_in("synthetic", "faces drawn on the way, --count of them", needs_input=False)
def _synthetic(config: PreprocessConfig) -> Source:
    from fer_hpc.data.synthetic.source import Synthetic

    return Synthetic(config.count, config.seed)


def _input(config: PreprocessConfig) -> Path:
    assert config.input is not None, "open_source has checked it"
    return config.input


def _scratch(config: PreprocessConfig) -> Path:
    """Where archives are unpacked; removed at the end."""
    return config.out / f".unpacked-{config.task}"


def _file_name(config: PreprocessConfig) -> str:
    """The name of --input where it is a single file, not a folder or an archive; else ""."""
    from fer_hpc.data.tree import ARCHIVES, is_archive

    path = _input(config)
    is_packed = path.name.lower().endswith(ARCHIVES)  # or should be, and is damaged
    return path.name if path.is_file() and not is_packed and not is_archive(path) else ""


def _tree(config: PreprocessConfig, beside: bool = False) -> Tree:
    """The files of --input: a folder, an archive or, if wanted, those beside a file."""
    from fer_hpc.data.tree import open_tree

    path = _input(config)
    if beside and _file_name(config):
        path = path.parent
        path = path.parent if path.name == "EmoLabel" else path  # RAF-DB's, beside Image/
    return open_tree(path, _scratch(config))


def _stated(config: PreprocessConfig) -> StatedClasses:
    from fer_hpc.data.classes import read_stated

    return read_stated(config.classes)


def resolve_source(config: PreprocessConfig) -> tuple[PreprocessConfig, str]:
    """The configuration with the form that `--source auto` means, and why; else as it is."""
    if config.source != "auto" or "auto" in SOURCES:
        return config, ""
    from fer_hpc.data.detect import detect

    if config.input is None:
        raise UserError("--source auto needs --input PATH")
    name, why = detect(_input(config), _scratch(config), bool(config.classes))
    return dataclasses.replace(config, source=name), why
