"""The pictures of README.md, from the folder of `make demo`: python docs/make_pictures.py demo

predictions.png: drawn faces of the test split with the two largest probabilities of the network.
report.png: the report page at 1400 and at 390 pixels, in headless Chromium.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc import load
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.evaluation.plots import plt

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))  # for the browser of the tests
COLUMNS = 8
RUN = "cnn_improved"


def predictions(demo: Path, path: Path) -> None:
    """Two random test faces of each of the four largest classes, with the two best guesses."""
    manifest, predictor = read_manifest(demo / "shards"), load(demo / "runs" / RUN)
    split = open_split(manifest, "test")
    labels = split.columns["labels"]
    rng, largest = np.random.default_rng(0), np.argsort(-np.bincount(labels))[: COLUMNS // 2]
    rows = [
        row for k in sorted(largest) for row in rng.choice(np.flatnonzero(labels == k), 2, False)
    ]
    faces = np.stack([split.images[0][row] for row in rows])
    figure, panels = plt.subplots(1, COLUMNS, figsize=(14, 2.6), layout="constrained")
    for panel, face, row, shares in zip(panels, faces, rows, predictor(faces), strict=True):
        first, second = np.argsort(-shares)[:2]
        right = first == labels[row]
        panel.imshow(face.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
        panel.set_title(manifest.classes[labels[row]], fontsize=10, color="0.35")
        panel.set_xlabel(
            f"{predictor.classes[first]} {shares[first]:.0%}\n"
            f"{predictor.classes[second]} {shares[second]:.0%}",
            color="tab:green" if right else "tab:red",
        )
        panel.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def screenshot(page: Path, width: int, height: int, path: Path) -> NDArray[np.uint8]:
    """The top of a page, [height, width, 3] BGR."""
    from tests.helpers.browser import chromium, set_screen

    with chromium() as browser:
        set_screen(browser, width, height)
        browser.get(page.absolute().as_uri())
        browser.save_screenshot(str(path))
    picture = cv2.imread(str(path))
    assert picture is not None
    return np.asarray(picture[:height, :width], np.uint8)


def report(page: Path, path: Path) -> None:
    """Both widths side by side."""
    with tempfile.TemporaryDirectory() as folder:
        shots = [
            screenshot(page, width, 1000, Path(folder, f"{width}.png")) for width in (1400, 390)
        ]
    gap = np.full((max(len(s) for s in shots), 40, 3), 255, np.uint8)
    rows = [np.pad(s, ((0, len(gap) - len(s)), (0, 0), (0, 0)), constant_values=255) for s in shots]
    cv2.imwrite(str(path), np.concatenate([rows[0], gap, rows[1]], 1))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    predictions(folder, DOCS / "predictions.png")
    report(folder / "report" / "index.html", DOCS / "report.png")
