"""Metrics, timing, TensorBoard events and progress of a run; rank 0 only."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fer_hpc.files import naming
from fer_hpc.run.attempts import Attempt
from fer_hpc.run.output import is_output_gone

ROW_FILES = ("metrics.jsonl", "timing.jsonl", "chain.jsonl")
PLAIN_EVERY_S = 30.0  # between progress lines in a log file
BAR_EVERY_S = 0.5  # between updates of the bar on a terminal
STEP_POINTS = 400  # of a step-wise scalar in a whole run: 30 kB of events
MAX_PICTURE = 768  # pixels of width; event files of a run stay below 2 MB
JPEG_QUALITY = 85
PR_THRESHOLDS = 64
Means = Callable[[list[int]], dict[str, float]]


class RunLog:
    """Rows, scalars and progress of one attempt; does nothing where `attempt` is None.

    `metrics.jsonl` holds what a repeated run must reproduce, `chain.jsonl` the proof that it has;
    rates and times go to `timing.jsonl`.
    """

    def __init__(
        self,
        attempt: Attempt | None,
        tensorboard: bool,
        images_seen: int,
        total: int,
        epoch_images: int,
    ) -> None:
        self.total, self.epoch_images, self._attempt = total, epoch_images, attempt
        self._is_noted = False  # in status.json, that nobody reads the output any more
        self._files: dict[str, IO[str]] = {}
        self._tensorboard = None
        self._first, self._start = images_seen, time.monotonic()
        self._last_line = self._start
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._hparams_end = None
        self._last_step: tuple[int, list[int]] = (images_seen, [])
        if attempt is None:
            return
        self._files = {name: (attempt.path / name).open("a") for name in ROW_FILES}
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
        return self._attempt is not None and time.monotonic() - self._last_line >= every_s

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
        if self._attempt is None:
            return
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        if is_output_gone() and not self._is_noted:
            self._is_noted = True
            with contextlib.suppress(OSError):  # a full disk: no reason to stop here
                self._attempt.set_status("running", "its output was closed; it goes on without")

    def sample(self, images: torch.Tensor) -> None:
        """Show the first images as the network sees them; [B, C, H, W] in [0, 1]."""
        if self._tensorboard:
            shown = images[:64].float().cpu()
            width = min(8, len(shown))
            rows = [
                torch.cat(list(r), 2) for r in shown[: len(shown) // width * width].split(width)
            ]
            self._picture("first batch", torch.cat(rows, 1), 0)

    def step(self, images_seen: int, sums: list[int], means: Means) -> None:
        """Show scalars of the steps since the last point, at most STEP_POINTS times in a run.

        `sums` are the epoch's so far, on this rank; `means` turns sums into scalars by tag.
        """
        before, base = self._last_step
        if not self._tensorboard or images_seen - before < self.total / STEP_POINTS:
            return
        since = [now - then for now, then in zip(sums, base or [0] * len(sums), strict=True)]
        self._last_step = images_seen, sums
        if since[0] > 0:
            for tag, value in means(since).items():
                self._tensorboard.add_scalar(tag, value, images_seen)

    def shows_now(self, images_seen: int) -> bool:
        """Whether an epoch shows pictures: 1, 2, 4, 8, ... and the last do."""
        epoch = images_seen // max(self.epoch_images, 1)
        return self._tensorboard is not None and (
            epoch & (epoch - 1) == 0 or images_seen >= self.total
        )

    def precision_recall(
        self, p: NDArray[Any], labels: NDArray[np.int64], classes: list[str], images_seen: int
    ) -> None:
        """Show a precision-recall curve of each class; p [n, classes] probabilities on val."""
        if self._tensorboard:
            for k, name in enumerate(classes):
                self._tensorboard.add_pr_curve(
                    f"val precision-recall/{name}", labels == k, p[:, k], images_seen, PR_THRESHOLDS
                )

    def embedding(
        self,
        features: NDArray[Any],
        names: list[list[str]],
        header: list[str],
        faces: torch.Tensor,
        images_seen: int,
    ) -> None:
        """Show faces in the projector: features [n, d], a row of names each, faces [n, C, H, W]."""
        if self._tensorboard:
            self._tensorboard.add_embedding(features, names, faces, images_seen, "val", header)

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
        """Show a picture [C, H, W] in [0, 1] of an epoch; see `shows_now`."""
        if self.shows_now(images_seen):
            self._picture(name, images.float().cpu(), images_seen)

    def _picture(self, name: str, picture: torch.Tensor, images_seen: int) -> None:
        """A JPEG of at most MAX_PICTURE pixels of width: a tenth of a PNG of faces."""
        import cv2
        from tensorboard.compat.proto.summary_pb2 import Summary

        pixels = (255 * picture.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
        pixels = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[..., ::-1]
        if pixels.shape[1] > MAX_PICTURE:
            height = round(pixels.shape[0] * MAX_PICTURE / pixels.shape[1])
            pixels = cv2.resize(pixels, (MAX_PICTURE, height), interpolation=cv2.INTER_AREA)
        _, content = cv2.imencode(
            ".jpg", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        height, width = pixels.shape[:2]
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=content.tobytes()
        )
        assert self._tensorboard
        writer = self._tensorboard._get_file_writer()
        writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), images_seen)

    def epoch(
        self, row: dict[str, Any], timing: dict[str, Any], chain: dict[str, Any], line: str = ""
    ) -> None:
        """Record one epoch: reproducible numbers in `row`, times and rates in `timing`.

        `chain` is its row of chain.jsonl; `line` replaces the classifier's line of progress.
        """
        self._last_step = row["images_seen"], []  # the sums begin anew
        timed = {"images_seen": row["images_seen"], **timing}
        for file, values in zip(self._files.values(), (row, timed, chain), strict=False):
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
