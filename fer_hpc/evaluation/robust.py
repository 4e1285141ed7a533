"""The robustness card: accuracy and calibration under disturbances, by strength and by angle."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config.errors import counted
from fer_hpc.data.loader import EVAL_CHUNK
from fer_hpc.evaluation.calibration import Bins, ece_interval, stored_temperature
from fer_hpc.evaluation.disturbances import DISTURBANCES, LEVELS, Disturbance, face_at
from fer_hpc.evaluation.groups import binned, group_table
from fer_hpc.evaluation.intervals import wilson
from fer_hpc.evaluation.metrics import log_softmax
from fer_hpc.evaluation.opened import OpenedRun
from fer_hpc.evaluation.pose import PITCH_EDGES, YAW_EDGES, yaw_and_pitch
from fer_hpc.evaluation.score import split_outputs, views
from fer_hpc.files import write_json, write_text
from fer_hpc.parallel.device import inference

MAX_FACES = {"cuda": 5000, "cpu": 1000}
RESAMPLES = 1000
ECE_RESAMPLES = 200  # there are fifty calibration errors
COLUMNS = (
    "disturbance level strength unit n accuracy accuracy_low accuracy_high ece ece_low ece_high"
).split()


def robustness(opened: OpenedRun) -> dict[str, Any]:
    """Score disturbed faces; writes robust-NAME.json, .csv, .png and -sheet.png, gives the JSON.

    At most --robust-faces faces, evenly spaced over the split, 51 times each. The same faces are
    disturbed in the same way whenever this is run.
    """
    from fer_hpc.evaluation import plots

    faces = _Faces(opened)
    temperature, note = None, "the temperature is that of single views"
    if opened.config.tta == "none":
        temperature, note = stored_temperature(opened.config.run, opened.weights)
    clean_logits = faces.logits(None, 0.0)
    clean = _scores(clean_logits, faces.labels, temperature)
    correct, kinds = [], {}
    for name, kind in DISTURBANCES.items():
        levels = []
        for strength in kind.strengths:
            logits = faces.logits(kind, strength)
            levels.append({"strength": strength, **_scores(logits, faces.labels, temperature)})
            correct.append(logits.argmax(1) == faces.labels)
        mean = sum(level["accuracy"] for level in levels) / LEVELS
        kinds[name] = {"title": kind.title, "unit": kind.unit, "levels": levels, "mean": mean}
        print(f"robustness: {kind.title} {mean:.4f}, clean {clean['accuracy']:.4f}", flush=True)
    hits = clean_logits.argmax(1) == faces.labels
    card = {
        "split": opened.config.split,
        "data": opened.manifest.fingerprint,
        "weights": opened.weights,
        "epoch": opened.network.best["epoch"],
        "finished": opened.network.is_final,
        "n": len(faces.labels),
        "of": len(opened.faces.labels),
        "with_landmarks": int(faces.has_landmarks.sum()),
        "temperature": temperature,
        "note": note,
        "clean": clean,
        "mean": _mean(np.stack(correct), hits, faces.group),
        "disturbances": kinds,
        "pose": faces.by_pose(clean_logits.argmax(1)),
    }
    run, base = opened.config.run, f"robust-{opened.name}"
    title = f"{run.name}, {opened.name}: {counted(card['n'], 'face')}"
    write_text(run / f"{base}.csv", _csv(card))
    plots.robustness(card, title, run / f"{base}.png")
    plots.picture_table(*faces.sheet(), title, run / f"{base}-sheet.png")
    write_json(run / f"{base}.json", card)
    return card


class _Faces:
    """The faces that are disturbed, and the network that sees them."""

    def __init__(self, opened: OpenedRun) -> None:
        self.opened = opened
        rows = np.flatnonzero(opened.faces.rows)
        most = opened.config.robust_faces or MAX_FACES[opened.device.type]
        count = min(len(rows), most)
        positions = np.rint(np.linspace(0, len(rows) - 1, count)).astype(np.int64)
        self.rows = rows[positions]  # of the split
        self.labels = opened.faces.labels[positions]
        self.group = opened.faces.columns["group"][positions]
        self.landmarks = opened.split.columns["landmarks"][self.rows]  # [n, 68, 2]
        self.has_landmarks = np.isfinite(self.landmarks).all((1, 2))
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "faces")

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """Face i as it is, [H, W, C]."""
        split = self.opened.split
        shard = int(np.searchsorted(split.starts, self.rows[i], side="right")) - 1
        return np.asarray(split.images[shard][self.rows[i] - split.starts[shard]])

    def disturbed(self, i: int, kind: Disturbance | None, strength: float) -> NDArray[np.uint8]:
        """Face i with one disturbance; None: as it is."""
        if kind is None:
            return self.pixels(i)
        number = list(DISTURBANCES.values()).index(kind)
        face = face_at(self.pixels(i), self.landmarks[i], int(self.rows[i]), number)
        return kind.apply(face, strength)

    def _chunks(self, kind: Disturbance | None, strength: float) -> Iterator[NDArray[np.uint8]]:
        """All faces, disturbed, in batches [B, H, W, C]; a batch ahead of its use."""

        def batch(first: int) -> list[Any]:
            places = range(first, min(first + EVAL_CHUNK, len(self.rows)))
            return [self._threads.submit(self.disturbed, i, kind, strength) for i in places]

        following = batch(0)
        for first in range(0, len(self.rows), EVAL_CHUNK):
            ready, following = following, batch(first + EVAL_CHUNK)
            yield np.stack([future.result() for future in ready])

    def logits(self, kind: Disturbance | None, strength: float) -> NDArray[np.float64]:
        """Logits [n, common classes]."""
        opened = self.opened
        model, science = opened.network.model, opened.network.science
        chunk_outputs = []
        for chunk in self._chunks(kind, strength):
            images = torch.from_numpy(chunk).to(opened.device).permute(0, 3, 1, 2).float() / 255
            images = images.contiguous(memory_format=torch.channels_last)
            with inference(science["precision"], opened.device):
                images = images.double() if science["precision"] == "fp64" else images
                outputs = [model(view).float() for view in views(images, opened.config.tta)]
            chunk_outputs.append(torch.stack(outputs).mean(0).cpu().numpy())
        logits, _ = split_outputs(
            np.concatenate(chunk_outputs), len(opened.network.data["classes"])
        )
        return np.asarray(opened.select(logits), np.float64)

    def by_pose(self, predicted: NDArray[np.int64]) -> dict[str, Any] | None:
        """Tables by yaw and pitch, in degrees, of the faces with landmarks; None without any."""
        if not self.has_landmarks.any():
            return None
        config, classes = self.opened.config, self.opened.classes
        angles = yaw_and_pitch(self.landmarks)
        absent = ~(self.has_landmarks & np.isfinite(angles).all(1))
        tables = {}
        for name, k, edges in (("yaw", 0, YAW_EDGES), ("pitch", 1, PITCH_EDGES)):
            grouping = binned(angles[:, k], absent, edges, "°")
            about = (predicted, self.labels, classes, config.min_group)
            tables[name] = group_table(grouping, *about)
        return tables

    def sheet(self) -> tuple[list[list[tuple[NDArray[Any] | None, str]]], list[str], list[str]]:
        """Cells, rows and columns of a picture of every disturbance at every strength."""
        cells = []
        known = np.flatnonzero(self.has_landmarks)
        shown = int(known[len(known) // 2]) if len(known) else len(self.rows) // 2
        for kind in DISTURBANCES.values():
            line: list[tuple[NDArray[Any] | None, str]] = [(self.pixels(shown), "")]
            for strength in kind.strengths:
                line.append((self.disturbed(shown, kind, strength), f"{strength:g}"))
            cells.append(line)
        titles = [kind.title for kind in DISTURBANCES.values()]
        return cells, titles, ["clean", *(str(k + 1) for k in range(LEVELS))]


def _scores(
    logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float | None
) -> dict[str, Any]:
    hits = int((logits.argmax(1) == labels).sum())
    bins = Bins.of(np.exp(log_softmax(logits / (temperature or 1.0))), labels)
    return {
        "accuracy": hits / len(labels),
        "accuracy_95": wilson(hits, len(labels)),
        "ece": float(bins.error()),
        "ece_95": ece_interval(bins, ECE_RESAMPLES),
    }


def _mean(
    correct: NDArray[np.bool_], clean: NDArray[np.bool_], group: NDArray[np.int64]
) -> dict[str, Any]:
    """Mean accuracy over all disturbances and strengths, and as a share of the clean accuracy.

    correct [conditions, n], clean [n]. Persons are resampled where all are known, else faces.
    """
    units = (
        np.unique(group, return_inverse=True)[1] if (group >= 0).all() else np.arange(len(clean))
    )
    sums = np.stack([np.bincount(units, v) for v in (correct.mean(0), clean, np.ones(len(clean)))])
    count = sums.shape[1]
    rng = np.random.default_rng(0)
    drawn = np.stack(
        [sums[:, rng.integers(0, count, count)].sum(1) for _ in range(RESAMPLES)], 1
    )  # [3, resamples]
    means = {
        "accuracy": float(correct.mean()),
        "accuracy_95": np.percentile(drawn[0] / drawn[2], (2.5, 97.5)).tolist(),
        "retained": None,
        "retained_95": None,
    }
    if clean.any():
        some = drawn[1] > 0
        means["retained"] = float(correct.mean() / clean.mean())
        shares = drawn[0, some] / drawn[1, some]
        means["retained_95"] = np.percentile(shares, (2.5, 97.5)).tolist()
    return means


def _csv(card: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)

    def line(name: str, level: int, strength: float, unit: str, scores: dict[str, Any]) -> None:
        values = [scores["accuracy"], *scores["accuracy_95"], scores["ece"], *scores["ece_95"]]
        shown = [f"{value:.6f}" for value in values]
        writer.writerow([name, level, f"{strength:g}", unit, card["n"], *shown])

    line("clean", 0, 0, "", card["clean"])
    for name, kind in card["disturbances"].items():
        for k, level in enumerate(kind["levels"]):
            line(name, k + 1, level["strength"], kind["unit"], level)
    return text.getvalue()
