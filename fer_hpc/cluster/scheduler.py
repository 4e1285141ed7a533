"""What jobs need of a scheduler. Slurm (slurm.py), Grid Engine (sge.py) and this machine (local.py)
have it; above this file only the drill, which strikes jobs, knows their programs and options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fer_hpc.config.jobs import JobConfig

DependencyType = Literal["afterok", "afterany"]


@dataclass(frozen=True)
class ArrayTask:
    """A job's place in its array. `position` is None where the indices have no fixed step."""

    array: str
    index: int
    count: int
    position: int | None


@dataclass(frozen=True)
class Allocation:
    """What the scheduler says about a job that has started."""

    scheduler: str
    cluster: str  # two clusters may share a file system and number their jobs alike
    id: str  # one for each task of an array
    name: str  # as the scheduler's programs take it
    job_name: str
    restarts: int
    submitted: float  # seconds since 1970
    running: bool = True
    end: float = math.inf  # when it will be ended, seconds since 1970
    batch: bool = True  # a script that can be started again, not an interactive allocation
    nodes: tuple[tuple[str, int], ...] = ()  # (host, GPUs)
    asked_gpus: int = 0  # a node; more than were granted where two options contradict
    tasks: int = 1  # processes that were asked for, over all nodes
    array: ArrayTask | None = None


@dataclass(frozen=True)
class JobState:
    """The state of a job that was submitted."""

    state: str  # in the scheduler's words, upper case: PENDING, RUNNING, COMPLETED, ...
    reason: str = ""  # why it waits or failed
    alive: bool = False  # waits or runs
    submitted: float = 0.0  # seconds since 1970; 0: unknown
    job_name: str = ""


@dataclass(frozen=True)
class Request:
    """Commands to run as a job, or as an array of jobs."""

    job: JobConfig
    folder: Path  # of the results; FOLDER/jobs has the logs
    commands: list[list[str]]  # [verb, arguments...] each
    launch_args: list[str]  # of slurm/launch.sh
    gpus: int = 0  # a node
    after: Sequence[str] = ()  # jobs that it waits for
    dependency_type: DependencyType = "afterok"
    also_after: Sequence[str] = ()  # jobs that must have ended, with any result
    launch: Path = Path()  # slurm/launch.sh
    code: Path | str = ""  # the copy of the code that the job uses; "": the code as it is then

    @property
    def name(self) -> str:
        return f"fer-{self.commands[0][0]}"


@dataclass(frozen=True)
class Usage:
    """What a job has used, over all its starts that the accounting knows."""

    elapsed_s: float = 0.0
    gpu_hours: float = 0.0
    cpu_efficiency: float | None = None  # CPU time by cores times elapsed time
    memory_gb: float | None = None  # largest of a process


class Scheduler(Protocol):
    """Submitting, asking about and ending jobs. UserErrors name what a user can change."""

    name: str

    def check_installed(self) -> None:
        """A UserError where jobs cannot be submitted from here."""

    def cluster(self) -> str:
        """The name of the cluster that answers here; "" where none does."""

    def allocation(self, facts: str) -> Allocation:
        """From what the scheduler's program says about this process's job (launch.sh asks it)."""

    def environment(self, allocation: Allocation) -> list[str]:
        """Shell lines before the processes of a job start."""

    def requeue_command(self, allocation: Allocation) -> list[str]:
        """The host's command that starts the job again; [] where an exit code does."""

    def submit(self, request: Request) -> list[str]:
        """The names of the jobs, one for each command."""

    def script(self, request: Request) -> str:
        """The text that `submit` would give to the scheduler."""

    def states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        """The state of each job that the scheduler knows, in one or two calls."""

    def waiting(self) -> list[tuple[str, JobState]]:
        """This user's jobs that wait to start."""

    def usage(self, jobs: Sequence[str]) -> Usage | None:
        """What the jobs have used; None without accounting."""

    def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs; a UserError with the scheduler's message where it refuses."""

    def dependency(self, jobs: Sequence[str]) -> list[str]:
        """What a later request names in `after`, so that it waits for all of `jobs`."""


def scheduler(name: str) -> Scheduler:
    """The scheduler of `--cluster NAME` or of a job record."""
    from fer_hpc.cluster.local import Local
    from fer_hpc.cluster.sge import GridEngine
    from fer_hpc.cluster.slurm import Slurm

    known: dict[str, Any] = {"slurm": Slurm, "sge": GridEngine, "local": Local}
    instance: Scheduler = known[name]()
    return instance
