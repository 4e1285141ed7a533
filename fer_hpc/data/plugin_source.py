"""What a source that others wrote gives, checked: a mistake in it is one message.

What is wrong with the code stops the command. What is wrong with a picture or its annotations
makes it a reject, as in the built-in sources.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.plugins import MISTAKES, describe, first_line
from fer_hpc.data import shards
from fer_hpc.data.annotations import Face, Rows, Source, affect, check_box, landmarks_of
from fer_hpc.data.classes import ClassMap, StatedClasses, map_classes
from fer_hpc.data.faces import Box, Reject, pixel_fault
from fer_hpc.data.pictures import printable
from fer_hpc.data.sources import SourceSpec, error_of_plugin
from fer_hpc.data.tally import Tally

NO_AFFECT = -2.0  # AffectNet's mark of a face without valence and arousal
ROUNDING = 1e-3  # that a sum of shares may differ from 1
MISSING = ("None", "nan", "NaT", "<NA>")  # as pandas has them in columns of texts


class Mistake(Exception):
    """What a source gives cannot be used; the message says what it is and what is wanted."""


# ---- the list of faces ----------------------------------------------------------------------


def rows_of_plugin(
    spec: SourceSpec, source: Source, stated: StatedClasses
) -> tuple[Rows, tuple[str, ...]]:
    """The checked rows and classes of a source that others wrote, with --classes applied."""
    try:
        rows, classes = source.rows(), source.classes
        rows, names = _checked_rows(rows, classes)
    except Mistake as mistake:
        path = spec.origin.path if spec.origin else ""
        place = f"{path}: {first_line(source.rows, path)}" if path else ""
        raise UserError(f"--source {spec.name}: {place}rows() gives {mistake}") from None
    except MISTAKES as error:
        raise error_of_plugin(spec, error) from error
    return _renamed(spec, rows, names, stated) if stated else (rows, names)


def _checked_rows(rows: object, classes: Any) -> tuple[Rows, tuple[str, ...]]:
    """Rows in the types that the plan needs, and the class names; raises Mistake."""
    if not isinstance(rows, Rows):
        raise Mistake(f"{_kind(rows)}; wanted Rows")
    ids, split = _texts("source_id", rows.source_id), _texts("split", rows.split)
    n, names = len(ids), tuple(_texts("classes", classes))
    if not n:
        raise Mistake("no face")
    if len(names) < 2 or len(set(names)) < len(names) or "" in names:
        raise Mistake(f"labels of the classes {str(names)[:200]}; wanted two or more, each once")
    columns = {k: _array(f"columns[{k!r}]", v) for k, v in rows.columns.items()}
    pictures = {k: _array(k, v) for k in ("picture", "face") if (v := getattr(rows, k)) is not None}
    label, locators = _array("label", rows.label), rows.locators if len(rows.locators) else ids
    lengths: dict[str, Any] = {"label": label, "split": split, "locators": locators, **pictures}
    lengths |= {f"columns[{k!r}]": v for k, v in columns.items()}
    for name, values in lengths.items():
        if len(values) != n:
            raise Mistake(f"{len(values):,} entries of {name} for {n:,} of source_id")
    if _is_other(label, "iu") or label.min() < 0 or label.max() >= len(names):
        raise Mistake(f"labels other than whole numbers from 0 to {len(names) - 1} ({names})")
    if len(set(ids)) < n:
        raise Mistake("a source_id that occurs twice")
    if unknown := set(split) - {"", *shards.SPLITS}:
        raise Mistake(f"split {min(unknown)!r}; wanted train, val, test or '' (none stated)")
    for name, values in pictures.items():
        if _is_other(values, "iu"):
            raise Mistake(f"{name} of type {values.dtype}; wanted a whole number for each face")
        pictures[name] = values.astype(np.int64)
    _check_others(rows, locators)
    # as it always was for lists; the text of a long array leaves most of it out
    listed = [v if isinstance(v, list | tuple) else list(v) for v in (rows.source_id, rows.split)]
    identity = repr((listed[0], label.tolist(), listed[1], rows.rejects))
    rows = dataclasses.replace(
        rows,
        source_id=[printable(each) for each in ids],
        label=label.astype(np.int64),
        split=split,
        columns={name: _column(name, v, len(names)) for name, v in columns.items()},
        fingerprint=rows.fingerprint or hashlib.sha256(identity.encode()).hexdigest(),
        locators=locators,
        picture=pictures.get("picture"),
        face=pictures.get("face"),
    )
    return rows, names


def _check_others(rows: Rows, locators: Sequence[Any]) -> None:
    """Mistake unless rejects, notes and the like have their types and locators can be sent."""
    for reject in rows.rejects:
        if not isinstance(reject, tuple | list) or len(_texts("rejects", reject)) != 2:
            raise Mistake(f"the reject {str(reject)[:80]}; wanted pairs: source_id, reason")
    _texts("notes", rows.notes)
    _texts("fingerprint", [rows.fingerprint])
    if not isinstance(rows.ignored, Tally):
        raise Mistake(f"{_kind(rows.ignored)} as ignored; wanted a Tally")
    if not isinstance(rows.class_map, ClassMap | None):
        raise Mistake(f"{_kind(rows.class_map)} as class_map; wanted a ClassMap or None")
    for example in {type(each): each for each in locators}.values():
        try:
            pickle.dumps(example)
        except MISTAKES as error:
            raise Mistake(
                f"locators that cannot be sent to other processes ({describe(error)}); wanted "
                "paths, numbers or texts"
            ) from None


def _texts(name: str, values: Any) -> list[str]:
    """A list of texts; Mistake for anything else, also for a single text, which has letters."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise Mistake(f"{_kind(values)} as {name}; wanted a list of texts")
    texts = list(values)
    for text in texts:
        if not isinstance(text, str):
            raise Mistake(f"{_kind(text)} in {name}; wanted texts")
    return [str(text) for text in texts]


def _array(name: str, values: Any) -> NDArray[Any]:
    """An array of one entry a face; Mistake where that cannot be."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise Mistake(f"{name} with entries of different lengths") from None
    if not array.ndim:
        raise Mistake(f"{_kind(values)} as {name}; wanted an entry for each face")
    return array


def _is_other(values: NDArray[Any], kinds: str) -> bool:
    return values.ndim != 1 or values.dtype.kind not in kinds


def _column(name: str, values: NDArray[Any], classes: int) -> NDArray[Any]:
    """A column as shards can hold it; Mistake where they cannot."""
    if name == "targets":
        if values.shape[1:] != (classes,) or values.dtype.kind not in "iuf":
            shape, wanted = list(values.shape), [len(values), classes]
            raise Mistake(f"targets {values.dtype} {shape}; wanted shares {wanted}")
        good = (values >= 0).all(1) & (np.abs(values.sum(1) - 1) <= ROUNDING)  # false for NaN
        for row in np.flatnonzero(~good)[:1].tolist():
            raise Mistake(
                f"the targets {values[row].tolist()} in row {row}; wanted shares of the "
                f"{classes} classes, from 0 to 1, that sum to 1"
            )
        return values.astype(np.float32)
    numbers = "biuf" if name not in ("group", "synthetic") or values.ndim == 1 else ""
    if values.dtype.kind not in numbers and _is_other(values, "USO"):
        raise Mistake(
            f"columns[{name!r}] of type {values.dtype} and shape {list(values.shape)}; wanted a "
            "number or a text for each face"
        )
    if values.dtype.kind != "O":
        return values
    is_missing = [not isinstance(v, str) and str(v) in MISSING for v in values]
    return np.where(is_missing, "", values) if any(is_missing) else values


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _renamed(
    spec: SourceSpec, rows: Rows, classes: tuple[str, ...], stated: StatedClasses
) -> tuple[Rows, tuple[str, ...]]:
    """--classes applied to a source that has its own class names: new names in their order."""
    if stated.names and len(stated.names) != len(classes):
        raise UserError(
            f"--classes: {len(stated.names)} names; --source {spec.name} has {len(classes)} "
            f"classes: {', '.join(classes)}"
        )
    own = [name.lower() for name in classes]
    if len(set(own)) < len(own):
        raise UserError(
            f"--classes: --source {spec.name} has classes that differ in case only: "
            f"{', '.join(classes)}; rename them there"
        )
    table = dict(zip(own, stated.names, strict=True)) if stated.names else stated.table
    counts = np.bincount(rows.label, minlength=len(classes)).tolist()
    occurring = {c: n for c, n in zip(classes, counts, strict=True) if n}
    stated_map = map_classes(occurring, StatedClasses(table=table), f"--source {spec.name}")
    index = [
        stated_map.classes.index(stated_map.class_of[c]) if c in occurring else 0 for c in classes
    ]
    if "targets" in rows.columns and index != list(range(len(stated_map.classes))):
        raise UserError(
            f"--classes would merge, drop or reorder classes, but --source {spec.name} has labels "
            "that are distributions over its own; leave it out"
        )
    label = np.array(index)[rows.label]
    class_map = ClassMap(stated_map.classes, stated_map.class_of, source="--classes")
    return dataclasses.replace(rows, label=label, class_map=class_map), stated_map.classes


# ---- a face -----------------------------------------------------------------------------------


def check_face(face: object) -> Face:
    """A face with pixels as bytes and its annotations as numbers; raises Mistake or Reject."""
    if not isinstance(face, Face):
        raise Mistake(f"gives {_kind(face)}; wanted a Face")
    if face.encoded is not None and not isinstance(face.encoded, bytes):
        raise Mistake(f"gives {_kind(face.encoded)} as encoded; wanted the bytes of a file")
    return dataclasses.replace(
        face,
        pixels=None if face.pixels is None else _pixels(face.pixels),
        landmarks=None if face.landmarks is None else _landmarks(face.landmarks),
        box=None if face.box is None else _box(face.box, face.box_in_shares),
        valence=_affect("valence", face.valence),
        arousal=_affect("arousal", face.arousal),
    )


def _pixels(pixels: object) -> NDArray[np.uint8]:
    """[H, W] or [H, W, 3] as bytes."""
    if not isinstance(pixels, np.ndarray):
        raise Mistake(f"gives {_kind(pixels)} as pixels; wanted an array")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise Mistake(f"gives pixels of shape {list(pixels.shape)}; wanted [H, W] or [H, W, 3]")
    if not pixels.size:
        raise Reject("empty picture")
    if fault := pixel_fault(pixels):
        raise Mistake(f"gives pixels {fault}")
    if pixels.dtype != np.uint8:
        pixels = np.round(pixels * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _landmarks(landmarks: object) -> NDArray[np.float32]:
    points = np.asarray(landmarks)
    if points.shape != (68, 2) or points.dtype.kind not in "iuf":
        shape = list(points.shape)
        raise Mistake(f"gives landmarks {points.dtype} {shape}; wanted numbers [68, 2]: x, y")
    return landmarks_of(points.astype(np.float64))


def _box(box: Any, in_shares: bool) -> Box:
    try:
        left, top, right, bottom = map(float, box)
    except (TypeError, ValueError):
        text = str(box)[:80]
        raise Mistake(f"gives the box {text}; wanted 4 numbers: left, top, right, bottom") from None
    check_box((left, top, right, bottom), in_shares)
    return left, top, right, bottom


def _affect(name: str, value: Any) -> float:
    """Valence or arousal; one on another scale must not pass for none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Mistake(f"gives {_kind(value)} as {name}; wanted a number") from None
    if abs(number) > 1 and number != NO_AFFECT:
        raise Mistake(f"gives {name} {number:g}; wanted -1 to 1, or NaN where there is none")
    return affect(number)
