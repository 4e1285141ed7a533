"""Which forms of data there are: one SourceSpec each, built in or registered by a plugin.

The readers are imported when they are used: listing the names loads nothing heavy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_hpc.config import UserError, unknown_name_error
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.plugins import Origin, check_name_free, origin_of_caller

if TYPE_CHECKING:
    from fer_hpc.data.annotations import Source

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
        raise unknown_name_error("source", name, list(SOURCES))
    return SOURCES[name]


@contextlib.contextmanager
def open_source(spec: SourceSpec, config: PreprocessConfig) -> Iterator[Source]:
    """Open the reader of a form, and close it at the end."""
    if spec.needs_input and config.input is None:
        raise UserError(f"--source {spec.name} needs --input PATH ({spec.help})")
    opened = spec.open(config)
    if not (hasattr(opened, "rows") and hasattr(opened, "face")):
        if not hasattr(opened, "__enter__"):
            raise UserError(
                f"--source {spec.name}: {type(opened).__name__} has no methods rows() and "
                "face(locator); register what has them"
            )
        with opened as source:
            yield source
    elif hasattr(opened, "close"):
        with contextlib.closing(opened) as source:
            yield source
    else:
        yield opened


def _built_in(name: str, help: str, needs_input: bool = True) -> Callable[[Opener], Opener]:
    def register(opener: Opener) -> Opener:
        SOURCES[name] = SourceSpec(name, opener, help, needs_input, reads_classes=needs_input)
        return opener

    return register


@_built_in("affectnet", "AffectNet's folder: train_set/images, train_set/annotations, val_set")
def _affectnet(config: PreprocessConfig) -> Source:
    from fer_hpc.data.affectnet import AffectNetFolder
    from fer_hpc.data.classes import read_stated

    return AffectNetFolder(_input(config), read_stated(config.classes))


@_built_in("affectnet_csv", "a CSV file of picture paths and annotations, pictures beside it")
def _affectnet_csv(config: PreprocessConfig) -> Source:
    from fer_hpc.data.affectnet import AffectNetCsv
    from fer_hpc.data.classes import read_stated

    return AffectNetCsv(_input(config), config.image_root, read_stated(config.classes))


@_built_in("fer2013", "FER2013's CSV file of pixels (or .csv.gz), or its folders of pictures")
def _fer2013(config: PreprocessConfig) -> Source:
    from fer_hpc.data.classes import read_stated
    from fer_hpc.data.fer2013 import FER2013_CLASSES, Fer2013Csv
    from fer_hpc.data.folders import ClassFolders

    path, stated = _input(config), read_stated(config.classes)
    if path.is_dir():
        return ClassFolders(path, FER2013_CLASSES, stated)
    return Fer2013Csv(path, config.out / f".unpacked-{config.task}.tmp", stated)


@_built_in("arrays", "a folder of X_train.npy, y_train.npy (one-hot), and val and test likewise")
def _arrays(config: PreprocessConfig) -> Source:
    from fer_hpc.data.arrays import Arrays
    from fer_hpc.data.classes import read_stated

    return Arrays(_input(config), read_stated(config.classes))


@_built_in("folder", "a folder per class, by itself or below train/, val/, test/")
def _folder(config: PreprocessConfig) -> Source:
    from fer_hpc.data.classes import read_stated
    from fer_hpc.data.folders import ClassFolders

    return ClassFolders(_input(config), stated=read_stated(config.classes))


@_built_in("synthetic", "faces drawn on the way, --count of them", needs_input=False)
def _synthetic(config: PreprocessConfig) -> Source:
    from fer_hpc.data.synthetic.source import Synthetic

    return Synthetic(config.count, config.seed)


def _input(config: PreprocessConfig) -> Path:
    assert config.input is not None, "open_source has checked it"
    return config.input
