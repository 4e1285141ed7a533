"""Which process this is among those of a run, and which scheduler job it belongs to."""

from __future__ import annotations

import math
import os
import re
import subprocess
from dataclasses import dataclass

from fer_hpc.config import UserError


@dataclass(frozen=True)
class World:
    """The processes of one run; `rank` 0 writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among this node's processes: which of its GPUs
    local_size: int = 1  # processes on this node
    job: Job | None = None
    processes_per_gpu: int = 1  # trials that share this GPU: a set is kept on it if all fit

    @staticmethod
    def detect() -> World:
        """From torchrun's variables; else from Slurm's, but only inside a step of several tasks (a batch shell has
        SLURM_PROCID=0 too, and is not a rank); else one process."""
        env, job = os.environ, current_job()
        if "WORLD_SIZE" in env or "RANK" in env:
            local_size = _number("LOCAL_WORLD_SIZE", "1")
            if _number("RANK") >= _number("WORLD_SIZE"):
                raise UserError(
                    f"RANK is {env['RANK']} and WORLD_SIZE {env['WORLD_SIZE']}: ranks count from 0; use torchrun"
                )
            return World(
                _number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", "0"), local_size, job
            )
        if env.get("SLURM_STEP_ID", "").isdecimal() and _number("SLURM_STEP_NUM_TASKS", "1") > 1:
            per_node = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
            local_size = per_node[min(_number("SLURM_NODEID", "0"), len(per_node) - 1)]
            return World(
                _number("SLURM_PROCID"),
                _number("SLURM_STEP_NUM_TASKS"),
                _number("SLURM_LOCALID"),
                local_size,
                job,
            )
        return World(job=job)


def current_job() -> Job | None:
    """The scheduler's job that this process runs in."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    end = _number("SLURM_JOB_END_TIME", "0") or math.inf
    return Job(os.environ["SLURM_JOB_ID"], _number("SLURM_RESTART_COUNT", "0"), end)


@dataclass(frozen=True)
class StepNode:
    """This node's place in a Slurm step that has one task on each node."""

    index: int
    count: int
    head: str  # name of the first node
    port: int  # the first of two that are the job's own there
    gpus: int


def current_step_node() -> StepNode | None:
    """Where this process stands among the nodes of its Slurm step; None outside one (a batch shell is outside)."""
    env = os.environ
    if not env.get("SLURM_STEP_ID", "").isdecimal():
        return None
    set_rendezvous()
    count, gpus = _number("SLURM_STEP_NUM_TASKS", "1"), _number("SLURM_GPUS_ON_NODE", "0")
    return StepNode(
        _number("SLURM_PROCID"), count, env["MASTER_ADDR"], _number("MASTER_PORT"), gpus
    )


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))] or [1]


def set_rendezvous() -> None:
    """Set MASTER_ADDR and MASTER_PORT inside a Slurm step that has none: its first node, and a port by job and step."""
    env = os.environ
    if "MASTER_ADDR" in env or "SLURM_STEP_ID" not in env:
        return
    nodes = env.get("SLURM_STEP_NODELIST", "localhost")
    if "[" in nodes or "," in nodes:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        nodes = listed.stdout.split()[0]
    env["MASTER_ADDR"] = nodes
    env.setdefault(
        "MASTER_PORT",
        str(20_000 + (7 * int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])) % 20_000),
    )


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not text.isdecimal():
        raise UserError(
            f"environment variable {name} is {text!r}, wanted a whole number; start ranks with torchrun or srun"
        )
    return int(text)


# ---- owning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """The scheduler's job this process belongs to."""

    id: str
    restarts: int = 0
    end: float = math.inf  # when it will be ended, seconds since 1970
