"""Everything around a training loop: ranks, signals, claiming the folder, checkpoints, the end.

with start_run(config, world, resolve) as run:
    state = TrainState.fresh(...)
    run.restore(state)                   # loads the newest good checkpoint, if there is one
    run.begin(state, clock, ...)         # records this start, opens the log
    while not finished:
        ...                              # one step
        if run.after_step(state, ...):
            break
    run.finish(state, ...)
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from fer_hpc.config import SCHEMA, GanConfig, TrainConfig, UserError, fields_of, non_default_fields
from fer_hpc.files import to_jsonl, write_bytes, write_json
from fer_hpc.parallel.collectives import (
    Agreement,
    barrier,
    detect_lost_peers,
    gather_json,
    min_over_ranks,
    on_rank_0,
    process_group,
)
from fer_hpc.parallel.device import configure_torch, load_early, pick_device
from fer_hpc.parallel.process import keep_freed_memory
from fer_hpc.parallel.world import World
from fer_hpc.run import checkpoint
from fer_hpc.run.attempts import Attempt, Superseded, claim_attempt
from fer_hpc.run.counters import CounterReader
from fer_hpc.run.ending import end_state, reported_error
from fer_hpc.run.environment import describe_environment, rank_location
from fer_hpc.run.folder import (
    damage_of,
    find_run_config,
    read_attempt,
    read_rows,
)
from fer_hpc.run.log import Means, RunLog
from fer_hpc.run.outcome import check_history
from fer_hpc.run.restore import restore
from fer_hpc.run.saver import Saver, checkpoint_write_error, to_host
from fer_hpc.run.signals import stop_reason, stop_signals
from fer_hpc.run.state import NO_BAD_STEP, Clock, TrainState
from fer_hpc.run.trial import swept_fields
from fer_hpc.run.watchdog import Watchdog

Config = TypeVar("Config", TrainConfig, GanConfig)


class Resolve(Protocol[Config]):
    """Gives the config without `auto` values, and what config.json holds beside it."""

    def __call__(
        self, config: Config, *, device: torch.device, world: World
    ) -> tuple[Config, dict[str, Any]]: ...


@contextlib.contextmanager
def start_run(config: Config, world: World, resolve: Resolve[Config]) -> Iterator[Run[Config]]:
    """One start of the run in `config.run`, on this rank.

    `resolve` runs on rank 0; its UserError is raised on all ranks. An exception in the body is
    recorded in the attempt's status.json: Superseded where another start has taken the run over,
    PeerLost where another rank has died, anything else as a failure.
    """
    device = pick_device(config.device, world.local_rank)
    load_early(device)
    keep_freed_memory()
    attempt: Attempt | None = None

    def on_hang(why: str) -> None:
        if attempt:
            attempt.end("interrupted", why)

    with contextlib.ExitStack() as stack:
        stack.enter_context(process_group(world, device, config.backend, on_hang))
        signals = stack.enter_context(stop_signals())
        resolved, attempt = stack.enter_context(claim_run(config, device, world, resolve))
        stack.enter_context(detect_lost_peers(world))
        deterministic = bool(resolved.deterministic)
        compiles = getattr(resolved, "compile", False)
        configure_torch(resolved.threads, deterministic, device, resolved.precision, compiles)
        if attempt and device.type == "cuda" and not deterministic:
            _to_stderr(
                "--no-deterministic: quicker, but the same command may give other numbers, and a "
                "run that was killed and continued may end with other bits"
            )
        stack.callback(gc.unfreeze)  # of Run.begin
        watchdog = Watchdog(config.hang_factor, config.hang_floor_s, world.rank, on_hang)
        watch = stack.enter_context(watchdog)
        yield Run(resolved, world, device, attempt, signals, watch)


@contextlib.contextmanager
def claim_run(
    config: Config, device: torch.device, world: World, resolve: Resolve[Config]
) -> Iterator[tuple[Config, Attempt | None]]:
    """The resolved configuration and, on rank 0, the claimed attempt; an exception is recorded."""
    attempt: Attempt | None = None

    def claim() -> dict[str, Any]:
        nonlocal attempt
        before = find_run_config(config.run)
        check_history(config.run)
        resolved, identity = resolve(config, device=device, world=world)
        attempt = claim_attempt(config.run, world.job, _to_stderr)
        if find_run_config(config.run) != before:  # another start began the run meanwhile
            resolved, identity = resolve(config, device=device, world=world)
        science, runtime = fields_of(resolved, "science"), fields_of(resolved, "runtime")
        stored = {"schema": SCHEMA, "science": science, "runtime": runtime, **identity}
        write_json(config.run / "config.json", stored)
        return science

    try:
        yield dataclasses.replace(config, **on_rank_0(world, claim)), attempt
    except BaseException as error:
        reported = reported_error(error, config, world, attempt)
        if attempt:
            attempt.end(*end_state(reported))
        if reported is error:
            raise
        raise reported from None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _hparams(config: TrainConfig | GanConfig) -> dict[str, Any]:
    """A run's line in TensorBoard's HParams table: what a sweep varies, and what is not usual."""
    science = fields_of(config, "science")
    swept = ("batch_size", "lr", "seed", *swept_fields(config.run))
    return {field: science[field] for field in swept} | non_default_fields(config)


class Run(Generic[Config]):
    """What a training loop has around it; `attempt` is None on all ranks but 0, which alone writes.

    `parent` is the checkpoint that this start goes on from: (attempt, images seen, file), or None.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        device: torch.device,
        attempt: Attempt | None,
        signals: list[int],
        watch: Watchdog,
    ) -> None:
        self.config: Config = config
        self.world, self.device, self.attempt = world, device, attempt
        self.watch, self._signals = watch, signals
        self.parent: tuple[int, int, Path] | None = None
        self.stop = 0  # reason for leaving the loop: a signal or a constant of signals.py; 0: none
        self._agreement = Agreement(world, 5)  # see after_step
        self._data_check: Future[None]
        self._counters = CounterReader(device)
        self.clock: Clock
        self.log: RunLog
        self._saver: Saver
        self._context: dict[str, Any]
        self._bad_step_message: Callable[[int], str]

    def restore(self, state: TrainState) -> None:
        """Load the newest good checkpoint into `state` and remember it as `parent`."""
        self.parent = restore(state, self.config.run, self.world)

    def begin(
        self,
        state: TrainState,
        clock: Clock,
        title: str,
        context: dict[str, Any],
        bad_step_message: Callable[[int], str],
        data_check: Future[None],
        note: str = "",
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Record this start and its parent checkpoint, and open the log.

        `context` is added to every checkpoint. `bad_step_message` explains a loss that is not
        finite, given the images seen before it. `data_check` ends with a UserError where the data
        is not what it was. `title` and `note` are for the first line, `facts` for
        environment.json.
        """
        config, world, attempt = self.config, self.world, self.attempt
        self.clock, self._context, self._bad_step_message = clock, context, bad_step_message
        self._data_check = data_check
        self.log = RunLog(
            attempt, config.tensorboard, state.images_seen, clock.total, clock.epoch_images
        )
        ranks = gather_json(rank_location(world, self.device), world)
        if attempt:
            known = {"ranks": ranks, "data": str(config.data.absolute()), **(facts or {})}
            attempt.begin(describe_environment(world, self.device) | known, self.parent)
        self._saver = Saver(attempt, self.log, config.checkpoint_every_s, world.job)
        if self.parent:
            note = f"from image {state.images_seen:,} of {clock.total:,}"
            self._say_changed_ranks(self.parent[0])
        number = attempt.number if attempt else 0
        if number > 1 and not self.parent:
            again = "from the beginning: earlier starts left no checkpoint that can be used"
            note = f"{again}, {note}" if note else again
        place = f"{config.precision} on {world.size} x {self.device.type}, attempt {number}"
        self.log.say(f"{config.run}: {title}, {place}{', ' + note if note else ''}")
        self.log.hparams(_hparams(config))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # of an earlier training
        gc.freeze()  # what exists by now stays: collections need not look at it

    def _say_changed_ranks(self, parent: int) -> None:
        before = read_attempt(self.config.run, parent).get("world_size", self.world.size)
        if before != self.world.size:
            self.log.say(
                f"warning: {self.world.size} rank(s), {before} before: the same samples in the "
                f"same order, but sums round differently: not the bits of {before} rank(s) alone"
            )

    def after_step(
        self,
        state: TrainState,
        progress: Callable[[list[int]], str],
        means: Means,
        end_epoch: Callable[[], int] | None = None,
    ) -> bool:
        """Everything that follows a step, on all ranks together; True where the loop must stop.

        `progress` gives the losses for the progress line, of the epoch's sums so far; `means` the
        step-wise scalars of sums. `end_epoch`,
        given where the step ended an epoch, validates and logs; it gives a reason to stop
        (signals.py), or 0. Raises Superseded, and UserError for a loss that is not finite, before
        anything bad is saved.
        """
        self.watch.step(state.images_seen)
        counters = self._counters.poll(state)
        bad = counters is not None and counters.bad_step < NO_BAD_STEP
        if counters and not bad and self.log.due():
            self.log.progress(counters.images_seen, progress(counters.sums))
        if counters and not bad:
            self.log.step(counters.images_seen, counters.sums, means)
        stop_requested = max(self._signals, default=self._saver.end_is_near(self.watch.longest_s))
        superseded = self.attempt is not None and self.attempt.superseded()
        other_data = self._data_check.done() and self._data_check.exception() is not None
        stop, save, superseded_anywhere, bad_anywhere, other_anywhere = self._agreement.exchange(
            [stop_requested, self._saver.due(), superseded, bad, other_data]
        )
        if other_anywhere:
            self.check_data()
        if bad_anywhere or end_epoch:
            self.check_finite(state)
        if end_epoch:
            with self.watch.phase("validation"):
                epoch_stop = end_epoch()
            stop = stop or epoch_stop
        if superseded_anywhere:
            if self.attempt:
                self.attempt.check_newest()  # raises it, with what has happened
            raise Superseded(f"{self.config.run}: this start has lost the run; it stops")
        if save and not stop and state.images_seen < self.clock.total:
            self.check_finite(state)
            with self.watch.phase("saving"):
                self._save(state)
        self.stop = stop
        return bool(stop)

    def check_data(self) -> None:
        """UserError on all ranks where the data of any is not what it was; waits until it is known.

        Then the checkpoints of this start are deleted: it was trained on the wrong data.
        """
        with self.watch.phase("checksums"):
            error = self._data_check.exception()
        good = torch.tensor(int(error is None), device=self.device)
        if int(min_over_ranks(good, self.world)):
            return
        if self.attempt:
            self._saver.wait()
            self.attempt.discard(self.parent)
        raise error or UserError("another rank's data is damaged: see the message of that rank")

    def check_finite(self, state: TrainState) -> None:
        """UserError on all ranks where any rank's loss was not finite."""
        images_seen = int(min_over_ranks(state.bad_step, self.world))
        if images_seen < NO_BAD_STEP:
            raise UserError(self._bad_step_message(images_seen))

    def _save(self, state: TrainState, last: bool = False) -> None:
        self._saver.save(state.images_seen, state.state_dict(self.world) | self._context, last)

    def finish(
        self,
        state: TrainState,
        results: Callable[[], tuple[dict[str, dict[str, Any]], dict[str, Any]]],
        stopped_early: str = "",
    ) -> None:
        """Save the last checkpoint; of a finished run also publish the results. On all ranks.

        `results` gives the files of weights by name, without `context`, and the best epoch's values
        for status.json. `stopped_early` is why the run is finished before its last epoch, if it is.
        """
        self._agreement.close()
        finished = state.images_seen >= self.clock.total or bool(stopped_early)
        self.check_finite(state)
        if finished:
            self.check_data()
        self._save(state, last=True)  # a later start with more --epochs resumes from it
        if self.attempt and finished:
            self._publish(self.attempt, state, results, stopped_early)
        elif self.attempt:
            why = stop_reason(self.stop)
            self.attempt.end("interrupted", why, images_seen=state.images_seen)
        self.log.close()
        barrier(self.world)  # rank 0 may still write; a launcher would end it with the others

    def _publish(
        self,
        attempt: Attempt,
        state: TrainState,
        results: Callable[[], tuple[dict[str, dict[str, Any]], dict[str, Any]]],
        why: str,
    ) -> None:
        files, best = results()
        for line in damage_of(attempt.run):
            self.log.say(f"warning: {line}")
        try:
            attempt.check_newest()
            for name, content in files.items():
                checkpoint.save(attempt.path / name, {**self._context, **to_host(content)})
            for name in files:
                attempt.publish(name)
            attempt.check_newest()
            write_bytes(attempt.run / "metrics.jsonl", to_jsonl(read_rows(attempt.run)))
            attempt.finish(why, images_seen=state.images_seen, best=best)
        except OSError as error:
            raise checkpoint_write_error(attempt, state.images_seen, error) from None
