"""Sweep batch size x learning rate x seed with Ray Tune: python -m fer_hpc.tune [PRESET] --data DIR --out DIR.

The only user of ray.

A trial is a train() run in its own run folder, which is all that is kept: Ray places trials on cores and GPUs, starts a
process that has died again, and knows nothing of checkpoints. So the same command on the same folder is how a sweep goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {  # read when ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

import ray
from ray import tune as ray_tune
from ray.tune.search import Searcher

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, EXIT_RUN_AGAIN, TrainConfig, UserError
from fer_hpc.config.commands import SweepConfig
from fer_hpc.parallel.world import current_step_node
from fer_hpc.run.folder import read_rows, read_status
from fer_hpc.sweep.grid import Trial, grid, prepare, record_failure, trial_state
from fer_hpc.sweep.halving import SuccessiveHalving, value_at_rung
from fer_hpc.sweep.ray_nodes import ENVIRONMENT, START_S, head
from fer_hpc.sweep.tables import collect


def tune(sweep: SweepConfig, preset: str, base: TrainConfig) -> int:
    """Run the sweep's trials that are not finished and write its tables; gives the exit code.

    `base` is what all trials share. Uses the Ray cluster that RAY_ADDRESS names, else starts one on this machine alone.
    """
    trials = grid(sweep, base)
    if SuccessiveHalving(sweep, trials).next() is None:  # starting Ray would take seconds
        print(f"{collect(sweep.out)}\n{sweep.out}: finished, nothing to do")
        return EXIT_FINISHED
    _check(sweep, trials)
    with _cluster():
        at_once, resources = _room(sweep, base, ray.nodes())
        prepare(sweep, preset, trials)
        plan = SuccessiveHalving(sweep, trials)
        print(
            f"{len(trials)} trials in {sweep.out}, up to {at_once} at a time; {_finished(sweep.out, trials)} finished before"
        )
        interrupted = _run(sweep, trials, plan, at_once, resources)
    print(collect(sweep.out))
    states = [trial_state(sweep.out, trial.name)[0] for trial in trials]
    if interrupted:
        print(f"{sweep.out}: stopped; the same command goes on from there")
        return EXIT_RUN_AGAIN
    return EXIT_FINDINGS if "failed" in states else EXIT_FINISHED


def _check(sweep: SweepConfig, trials: list[Trial]) -> None:
    """A UserError where a trial that has not begun could not: said once, before Ray starts."""
    from fer_hpc.data.shards import read_manifest
    from fer_hpc.parallel.device import pick_device
    from fer_hpc.parallel.world import World
    from fer_hpc.training.resolve import resolve_config

    manifest, world = read_manifest(sweep.data), World(size=sweep.workers_per_trial)
    for trial in trials:
        if not (trial.config.run / "config.json").exists():
            resolve_config(trial.config, manifest, pick_device("cpu"), world)


def _finished(out: Path, trials: list[Trial]) -> int:
    return sum(trial_state(out, trial.name)[0] == "finished" for trial in trials)


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    """Connected to the cluster of RAY_ADDRESS, to one over the nodes of a Slurm step, or to one on this machine alone."""
    quiet: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "error",
    }
    address, node = os.environ.get("RAY_ADDRESS"), current_step_node()
    if address or node:
        with head(node) if node and not address else contextlib.nullcontext(address) as known:
            _connect(lambda: ray.init(known, **quiet), node.count if node and not address else 1)
            try:
                yield
            finally:
                ray.shutdown()
        return
    folder = tempfile.mkdtemp(prefix="fer-ray-", dir="/tmp")  # sockets below it need a short path
    os.environ |= ENVIRONMENT | os.environ
    cores, store = len(os.sched_getaffinity(0)), 80 * 2**20  # no data travels through Ray's store
    try:
        ray.init(
            "local",
            num_cpus=cores,
            object_store_memory=store,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _connect(init: Callable[[], object], nodes: int) -> None:
    """Wait until Ray answers and has so many nodes."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            if not ray.is_initialized():
                init()
            if sum(node["Alive"] for node in ray.nodes()) >= nodes:
                return
        except ConnectionError:
            pass
        if time.monotonic() > deadline:
            raise UserError(
                f"Ray did not come up on {nodes} node(s) within {START_S:.0f} s; see its logs under /tmp/fer-ray-*"
            )
        time.sleep(0.5)


def _room(
    sweep: SweepConfig, base: TrainConfig, nodes: list[dict[str, Any]]
) -> tuple[int, dict[str, float]]:
    """How many trials fit at a time, and what each of their workers gets; a UserError where not even one fits.

    Every worker takes the same share of a node, so any workers fit wherever there is room, in any order.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = sum(node.get("GPU", 0) for node in alive)
    share = sweep.gpus_per_worker if sweep.gpus_per_worker is not None else float(gpus > 0)
    if share and sweep.workers_per_trial > 1:
        share = 1.0
    needs = {"CPU": float(base.threads)} | ({"GPU": share} if share else {})

    def workers(node: dict[str, float], one: dict[str, float]) -> int:
        whole_gpus = (
            int(node.get("GPU", 0)) * int(1 / share + 1e-9) if share else 0
        )  # a share lies on one GPU
        return min([int(node.get("CPU", 0) // one["CPU"]), *([whole_gpus] if "GPU" in one else [])])

    room = sum(workers(node, needs) for node in alive)
    if room < sweep.workers_per_trial:
        there = f"{sum(node.get('CPU', 0) for node in alive):g} cores and {gpus:g} GPUs on {len(alive)} node(s)"
        wanted = f"--workers-per-trial {sweep.workers_per_trial} x (--threads {base.threads} and {share:g} GPUs)"
        if room:
            instead = f"the largest trial that fits has --workers-per-trial {room}"
        else:
            most = max(int(node.get("CPU", 0)) for node in alive)
            instead = f"the largest worker that fits has --threads {most}" + (
                " and a GPU" if gpus else " and --gpus-per-worker 0"
            )
        raise UserError(f"a trial does not fit: {wanted}, where there are {there}; {instead}")
    at_once = room // sweep.workers_per_trial
    return min(at_once, sweep.at_once or at_once), needs


# ---- trials ------------------------------------------------------------------------------------------------------------


def _run(
    sweep: SweepConfig,
    trials: list[Trial],
    plan: SuccessiveHalving,
    at_once: int,
    needs: dict[str, float],
) -> bool:
    """Run trials until none is left; gives whether something stopped it before."""
    by_name = {trial.name: trial for trial in trials}
    queue = _Queue(plan, by_name, sweep.out)
    single = sweep.workers_per_trial == 1
    work = _single_process_trial(by_name) if single else _distributed_trial(by_name, sweep, needs)
    storage = (
        sweep.out.absolute() / ".ray"
    )  # Ray wants a folder that all nodes see; nothing in it is needed afterwards
    tuner = ray_tune.Tuner(
        # A trial of several workers waits for them in a process of its own, which shall not hold what they need (a byte).
        ray_tune.with_resources(work, needs if single else {"CPU": 0, "memory": 1}),
        tune_config=ray_tune.TuneConfig(
            search_alg=queue,
            num_samples=-1,
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray_tune.RunConfig(
            name="sweep",
            storage_path=str(storage),
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=sweep.retries),
        ),
    )
    signal.signal(
        signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGUSR1)
    )  # Tune ends in good order on this and Ctrl-C
    try:
        tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    return queue.stopped or not plan.over or plan.next() is not None


class _Queue(Searcher):
    """Hands Tune the trials in the plan's order."""

    def __init__(self, plan: SuccessiveHalving, by_name: dict[str, Trial], out: Path) -> None:
        super().__init__(metric="value", mode="max")
        self.plan, self.by_name, self.out = plan, by_name, out
        self.stopped = False  # a trial ended before its halt without failing: the job's end is near
        self.running: dict[str, tuple[Trial, int]] = {}

    def suggest(self, trial_id: str) -> Any:
        found = None if self.stopped else self.plan.next()
        if found is None:
            return Searcher.FINISHED if self.plan.over else None
        self.running[trial_id] = found
        record_failure(self.out, found[0].name, "")
        return {"trial": found[0].name, "halt": found[1]}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial, halt = self.running.pop(trial_id)
        if result and result.get("why"):
            record_failure(self.out, trial.name, result["why"])
        if error:
            record_failure(self.out, trial.name, _why_died(trial.config.run))
        state, why = trial_state(self.out, trial.name)
        there = value_at_rung(trial.config.run, trial.config.best_on, halt) is not None
        self.plan.ended(trial, failed=state == "failed")
        self.stopped |= not there and state != "failed"
        rows = read_rows(trial.config.run)
        best = max((row["val_accuracy"] for row in rows), default=float("nan"))
        print(
            f"{trial.name}: {state}{f' ({why})' if why else ''}, epoch {len(rows)}, best val accuracy {best:.4f}",
            flush=True,
        )

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the run folders say where the sweep stands."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on by its own command, not by Tuner.restore")


def _why_died(run: Path) -> str:
    status = read_status(run)
    why = "" if status["why"] in ("", "starting", "its process is gone") else f": {status['why']}"
    return f"its process died{why} (killed, out of memory?); attempts and logs are in {run.name}"


def _single_process_trial(by_name: dict[str, Trial]) -> Callable[[dict[str, Any]], None]:
    """A trial of one process, in Tune's own."""

    def work(given: dict[str, Any]) -> None:
        from fer_hpc.parallel.world import World, current_job

        why = _train(by_name[given["trial"]].config, World(job=current_job()), given["halt"])
        ray_tune.report({"value": 0.0, "why": why})

    return work


def _distributed_trial(
    by_name: dict[str, Trial], sweep: SweepConfig, needs: dict[str, float]
) -> Callable[[dict[str, Any]], None]:
    """A trial of several processes, which Ray Train starts and connects."""

    def work(given: dict[str, Any]) -> None:
        import torch
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        config, halt = by_name[given["trial"]].config, given["halt"]
        backend = "cpu:gloo,cuda:nccl" if needs.get("GPU") and torch.cuda.is_available() else "gloo"

        def worker() -> None:
            if why := _train(config, _world_of_ray(), halt):
                raise UserError(why)

        trainer = TorchTrainer(
            worker,
            torch_config=TorchConfig(backend=backend),
            scaling_config=ScalingConfig(
                num_workers=sweep.workers_per_trial,
                use_gpu="GPU" in needs,
                resources_per_worker=needs,
            ),
            run_config=RunConfig(
                name=f"{config.run.name}-{os.getpid()}",
                storage_path=str(config.run.parents[1] / ".ray"),
            ),
        )
        trainer.fit()
        ray_tune.report({"value": 0.0})

    return work


def _world_of_ray() -> Any:
    from ray.train import get_context

    from fer_hpc.parallel.world import World, current_job

    c = get_context()
    return World(
        c.get_world_rank(),
        c.get_world_size(),
        c.get_local_rank(),
        c.get_local_world_size(),
        current_job(),
    )


def _train(config: TrainConfig, world: Any, halt: int) -> str:
    """train(); gives why no new start would help, where the run's status does not say so already."""
    import torch

    from fer_hpc.training.loop import train

    try:
        train(config, world, halt)
    except UserError as error:
        return "" if read_status(config.run)["state"] == "failed" else str(error)
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next trial in this process may not be alone on its GPU
    return ""
