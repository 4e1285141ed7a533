"""Photos per second of `predict`, compared with decoding and finding alone and the network alone.

    python bench/predict.py RUN [--photos 60 --side 2000]

The photos are drawn, of one to five people each. In each round the three are measured one after the
other: photos are decoded and their faces found and cut, in as many threads as there are cores; the
network gives the probabilities of the same faces; `predict` does both, and writes its files with
the contact sheet. Printed are the medians, and the ratio of predict to the slower of the two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from fer_hpc.config.deploy import PredictConfig
from fer_hpc.data.synthetic.scenes import draw_scene
from fer_hpc.deploy.inputs import Task
from fer_hpc.deploy.model import open_model
from fer_hpc.deploy.pipeline import how_to_cut, read_photo
from fer_hpc.deploy.predict import predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder, or .onnx file")
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--side", type=int, default=2000, help="longer side, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder, "photos"), arguments.photos, arguments.side)
        config = PredictConfig(arguments.run, tuple(paths), out=Path(folder, "out"))
        model = open_model(config.run, config.device)
        how = how_to_cut(config, model.about)
        rates: dict[str, list[float]] = {"decode and find": [], "network": [], "predict": []}
        for number in range(arguments.rounds + 1):  # the first round warms up
            began = time.perf_counter()
            before = cv2.getNumThreads()
            cv2.setNumThreads(1)
            with ThreadPoolExecutor(cores) as pool:
                seen = list(pool.map(lambda path: read_photo(Task(path), how), paths))
            cv2.setNumThreads(before)
            read = time.perf_counter() - began
            crops = np.stack([face.pixels for photo in seen for face in photo.faces])
            began = time.perf_counter()
            for first in range(0, len(crops), config.batch_size):
                model(crops[first : first + config.batch_size])
            network = time.perf_counter() - began
            began = time.perf_counter()
            predict(config, model)
            both = time.perf_counter() - began
            if number:
                for name, seconds in zip(rates, (read, network, both), strict=True):
                    rates[name].append(len(paths) / seconds)
        print(f"{len(paths)} photos of {arguments.side} pixels, {len(crops)} faces, {cores} cores")
        for name, values in rates.items():
            spread = f"{min(values):.1f} to {max(values):.1f}"
            print(f"{name:<16} {statistics.median(values):8.1f} photos/s ({spread})")
        slower = [min(pair) for pair in zip(*list(rates.values())[:2], strict=True)]
        ratios = [p / s for p, s in zip(rates["predict"], slower, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"predict is {statistics.median(ratios):.2f} of the slower one ({spread})")


def draw(folder: Path, count: int, side: int) -> list[Path]:
    """Drawn photographs whose longer side has `side` pixels, as JPEGs."""
    folder.mkdir()
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        image = draw_scene(i).image[..., ::-1]
        scale = side / max(image.shape)
        cv2.imwrite(str(path), cv2.resize(image, None, fx=scale, fy=scale))
    return paths


if __name__ == "__main__":
    main()
