"""Labels that may be wrong: the candidates that `evaluate --gallery` lists, as a finding of doctor.

A network names them, so only train loses them: without the faces that it finds hard, a score on val
or test would rise by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.data.audit import PAIRS, Finding, place_of
from fer_hpc.data.shards import Manifest, Split
from fer_hpc.data.tables import CsvTable, Line

COLUMNS = ("source_id", "split", "label", "suggested")
PROBABILITIES = ("p_label", "p_suggested")


def suspects(path: Path, manifest: Manifest, splits: dict[str, Split]) -> Finding:
    """The faces that a label-noise-NAME.csv names, in its order; `rows` are those of train.

    A row is known by split and source_id. One that these shards do not have, or have with another
    label, is counted and left out; a UserError where that holds for all.
    """
    if not path.is_file():
        raise UserError(f"--suspects {path}: no such file; wanted label-noise-NAME.csv of a run")
    table = CsvTable(path, flag="--suspects")
    table.require(*COLUMNS)
    known = {
        name: {each.decode("utf-8", "backslashreplace"): row for row, each in _ids(split)}
        for name, split in splits.items()
    }
    line_by_place: dict[tuple[str, int], Line] = {}
    strange = 0
    for _, line in table:
        row = None if isinstance(line, str) else known.get(line["split"], {}).get(line["source_id"])
        if isinstance(line, str) or row is None or not _has_label(line, row, manifest, splits):
            strange += 1
        else:
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


def _ids(split: Split) -> Iterator[tuple[int, bytes]]:
    return enumerate(split.columns["source_id"].tolist())


def _has_label(line: Line, row: int, manifest: Manifest, splits: dict[str, Split]) -> bool:
    label = int(splits[line["split"]].columns["labels"][row])
    return manifest.classes[label] == line["label"]


def _text(line: Line) -> list[str]:
    """What stands beside a face: the suggested class, and both probabilities."""
    p = [line.get(name, "")[:6] for name in PROBABILITIES]
    return ["suggested:", line["suggested"][:20], f"p {p[1]}", f"label: p {p[0]}"]
