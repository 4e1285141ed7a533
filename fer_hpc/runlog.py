"""What a run says while it runs: metrics, timing, TensorBoard, progress, environment. Silent off rank 0."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fer_hpc.distributed import World
from fer_hpc.rundir import Attempt

PLAIN_EVERY_S = 30.0  # between progress lines in a log file


class RunLog:
    """Rows, scalars and progress of one attempt.

    `metrics.jsonl` holds what must come out the same again; rates and times go to `timing.jsonl`.
    """

    def __init__(self, attempt: Attempt, tensorboard: bool, images_seen: int, total: int, epoch_images: int) -> None:
        self.total, self.epoch_images = total, epoch_images
        self._files = {name: (attempt.path / name).open("a") for name in ("metrics.jsonl", "timing.jsonl")}
        self._tensorboard = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step: points that an earlier start wrote after its last checkpoint are hidden, not overlaid
            self._tensorboard = SummaryWriter(str(attempt.run / "tb"), purge_step=images_seen or None)
        self._first, self._began = images_seen, time.monotonic()
        self._told = self._began
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task("training", total=total, completed=images_seen)
            self._bar.start()

    def due(self) -> bool:
        """Whether a progress line is wanted now; asking the device for a loss makes it wait, so ask this first."""
        return time.monotonic() - self._told >= (0.5 if self._bar else PLAIN_EVERY_S)

    def progress(self, images_seen: int, loss: float) -> None:
        self._told = time.monotonic()
        rate = (images_seen - self._first) / (self._told - self._began)
        line = f"epoch {images_seen / self.epoch_images:6.2f}  loss {loss:.4f}  {rate:,.0f} images/s"
        if self._bar:
            self._bar.update(self._task, completed=images_seen, description=line)
        else:
            self.say(f"{line}  {(self.total - images_seen) / rate / 60:.1f} min left")

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def epoch(self, row: dict[str, Any], timing: dict[str, Any]) -> None:
        """Record one epoch: reproducible numbers in `row`, times and rates in `timing`."""
        for name, values in (("metrics.jsonl", row), ("timing.jsonl", {"images_seen": row["images_seen"], **timing})):
            self._files[name].write(json.dumps(values) + "\n")
            self._files[name].flush()
        if self._tensorboard:
            for name, value in (*row.items(), *timing.items()):
                if isinstance(value, float):
                    part, _, metric = name.partition("_")
                    tag = f"{metric}/{part}" if part in ("train", "val") else name  # loss/train beside loss/val
                    self._tensorboard.add_scalar(tag, value, row["images_seen"])
        best = "  best so far" if row["best"] else ""
        self.say(
            f"epoch {row['epoch']:>4}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}  "
            f"val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f}  lr {row['lr']:g}  "
            f"{timing['images_per_s']:,.0f} images/s{best}"
        )

    def sync(self) -> None:
        """Bring the rows to disk; a checkpoint may then rely on them."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
        if self._tensorboard:
            self._tensorboard.close()
        for file in self._files.values():
            file.close()


def environment(world: World, device: torch.device) -> dict[str, Any]:
    """What else decides the numbers: code, packages, host, devices, job."""
    packages = ("torch", "torchvision", "numpy", "h5py")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "world_size": world.size,
        "job": {"id": world.job.id, "restarts": world.job.restarts} if world.job else None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "code": _code_version(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _code_version() -> dict[str, str]:
    """Version, and in a git checkout the commit and a hash of what differs from it."""
    folder = Path(__file__).parent
    version = {"version": importlib.metadata.version("fer-hpc")}
    try:
        git = ["git", "-C", str(folder)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        diff = subprocess.run([*git, "diff", "HEAD", "--", "."], capture_output=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return version
    return {**version, "commit": commit.stdout.strip(), "diff": hashlib.sha256(diff).hexdigest()[:12] if diff else ""}
