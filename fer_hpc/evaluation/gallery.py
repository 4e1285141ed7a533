"""What a classifier looks at and where it fails: galleries of faces, and label-noise candidates."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.evaluation.calibration import stored_temperature
from fer_hpc.evaluation.gradcam import class_maps
from fer_hpc.evaluation.label_noise import Candidates, candidates
from fer_hpc.evaluation.metrics import log_softmax
from fer_hpc.evaluation.opened import OpenedRun
from fer_hpc.evaluation.predictions import read_predictions
from fer_hpc.files import write_json, write_text

PER_CLASS = 4  # surest misses, and surest hits
PAIRS, PER_PAIR = 3, 4  # most confused pairs; faces of each side
NOISE_SHOWN = 24
CAM_SHARE = 0.55  # of the map's colour where it peaks
Cell = tuple[NDArray[Any] | None, str]


def gallery(opened: OpenedRun) -> dict[str, Any]:
    """Write gallery-NAME.json, three pictures and label-noise-NAME.csv; gives the JSON.

    The pictures: gallery-NAME.png, each class's surest misses and hits with what speaks for the
    predicted class; gallery-NAME-pairs.png, the most confused pairs side by side;
    label-noise-NAME.png, the first candidates.
    """
    from fer_hpc.evaluation import plots

    faces = _Predicted(opened)
    run, name = opened.config.run, opened.name
    classes = opened.classes
    noise = candidates(faces.p, faces.labels)
    content: dict[str, Any] = {
        "split": opened.config.split,
        "data": opened.manifest.fingerprint,
        "weights": opened.weights,
        "epoch": opened.network.best["epoch"],
        "n": len(faces.labels),
        "temperature": faces.temperature,
        "maps": faces.maps([0]) is not None,
        "classes": {
            c: {"misses": faces.surest(k, False), "hits": faces.surest(k, True)}
            for k, c in enumerate(classes)
        },
        "pairs": faces.confused_pairs(),
        "label_noise": {
            "candidates": len(noise.rows),
            "seen_in_training": opened.config.split == "train" and opened.is_own_data,
            "beats_majority": faces.beats_majority,
            "shown": [
                faces.about(i) | faces.suggestion(i, k)
                for i, k in zip(noise.rows[:NOISE_SHOWN].tolist(), noise.suggested, strict=False)
            ],
        },
    }
    title = f"{run.name}, {name}"
    cells, rows = faces.class_cells(content["classes"])
    columns = [f"miss {k + 1}" for k in range(PER_CLASS)] + [
        f"hit {k + 1}" for k in range(PER_CLASS)
    ]
    about = f"{title}: surest misses and hits of each class; below, what speaks for the prediction"
    plots.picture_table(cells, rows, columns, about, run / f"gallery-{name}.png")
    cells, rows = faces.pair_cells(content["pairs"])
    if rows:
        about = f"{title}: most confused pairs"
        plots.picture_table(cells, rows, [], about, run / f"gallery-{name}-pairs.png")
    shown = content["label_noise"]["shown"]
    if shown:
        cells_of = [faces.cell(face, f"{face['label']},\n{face['suggested']}?") for face in shown]
        lines = [cells_of[k : k + 8] for k in range(0, len(shown), 8)]
        about = f"{title}: labels that may be wrong, {len(noise.rows):,} candidates"
        plots.picture_table(lines, [""] * len(lines), [], about, run / f"label-noise-{name}.png")
    write_text(run / f"label-noise-{name}.csv", _noise_csv(faces, noise))
    write_json(run / f"gallery-{name}.json", content)
    return content


class _Predicted:
    """The faces of a split with their stored predictions."""

    def __init__(self, opened: OpenedRun) -> None:
        self.opened, self.classes = opened, opened.classes
        stored = read_predictions(opened.config.run, opened.name)
        self.labels, self.predicted = stored.labels, stored.predicted
        self.source_id, self.image_hash = stored.source_id, stored.image_hash
        self.temperature = None
        if opened.config.tta == "none":
            self.temperature = stored_temperature(opened.config.run, opened.weights)[0]
        self.p = np.exp(log_softmax(stored.logits / (self.temperature or 1.0)))
        self.rows = np.flatnonzero(opened.faces.rows)
        hits = int((self.labels == self.predicted).sum())
        self.beats_majority = hits > int(np.bincount(self.labels).max())

    def about(self, i: int) -> dict[str, Any]:
        """Face i as the JSON has it."""
        k = self.predicted[i]
        return {
            "row": int(self.rows[i]),
            "source_id": self.source_id[i].decode("utf-8", "replace"),
            "label": self.classes[self.labels[i]],
            "predicted": self.classes[k],
            "p_predicted": float(self.p[i, k]),
            "p_label": float(self.p[i, self.labels[i]]),
        }

    def suggestion(self, i: int, k: int) -> dict[str, Any]:
        return {"suggested": self.classes[k], "p_suggested": float(self.p[i, k])}

    def surest(self, label: int, hits: bool) -> list[dict[str, Any]]:
        """The PER_CLASS faces of a class that are predicted right, or wrong, most surely."""
        of_class = self.labels == label
        wanted = np.flatnonzero(of_class & ((self.predicted == label) == hits))
        order = np.argsort(-self.p[wanted].max(1), kind="stable")
        return [self.about(int(i)) for i in wanted[order[:PER_CLASS]]]

    def confused_pairs(self) -> list[dict[str, Any]]:
        """The PAIRS pairs of classes with the largest mean share taken for each other."""
        k = len(self.classes)
        counts = np.bincount(self.labels * k + self.predicted, minlength=k * k).reshape(k, k)
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        both = np.triu(share + share.T, 1)
        pairs = []
        for place in np.argsort(-both, axis=None, kind="stable")[:PAIRS]:
            a, b = (int(v) for v in np.unravel_index(place, both.shape))
            if both[a, b] > 0:
                pairs.append(
                    {
                        "classes": [self.classes[a], self.classes[b]],
                        "taken_for_the_other": [float(share[a, b]), float(share[b, a])],
                        "faces": [self._taken(a, b), self._taken(b, a)],
                    }
                )
        return pairs

    def _taken(self, label: int, predicted: int) -> list[dict[str, Any]]:
        wanted = np.flatnonzero((self.labels == label) & (self.predicted == predicted))
        order = np.argsort(-self.p[wanted].max(1), kind="stable")
        return [self.about(int(i)) for i in wanted[order[:PER_PAIR]]]

    # ---- pictures ----

    def pixels(self, row: int) -> NDArray[np.uint8]:
        split = self.opened.split
        shard = int(np.searchsorted(split.starts, row, side="right")) - 1
        return np.asarray(split.images[shard][row - split.starts[shard]])

    def maps(self, rows: Sequence[int], names: Sequence[str] = ()) -> NDArray[np.float32] | None:
        """Class maps [n, H, W] of rows, for classes by name (default: the first)."""
        opened = self.opened
        known = opened.stored["data"]["classes"]
        wanted = [known.index(name) for name in names] or [0] * len(rows)
        pixels = torch.from_numpy(np.stack([self.pixels(row) for row in rows]))
        images = pixels.to(opened.device).permute(0, 3, 1, 2).float() / 255
        images = images.double() if opened.network.science["precision"] == "fp64" else images
        classes = torch.tensor(wanted, device=opened.device)
        return class_maps(opened.network.model, images, classes)

    def cell(self, face: dict[str, Any], text: str) -> Cell:
        return self.pixels(face["row"]), text

    def class_cells(self, classes: dict[str, Any]) -> tuple[list[list[Cell]], list[str]]:
        """Two lines of cells for each class, faces and maps, and the names of the lines."""
        cells: list[list[Cell]] = []
        names = []
        for name, kinds in classes.items():
            if not kinds["misses"] and not kinds["hits"]:
                continue  # a class without a face
            faces: list[Cell] = []
            maps: list[Cell] = []
            for face in _padded(kinds["misses"]) + _padded(kinds["hits"]):
                if face is None:
                    faces.append((None, ""))
                    maps.append((None, ""))
                    continue
                faces.append(self.cell(face, f"{face['predicted']} {face['p_predicted']:.2f}"))
                heat = self.maps([face["row"]], [face["predicted"]])
                picture = None if heat is None else overlay(self.pixels(face["row"]), heat[0])
                maps.append((picture, ""))
            cells += [faces, maps]
            names += [name, ""]
        return cells, names

    def pair_cells(self, pairs: list[dict[str, Any]]) -> tuple[list[list[Cell]], list[str]]:
        cells, names = [], []
        for pair in pairs:
            for (name, other), faces in zip(
                (pair["classes"], pair["classes"][::-1]), pair["faces"], strict=True
            ):
                if not faces:
                    continue
                padded = [*faces, *[None] * (PER_PAIR - len(faces))]
                cells.append(
                    [
                        (None, "") if f is None else self.cell(f, f"{f['p_predicted']:.2f}")
                        for f in padded
                    ]
                )
                names.append(f"{name}, taken for {other}")
        return cells, names


def _padded(faces: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    return [*faces, *[None] * (PER_CLASS - len(faces))]


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The face in gray with its map [H, W] in colour, [H, W, 3]."""
    gray = pixels.mean(2, keepdims=True).repeat(3, 2)
    colors = cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    share = CAM_SHARE * heat[..., None]
    return np.rint((1 - share) * gray + share * colors[..., ::-1]).astype(np.uint8)


def _noise_csv(faces: _Predicted, noise: Candidates) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*"source_id split row label suggested p_label p_suggested image_hash".split()])
    for i, k in zip(noise.rows.tolist(), noise.suggested, strict=True):
        about = faces.about(i) | faces.suggestion(i, k)
        p = [f"{about[key]:.4f}" for key in ("p_label", "p_suggested")]
        line = [about[key] for key in ("row", "label", "suggested")]
        image = faces.image_hash[i].decode("ascii", "replace")
        writer.writerow([about["source_id"], faces.opened.config.split, *line, *p, image])
    return text.getvalue()
