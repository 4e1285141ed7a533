"""What Ray's workers run: one trial, in one process or in several."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

from fer_hpc.config import TrainConfig, UserError
from fer_hpc.parallel.job import current_job
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import read_status
from fer_hpc.sweep.grid import Trial
from fer_hpc.sweep.ray_stop import stopped_with_sweep

TrialFunction = Callable[[dict[str, Any]], None]  # takes {"trial": name, "epochs": up to which}


def single_process_trial(
    by_name: dict[str, Trial], processes_per_gpu: int, stop_key: bytes
) -> TrialFunction:
    """A trial of one process: the one that Tune starts. `stop_key`: see ray_stop.py."""

    def train_one(task: dict[str, Any]) -> None:
        from ray import tune

        world = World(job=current_job(), processes_per_gpu=processes_per_gpu)
        failure = _train(by_name[task["trial"]].config, world, task["epochs"], stop_key)
        tune.report({"value": 0.0, "failure": failure})

    return train_one


def distributed_trial(
    by_name: dict[str, Trial], workers: int, resources: dict[str, float], stop_key: bytes
) -> TrialFunction:
    """A trial of several processes, which Ray Train starts with these resources each."""

    def train_one(task: dict[str, Any]) -> None:
        import torch
        from ray import tune
        from ray.train import RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchConfig, TorchTrainer

        config, epochs = by_name[task["trial"]].config, task["epochs"]
        on_gpus = "GPU" in resources
        backend = "cpu:gloo,cuda:nccl" if on_gpus and torch.cuda.is_available() else "gloo"

        def worker() -> None:
            if failure := _train(config, _world_of_worker(), epochs, stop_key):
                raise UserError(failure)

        trainer = TorchTrainer(
            worker,
            torch_config=TorchConfig(backend=backend),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=on_gpus, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=f"{config.run.name}-{os.getpid()}",
                storage_path=str(config.run.parents[1] / ".ray"),
            ),
        )
        failure = ""
        try:
            trainer.fit()
        except WorkerGroupError as error:
            failure = _user_error(error)
            if not failure:
                raise
        tune.report({"value": 0.0, "failure": failure})

    return train_one


def _user_error(error: Any) -> str:
    """The message of the UserError that ended a worker of Ray Train; "" where none did.

    Ray gives the text of its traceback, whose last line is the error.
    """
    lines = [str(failure).strip().splitlines()[-1:] for failure in error.worker_failures.values()]
    errors = [line[0].partition("UserError: ")[2] for line in lines if line]
    return next(filter(None, errors), "")


def _world_of_worker() -> World:
    from ray.train import get_context

    context = get_context()
    return World(
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
        current_job(),
    )


def _train(config: TrainConfig, world: World, epochs: int, stop_key: bytes) -> str:
    """Train up to `epochs`; gives why a retry is useless, unless the run's status says it."""
    import torch

    from fer_hpc.training.loop import train

    try:
        with stopped_with_sweep(stop_key):
            train(config, world, epochs)
    except UserError as error:
        return "" if read_status(config.run)["state"] == "failed" else str(error)
    finally:
        if torch.cuda.is_available():  # the next trial of this process may share its GPU
            gc.collect()
            torch.cuda.empty_cache()
    return ""
