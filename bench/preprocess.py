"""Faces per second of `fer_hpc.preprocess`, the bare decoder and a plain loop, in one run.

    python bench/preprocess.py [--count 100000] [--size 224 --channels 3]

The pictures are noisy 425x425 JPEGs in AffectNet's layout (about 62 kB each), cut to 48x48 gray or
to --size and --channels. The decoder alone decodes the same bytes from memory on all cores, as ours
does, at full size and at the reduction that ours uses. `plain loop` is a single process with
cv2.imread, crop by the landmarks, gray, resize; once it drops the faces, once it also writes them
to an HDF5 file, as ours does. Each has a process of its own. Printed are the medians of --rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import faces
from fer_hpc.data.preprocess import preprocess
from fer_hpc.data.synthetic import faces as synthetic

SIDE, UNIQUE = 425, 1000


def make_faces(root: Path, count: int) -> None:
    """Drawn faces scaled to SIDE, with noise that compresses like a photo's detail."""
    for name in ("images", "annotations"):
        (root / "train_set" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        if i >= UNIQUE:  # more names for the same files: the work is the same
            for kind in (
                "images/{}.jpg",
                *(f"annotations/{{}}_{k}.npy" for k in ("exp", "val", "aro", "lnd")),
            ):
                os.link(
                    root / "train_set" / kind.format(i % UNIQUE),
                    root / "train_set" / kind.format(i),
                )
            continue
        face = synthetic.draw_face(i)
        height, width = face.image.shape[:2]
        image = cv2.resize(face.image, (SIDE, SIDE)).astype(np.float32) + rng.normal(
            0, 9, (SIDE, SIDE, 1)
        ).astype(np.float32)
        cv2.imwrite(
            str(root / "train_set/images" / f"{i}.jpg"),
            image.clip(0, 255).astype(np.uint8),
            [cv2.IMWRITE_JPEG_QUALITY, 88],
        )
        stem = root / "train_set/annotations"
        np.save(stem / f"{i}_exp.npy", np.array(str(face.label)))
        np.save(stem / f"{i}_val.npy", np.array("0.1"))
        np.save(stem / f"{i}_aro.npy", np.array("0.1"))
        np.save(
            stem / f"{i}_lnd.npy",
            (face.landmarks * (SIDE / width, SIDE / height)).astype(np.float64).ravel(),
        )


def plain_loop(root: Path, count: int, size: int, channels: int, out: Path | None = None) -> float:
    """Faces/s; with `out` the faces are written there."""
    cv2.setNumThreads(1)
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        images = None
        if out is not None:
            shape = (count, size, size, channels)
            file = stack.enter_context(h5py.File(out, "w"))
            images = file.create_dataset("images", shape, np.uint8)
        _cut_all(root, count, size, channels, images)
        if out is not None:
            file.flush()
            os.fsync(file.id.get_vfd_handle())
    if out is not None:
        out.unlink()
    return count / (time.perf_counter() - began)


def _cut_all(root: Path, count: int, size: int, channels: int, images: h5py.Dataset | None) -> None:
    for i in range(count):
        image = cv2.imread(str(root / "train_set/images" / f"{i}.jpg"))
        points = (
            np.load(root / "train_set/annotations" / f"{i}_lnd.npy")
            .reshape(68, 2)
            .astype(np.float32)
        )
        left, top, right, bottom = (int(v) for v in faces.landmark_box(points))
        code = cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB
        part = cv2.cvtColor(image[max(top, 0) : bottom, max(left, 0) : right], code)
        face = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)
        if images is not None:
            images[i] = face.reshape(size, size, channels)


def alone(function: Callable[..., float], *arguments: object) -> float:
    """What the function gives in a process of its own.

    Here, `preprocess` has set how glibc keeps freed memory, which quickens a plain loop as well.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def fill_page_cache(folder: Path) -> None:
    """Read a file of holes as large as memory: what is written next takes memory that was in use.

    A virtual machine may get each free page from its host anew, which takes longer than all the
    rest of the writing. A machine that has run for some days has hardly any free pages.
    """
    file = folder / "holes"
    buffer = bytearray(1 << 24)
    with file.open("w+b", buffering=0) as f:
        f.truncate(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        while f.readinto(buffer):
            pass


def bare_decoder(root: Path, count: int, channels: int, size: int) -> float:
    """Faces/s in the decoder alone, reduced as a face of `size` pixels allows; 0: full size."""
    cv2.setNumThreads(1)
    spent = 0.0
    for i in range(count):
        data = (root / "train_set/images" / f"{i}.jpg").read_bytes()
        points = (
            np.load(root / "train_set/annotations" / f"{i}_lnd.npy")
            .reshape(68, 2)
            .astype(np.float32)
        )
        reduced = faces.decode_scale(faces.landmark_box(points), size) if size else 1
        began = time.perf_counter()
        faces.decode(data, channels, reduced)
        spent += time.perf_counter() - began
    return count / spent


def ours(root: Path, out: Path, count: int, size: int, channels: int) -> float:
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        preprocess(
            PreprocessConfig("affectnet", out, root, split="report", size=size, channels=channels)
        )
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--fill-page-cache", action="store_true", help="before what writes")
    args = parser.parse_args()
    count, few, form = args.count, min(args.count, 3000), (args.size, args.channels)
    cv2.setNumThreads(1)
    cores = len(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(cores, get_context("spawn")) as pool,
    ):
        root, out = Path(name) / "faces", Path(name) / "shards"
        make_faces(root, count)
        size = np.mean(
            [
                (root / "train_set/images" / f"{i}.jpg").stat().st_size
                for i in range(min(count, UNIQUE))
            ]
        )

        def per_core(size: int) -> float:
            calls = [
                pool.submit(bare_decoder, root, few, args.channels, size) for _ in range(cores)
            ]
            return float(np.mean([call.result() for call in calls]))

        rounds = []
        for _ in range(args.rounds):
            row = [alone(plain_loop, root, few, *form), per_core(0), per_core(args.size)]
            for writes in (
                partial(alone, plain_loop, root, few, *form, out.with_suffix(".h5")),
                partial(ours, root, out, count, *form),
            ):
                if args.fill_page_cache:
                    fill_page_cache(Path(name))
                row.append(writes())
            rounds.append(row)
    plain, full, reduced, stored, mine = np.array(rounds).T

    def ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> str:
        return f"{np.median(a / b):.2f} ({min(a / b):.2f} to {max(a / b):.2f})"

    to = f"to {args.size}x{args.size}x{args.channels}"
    print(
        f"{count:,} JPEGs of {SIDE}x{SIDE}, {size / 1000:.0f} kB each, {to}, {cores} cores, "
        "faces/s, all of ours included"
    )
    rows = (
        ("plain cv2.imread loop, 1 core", plain, f"ours is {ratio(mine, plain)} times that"),
        ("the same, faces written", stored, f"ours is {ratio(mine, stored)} times that"),
        ("the decoder alone, per core", full, f"ours per core is {ratio(mine / cores, full)}"),
        ("the same, reduced", reduced, f"ours per core is {ratio(mine / cores, reduced)}"),
        (f"ours, {cores} cores", mine, ""),
    )
    for name, rate, comparison in rows:
        print(f"  {name:<33}{np.median(rate):8,.0f}   {comparison}")


if __name__ == "__main__":
    main()
