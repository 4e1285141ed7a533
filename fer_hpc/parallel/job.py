"""The scheduler's job that this process belongs to, and its place in a step of several processes.

The only file that reads the variables which schedulers set for processes (SLURM_*, JOB_ID).
slurm/launch.sh asks the scheduler about the job and sets FER_JOB_*; these count as long as they are
about the job that this process is in, because a job that was submitted from inside another one
inherits that one's variables.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from dataclasses import dataclass

from fer_hpc.config import UserError

MAX_HOSTS = 100_000  # in one range of names
INHERITED = (  # of no use to the processes that a job starts, and wrong where they are inherited
    "SLURM_ARRAY_", "SLURM_CPU_BIND", "SLURM_DISTRIBUTION", "SLURM_GPUS_PER_", "SLURM_GPU_BIND",
    "SLURM_JOB_END_TIME", "SLURM_LOCALID", "SLURM_MEM_BIND", "SLURM_NPROCS", "SLURM_NTASKS",
    "SLURM_PROCID", "SLURM_RESTART_COUNT", "SLURM_STEP", "SLURM_TASKS_PER_NODE", "SLURM_TRES",
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_", "FER_JOB_",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """The scheduler's job that this process belongs to."""

    id: str  # one for each task of an array; the logs' name
    restarts: int = 0
    end: float = math.inf  # when it will be ended, seconds since 1970
    name: str = ""  # as the scheduler's programs take and print it: 123, or 123_4 of an array


@dataclass(frozen=True)
class Step:
    """The place of this process among those that the scheduler started together."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    nodes: str  # the scheduler's list of nodes
    port: int  # the first of seven that belong to the job and the step
    gpus: int  # of this node


def scheduler_of_process() -> str:
    """slurm or sge where this process is in a job of theirs; "" outside a job."""
    if os.environ.get("SLURM_JOB_ID"):
        return "slurm"
    return "sge" if os.environ.get("JOB_ID") and os.environ.get("SGE_TASK_ID") else ""


def current_job() -> Job | None:
    """The scheduler's job that this process runs in; None outside one."""
    env, scheduler = os.environ, scheduler_of_process()
    if not scheduler:
        return None
    number = env["SLURM_JOB_ID" if scheduler == "slurm" else "JOB_ID"]
    if env.get("FER_JOB_NUMBER") == f"{scheduler} {number}":
        end = float(env.get("FER_JOB_END", "inf"))
        return Job(
            env["FER_JOB_ID"], number_in_environment("FER_JOB_RESTARTS"), end, env["FER_JOB_NAME"]
        )
    if scheduler == "sge":
        return Job(number, 1 if env.get("RESTARTED") == "1" else 0, name=number)
    end = number_in_environment("SLURM_JOB_END_TIME", "0") or math.inf
    return Job(number, number_in_environment("SLURM_RESTART_COUNT", "0"), end, number)


def extended_end(job: Job) -> float:
    """The job's end by the scheduler, asked now: an extended limit; its known end where unknown."""
    if scheduler_of_process() != "slurm":
        return job.end
    command = ["squeue", "-h", "-j", job.name, "-o", "%e"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
        parsed = time.mktime(time.strptime(done.stdout.strip(), "%Y-%m-%dT%H:%M:%S"))
    except (OSError, subprocess.SubprocessError, ValueError):
        return job.end
    return max(parsed, job.end)


def current_step() -> Step | None:
    """This process's place in a step that srun started; None outside one, as in a batch shell."""
    env = os.environ
    if not env.get("SLURM_STEP_ID", "").isdecimal():
        return None
    per_node = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return Step(
        number_in_environment("SLURM_PROCID"),
        number_in_environment("SLURM_STEP_NUM_TASKS", "1"),
        number_in_environment("SLURM_LOCALID", "0"),
        per_node[min(number_in_environment("SLURM_NODEID", "0"), len(per_node) - 1)],
        env.get("SLURM_STEP_NODELIST", "localhost"),
        job_port(number_in_environment("SLURM_JOB_ID"), number_in_environment("SLURM_STEP_ID")),
        number_in_environment("SLURM_GPUS_ON_NODE", "0"),
    )


FIRST_PORT, PORT_COUNT = 20_000, 12_000  # below 32,768, where Linux takes ports of its own choice


def job_port(job: int, offset: int = 0) -> int:
    """The TCP port that belongs to a job (or process) number: the same on every node and start.

    Neighbouring numbers are seven ports apart, so that jobs of one node do not meet; `offset`
    selects one of the seven.
    """
    return FIRST_PORT + (7 * job + offset) % PORT_COUNT


def expand_hosts(text: str) -> list[str]:
    """The names in a Slurm list of nodes: n[1-3,07],m4 gives n1, n2, n3, n07 and m4."""
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", part):
            ends = [plain] if plain else _numbers(ranges)
            names = [name + end for name in names for end in ends]
        hosts += names
    return hosts


def _numbers(ranges: str) -> list[str]:
    """1-3,07 as 1, 2, 3, 07."""
    numbers = []
    for each in ranges.split(","):
        first, _, last = each.partition("-")
        if int(last or first) - int(first) > MAX_HOSTS:
            raise ValueError(f"more than {MAX_HOSTS:,} nodes in {ranges[:40]!r}")
        numbers += [f"{i:0{len(first)}}" for i in range(int(first), int(last or first) + 1)]
    return numbers


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    matches = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in matches for _ in range(int(times or 1))] or [1]


def number_in_environment(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not text.isdecimal():
        raise UserError(
            f"environment variable {name} is {text!r}, wanted a whole number; "
            "start ranks with --procs, torchrun or srun"
        )
    return int(text)
