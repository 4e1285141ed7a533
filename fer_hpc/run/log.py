"""Metrics, timing, TensorBoard events and progress of a run; rank 0 only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fer_hpc.files import naming
from fer_hpc.run.attempts import Attempt

PLAIN_EVERY_S = 30.0  # between progress lines in a log file
BAR_EVERY_S = 0.5  # between updates of the bar on a terminal


class RunLog:
    """Rows, scalars and progress of one attempt; does nothing where `attempt` is None.

    `metrics.jsonl` holds what a repeated run must reproduce; rates and times go to `timing.jsonl`.
    """

    def __init__(
        self,
        attempt: Attempt | None,
        tensorboard: bool,
        images_seen: int,
        total: int,
        epoch_images: int,
    ) -> None:
        self.total, self.epoch_images, self.silent = total, epoch_images, attempt is None
        self._files: dict[str, IO[str]] = {}
        self._tensorboard = None
        self._first, self._start = images_seen, time.monotonic()
        self._last_line = self._start
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._hparams_end = None
        if attempt is None:
            return
        self._files = {
            name: (attempt.path / name).open("a") for name in ("metrics.jsonl", "timing.jsonl")
        }
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides the points that an earlier start wrote after its last checkpoint
            self._tensorboard = SummaryWriter(str(attempt.run / "tb"), purge_step=images_seen + 1)
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task("training", total=total, completed=images_seen)
            self._bar.start()

    def due(self) -> bool:
        """Whether a progress line is wanted now. Ask it first: reading a loss makes a GPU wait."""
        every_s = BAR_EVERY_S if self._bar else PLAIN_EVERY_S
        return not self.silent and time.monotonic() - self._last_line >= every_s

    def progress(self, images_seen: int, losses: str) -> None:
        """One line, with the epoch's losses so far."""
        self._last_line = time.monotonic()
        rate = (images_seen - self._first) / (self._last_line - self._start)
        line = f"epoch {images_seen / self.epoch_images:6.2f}  {losses}  {rate:,.0f} images/s"
        if self._bar:
            self._bar.update(self._task, completed=images_seen, description=line)
        else:
            self.say(f"{line}  {(self.total - images_seen) / rate / 60:.1f} min left")

    def say(self, line: str) -> None:
        """Print one line."""
        if not self.silent:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def sample(self, images: torch.Tensor) -> None:
        """Show the first images as the network sees them; [B, C, H, W] in [0, 1]."""
        if self._tensorboard:
            self._tensorboard.add_images("first batch", images[:64].float().cpu(), 0)

    def hparams(self, values: dict[str, Any]) -> None:
        """Give this run a line in TensorBoard's HParams table.

        It goes into the run's own events; SummaryWriter.add_hparams would make a second run.
        """
        if self._tensorboard:
            from torch.utils.tensorboard.summary import hparams

            _, start, self._hparams_end = hparams(values, {})
            self._tensorboard._get_file_writer().add_summary(start)

    def confusion(self, counts: NDArray[np.int64], images_seen: int) -> None:
        """Show an epoch's confusion matrix, rows (true classes) as shares; white is 1."""
        if self._tensorboard:
            shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            self._tensorboard.add_image(
                "val confusion", np.kron(shares, np.ones((24, 24))), images_seen, dataformats="HW"
            )

    def images(self, name: str, images: torch.Tensor, images_seen: int) -> None:
        """Show a picture [C, H, W] in [0, 1]."""
        if self._tensorboard:
            self._tensorboard.add_image(name, images.float().cpu(), images_seen)

    def epoch(self, row: dict[str, Any], timing: dict[str, Any], line: str = "") -> None:
        """Record one epoch: reproducible numbers in `row`, times and rates in `timing`.

        `line` replaces the classifier's line of progress.
        """
        for name, file in self._files.items():
            values = (
                row if name == "metrics.jsonl" else {"images_seen": row["images_seen"], **timing}
            )
            with naming(Path(file.name)):
                file.write(json.dumps(values) + "\n")
                file.flush()
        if self._tensorboard:
            for name, value in (*row.items(), *timing.items()):
                if isinstance(value, float):
                    part, _, metric = name.partition("_")
                    # loss/train and loss/val: TensorBoard groups tags by prefix
                    tag = f"{metric}/{part}" if part in ("train", "val") else name
                    self._tensorboard.add_scalar(tag, value, row["images_seen"])
        if line:
            return self.say(
                f"epoch {row['epoch']:>4}  {line}  {timing['images_per_s']:,.0f} images/s"
            )
        best = "  best so far" if row["best"] else ""
        self.say(
            f"epoch {row['epoch']:>4}  "
            f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}  "
            f"val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f}  lr {row['lr']:g}  "
            f"{timing['images_per_s']:,.0f} images/s{best}"
        )

    def flush(self) -> None:
        """Give the rows to the system."""
        for file in self._files.values():
            with naming(Path(file.name)):
                file.flush()

    def sync(self) -> None:
        """Bring flushed rows to disk, so that no checkpoint is ahead of them."""
        for file in self._files.values():
            with naming(Path(file.name)):
                os.fsync(file.fileno())

    def close(self) -> None:
        """Stop the bar and close all files."""
        if self._bar:
            self._bar.stop()
        if self._tensorboard:
            if self._hparams_end:
                self._tensorboard._get_file_writer().add_summary(self._hparams_end)
            self._tensorboard.close()
        for file in self._files.values():
            file.close()


class Profile:
    """A torch profiler trace of three steps as FOLDER/trace.json, for chrome://tracing or Perfetto.

    Does nothing where the folder is None.
    """

    def __init__(self, folder: Path | None) -> None:
        self.profiler = None
        if folder:
            self.profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=5, warmup=2, active=3, repeat=1),
                record_shapes=True,
                on_trace_ready=lambda p: p.export_chrome_trace(str(folder / "trace.json")),
            )

    def __enter__(self) -> Profile:
        if self.profiler:
            self.profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.profiler:
            self.profiler.stop()

    def step(self) -> None:
        if self.profiler:
            self.profiler.step()
