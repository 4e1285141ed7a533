"""Which process this is among those of a run, and which scheduler job it belongs to.

The only file of the package that reads RANK, WORLD_SIZE and their like, and the variables that
Slurm sets for a job (SLURM_*). cluster/slurm.py is the only one that runs Slurm's programs on a
login node.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import subprocess
from dataclasses import dataclass

from fer_hpc.config import UserError

FIRST_PORT, PORT_COUNT = 20_000, 12_000  # below 32,768, where Linux takes ports of its own choice


@dataclass(frozen=True)
class Job:
    """The scheduler's job that this process belongs to."""

    id: str
    restarts: int = 0
    end: float = math.inf  # when it will be ended, seconds since 1970


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
        """The place of this process, from its environment.

        torchrun's variables come first. Slurm's count only inside a step of several tasks: a batch
        shell has SLURM_PROCID=0 too, and is not a rank. Without either it is the only process.
        """
        env, job = os.environ, current_job()
        if has_ranks():
            rank, size = _number("RANK"), _number("WORLD_SIZE")
            if rank >= size:
                raise UserError(
                    f"RANK is {rank} and WORLD_SIZE {size}: ranks count from 0; use torchrun"
                )
            local_size = _number("LOCAL_WORLD_SIZE", "1")
            return World(rank, size, _number("LOCAL_RANK", "0"), local_size, job)
        if _in_step() and _number("SLURM_STEP_NUM_TASKS", "1") > 1:
            per_node = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
            local_size = per_node[min(_number("SLURM_NODEID", "0"), len(per_node) - 1)]
            rank, size = _number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS")
            return World(rank, size, _number("SLURM_LOCALID"), local_size, job)
        return World(job=job)


@dataclass(frozen=True)
class StepNode:
    """This node's place in a Slurm step that has one task on each node."""

    index: int
    count: int
    head: str  # name of the first node
    port: int  # the first of two ports that belong to the job on that node
    gpus: int


# ---- the job -------------------------------------------------------------------------------------


def current_job() -> Job | None:
    """The scheduler's job that this process runs in; None outside one."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    end = _number("SLURM_JOB_END_TIME", "0") or math.inf
    return Job(os.environ["SLURM_JOB_ID"], _number("SLURM_RESTART_COUNT", "0"), end)


def job_name() -> str:
    """The current job's id as squeue prints it: 123, or 123_4 for a task of an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def array_task() -> int:
    """The index of this job in its array; 0 outside an array."""
    return _number("SLURM_ARRAY_TASK_ID", "0")


def current_step_node() -> StepNode | None:
    """This process's node among those of its Slurm step; None outside one, as in a batch shell."""
    if not _in_step():
        return None
    set_rendezvous()
    env = os.environ
    count, gpus = _number("SLURM_STEP_NUM_TASKS", "1"), _number("SLURM_GPUS_ON_NODE", "0")
    return StepNode(
        _number("SLURM_PROCID"), count, env["MASTER_ADDR"], _number("MASTER_PORT"), gpus
    )


# ---- where the ranks meet ------------------------------------------------------------------------


def has_ranks() -> bool:
    """Whether torchrun, or somebody in its place, has numbered this process."""
    return "WORLD_SIZE" in os.environ or "RANK" in os.environ


def job_port(job: int, offset: int = 0) -> int:
    """The TCP port that belongs to a job (or process) number: the same on every node and start.

    Neighbouring numbers are seven ports apart, so that jobs of one node do not meet; `offset`
    selects one of the seven.
    """
    return FIRST_PORT + (7 * job + offset) % PORT_COUNT


def free_port() -> int:
    """A port of this process number that nobody listens on now."""
    for offset in range(PORT_COUNT):
        port = job_port(os.getpid(), offset)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise UserError(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORT_COUNT} on this machine")


def set_rendezvous() -> None:
    """Set MASTER_ADDR and MASTER_PORT where they are missing in a Slurm step.

    The address is the step's first node, the port comes from the job and the step.
    """
    env = os.environ
    if "SLURM_STEP_ID" not in env:
        return
    if "MASTER_ADDR" not in env:
        env["MASTER_ADDR"] = _first_node(env.get("SLURM_STEP_NODELIST", "localhost"))
    if "MASTER_PORT" not in env:
        port = job_port(_number("SLURM_JOB_ID"), _number("SLURM_STEP_ID"))
        env["MASTER_PORT"] = str(port)


def store_holder() -> str:
    """Who holds the store where the ranks meet, in words: its end is theirs."""
    # torchrun's agent has a store already, which its ranks use.
    return "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"


def _first_node(nodes: str) -> str:
    """The first name of a Slurm node list such as n[1-3],m4."""
    if "[" not in nodes and "," not in nodes:
        return nodes
    command = ["scontrol", "show", "hostnames", nodes]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return listed.stdout.split()[0]


def _in_step() -> bool:
    """Whether this is a task that srun started: a batch shell has no numbered step."""
    return os.environ.get("SLURM_STEP_ID", "").isdecimal()


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))] or [1]


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not text.isdecimal():
        raise UserError(
            f"environment variable {name} is {text!r}, wanted a whole number; "
            "start ranks with --procs, torchrun or srun"
        )
    return int(text)
