"""A sweep with Ray Tune: what `python -m fer_hpc.tune [PRESET] --data DIR --out DIR` runs.

A trial is a train() run in its own run folder. Ray places trials on cores and GPUs and restarts a
process that died. All state is in the run folders, none is in Ray: the same command on the same
folder continues a sweep.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, EXIT_RUN_AGAIN, TrainConfig, UserError
from fer_hpc.parallel.job import current_step

os.environ |= {  # read when ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a traceback of Ray's own; see _Watch
}
if "RAY_ADDRESS" not in os.environ and current_step() is None:
    # Ray listens on all networks of the machine, whatever address it is given. In a job launch.sh
    # draws the token, which all nodes need.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

if sys.flags.optimize > 1:
    raise UserError("tune needs docstrings: start it without python -OO or PYTHONOPTIMIZE=2")

import ray
import torch
from ray import tune as ray_tune
from ray.tune.search import Searcher

from fer_hpc.config.commands import SweepConfig
from fer_hpc.config.errors import counted
from fer_hpc.parallel.gpus import may_have_gpus
from fer_hpc.parallel.process import hangup_signals
from fer_hpc.parallel.world import current_step_node
from fer_hpc.run.folder import read_rows, read_status
from fer_hpc.run.trial import earlier_trial
from fer_hpc.sweep.grid import (
    Trial,
    check_free,
    grid,
    prepare,
    record_failure,
    trial_state,
    trial_states,
)
from fer_hpc.sweep.halving import SuccessiveHalving
from fer_hpc.sweep.ray_cluster import Room, cluster, room_for_trials
from fer_hpc.sweep.ray_nodes import release, shared_gpus
from fer_hpc.sweep.ray_stop import SweepStop
from fer_hpc.sweep.ray_trials import distributed_trial, single_process_trial
from fer_hpc.sweep.tables import collect

END_OF_KILLED_S = 10.0  # within which the processes of a killed sweep end
logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # names trials by Ray's own numbers


def tune(sweep: SweepConfig, preset: str, base: TrainConfig) -> int:
    """Run the sweep's trials that are not finished and write its tables; gives the exit code.

    `base` holds the fields that all trials share. Uses the Ray cluster that RAY_ADDRESS names, else
    one over the nodes of the Slurm step, else one on this machine alone.
    """
    trials = grid(sweep, base)
    if _is_complete(sweep, trials):  # starting Ray would take seconds
        print(f"{collect(sweep.out)}\n{sweep.out}: finished, nothing to do", flush=True)
        if (node := current_step_node()) and node.count > 1:
            release(node)
        return EXIT_FINISHED
    names = [trial.name for trial in trials]
    check_free(sweep.out, names, END_OF_KILLED_S)
    _check_new_trials(sweep, trials)
    if base.device == "cuda" and not (os.environ.get("RAY_ADDRESS") or may_have_gpus()):
        raise UserError(
            "--device cuda: this machine has no GPU; use --device cpu, or ask the scheduler for one"
        )
    for number in (signal.SIGUSR1, signal.SIGUSR2, *hangup_signals()):  # until fit() begins
        signal.signal(number, signal.default_int_handler)
    with shared_gpus(sweep, base) as share, cluster():
        room = room_for_trials(sweep, share, base, ray.nodes())
        prepare(sweep, preset, trials)
        finished = _states(sweep, trials).count("finished")
        print(
            f"{counted(len(trials), 'trial')} in {sweep.out}, up to {room.trials} at a time; "
            f"{finished} finished before{_kept_precision(trials)}; "
            f"how far they are: fer-hpc status {shlex.quote(str(sweep.out))}",
            flush=True,
        )
        interrupted, was_held = _run_trials(sweep, trials, room)
    table = collect(sweep.out)
    if was_held:
        check_free(sweep.out, names)
    print(table)
    if interrupted and not _is_complete(sweep, trials):  # else it was stopped after its last trial
        print(f"{sweep.out}: stopped; the same command continues from there")
        return EXIT_RUN_AGAIN
    return EXIT_FINDINGS if "failed" in _states(sweep, trials) else EXIT_FINISHED


def _is_complete(sweep: SweepConfig, trials: list[Trial]) -> bool:
    """Whether a start would find nothing to do; decided by the run folders."""
    return SuccessiveHalving(sweep, trials).next() is None


def _states(sweep: SweepConfig, trials: list[Trial]) -> list[str]:
    return [state for state, _ in trial_states(sweep.out, [trial.name for trial in trials])]


def _check_new_trials(sweep: SweepConfig, trials: list[Trial]) -> None:
    """A UserError where a new trial could not start, so that it appears once, before Ray starts.

    Asks the GPU nothing: this process shall take none of its memory.
    """
    from fer_hpc.config.plugins import load_plugins
    from fer_hpc.data.shards import read_manifest
    from fer_hpc.parallel.world import World
    from fer_hpc.training.resolve import resolve_config

    load_plugins(trials[0].config.plugin)
    manifest, world = read_manifest(sweep.data), World(size=sweep.workers_per_trial)
    on_gpus = os.environ.get("RAY_ADDRESS") or may_have_gpus()
    device = torch.device("cuda" if on_gpus and trials[0].config.device != "cpu" else "cpu")
    for trial in trials:
        if not (trial.config.run / "config.json").exists():
            config = trial.config
            if config.precision == "auto":  # which a GPU would be asked for
                config = dataclasses.replace(config, precision="fp32")
            resolve_config(config, manifest, device, world)


def _kept_precision(trials: list[Trial]) -> str:
    """In words, the precision that new trials have because earlier ones resolved `auto` so."""
    automatic = [trial.config.run for trial in trials if trial.config.precision == "auto"]
    new = [run for run in automatic if not (run / "config.json").exists()]
    earlier = next(filter(None, map(earlier_trial, new)), None)
    return (
        f"; new ones train in the precision of the first, {earlier['science']['precision']}"
        if earlier
        else ""
    )


def _run_trials(sweep: SweepConfig, trials: list[Trial], room: Room) -> tuple[bool, bool]:
    """Run trials until none is left; gives whether they were interrupted, and whether that is
    because another process held one."""
    by_name = {trial.name: trial for trial in trials}
    halving = SuccessiveHalving(sweep, trials)
    stop = SweepStop()
    queue = _TrialQueue(halving, by_name, sweep.out, stop)
    if sweep.workers_per_trial == 1:
        train_one = single_process_trial(by_name, room.processes_per_gpu, stop.key)
        resources = room.worker
    else:
        train_one = distributed_trial(by_name, sweep.workers_per_trial, room.worker, stop.key)
        resources = {"CPU": 0, "memory": 1}  # only waits; its workers need the cores (1 byte)
    storage = sweep.out.absolute() / ".ray"  # seen by all nodes; deleted at the end
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(train_one, resources),
        tune_config=ray_tune.TuneConfig(
            search_alg=queue,
            num_samples=-1,
            max_concurrent_trials=room.trials,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray_tune.RunConfig(
            name="sweep",
            storage_path=str(storage),
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=sweep.retries),
            callbacks=[_Watch(queue.running, stop)],
        ),
    )
    try:
        with stop.handled():
            tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    return queue.stopped or not halving.over or halving.next() is not None, queue.was_held


class _TrialQueue(Searcher):
    """Gives Tune the trials in the order of successive halving."""

    def __init__(
        self, halving: SuccessiveHalving, by_name: dict[str, Trial], out: Path, stop: SweepStop
    ) -> None:
        super().__init__(metric="value", mode="max")
        self.halving, self.by_name, self.out, self.stop = halving, by_name, out, stop
        self.stopped = False  # a trial ended early without a failure: the job is about to end
        self.was_held = False  # another process trains one of the trials
        self.running: dict[str, Trial] = {}  # by Tune's id

    def suggest(self, trial_id: str) -> Any:
        self.stopped |= self.stop.is_asked
        suggestion = None if self.stopped else self.halving.next()
        if suggestion is None:
            return Searcher.FINISHED if self.halving.over else None
        trial, epochs = suggestion
        self.running[trial_id] = trial
        record_failure(self.out, trial.name, "")
        return {"trial": trial.name, "epochs": epochs}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self.running.pop(trial_id)
        state, reason = trial_state(self.out, trial.name)
        failure = (result or {}).get("failure", "")
        if failure and state == "running":
            self.was_held = True
        elif failure or (error and state != "failed"):  # else status.json has the exception
            record_failure(self.out, trial.name, failure or _death_reason(trial.config.run))
            state, reason = trial_state(self.out, trial.name)
        reached_rung = self.halving.ended(trial, failed=state == "failed")
        self.stopped |= not reached_rung and state != "failed"
        if failure and state == "running":
            return  # another process's, which `tune` names
        rows = read_rows(trial.config.run)
        accuracies = [row.get("val_accuracy") for row in rows]
        best = max((v for v in accuracies if isinstance(v, float)), default=float("nan"))
        outcome = f"{state} ({reason})" if reason else state
        print(
            f"{trial.name}: {outcome}, epoch {len(rows)}, best val accuracy {best:.4f}", flush=True
        )

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the state of a sweep is in its run folders."""

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a sweep is continued by its own command, not by Tuner.restore")


class _Watch(ray_tune.Callback):
    """Takes the signals from Tune, and says why a trial is started again. `running` is by Tune's
    id."""

    def __init__(self, running: dict[str, Trial], stop: SweepStop) -> None:
        self.running, self.stop = running, stop

    def setup(self, *args: Any, **more: Any) -> None:
        handler = signal.getsignal(signal.SIGUSR1)
        assert callable(handler), "Tune has set it"
        self.stop.take_signals(handler)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        run = self.running[trial.trial_id].config.run
        status = read_status(run)
        why = status["why"] if status["state"] == "failed" else "its process died"
        print(f"{run.name}: {why}; started again from its last checkpoint", flush=True)


def _death_reason(run: Path) -> str:
    status = read_status(run)
    known = "" if status["why"] in ("", "starting", "its process is gone") else f": {status['why']}"
    return f"its process died{known} (out of memory?); see attempts/ and logs/ in {run.name}"
