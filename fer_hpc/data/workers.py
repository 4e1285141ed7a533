"""The worker processes that read, crop and resize faces."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import faces, shards
from fer_hpc.data.annotations import Source
from fer_hpc.parallel.process import end_with_parent, keep_freed_memory

NO_LANDMARKS = np.full((68, 2), np.nan, np.float32)


# ---- in the worker processes -----------------------------------------------------------------------------------------

_source: Source

_config: PreprocessConfig


@contextmanager
def face_workers(config: PreprocessConfig, source: Source) -> Iterator[ProcessPoolExecutor]:
    """Processes that read faces. They start at once, unless there may be nothing to do: listing a source takes a while."""
    workers = config.workers or len(os.sched_getaffinity(0))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (source, config))
    try:
        for _ in range(0 if (config.out / "manifest.json").exists() else workers):
            pool.submit(os.getpid)
        yield pool
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for want of memory; run the same command again with fewer "
            f"--workers (now {workers}): finished shards are kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(source: Source, config: PreprocessConfig) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends the pool
    end_with_parent()
    keep_freed_memory()
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    global _source, _config
    _source, _config = source, config


@dataclass(frozen=True)
class Block:
    """Some rows of a shard, read: columns of the good ones, and why the others are none."""

    columns: dict[str, NDArray[Any]]
    reasons: list[str | None]  # per row of the block; None: good


def read_block(places: list[Any]) -> Block:
    found: list[dict[str, Any]] = []
    reasons: list[str | None] = []
    for locator in places:
        try:
            found.append(_read(locator))
            reasons.append(None)
        except faces.Reject as reject:
            reasons.append(str(reject))
    columns = {name: np.stack([f[name] for f in found]) for name in found[0]} if found else {}
    if (
        found
    ):  # into crop pixels all at once: a face's own few numbers would take longer than its hash
        to_crop = columns.pop("to_crop")[:, None]
        columns["landmarks"] = columns["landmarks"] * to_crop[..., :2] + to_crop[..., 2:]
    return Block(columns, reasons)


def _read(locator: Any) -> dict[str, Any]:
    face = _source.face(locator)
    box = None if face.box is None else faces.add_margin(face.box)
    if face.landmarks is not None:
        box = faces.landmark_box(face.landmarks)
    reduced = 1
    if face.encoded is not None:
        reduced = faces.decode_scale(box, _config.size)
        picture = faces.decode(face.encoded, _config.channels, reduced)
    else:
        assert face.pixels is not None
        picture = faces.with_channels(face.pixels, _config.channels)
    image, to_crop, empty_box = faces.crop_and_resize(picture, box, _config.size, reduced)
    return {
        "images": image,
        "landmarks": NO_LANDMARKS if face.landmarks is None else face.landmarks,
        "to_crop": to_crop,
        "valence": face.valence,
        "arousal": face.arousal,
        "image_hash": shards.image_hash(image),
        "empty_box": empty_box,
    }
