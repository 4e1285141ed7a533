"""From a source of faces to a folder of shards: python -m fer_hpc.preprocess --source ... --input ... --out DIR.

A run again skips every shard that is done; killed at any moment, the next run ends with the same bytes.
"""

from __future__ import annotations

import collections
import csv
import hashlib
import io
import itertools
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import faces, shards, splits
from fer_hpc.data.affectnet import AffectNetCsv, AffectNetFolder
from fer_hpc.data.annotations import AFFECTNET_UNUSED, Rows, Source, read_columns
from fer_hpc.data.arrays import Arrays
from fer_hpc.data.fer2013 import FER2013_CLASSES, Fer2013Csv
from fer_hpc.data.folders import ClassFolders
from fer_hpc.data.synthetic.source import Synthetic
from fer_hpc.data.workers import Block, face_workers, read_block
from fer_hpc.files import read_json, sha256, write_bytes, write_json
from fer_hpc.parallel.process import keep_freed_memory

SHARD_BYTES = 128 << 20  # a shard is built in memory
SHARD_ROWS = 16_384
BLOCK_ROWS = 128  # at most, per call of a worker process
BLOCK_BYTES = 4 << 20
BLOCKS_AHEAD = 24
READ_COLUMNS = (
    "valence",
    "arousal",
    "landmarks",
    "image_hash",
)  # what comes with a face; the rest is known before


@dataclass(frozen=True)
class Shard:
    """One shard to be: the source rows that go into it (fixed before any picture is read)."""

    split: str
    number: int
    rows: NDArray[np.int64]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


def preprocess(config: PreprocessConfig) -> None:
    """Write the shards and their manifest; raises UserError for bad input, having lost nothing that was done."""
    began = time.monotonic()
    keep_freed_memory()
    (config.out / "parts").mkdir(parents=True, exist_ok=True)
    with _opened(config) as source, face_workers(config, source) as pool:
        # What is to be done: the same plan in every task, whatever has been done already.
        rows = source.rows()
        if config.columns is not None:
            rows.columns.update(read_columns(config.columns, rows.source_id))
        rule = splits.resolve_rule(rows, config.split)
        plan = _plan_hash(config, rows, rule)
        _check_same_plan(config.out, plan)
        if _all_verified(config.out):
            print(
                f"{config.out}: {_summary(config.out)}; all shards are there and verified, nothing to do"
            )
            return
        split, words, notes = splits.divide(rows, rule)
        planned = _planned(config, split)
        mine = planned[config.task :: config.tasks]

        # Do it: one stream of blocks through the workers, written shard by shard.
        for shard in mine:
            for left_by_a_kill in config.out.glob(f".{shard.name}.h5.*.tmp"):
                left_by_a_kill.unlink()
        todo = [s for s in mine if not _is_done(config.out, s, plan)]
        progress = Progress(sum(len(s.rows) for s in todo))
        blocks = (
            [rows.locators[i] for i in block] for s in todo for block in _blocks(config, s.rows)
        )
        results = progress.watch(_in_order(pool, blocks))
        with ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for shard in todo:
                gathered = _gather(config, shard, results)
                if written is not None:
                    written.result()  # at most two shards are in memory
                written = writer.submit(_write, config, rows, shard, plan, gathered)
            if written is not None:
                written.result()

    # Put it together, once every task's shards are there.
    missing = [s for s in planned if not (config.out / "parts" / f"{s.name}.json").exists()]
    if missing:
        print(
            f"{config.out}: task {config.task} of {config.tasks} is done; {len(missing)} of {len(planned)} shards are still "
            "to come from other tasks, the last of which writes the manifest"
        )
        return
    _finish(config, rows, planned, source.classes, words, [*rows.notes, *notes])
    seconds = time.monotonic() - began
    print(f"{config.out}: {_summary(config.out)} in {seconds:.1f} s")


def _planned(config: PreprocessConfig, split: NDArray[np.str_]) -> list[Shard]:
    """Every shard, over all splits; task I of K makes those at I, I + K, ..."""
    per_shard = max(1, min(SHARD_ROWS, SHARD_BYTES // (config.size**2 * config.channels)))
    return [
        Shard(name, k, members[first : first + per_shard])
        for name in shards.SPLITS
        for members in [np.flatnonzero(split == name)]
        for k, first in enumerate(range(0, len(members), per_shard))
    ]


def _blocks(config: PreprocessConfig, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """A shard's rows in pieces for one worker call: enough rows to pay for the call, few enough bytes to hold many."""
    size = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (config.size**2 * config.channels)))
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _in_order(pool: ProcessPoolExecutor, blocks: Iterator[list[Any]]) -> Iterator[Block]:
    """Results in the order of the blocks, with a bounded number of blocks under way."""
    under_way = collections.deque(
        pool.submit(read_block, block) for block in itertools.islice(blocks, BLOCKS_AHEAD)
    )
    while under_way:
        result = under_way.popleft().result()
        under_way.extend(pool.submit(read_block, block) for block in itertools.islice(blocks, 1))
        yield result


@contextmanager
def _opened(config: PreprocessConfig) -> Iterator[Source]:
    """The reader that --source names, closed at the end."""
    path = config.input or Path()
    if config.source == "synthetic":
        yield Synthetic(config.count, config.seed)
    elif config.source == "affectnet":
        yield AffectNetFolder(path)
    elif config.source == "affectnet_csv":
        yield AffectNetCsv(path, config.image_root)
    elif config.source == "arrays":
        yield Arrays(path)
    elif config.source == "folder":
        yield ClassFolders(path)
    elif path.is_dir():
        yield ClassFolders(path, FER2013_CLASSES)
    else:
        table = Fer2013Csv(path, config.out / f".unpacked-{config.task}.tmp")
        try:
            yield table
        finally:
            table.close()


def _plan_hash(config: PreprocessConfig, rows: Rows, rule: str) -> str:
    """Identity of what the shards will hold."""
    columns = hashlib.sha256(
        repr([(k, v.tolist()) for k, v in sorted(rows.columns.items())]).encode()
    ).hexdigest()
    said = [
        shards.FORMAT,
        config.source,
        rows.fingerprint,
        columns,
        rule,
        config.size,
        config.channels,
        faces.RECIPE,
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _check_same_plan(out: Path, plan: str) -> None:
    found = [
        read_json(out / "manifest.json"),
        *(read_json(p) for p in sorted((out / "parts").glob("*.json"))),
    ]
    if any(entry is not None and entry.get("plan") != plan for entry in found):
        raise UserError(
            f"--out {out} holds shards of another source or other options (size, channels, split, labels); "
            "give another --out, or delete that folder"
        )


def _all_verified(out: Path) -> bool:
    """Whether there is a manifest and every shard in it has the bytes it says."""
    manifest = read_json(out / "manifest.json")
    entries = (
        [entry for split in manifest["splits"].values() for entry in split["shards"]]
        if manifest
        else []
    )
    return bool(entries) and all(
        (out / e["file"]).exists() and sha256(out / e["file"]) == e["sha256"] for e in entries
    )


def _is_done(out: Path, shard: Shard, plan: str) -> bool:
    """Whether a shard's part file and its verified bytes are there."""
    part, path = read_json(out / "parts" / f"{shard.name}.json"), out / f"{shard.name}.h5"
    return (
        bool(part)
        and part["plan"] == plan
        and path.exists()
        and sha256(path) == part["entry"]["sha256"]
    )


# ---- back in the parent ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gathered:
    """What the workers made of a shard's rows."""

    columns: dict[str, NDArray[Any]]  # of the good rows, in their order
    reasons: list[str | None]  # per row of the shard; None: good
    empty_boxes: int


def _gather(config: PreprocessConfig, shard: Shard, results: Iterator[Block]) -> Gathered:
    """The next of the workers' results, as many as make one shard."""
    n, good, empty_boxes = len(shard.rows), 0, 0
    reasons: list[str | None] = []
    read = {"images": np.empty((n, config.size, config.size, config.channels), np.uint8)}
    read.update(
        {
            name: np.empty((n, *shards.COLUMNS[name][1]), shards.COLUMNS[name][0])
            for name in READ_COLUMNS
        }
    )
    for block in itertools.islice(results, len(_blocks(config, shard.rows))):
        reasons += block.reasons
        arrived = len(block.reasons) - sum(r is not None for r in block.reasons)
        for name in read if arrived else ():
            read[name][good : good + arrived] = block.columns[name]
        empty_boxes += int(block.columns["empty_box"].sum()) if arrived else 0
        good += arrived
    return Gathered({name: values[:good] for name, values in read.items()}, reasons, empty_boxes)


def _write(
    config: PreprocessConfig, rows: Rows, shard: Shard, plan: str, gathered: Gathered
) -> None:
    """Write one shard and its part file; in a thread, as the workers would else wait for the disk and the checksum."""
    kept = shard.rows[np.array([reason is None for reason in gathered.reasons], bool)]
    reasons = zip(shard.rows, gathered.reasons, strict=True)
    rejects = [(rows.source_id[i], reason) for i, reason in reasons if reason is not None]
    columns = gathered.columns | {"labels": rows.label[kept]}
    for name, absent in (("group", -1), ("synthetic", 0)):
        known = rows.columns[name][kept] if name in rows.columns else np.full(len(kept), absent)
        columns[name] = known.astype(shards.COLUMNS[name][0])
    columns["source_id"] = np.array([rows.source_id[i] for i in kept], dtype=object)
    extra = {
        name: values[kept]
        for name, values in rows.columns.items()
        if name not in ("group", "synthetic")
    }
    entry = shards.write_shard(config.out / f"{shard.name}.h5", columns, extra)
    counts = np.bincount(columns["labels"], minlength=16).tolist()
    part = {
        "plan": plan,
        "entry": entry,
        "class_counts": counts,
        "rejects": rejects,
        "empty_boxes": gathered.empty_boxes,
    }
    write_json(config.out / "parts" / f"{shard.name}.json", part)


def _finish(
    config: PreprocessConfig,
    rows: Rows,
    planned: list[Shard],
    classes: tuple[str, ...],
    rule: str,
    notes: list[str],
) -> None:
    """Merge the parts: rejects.csv and, if not too many were rejected, the manifest."""
    done = {s.name: read_json(config.out / "parts" / f"{s.name}.json") for s in planned}
    rejects = [("", *r) for r in rows.rejects]
    rejects += [(s.split, *r) for s in planned for r in done[s.name]["rejects"]]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([("split", "source_id", "reason"), *rejects])
    write_bytes(config.out / "rejects.csv", text.getvalue().encode())
    reasons: dict[str, int] = {}
    for *_, reason in rejects:
        reasons[reason] = reasons.get(reason, 0) + 1
    unused = sum(
        reasons.get(f"label {label} ({name})", 0) for label, name in AFFECTNET_UNUSED.items()
    )
    total = (
        len(rows.source_id) + len(rows.rejects) - unused
    )  # AffectNet's own "none" and "uncertain" are no mishap
    if len(rejects) - unused > config.max_rejects * total:
        worst = max(reasons, key=lambda r: reasons[r])
        raise UserError(
            f"{len(rejects) - unused:,} of {total:,} faces are unusable, over --max-rejects {config.max_rejects}; most "
            f"often: {worst!r}; {config.out / 'rejects.csv'} lists them all: mend or remove them, or raise --max-rejects"
        )
    entries: dict[str, Any] = {}
    for name in shards.SPLITS:
        members = [done[s.name] for s in planned if s.split == name]
        if members:
            counts = [
                sum(column) for column in zip(*(m["class_counts"] for m in members), strict=True)
            ]
            entries[name] = {
                "n": sum(m["entry"]["n"] for m in members),
                "class_counts": dict(zip(classes, counts, strict=False)),
                "shards": [m["entry"] for m in members],
            }
    manifest = {
        "format": shards.FORMAT,
        "plan": next(iter(done.values()))["plan"],
        "image_shape": [config.size, config.size, config.channels],
        "classes": list(classes),
        "splits": entries,
        "split_rule": rule,
        "notes": notes,
        "source": {
            "kind": config.source,
            "fingerprint": rows.fingerprint,
            "rows": len(rows.source_id) + len(rows.rejects),
        },
        "faces": faces.RECIPE,
        "empty_boxes": sum(d["empty_boxes"] for d in done.values()),
        "rejects": {"n": len(rejects), "reasons": reasons},
    }
    shards.write_manifest(config.out, manifest)


def _summary(out: Path) -> str:
    manifest = shards.read_manifest(out)
    parts = ", ".join(f"{s} {manifest.n(s):,}" for s in shards.SPLITS if manifest.n(s))
    rejected = manifest.content["rejects"]["n"]
    return f"{parts} faces (split {manifest.content['split_rule']})" + (
        f", {rejected:,} rejected (see {out / 'rejects.csv'})" if rejected else ""
    )


class Progress:
    """Rate and remaining time: one live line on a terminal, else a plain line now and then."""

    def __init__(self, total: int, every_s: float = 10.0) -> None:
        self.total, self.seen, self.every_s = total, 0, 1.0 if sys.stderr.isatty() else every_s
        self.began = self.told = time.monotonic()

    def watch(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            self.seen += len(block.reasons)
            yield block
            now = time.monotonic()
            if now - self.told >= self.every_s:
                self.told, rate = now, self.seen / (now - self.began)
                line = f"{self.seen:,} of {self.total:,} faces, {rate:,.0f}/s, {(self.total - self.seen) / rate:.0f} s left"
                print(
                    f"\r{line}  " if sys.stderr.isatty() else line,
                    end="" if sys.stderr.isatty() else "\n",
                    file=sys.stderr,
                    flush=True,
                )
