"""Public sets of faces, drawn in the layouts that people download."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np

from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data.faces import decode
from fer_hpc.data.plan import Plan, make_plan
from fer_hpc.data.sources import open_source, resolve_source, source_spec

FER = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
FERPLUS = ("Neutral", "Happiness", "Surprise", "Sadness", "Anger", "Disgust", "Fear", "Contempt")


def encoded(value: int, suffix: str = ".png") -> bytes:
    """A picture of one gray value, by which its face is known."""
    return cv2.imencode(suffix, np.full((100, 100, 3), value, np.uint8))[1].tobytes()


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix if path.suffix in (".png", ".jpg", ".tiff") else ".jpg"
    path.write_bytes(encoded(value, suffix))


def save_csv(path: Path, head: str, lines: list[list[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([head.split(","), *lines])
    return path


Read = dict[str, tuple[str, str, int]]  # id -> split, class, gray value of the face


def read(out: Path, path: Path, source: str = "auto", **flags: object) -> tuple[Read, Plan]:
    """What preprocess would make of an input."""
    config = PreprocessConfig(source=source, input=path, out=out / "out", **flags)
    config, _ = resolve_source(config)
    spec = source_spec(config.source)
    with open_source(spec, config) as opened:
        plan = make_plan(config, spec, opened)
        found = {}
        for shard in plan.shards:
            for i in shard.rows.tolist():
                face = opened.face(plan.rows.locators[i])
                pixels = decode(face.encoded, 1) if face.encoded else face.pixels
                value = round(float(np.mean(pixels)))
                label = plan.classes[plan.rows.label[i]]
                found[plan.rows.source_id[i]] = (shard.split, label, value)
    return found, plan


def ignored(plan: Plan) -> dict[str, int]:
    return {reason: kind.n for reason, kind in plan.rows.ignored.kinds.items()}


def rafdb_basic(root: Path) -> Path:
    lines = []
    for split in ("train", "test"):
        for i in range(1, 22):
            save(root / f"Image/aligned/{split}_{i:05d}_aligned.jpg", 10 * (i % 7 + 1))
            lines.append(f"{split}_{i:05d}.jpg {i % 7 + 1}\n")
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel/list_patition_label.txt").write_text("".join(lines))
    return root


def fer2013(path: Path, n: int = 70) -> Path:
    usage = [
        ("Training", "PublicTest", "PrivateTest")[i % 10 - 7 if i % 10 > 7 else 0] for i in range(n)
    ]
    lines = [[i % 7, " ".join([str(i)] * 48**2), usage[i]] for i in range(n)]
    return save_csv(path, "emotion,pixels,Usage", lines)


def ferplus(folder: Path, n: int = 70) -> Path:
    fer2013(folder / "fer2013.csv", n)
    head = "Usage,Image name," + ",".join(c.lower() for c in FERPLUS) + ",unknown,NF"
    lines = []
    for i in range(n):
        usage = ("Training", "PublicTest", "PrivateTest")[i % 10 - 7 if i % 10 > 7 else 0]
        votes = [6 * (k == i % 8) + 3 * (k == (i + 1) % 8) for k in range(8)]
        lines.append([usage, f"fer{i:07d}.png", *votes, 1, 0])
    lines[3][2:] = [0] * 9 + [10]  # not a face
    lines[4][2:] = [5, 5] + [0] * 8  # no majority
    lines[5][1] = ""  # left out by its authors
    save_csv(folder / "fer2013new.csv", head, lines)
    return folder
