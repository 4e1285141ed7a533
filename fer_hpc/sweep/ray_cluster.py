"""The Ray cluster of a sweep: where it is, and how many trials fit into it.

Imported by ray_tune only, which sets Ray's environment variables before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from fer_hpc.config import TrainConfig, UserError
from fer_hpc.config.commands import SweepConfig
from fer_hpc.parallel.process import blocked
from fer_hpc.parallel.world import current_step_node
from fer_hpc.sweep.ray_nodes import ENVIRONMENT, OBJECT_STORE_BYTES, START_S, head, temporary_folder

QUIET: dict[str, Any] = {
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": "error",
}


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """A connection to the cluster of RAY_ADDRESS, else to one over the nodes of the Slurm step,
    else to one on this machine alone."""
    address, node = os.environ.get("RAY_ADDRESS"), current_step_node()
    if address:
        with _connected(lambda: ray.init(address, **QUIET), nodes=1):
            yield
    elif node:
        with (
            head(node) as own_address,
            _connected(lambda: ray.init(own_address, **QUIET), node.count),
        ):
            yield
    else:
        with _local_cluster():
            yield


@contextlib.contextmanager
def _connected(init: Callable[[], object], nodes: int) -> Iterator[None]:
    """A connection as soon as Ray answers and has so many nodes."""
    deadline = time.monotonic() + START_S
    try:
        while not _has_nodes(init, nodes):
            if time.monotonic() > deadline:
                raise UserError(
                    f"Ray did not come up on {nodes} node(s) within {START_S:.0f} s; "
                    "see its logs under /tmp/fer-ray-*"
                )
            time.sleep(0.5)
        yield
    finally:
        ray.shutdown()


def _has_nodes(init: Callable[[], object], nodes: int) -> bool:
    try:
        if not ray.is_initialized():
            init()
        return sum(node["Alive"] for node in ray.nodes()) >= nodes
    except ConnectionError:
        return False


@contextlib.contextmanager
def _local_cluster() -> Iterator[None]:
    os.environ |= ENVIRONMENT | os.environ
    with temporary_folder("") as folder:
        try:
            with blocked(signal.SIGHUP):  # of a closed terminal: Ray itself blocks Ctrl-C so
                _start_ray(str(folder))
            yield
        finally:
            ray.shutdown()


def _start_ray(folder: str) -> None:
    """Ray on this machine. It gives up after 30 s of its own, which a busy machine exceeds."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            ray.init(
                "local",
                num_cpus=len(os.sched_getaffinity(0)),
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
                _node_ip_address="127.0.0.1",
                **QUIET,
            )
            return
        except (UserError, OSError):
            raise
        except Exception as error:  # Ray raises Exception itself
            ray.shutdown()
            if time.monotonic() > deadline:
                what = f"{error}".partition("\n")[0]
                raise OSError(f"Ray did not start within {START_S:.0f} s: {what}") from None


@dataclass(frozen=True)
class Room:
    """How many trials run at a time, and the resources of each of their workers."""

    trials: int
    worker: dict[str, float]  # Ray's names: CPU, GPU
    processes_per_gpu: int


def room_for_trials(
    sweep: SweepConfig, share: float | None, base: TrainConfig, nodes: list[dict[str, Any]]
) -> Room:
    """The room for trials on these nodes of Ray; a UserError where not even one fits.

    `share`: GPUs of each worker, None for one where there are GPUs. Every worker takes the same
    share of a node, so workers fit wherever there is room for one.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = sum(node.get("GPU", 0) for node in alive)
    share = float(gpus > 0) if share is None else share
    if share and sweep.workers_per_trial > 1:
        share = 1.0
    worker = {"CPU": float(base.threads)} | ({"GPU": share} if share else {})
    processes_per_gpu = int(1 / share + 1e-9) if share else 1  # a worker's share is on one GPU

    def workers_on(node: dict[str, float]) -> int:
        by_cores = int(node.get("CPU", 0) // worker["CPU"])
        return min(by_cores, int(node.get("GPU", 0)) * processes_per_gpu) if share else by_cores

    workers = sum(map(workers_on, alive))
    if workers < sweep.workers_per_trial:
        if workers:
            hint = f"the largest trial that fits has --workers-per-trial {workers}"
        else:
            threads = max(int(node.get("CPU", 0)) for node in alive)
            hint = f"the largest worker that fits has --threads {threads}"
            hint += " and a GPU" if gpus else " and --gpus-per-worker 0"
        raise UserError(
            f"a trial does not fit: --workers-per-trial {sweep.workers_per_trial} x (--threads "
            f"{base.threads} and {share:g} GPUs), where there are "
            f"{sum(node.get('CPU', 0) for node in alive):g} cores and {gpus:g} GPUs on "
            f"{len(alive)} node(s); {hint}"
        )
    trials = workers // sweep.workers_per_trial
    return Room(min(trials, sweep.at_once or trials), worker, processes_per_gpu)
