"""Labels that may be wrong: the candidates that `evaluate --gallery` lists, as a finding of doctor.

A network names them, so only train loses them: without the faces that it finds hard, a score on val
or test would rise by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.data.audit import PAIRS, Finding, place_of
from fer_hpc.data.shards import Manifest, Split
from fer_hpc.data.tables import CsvTable, Line
from fer_hpc.files import read_record

COLUMNS = ("source_id", "split", "label", "suggested")
IMAGE = "image_hash"
PROBABILITIES = ("p_label", "p_suggested")


def suspects(path: Path, manifest: Manifest, splits: dict[str, Split]) -> Finding:
    """The faces that a label-noise-NAME.csv names, in its order; `rows` are those of train.

    A row is known by its split and image: the same source_id may be another face where the data
    was made again. One that these shards do not have, or have with another label, is counted and
    left out; a UserError where that holds for all.
    """
    if not path.is_file():
        raise UserError(f"--suspects {path}: no such file; wanted label-noise-NAME.csv of a run")
    table = CsvTable(path, flag="--suspects")
    table.require(*COLUMNS)
    if IMAGE in table.names:
        key, known = IMAGE, _rows_by(IMAGE, splits)
    else:
        _check_is_of(path, manifest)
        key, known = "source_id", _rows_by("source_id", splits)
    line_by_place: dict[tuple[str, int], Line] = {}
    strange = 0
    for _, line in table:
        if isinstance(line, str):
            strange += 1
            continue
        rows = known.get(line["split"], {}).get(line[key], [])
        rows = [row for row in rows if _has_label(line, row, manifest, splits)]
        strange += not rows
        for row in rows:
            line_by_place.setdefault((line["split"], row), line)
    if strange and not line_by_place:
        raise UserError(
            f"--suspects {path}: none of its faces ({strange:,}) is one of {manifest.folder} with "
            "this label; give the file of a run that was scored on these shards"
        )
    if strange:
        words = "row(s) are no faces of these shards, or have another label here: left out"
        print(f"--suspects {path}: {strange:,} {words}", file=sys.stderr)
    return Finding(
        "labels that may be wrong, by --suspects (--fix drops those of train)",
        len(line_by_place),
        [place for place in line_by_place if place[0] == "train"],
        [place_of(manifest, splits[name], row) for name, row in list(line_by_place)[:PAIRS]],
        texts=[_text(line) for line in list(line_by_place.values())[:PAIRS]],
    )


def _rows_by(column: str, splits: dict[str, Split]) -> dict[str, dict[str, list[int]]]:
    """The rows of each split by the text that they have in a column."""
    known: dict[str, dict[str, list[int]]] = {name: {} for name in splits}
    for name, split in splits.items():
        for row, each in enumerate(split.columns[column].tolist()):
            known[name].setdefault(each.decode("utf-8", "backslashreplace"), []).append(row)
    return known


def _check_is_of(path: Path, manifest: Manifest) -> None:
    """UserError unless the gallery beside a file without images was made of this data."""
    gallery = path.with_name(path.name.replace("label-noise", "gallery")).with_suffix(".json")
    record = read_record(gallery, {"data": str})
    if record is None or record["data"] != manifest.fingerprint:
        why = f"{gallery.name} beside it is {'missing' if record is None else 'of other data'}"
        raise UserError(
            f"--suspects {path}: no column {IMAGE} (a file of 0.1.0), and {why}, so its ids may be "
            f"those of other faces than in {manifest.folder}; write it again: fer-hpc evaluate RUN "
            f"--split train --gallery --data {manifest.folder}"
        )


def _has_label(line: Line, row: int, manifest: Manifest, splits: dict[str, Split]) -> bool:
    label = int(splits[line["split"]].columns["labels"][row])
    return manifest.classes[label] == line["label"]


def _text(line: Line) -> list[str]:
    """What stands beside a face: the suggested class, and both probabilities."""
    p = [line.get(name, "")[:6] for name in PROBABILITIES]
    return ["suggested:", line["suggested"][:20], f"p {p[1]}", f"label: p {p[0]}"]
