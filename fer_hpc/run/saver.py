"""When a run writes checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fer_hpc.config import UserError
from fer_hpc.parallel.graph import waiting
from fer_hpc.parallel.job import Job, extended_end
from fer_hpc.run import checkpoint
from fer_hpc.run.attempts import Attempt
from fer_hpc.run.folder import list_checkpoints
from fer_hpc.run.log import RunLog
from fer_hpc.run.signals import STOP_END_IS_NEAR

MAX_SAVE_SHARE = 0.01  # of the time: slow storage makes checkpoints rarer, not training slower
DEFAULT_EVERY_S = 60.0
MARGIN_S = 10.0  # from the last checkpoint to the job's end: to end the processes and to requeue


class Saver:
    """Writes rank 0's checkpoints every `every_s` seconds, in a thread beside the training.

    0 means every minute, but never for more than MAX_SAVE_SHARE of the time.
    """

    def __init__(
        self, attempt: Attempt | None, log: RunLog, every_s: float, job: Job | None = None
    ) -> None:
        self.attempt, self.log, self.job = attempt, log, job
        self.every_s, self.cost_s, self.last = every_s, 0.0, time.monotonic()
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def due(self) -> bool:
        """Whether it is time for a checkpoint; False on all ranks but 0, and while one is
        written."""
        if self.attempt is None or (self._writing and not self._writing.done()):
            return False
        every_s = self.every_s or max(DEFAULT_EVERY_S, self.cost_s / MAX_SAVE_SHARE)
        return time.monotonic() - self.last >= every_s

    def end_is_near(self, step_s: float) -> int:
        """STOP_END_IS_NEAR once the job's end is closer than two saves and two turns of the loop.

        `step_s` is the longest turn so far, in seconds. 0 where there is time, or no end.
        """
        if self.attempt is None or self.job is None:
            return 0
        needed_s = 2 * (self.cost_s + step_s) + MARGIN_S
        if time.time() <= self.job.end - needed_s:
            return 0
        # The limit may have been extended since the start.
        self.job = dataclasses.replace(self.job, end=extended_end(self.job))
        return STOP_END_IS_NEAR if time.time() > self.job.end - needed_s else 0

    def save(self, images_seen: int, content: dict[str, Any], last: bool = False) -> None:
        """Write a checkpoint; the next step may change the tensors of `content` once this returns.

        Storage that fails costs this checkpoint. The `last` one is waited for, and must be written.
        """
        if self.attempt is None:
            return
        self.wait()
        self.log.flush()
        # The best epoch's weights are copies already, and do not change.
        copied = {key: v if key == "best" else clone(v) for key, v in content.items()}
        ready = None
        if torch.cuda.is_initialized():
            ready = torch.cuda.Event()
            ready.record()
        self._writing = self._thread.submit(self._write, images_seen, copied, ready, last)
        if last:
            self._writing.result()

    def wait(self) -> None:
        """Return when no checkpoint is being written."""
        if self._writing:
            self._writing.result()

    def _write(
        self,
        images_seen: int,
        content: dict[str, Any],
        ready: torch.cuda.Event | None,
        last: bool,
    ) -> None:
        assert self.attempt
        start = time.monotonic()
        try:
            if last:
                self.attempt.check_newest()
            elif not self.attempt.is_newest():
                return  # the loop finds out within a second
            self.log.sync()
            path = self.attempt.path / f"{images_seen:012d}.pt"
            checkpoint.save(path, to_host(content, ready))
            if self.attempt.is_newest():
                self.attempt.prune()
        except OSError as error:
            reported = checkpoint_write_error(self.attempt, images_seen, error)
            if last:
                raise reported from None
            self.log.say(
                f"warning: no checkpoint at {images_seen:,} images ({error}); "
                + _kept(self.attempt.run)
            )
        self.last = time.monotonic()
        self.cost_s = self.last - start


def clone(value: Any) -> Any:
    """The same content with copies of its tensors, where they are."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: clone(v) for key, v in value.items()}
    return [clone(v) for v in value] if isinstance(value, list | tuple) else value


def to_host(content: dict[str, Any], ready: torch.cuda.Event | None = None) -> dict[str, Any]:
    """The same content in main memory.

    Copied on a stream of its own, which waits for `ready` only, not for later training steps.
    """

    def on_host(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.cpu()
        if isinstance(value, dict):
            return {key: on_host(v) for key, v in value.items()}
        return [on_host(v) for v in value] if isinstance(value, list | tuple) else value

    if ready is None:
        copy: dict[str, Any] = on_host(content)
        return copy
    with waiting, torch.cuda.stream(torch.cuda.Stream(ready.device)):
        ready.wait()
        copy = on_host(content)
    return copy


def checkpoint_write_error(attempt: Attempt, images_seen: int, error: OSError) -> UserError:
    """The error for a checkpoint that could not be written; it names the one that is kept.

    Raises Superseded where another start has the run: it deletes what this one had begun to write.
    """
    with contextlib.suppress(OSError):
        attempt.check_newest()
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = error.strerror or str(error)
    what += f": {error.filename}" if error.filename and not is_full else ""
    return UserError(
        f"{attempt.run} could not be saved at {images_seen:,} images ({what}); "
        f"{_kept(attempt.run)}: {'make room' if is_full else 'correct that'} and give the same "
        "command again"
    )


def _kept(run: Path) -> str:
    """Which checkpoint a run still has."""
    images = max((images for _, images, _ in list_checkpoints(run)), default=None)
    return (
        "there is no checkpoint yet"
        if images is None
        else f"the checkpoint at {images:,} images is kept"
    )
