"""From a source of faces to a folder of shards: python -m fer_hpc.preprocess.

A second run skips every shard that is done. Killed at any moment, the next run ends with the same
bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.errors import one_line
from fer_hpc.config.plugins import load_plugins
from fer_hpc.data import account, shards
from fer_hpc.data.plan import (
    Plan,
    Shard,
    all_verified,
    check_same_plan,
    claim_folder,
    is_done,
    make_plan,
)
from fer_hpc.data.progress import FaceProgress
from fer_hpc.data.sources import SourceSpec, open_source, resolve_source, source_spec
from fer_hpc.data.workers import NO_BOX, OUTSIDE, Block, face_workers, read_blocks
from fer_hpc.files import process_place, remove_leftovers, write_json
from fer_hpc.parallel.process import keep_freed_memory
from fer_hpc.run.folder import check_outside_runs

# What comes with a picture; the other columns are known from the list of rows.
READ_COLUMNS = ("valence", "arousal", "landmarks", "image_hash")


def preprocess(config: PreprocessConfig) -> None:
    """Write shards and their manifest to `config.out`; raises UserError for bad input or options.

    Finished shards are kept if it fails.
    """
    start = time.monotonic()
    keep_freed_memory()
    load_plugins(config.plugin)
    config, why = resolve_source(config)
    spec = source_spec(config.source)
    if why and config.task == 0:
        print(f"source: {config.source} ({why})")
    _check_out(config)
    parts = config.out / "parts"
    is_own = not config.out.exists() and config.tasks == 1  # other tasks may be about to write
    parts.mkdir(parents=True, exist_ok=True)
    try:
        _preprocess(config, spec, start)
    except UserError:
        if is_own:  # nothing is left of a command that was refused
            with contextlib.suppress(OSError):  # they hold finished shards
                parts.rmdir()
                config.out.rmdir()
        raise


def _check_out(config: PreprocessConfig) -> None:
    """UserError where the shards would lie among the pictures, or replace other files."""
    check_outside_runs(config.out)
    shards.check_folder(config.out)
    is_ours = (config.out / "manifest.json").exists() or (config.out / "parts").is_dir()
    if is_ours or not config.input or not config.out.is_dir():
        return
    out, source = config.out.resolve(), config.input.resolve()
    if source.is_dir() and (out == source or source in out.parents) and any(out.iterdir()):
        raise UserError(
            f"--out {config.out} is a folder of --input {config.input} that holds files; "
            "give a new folder"
        )


def _preprocess(config: PreprocessConfig, spec: SourceSpec, start: float) -> None:
    """`preprocess` once its options are resolved and its folder is there."""
    for folder in (config.out, config.out / "parts"):
        remove_leftovers(folder)
    with open_source(spec, config) as source, face_workers(config, spec, source) as workers:
        # What is to be done.
        plan = make_plan(config, spec, source)
        check_same_plan(config.out, plan)
        _print_plan(config, plan)
        account.check_strict(config, plan)
        if all_verified(config.out):
            check_same_plan(config.out, plan)  # another command may have written them since
            summary = account.summary(config.out)
            print(f"{config.out}: {summary}; all shards are there and verified, nothing to do")
            return
        mine = plan.shards[config.task :: config.tasks]
        _remove_leftovers(config, mine)
        todo = [s for s in mine if not is_done(config.out, s, plan)]

        # One stream of blocks goes through the workers and is written shard by shard. The writing
        # has an own thread: the workers do not wait for the disk and the checksum.
        locators = ([plan.rows.locators[i] for i in block] for s in todo for block in s.blocks())
        with (
            FaceProgress("reading", sum(len(s.rows) for s in todo)) as progress,
            ThreadPoolExecutor(1) as writer,
        ):
            blocks = read_blocks(workers, locators)
            written: Future[list[int]] | None = None
            for shard in todo:
                gathered = _gather(config, plan, shard, blocks, progress)
                claim_folder(config.out, plan)
                if written is not None:
                    workers.free.extend(written.result())  # at most two shards are in memory
                written = writer.submit(_write, config, plan, shard, gathered)
            if written is not None:
                written.result()

    # The task that finds every shard done writes the manifest.
    claim_folder(config.out, plan)
    missing = account.missing_parts(config.out, plan)
    if missing:
        print(
            f"{config.out}: task {config.task} of {config.tasks} is done; {len(missing)} of "
            f"{len(plan.shards)} shards are still to come from other tasks, the last of which "
            "writes the manifest"
        )
        return
    account.finish(config, spec, plan)
    for line in account.describe(config.out):
        print(line)
    print(f"{config.out}: {account.summary(config.out)} in {time.monotonic() - start:.1f} s")


def _print_plan(config: PreprocessConfig, plan: Plan) -> None:
    """How labels were read, and what else the user should know; once for all tasks."""
    if config.task == 0:
        if plan.rows.class_map:
            print(plan.rows.class_map.describe())
        for note in plan.notes:
            print(f"note: {one_line(note)}")


def _remove_leftovers(config: PreprocessConfig, mine: list[Shard]) -> None:
    """Temporary files that a killed run of the same task left in another place.

    Those of this one are gone already, but for the ones of living processes: the same command.
    """
    for shard in mine:
        for path in config.out.glob(f".{shard.name}.h5.*.tmp"):
            writer = path.name.removesuffix(".tmp").rpartition("-")[0]
            if not writer.endswith(f".{process_place()}"):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Gathered:
    """What the workers made of a shard's rows."""

    columns: dict[str, Any]  # of the good rows, in their order; images are a list of parts
    slots: list[int]  # where the images are
    reasons: list[str | None]  # per row of the shard; None: good
    fallbacks: dict[str, tuple[int, str]]  # kind -> how many, and the first one's id


def _gather(
    config: PreprocessConfig,
    plan: Plan,
    shard: Shard,
    blocks: Iterator[Block],
    progress: FaceProgress,
) -> Gathered:
    """The next blocks, as many as make one shard, as its columns."""
    n, good = len(shard.rows), 0
    fallback = np.zeros(n, np.uint8)
    reasons: list[str | None] = []
    images = [np.empty((0, config.size, config.size, config.channels), np.uint8)]
    slots, columns = [], {}
    for name in READ_COLUMNS:
        dtype, shape = shards.COLUMNS[name]
        columns[name] = np.empty((n, *shape), dtype)
    for block in itertools.islice(blocks, len(shard.blocks())):
        progress.advance(len(block.reasons))
        reasons += block.reasons
        slots.append(block.slot)
        usable = block.reasons.count(None)
        if usable:
            images.append(block.columns["images"])
            for name in columns:
                columns[name][good : good + usable] = block.columns[name]
            fallback[good : good + usable] = block.columns["fallback"]
            good += usable
    kept = shard.rows[np.array([reason is None for reason in reasons], bool)]
    fallbacks = {}
    for kind, code in (("outside", OUTSIDE), ("no_box", NO_BOX)):
        which = np.flatnonzero(fallback == code)
        example = plan.rows.source_id[kept[which[0]]] if len(which) else ""
        fallbacks[kind] = (len(which), example)
    of_good = {name: values[:good] for name, values in columns.items()}
    return Gathered({"images": images, **of_good}, slots, reasons, fallbacks)


def _write(config: PreprocessConfig, plan: Plan, shard: Shard, gathered: Gathered) -> list[int]:
    """Write one shard and its part file, which the manifest is made of; gives the slots back."""
    rows = plan.rows
    kept = shard.rows[np.array([reason is None for reason in gathered.reasons], bool)]
    reasons = zip(shard.rows, gathered.reasons, strict=True)
    columns = gathered.columns | {"labels": rows.label[kept]}
    for name, absent in (("group", -1), ("synthetic", 0)):
        known = rows.columns[name][kept] if name in rows.columns else np.full(len(kept), absent)
        columns[name] = known.astype(shards.COLUMNS[name][0])
    columns["source_id"] = np.array([rows.source_id[i] for i in kept], dtype=object)
    extra = {k: v[kept] for k, v in rows.columns.items() if k not in ("group", "synthetic")}
    entry = shards.write_shard(config.out / f"{shard.name}.h5", columns, extra)
    part = {
        "plan": plan.hash,
        "entry": entry,
        "class_counts": np.bincount(columns["labels"], minlength=len(plan.classes)).tolist(),
        "rejects": [(rows.source_id[i], reason) for i, reason in reasons if reason is not None],
        "fallbacks": gathered.fallbacks,
    }
    write_json(config.out / "parts" / f"{shard.name}.json", part)
    return gathered.slots
