"""Training on a set larger than memory, beside one that fits: images per second of both.

    python bench/larger_than_memory.py FOLDER [--gb 20] [--limit-gb 4] [--seconds 90]

Writes GB of noise as shards of 128x128x3 faces into FOLDER, once, and trains a small network on all
of them with --shard-window 8 and on one twentieth of them without, turn by turn, both under a
memory control group of LIMIT GB, which also counts the page cache. Needs root.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fer_hpc.data import shards
from fer_hpc.run.folder import list_checkpoints

SIDE, ROWS = 128, 2048
CLASSES = [str(k) for k in range(8)]
NETWORK = """
from torch import nn
from fer_hpc import register_model

@register_model("small", sides=(64, 256))
def small(outputs, channels, side):
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, outputs),
    )
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gb", type=float, default=20)
    parser.add_argument("--limit-gb", type=float, default=4)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    count = round(args.gb * 1e9 / (ROWS * SIDE * SIDE * 3))
    for name, shard_count in (("large", count), ("small", max(count // 20, 1))):
        write_set(args.folder / name, shard_count)
    (args.folder / "network.py").write_text(NETWORK)
    group = memory_group(args.limit_gb)
    rates: dict[str, list[float]] = {"large": [], "small": []}
    for k in range(args.rounds):
        for name, flags in (("large", ["--shard-window", "8"]), ("small", [])):
            run = args.folder / f"run-{name}-{k}-{os.getpid()}"
            rates[name].append(train(args.folder, name, run, flags, group, args.seconds))
            print(f"{name}: {rates[name][-1]:.0f} images/s", flush=True)
    ratio = statistics.median(rates["large"]) / statistics.median(rates["small"])
    print(f"{count * ROWS * SIDE * SIDE * 3 / 1e9:.1f} GB in windows under {args.limit_gb:g} GB")
    print(f"{ratio:.2f} times the rate of a set that fits")


def write_set(folder: Path, count: int) -> None:
    """A training split of `count` shards of noise, and one for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": 1, "image_shape": [SIDE, SIDE, 3], "classes": CLASSES}
    splits = {}
    for split, number in (("train", count), ("val", 1)):
        entries = [write_shard(folder / f"{split}-{k:05d}.h5", k) for k in range(number)]
        n = ROWS * number
        counts = dict.fromkeys(CLASSES, n // 8)
        splits[split] = {"n": n, "class_counts": counts, "shards": entries}
    shards.write_manifest(folder, {**content, "splits": splits})


def write_shard(path: Path, number: int) -> dict[str, Any]:
    rows = np.arange(number * ROWS, (number + 1) * ROWS)
    images = np.random.default_rng(number).integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8)
    columns = {name: np.zeros((ROWS, *s), kind) for name, (kind, s) in shards.COLUMNS.items()}
    columns |= {"images": images, "labels": rows % 8}
    columns["source_id"] = np.array([f"{path.stem}-{row}" for row in rows], object)
    return shards.write_shard(path, columns, {})


def memory_group(gigabytes: float) -> Path:
    """A memory control group; gives the file that a process writes its id to."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    group = root / "fer-hpc-bench"
    group.mkdir(exist_ok=True)
    (group / limit).write_text(str(int(gigabytes * 1e9)))
    return group / "cgroup.procs"


def train(
    folder: Path, name: str, run: Path, flags: list[str], group: Path, seconds: float
) -> float:
    """Images per second of a training between its checkpoints."""
    call = [sys.executable, "-m", "fer_hpc.train", "--model", "small", "--epochs", "1000"]
    call += ["--plugin", str(folder / "network.py"), "--data", str(folder / name)]
    call += ["--run", str(run), "--no-tensorboard", "--checkpoint-every-s", "5", *flags]
    process = subprocess.Popen(
        call,
        preexec_fn=lambda: group.write_text(str(os.getpid())),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: list[tuple[float, int]] = []
    while not seen or time.time() - seen[0][0] < seconds:
        time.sleep(0.5)
        if process.poll() is not None:
            raise SystemExit(f"the training ended with code {process.returncode}: {call}")
        checkpoints = list_checkpoints(run)
        if checkpoints and (not seen or checkpoints[0][1] > seen[-1][1]):
            seen.append((checkpoints[0][2].stat().st_mtime, checkpoints[0][1]))
    process.send_signal(signal.SIGTERM)
    process.wait()
    (began, first), (ended, last) = seen[0], seen[-1]
    return (last - first) / (ended - began)


if __name__ == "__main__":
    main()
