"""What a training loop needs around it: the right to write its run, stop signals, checkpoints in time."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from fer_hpc.config import SCHEMA, GanConfig, TrainConfig, UserError, fields_of
from fer_hpc.files import write_json
from fer_hpc.parallel.collectives import PeerLost, on_rank_0
from fer_hpc.parallel.world import Job, World
from fer_hpc.run import checkpoint
from fer_hpc.run.attempts import Attempt, claim_attempt
from fer_hpc.run.folder import (
    HALTED_REASON,
    MAX_STARTS,
    list_checkpoints,
    no_gain_message,
    starts_without_gain,
)
from fer_hpc.run.log import RunLog

MAX_SAVE_SHARE = 0.01  # of the time; slow storage makes checkpoints rarer, not training slower
MARGIN_S = (
    10.0  # between the last checkpoint and the job's end, for ending the processes and requeueing
)
Config = TypeVar("Config", TrainConfig, GanConfig)


class Superseded(Exception):
    """Another start has claimed the run; this one wrote nothing after that which anybody reads."""


@contextlib.contextmanager
def claim_run(
    config: Config, settle: Callable[[], tuple[Config, dict[str, Any]]], world: World
) -> Iterator[tuple[Config, Attempt | None]]:
    """The settled configuration and, on rank 0, the claimed run; records how this start ended if an exception ends it.

    `settle` gives the configuration with `auto` values resolved and what the run's config.json shall say; it runs on rank
    0, and its UserError is raised on all.
    """
    attempt: Attempt | None = None

    def begin() -> dict[str, Any]:
        nonlocal attempt
        settled, about = settle()
        attempt = claim_attempt(
            config.run, world.job, lambda line: print(line, file=sys.stderr, flush=True)
        )
        science = fields_of(settled, "science")
        stored = {
            "schema": SCHEMA,
            "science": science,
            "runtime": fields_of(settled, "runtime"),
            **about,
        }
        write_json(config.run / "config.json", stored)
        if (
            world.job and world.job.restarts and starts_without_gain(config.run) > MAX_STARTS
        ):  # with this one
            raise UserError(no_gain_message(config.run))
        return science

    try:
        yield dataclasses.replace(config, **on_rank_0(world, begin)), attempt
    except BaseException as raised:
        error = UserError(_out_of_memory(config, world)) if _is_out_of_memory(raised) else raised
        if attempt:
            ends = (
                "superseded"
                if isinstance(error, Superseded)
                else "interrupted"
                if isinstance(error, PeerLost)
                else ""
            )
            attempt.end(
                ends or "failed", str(error) if ends else f"{type(error).__name__}: {error}"
            )
        if error is raised:
            raise
        raise error from None


def _is_out_of_memory(error: BaseException) -> bool:
    """A GPU's lack of memory, or what the CPU's allocator says."""
    said = (
        "DefaultCPUAllocator: can't allocate",
        "can't start new thread",
    )  # a thread's stack is memory as well
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in said
    )


def _out_of_memory(config: TrainConfig | GanConfig, world: World) -> str:
    share = (
        f" ({config.batch_size // world.size} images on each of {world.size} ranks)"
        if world.size > 1
        else ""
    )
    instead = (
        "--accumulate N, which cuts it into N parts"
        if isinstance(config, TrainConfig)
        else "--precision bf16"
    )
    return f"out of memory with --batch-size {config.batch_size}{share}: take a smaller one, or {instead}"


STOP_END_IS_NEAR, STOP_HALTED = 1000, 1001  # stops that no signal asked for


def stop_reason(stop: int) -> str:
    """Who asked to stop, in words."""
    own = {STOP_END_IS_NEAR: "stopped before its job's end", STOP_HALTED: HALTED_REASON}
    return own.get(stop) or f"stopped by {signal.Signals(stop).name}"


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that gets the stop signals' numbers; the loop looks at it between steps. A second Ctrl-C kills.

    It stays empty in a thread (Ray's workers run trials in one): only the main thread may handle signals.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: object) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def step_seed(seed: int, images_seen: int, rank: int) -> int:
    """Seed of the random numbers inside the model (dropout) for one step."""
    digest = hashlib.blake2b(f"{seed} {images_seen} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Saver:
    """Writes rank 0's checkpoints every `every_s` seconds; 0: every minute, but never for more than MAX_SAVE_SHARE of the
    time."""

    def __init__(
        self, attempt: Attempt | None, log: RunLog, every_s: float, job: Job | None = None
    ) -> None:
        self.attempt, self.log, self.job = attempt, log, job
        self.every_s, self.cost_s, self.last = every_s, 0.0, time.monotonic()

    def due(self) -> bool:
        waited = time.monotonic() - self.last
        return self.attempt is not None and waited >= (
            self.every_s or max(60.0, self.cost_s / MAX_SAVE_SHARE)
        )

    def end_is_near(self, step_s: float) -> int:
        """END_IS_NEAR once the job's end is closer than two saves and two class_per_slot of the loop, of at most `step_s`; else 0."""
        if self.attempt is None or self.job is None:
            return 0
        return (
            STOP_END_IS_NEAR
            if time.time() > self.job.end - 2 * (self.cost_s + step_s) - MARGIN_S
            else 0
        )

    def save(self, images_seen: int, state: dict[str, Any], last: bool = False) -> None:
        """Write a checkpoint. Storage that fails costs this one; the `last` one must be written."""
        began = time.monotonic()
        if self.attempt:
            try:
                self.log.sync()
                checkpoint.save(self.attempt.path / f"{images_seen:012d}.pt", state)
                if self.attempt.is_newest():
                    self.attempt.prune()
            except OSError as error:
                if last:
                    raise checkpoint_write_error(self.attempt.run, images_seen, error) from None
                self.log.say(
                    f"warning: no checkpoint at {images_seen:,} images ({error}); the one before is kept"
                )
        self.last = time.monotonic()
        self.cost_s = self.last - began


def checkpoint_write_error(run: Path, images_seen: int, error: OSError) -> UserError:
    kept = max((images for _, images, _ in list_checkpoints(run)), default=0)
    return UserError(
        f"{run} could not be saved at {images_seen:,} images ({error.strerror or error}); the checkpoint at {kept:,} "
        "images is kept: make room and give the same command again"
    )


class Restorable(Protocol):
    """What a loop keeps between steps."""

    def load(self, saved: dict[str, Any], rank: int) -> None: ...


def restore(state: Restorable, run: Path, world: World) -> tuple[int, int, Path] | None:
    """Load the newest good checkpoint of the run's history into every rank's `state`; gives it, or None at a first start."""

    def newest_good() -> tuple[int, int, str] | None:
        for number, images_seen, path in list_checkpoints(run):
            try:
                state.load(checkpoint.load(path), rank=0)
            except (checkpoint.DamagedCheckpoint, OSError) as damage:
                print(
                    f"warning: {damage}; falling back to the checkpoint before it",
                    file=sys.stderr,
                    flush=True,
                )
                continue
            return number, images_seen, str(path)
        return None

    found = on_rank_0(world, newest_good)
    if found and world.rank:
        state.load(checkpoint.load(Path(found[2])), world.rank)
    return (found[0], found[1], Path(found[2])) if found else None
