"""The worker processes that read, crop and resize faces."""

from __future__ import annotations

import collections
import itertools
import math
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from pickle import PicklingError
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.plugins import MISTAKES, describe, error_line, first_line, load_plugins
from fer_hpc.data import faces, shards
from fer_hpc.data.annotations import Face, Source
from fer_hpc.data.finder import training_box
from fer_hpc.data.photos import Photo
from fer_hpc.data.plan import block_rows, shard_rows
from fer_hpc.data.plugin_source import Mistake, check_face
from fer_hpc.data.sources import SourceSpec
from fer_hpc.parallel.process import (
    begin_worker,
    keep_freed_memory,
    process_count,
    starting_workers,
)

NO_LANDMARKS = np.full((68, 2), np.nan, np.float32)
OUTSIDE, NO_BOX = 1, 2  # why a face is its whole picture
BLOCKS_AHEAD = 24  # of the one that is gathered

# Of this worker process.
_source: Source
_config: PreprocessConfig
_plugin: str  # the file that registered the source, or ""
_slots: Slots | None
_mistake = ""  # why it has no source


class Slots:
    """Memory that workers write images to, one slot a block: a pipe would copy them four times.

    Shards are written from it. What is never used takes no memory. It has no name in /dev/shm,
    where it would stay for ever after a job that is killed as a whole.
    """

    def __init__(self, config: PreprocessConfig, descriptor: int) -> None:
        face = (config.size, config.size, config.channels)
        shape = (slot_count(config), block_rows(config), *face)
        self.path = f"/proc/{os.getpid()}/fd/{descriptor}"  # for the other processes
        memory = mmap.mmap(descriptor, math.prod(shape))
        self.images: NDArray[np.uint8] = np.ndarray(shape, np.uint8, memory)

    @classmethod
    @contextmanager
    def make(cls, config: PreprocessConfig) -> Iterator[Slots | None]:
        """New memory; None where there is none to have."""
        size = slot_count(config) * block_rows(config) * config.size**2 * config.channels
        try:
            descriptor = os.memfd_create("faces")
        except OSError:
            yield None
            return
        try:
            os.ftruncate(descriptor, size)
            slots = cls(config, descriptor)
        except OSError:
            slots = None
        try:
            yield slots
        finally:
            os.close(descriptor)

    @classmethod
    def attach(cls, config: PreprocessConfig, path: str) -> Slots:
        """The same memory in another process."""
        with Path(path).open("r+b") as file:
            return cls(config, file.fileno())


def slot_count(config: PreprocessConfig) -> int:
    """Blocks that are read ahead, of the shard that is gathered, and of the one being written."""
    return BLOCKS_AHEAD + 1 + 2 * math.ceil(shard_rows(config) / block_rows(config))


@dataclass(frozen=True)
class FaceWorkers:
    """The processes, the memory that they share, if any, and the slots that are free."""

    pool: ProcessPoolExecutor
    slots: Slots | None
    free: list[int]  # the last is taken first: its memory was in use before


@contextmanager
def face_workers(
    config: PreprocessConfig, spec: SourceSpec, source: Source
) -> Iterator[FaceWorkers]:
    """Processes that read faces of a source, which must be one that `rows` was not called on.

    They start at once, while the source is listed, unless there may be nothing to do.
    """
    workers = process_count("--workers", config.workers)
    packed = _packed(spec, source)
    origin = spec.origin.path if spec.origin else ""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # rejects say what was wrong
    with Slots.make(config) as slots:
        arguments = (packed, config, origin, slots.path if slots else "")
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, arguments)
        try:
            with starting_workers():
                for _ in range(0 if (config.out / "manifest.json").exists() else workers):
                    pool.submit(os.getpid)
            yield FaceWorkers(pool, slots, list(range(slot_count(config))[::-1]))
        except BrokenProcessPool:
            fewer = f" with fewer --workers (now {workers})" if workers > 1 else ""
            raise UserError(
                "a worker process ended, most likely because memory ran out; run the same command "
                f"again{fewer}: finished shards are kept"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _packed(spec: SourceSpec, source: Source) -> bytes:
    """The source as the bytes that a worker unpacks once it has imported the plugins."""
    try:
        return bytes(ForkingPickler.dumps(source))
    except Exception as error:
        is_inner = isinstance(error, PicklingError) or "<locals>" in str(error)
        advice = (
            "define its class, and functions that it keeps, at the top level of the file"
            if is_inner
            else "open files and the like in face(), not in __init__()"
        )
        place = f"{spec.origin.path}: " if spec.origin else ""
        raise UserError(
            f"--source {spec.name}: {place}it cannot be sent to other processes "
            f"({describe(error)}); {advice}"
        ) from error


def _start_worker(packed: bytes, config: PreprocessConfig, plugin: str, memory: str) -> None:
    begin_worker()
    keep_freed_memory()
    cv2.setNumThreads(1)
    global _source, _config, _plugin, _slots, _mistake
    _slots = Slots.attach(config, memory) if memory else None
    _config, _plugin = config, plugin
    try:
        load_plugins(config.plugin)
        _source = ForkingPickler.loads(packed)
    except MISTAKES as error:  # an error here would be taken for a lack of memory
        if not plugin:
            raise
        line = error_line(error, plugin)
        what = "another process cannot use what it was sent of this source"
        _mistake = f"{plugin}: {line}{what} ({describe(error)})"


@dataclass(frozen=True)
class Block:
    """Some rows of a shard, read: columns of the good ones, and why the others have none."""

    columns: dict[str, NDArray[Any]]
    reasons: list[str | None]  # per row of the block; None: good
    slot: int  # of its images; it is to be freed when they are not needed any more


def read_blocks(workers: FaceWorkers, blocks: Iterator[list[Any]]) -> Iterator[Block]:
    """The faces of each block of locators, in order; BLOCKS_AHEAD are read in advance.

    A block's images are valid until its slot is put back to `workers.free`.
    """
    pending: collections.deque[Future[Block]] = collections.deque()

    def submit(count: int) -> None:
        for block in itertools.islice(blocks, count):
            with starting_workers():  # it may start a process
                pending.append(workers.pool.submit(read_block, block, workers.free.pop()))

    submit(BLOCKS_AHEAD)
    while pending:
        block = pending.popleft().result()
        submit(1)
        if workers.slots and block.columns:
            block.columns["images"] = workers.slots.images[block.slot, : block.reasons.count(None)]
        yield block


def read_block(locators: list[Any], slot: int) -> Block:
    """Read faces in a worker process; their images go to a slot of the shared memory, if any."""
    rows: list[dict[str, Any]] = []
    reasons: list[str | None] = []
    if _mistake:
        raise UserError(_mistake)
    for locator in locators:
        try:
            row = _cut(_face(locator))
            if _slots:
                _slots.images[slot, len(rows)] = row.pop("images")
            rows.append(row)
            reasons.append(None)
        except faces.Reject as reject:
            reasons.append(str(reject) or "no reason given")
    if not rows:
        return Block({}, reasons, slot)
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    # into crop pixels all at once: for each face alone it would take longer than its hash
    to_crop = columns.pop("to_crop")[:, None]
    columns["landmarks"] = columns["landmarks"] * to_crop[..., :2] + to_crop[..., 2:]
    return Block(columns, reasons, slot)


def _face(locator: Any) -> Face:
    """A face of the source; a mistake in a plugin is a UserError with its line."""
    try:
        face = _source.face(locator)
        return check_face(face) if _plugin else face
    except (faces.Reject, UserError):
        raise
    except Mistake as mistake:
        line = first_line(_source.face, _plugin)
        raise UserError(f"{_plugin}: {line}face({_short(locator)}) {mistake}") from None
    except MISTAKES as error:
        if not _plugin:
            raise
        line = error_line(error, _plugin)
        raise UserError(f"{_plugin}: {line}face({_short(locator)}): {describe(error)}") from None


def _short(locator: Any) -> str:
    text = repr(locator)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _cut(face: Face) -> dict[str, Any]:
    """A face cropped and resized, with its other columns."""
    content = face.pixels if face.encoded is None else face.encoded
    if content is None:
        raise faces.Reject("the source gives neither encoded nor pixels")
    photo, landmarks, box, no_box = Photo(content), face.landmarks, None, False
    if _config.crop == "detect":
        detections = photo.find()
        if not detections:
            raise faces.Reject("no face found")
        box = training_box(detections[0])
        landmarks = detections[0].landmarks if landmarks is None else landmarks
    elif _config.crop == "auto":
        no_box = landmarks is None and face.box is None
        box = None if face.box is None else faces.add_margin(face.box)
        box = box if landmarks is None else faces.landmark_box(landmarks)
        if box is not None and face.box_in_shares:
            height, width = photo.pixels(_config.channels).shape[:2]
            box = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    image, to_crop, empty_box = photo.crop(box, _config.size, _config.channels)
    return {
        "images": image,
        "landmarks": NO_LANDMARKS if landmarks is None else landmarks,
        "to_crop": to_crop,
        "valence": face.valence,
        "arousal": face.arousal,
        "image_hash": shards.image_hash(image),
        "fallback": OUTSIDE if empty_box else NO_BOX if no_box else 0,
    }
