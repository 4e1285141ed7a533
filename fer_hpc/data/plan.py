"""The plan of a preprocess: classes, splits, and the source rows of every shard.

The plan is the same in every task of an array job, before and after shards are written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import faces, shards, splits
from fer_hpc.data.annotations import TWO_LABELS, Rows, Source, first_reject
from fer_hpc.data.classes import read_stated
from fer_hpc.data.doubles import PICTURES, TWICE, without_doubles
from fer_hpc.data.finder import CASCADE_ADVICE, best_finder, box_rule
from fer_hpc.data.manifest import SHARD, find_manifest
from fer_hpc.data.plugin_source import rows_of_plugin
from fer_hpc.data.sources import SourceSpec
from fer_hpc.data.tables import read_columns
from fer_hpc.files import process_tag, read_json, read_record, sha256, write_json

SHARD_BYTES = 128 << 20  # a shard is built in memory
SHARD_ROWS = 16_384
BLOCK_ROWS = 128  # at most, per call of a worker process
BLOCK_BYTES = 4 << 20
CLAIM = "parts/plan/plan.json"  # whose shards the folder is for; older folders lack it


@dataclass(frozen=True)
class Shard:
    """One shard: the source rows that go into it, fixed before any picture is read."""

    split: str
    number: int
    rows: NDArray[np.int64]
    block_rows: int  # per call of a worker process

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"

    def blocks(self) -> list[NDArray[np.int64]]:
        """The rows in pieces for one worker call each."""
        return [
            self.rows[i : i + self.block_rows] for i in range(0, len(self.rows), self.block_rows)
        ]


@dataclass(frozen=True)
class Plan:
    """Rows, classes, splits and shards, and a hash of all that determines their content."""

    rows: Rows
    classes: tuple[str, ...]
    split_rule: str  # as text
    notes: list[str]
    shards: list[Shard]
    hash: str  # 16 hexadecimal digits


def make_plan(config: PreprocessConfig, spec: SourceSpec, source: Source) -> Plan:
    """List a source and divide its rows; raises UserError for data or options that do not fit."""
    if spec.reads_classes:
        rows, classes = source.rows(), tuple(source.classes)
    else:
        rows, classes = rows_of_plugin(spec, source, read_stated(config.classes))
    if config.columns is not None:
        rows.columns.update(read_columns(config.columns, rows.source_id, rows.notes))
    _check_columns(rows)
    rows = without_doubles(rows, is_whole=config.crop != "auto")
    if "group" in rows.columns:
        rows.columns["group"] = _numbered(rows.columns["group"])
    rule = splits.resolve_rule(rows, config.split)
    try:
        split, rule_text, notes = splits.divide(rows, rule)
    except UserError as error:
        raise UserError(f"{error}{first_reject(rows.rejects)}") from None
    for i in np.flatnonzero(split == "")[:1]:
        reason = f"faces of the source's own test and val, not used by --split {rule}"
        rows.ignored.add(reason, rows.source_id[i], int((split == "").sum()))
    counts = np.bincount(rows.label, minlength=len(classes)).tolist()
    if absent := [name for name, n in zip(classes, counts, strict=True) if not n]:
        notes = [*notes, f"no face of {', '.join(absent)}, although it is a class"]
    if config.crop == "detect" and best_finder() == "cascade":
        notes = [*notes, CASCADE_ADVICE]
    return Plan(
        rows,
        classes,
        rule_text,
        [*rows.notes, *notes],
        _shards(config, split),
        _hash(config, spec, rows, classes, rule_text if PICTURES in rule_text else rule),
    )


def block_rows(config: PreprocessConfig) -> int:
    """Faces per call of a worker process."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (config.size**2 * config.channels)))


def shard_rows(config: PreprocessConfig) -> int:
    """Faces of a shard, at most."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // (config.size**2 * config.channels)))


def _shards(config: PreprocessConfig, split: NDArray[np.str_]) -> list[Shard]:
    """Every shard, over all splits; task I of K makes those at I, I + K, ..."""
    per_shard, per_block = shard_rows(config), block_rows(config)
    return [
        Shard(name, k, members[first : first + per_shard], per_block)
        for name in shards.SPLITS
        for members in [np.flatnonzero(split == name)]
        for k, first in enumerate(range(0, len(members), per_shard))
    ]


def _hash(
    config: PreprocessConfig, spec: SourceSpec, rows: Rows, classes: tuple[str, ...], rule: str
) -> str:
    columns = hashlib.sha256()
    for name, values in sorted(rows.columns.items()):
        plain = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
        columns.update(repr((name, str(values.dtype), values.shape)).encode() + plain)
    identity: list[Any] = [
        shards.FORMAT,
        config.source,
        rows.fingerprint,
        columns.hexdigest(),
        rule,
        config.size,
        config.channels,
        faces.RECIPE | {"box": box_rule(config.crop)},
    ]
    if config.classes:
        identity.append([list(classes), rows.class_map.class_of if rows.class_map else {}])
    if spec.origin:
        identity.append(spec.origin.sha256)
    if doubles := [reject for reject in rows.rejects if reject[1] in (TWO_LABELS, TWICE)]:
        identity.append(doubles)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _numbered(people: NDArray[Any]) -> NDArray[np.int64]:
    """People as numbers: names ("S010") in alphabetical order, -1 for an empty name or NaN."""
    if people.dtype.kind in "iuf":
        numbers = people if people.dtype.kind != "f" else np.where(np.isfinite(people), people, -1)
        with np.errstate(invalid="ignore"):  # of numbers that are too large
            whole = numbers.astype(np.int64)
        for i in np.flatnonzero((whole != numbers) | (whole < -1))[:1].tolist():
            raise UserError(
                f"column group: {people[i]} is no person; wanted names, or whole numbers from 0, "
                "and -1 where the person is unknown"
            )
        return whole
    names = np.array([str(name) for name in people])
    known = sorted(set(names.tolist()) - {""})
    number = {name: i for i, name in enumerate(known)} | {"": -1}
    return np.array([number[name] for name in names.tolist()], np.int64)


def _check_columns(rows: Rows) -> None:
    """UserError for columns that shards cannot hold under their names."""
    for name in rows.columns:
        if not isinstance(name, str) or "/" in name or "\0" in name or name in ("", "."):
            raise UserError(f"column {name!r} of the source or --columns: wanted a name without /")
    drawn = rows.columns.get("synthetic", np.zeros(1))
    if not np.isin(drawn, (0, 1)).all():
        raise UserError("column synthetic: wanted 0 or 1 (drawn or generated) for each face")
    if np.ndim(rows.columns.get("targets", [[]])) != 2:
        raise UserError(
            "column targets: it would be the distribution of each label, which only a source "
            "gives; rename it"
        )


PART = {
    "plan": str,
    "entry": SHARD,
    "class_counts": [int, ...],
    "rejects": [[str, str], ...],
    "fallbacks": {"outside": [int, str], "no_box": [int, str]},
}


def read_part(out: Path, shard: Shard, plan: Plan) -> dict[str, Any] | None:
    """The account of a shard of this plan; None where it is missing, damaged or of another."""
    part = read_record(out / "parts" / f"{shard.name}.json", PART)
    is_part = part and part["entry"]["file"] == f"{shard.name}.h5" and part["plan"] == plan.hash
    return part if is_part else None


def check_same_plan(out: Path, plan: Plan) -> None:
    """UserError where a folder holds shards of another plan."""
    paths = [out / "manifest.json", out / CLAIM, *sorted((out / "parts").glob("*.json"))]
    _check_plans(out, plan, paths)


def claim_folder(out: Path, plan: Plan) -> None:
    """Make a folder this plan's before a shard is written; UserError where it is another's.

    The claim appears with its content by one rename. So of two commands that began at the same
    time exactly one gets the folder, on any host and without locks, and all tasks of that plan
    share it. Before its first shard a command claims nothing: one that is stopped until then may
    be given again with other options.
    """
    claim = out / CLAIM
    if not claim.exists():
        name = f".{claim.parent.name}.{process_tag()}.tmp"
        temporary = out / "parts" / name
        temporary.mkdir(parents=True, exist_ok=True)
        write_json(temporary / claim.name, {"plan": plan.hash})
        try:
            temporary.rename(claim.parent)
        except OSError:
            if not claim.exists():  # no other command was faster
                raise
            shutil.rmtree(temporary, ignore_errors=True)
    if read_json(claim) is None:  # damaged, or this host does not see the other's file yet
        raise UserError(f"{claim} cannot be read; delete {claim.parent}, and run this again")
    _check_plans(out, plan, [claim])


def _check_plans(out: Path, plan: Plan, paths: list[Path]) -> None:
    stored = [read_json(path) for path in paths]
    plans = [entry.get("plan") for entry in stored if isinstance(entry, dict)]
    if any(each != plan.hash for each in plans):
        manifest = find_manifest(out)
        shape = "x".join(map(str, manifest.image_shape)) + " " if manifest else ""
        raise UserError(
            f"--out {out} holds {shape}shards of another source, of pictures or tables that have "
            "changed since (size, time, content), or of other options (size, channels, crop, "
            "split, labels, classes, plugin), or another command writes such shards there; give "
            "another --out, or delete that folder"
        )


def all_verified(out: Path) -> bool:
    """Whether there is a manifest, and every shard in it has the bytes that it states."""
    try:
        manifest = find_manifest(out)
    except UserError:  # damaged: it is written again
        return False
    splits = manifest.content["splits"].values() if manifest else []
    entries = [entry for split in splits for entry in split["shards"]]
    return bool(entries) and all(
        (out / e["file"]).exists() and sha256(out / e["file"]) == e["sha256"] for e in entries
    )


def is_done(out: Path, shard: Shard, plan: Plan) -> bool:
    """Whether a shard's part file and its verified bytes are there."""
    part, path = read_part(out, shard, plan), out / f"{shard.name}.h5"
    return part is not None and path.exists() and sha256(path) == part["entry"]["sha256"]
