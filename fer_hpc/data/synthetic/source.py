"""Drawn faces as a source of faces, and as files in the layout of AffectNet."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import CLASSES, UserError
from fer_hpc.config.commands import SyntheticConfig
from fer_hpc.config.errors import counted
from fer_hpc.data.annotations import Face, Rows
from fer_hpc.data.progress import FaceProgress
from fer_hpc.data.synthetic.faces import PHOTOS_PER_PERSON, VERSION, draw_face, label_of
from fer_hpc.files import check_output, naming, read_json, write_json, write_text
from fer_hpc.parallel.process import begin_worker, process_count, starting_workers

COLUMNS = "source_id,group,synthetic"  # the heading of columns.csv


class Synthetic:
    """Faces 0 .. count-1 of the endless set `seed`, drawn in memory."""

    classes: tuple[str, ...] = CLASSES

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise UserError(f"--count {count}: wanted the number of faces to draw, at least 1")
        self.count, self.seed = count, seed

    def rows(self) -> Rows:
        """List the faces; six of them are of one person."""
        numbers = np.arange(self.count)
        label = np.array([label_of(i, self.seed) for i in range(self.count)])
        columns: dict[str, NDArray[Any]] = {
            "group": numbers // PHOTOS_PER_PERSON,
            "synthetic": np.ones(self.count, np.uint8),
        }
        fingerprint = f"synthetic {VERSION} {self.seed} {self.count}"
        ids = [str(i) for i in range(self.count)]
        return Rows(
            ids, label, [""] * self.count, columns, [], fingerprint, locators=range(self.count)
        )

    def face(self, locator: int) -> Face:
        """Draw one face."""
        face = draw_face(locator, self.seed)
        return Face(
            pixels=face.image, landmarks=face.landmarks, valence=face.valence, arousal=face.arousal
        )


def write_affectnet(config: SyntheticConfig) -> str:
    """Write faces 0 .. count-1 in the layout of AffectNet's annotations folder.

    `train_set/images/<id>.jpg`, `train_set/annotations/<id>_{exp,val,aro,lnd}.npy`, and beside them
    `columns.csv` (source_id, group, synthetic). A complete folder is left as it is. Gives one line
    for the user; UserError where the folder holds something else.
    """
    out, count, start = config.out, config.count, time.monotonic()
    marker = out / "synthetic.json"
    wanted = {"version": VERSION, "count": count, "seed": config.seed}
    stored = read_json(marker)
    if stored == wanted:
        return f"{out}: {count:,} faces are there, nothing to do"
    if stored is not None:
        raise UserError(
            f"--out {out} holds other synthetic faces ({stored}); "
            "give another --out, or delete that folder"
        )
    _check_nothing_else(out)
    out.mkdir(parents=True, exist_ok=True)
    rows = (f"train_set/{i},{i // PHOTOS_PER_PERSON},1\n" for i in range(count))
    write_text(out / "columns.csv", f"{COLUMNS}\n{''.join(rows)}")  # first: it shows whose it is
    for folder in ("images", "annotations"):
        (out / "train_set" / folder).mkdir(parents=True, exist_ok=True)
    blocks = [(out, config.seed, first, min(first + 100, count)) for first in range(0, count, 100)]
    workers = process_count("--workers", config.workers)
    with (
        ProcessPoolExecutor(workers, get_context("spawn"), begin_worker) as pool,
        FaceProgress("drawing", count) as progress,
    ):
        with starting_workers():
            drawn = pool.map(_write_block, blocks)
        for faces in drawn:
            progress.advance(faces)
    write_json(marker, wanted)
    return f"{out}: drew {counted(count, 'face')} in {time.monotonic() - start:.1f} s"


def _check_nothing_else(out: Path) -> None:
    """UserError where a folder holds what an interrupted drawing has not left there."""
    columns = out / "columns.csv"
    check_output(columns, COLUMNS)
    known = ("train_set", "columns.csv") if columns.exists() else ()
    others = [p.name for p in out.iterdir() if p.name not in known] if out.is_dir() else []
    if others:
        names = ", ".join(sorted(others)[:3])
        raise UserError(f"--out {out} is not empty ({names}); give a new folder")


def _write_block(block: tuple[Path, int, int, int]) -> int:
    """Draw and write the faces of (folder, seed, first, end); gives their number."""
    out, seed, start, stop = block
    cv2.setNumThreads(1)
    for i in range(start, stop):
        face = draw_face(i, seed)
        quality = int(np.random.default_rng([seed, 3, i]).integers(70, 97))
        bgr = cv2.cvtColor(face.image, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        annotations = out / "train_set" / "annotations"
        with naming(annotations.with_name("images") / f"{i}.jpg"):
            (annotations.with_name("images") / f"{i}.jpg").write_bytes(jpeg.tobytes())
        values = {
            "exp": np.array(str(face.label)),
            "val": np.array(f"{face.valence:.6f}"),
            "aro": np.array(f"{face.arousal:.6f}"),
            "lnd": face.landmarks.astype(np.float64).ravel(),
        }
        for name, value in values.items():
            with naming(annotations / f"{i}_{name}.npy"):
                np.save(annotations / f"{i}_{name}.npy", value)
    return stop - start
