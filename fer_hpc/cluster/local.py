"""Jobs on this machine without a scheduler: processes in the background.

A job's name is local-PID. Its process id alone may mean another process by now, so its start time
is kept beside it, in FOLDER/jobs of the results.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_hpc.cluster.scheduler import Allocation, JobState, Request, Usage
from fer_hpc.config import UserError
from fer_hpc.parallel.local import LOCAL_VERBS
from fer_hpc.run.lease import pid_scope, process_state


class Local:
    """See `Scheduler`. Jobs that wait for others are started by `wait`, one after the other."""

    name = "local"

    def check_installed(self) -> None:
        pass

    def cluster(self) -> str:
        return pid_scope()

    def allocation(self, facts: str) -> Allocation:
        raise UserError("a local job has no scheduler")

    def environment(self, allocation: Allocation) -> list[str]:
        return []

    def requeue_command(self, allocation: Allocation) -> list[str]:
        return []

    def script(self, request: Request) -> str:
        return "\n".join(" ".join(_command(request, args)) for args in request.commands)

    def submit(self, request: Request) -> list[str]:
        """Start the first command at once; each of the others when the one before has ended."""
        logs = request.folder / "jobs"
        names: list[str] = []
        is_sweep = request.commands[0][0] == "train" and len(request.commands) > 1
        for index, args in enumerate(request.commands):
            process, name = self.start(request, args)
            names.append(name)
            last = index + 1 == len(request.commands)
            if last and not request.after:
                continue
            if process.wait() and not is_sweep:  # a sweep's table has its failed trials
                raise UserError(
                    f"fer-hpc {args[0]} ended with exit code {process.returncode}; what needs it "
                    f"is not started. Its log: {logs / f'{name}_0_log.out'}"
                )
        return names

    def start(
        self, request: Request, args: list[str], variables: Mapping[str, str] | None = None
    ) -> tuple[subprocess.Popen[bytes], str]:
        """Start one command in the background; gives its process and the job's name.

        `variables` are added to its environment.
        """
        # The log is renamed after the process, which does not exist yet.
        log = request.folder / "jobs" / f".starting-{os.getpid()}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                _command(request, args),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("FER_JOB_")}
                | dict(variables or {}),
            )
        with contextlib.suppress(OSError):  # Linux schedules sessions, so nice alone has no effect
            Path(f"/proc/{process.pid}/autogroup").write_text(str(os.nice(0)))
        job = f"local-{process.pid}_{process_state(process.pid)[1]}"
        log.rename(log.with_name(f"{job}_0_log.out"))
        return process, job

    def states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        states = {}
        for job in jobs:
            alive = is_alive(job)
            states[job] = JobState("RUNNING" if alive else "ENDED", "", alive)
        return states

    def waiting(self) -> list[tuple[str, JobState]]:
        return []

    def usage(self, jobs: Sequence[str]) -> Usage | None:
        return None

    def cancel(self, jobs: Sequence[str]) -> None:
        for job in jobs:
            if is_alive(job):
                try:
                    os.kill(_pid_and_start(job)[0], signal.SIGTERM)
                except PermissionError:
                    raise UserError(f"{job} is another user's: only they can end it") from None

    def dependency(self, jobs: Sequence[str]) -> list[str]:
        return []


def _command(request: Request, args: list[str]) -> list[str]:
    verb, *rest = args
    ranks = ["--procs", str(request.gpus)] if request.gpus > 1 and verb in LOCAL_VERBS else []
    return [sys.executable, "-m", "fer_hpc", verb, *rest, *ranks]


def _pid_and_start(job: str) -> tuple[int, str]:
    pid, _, start = job.removeprefix("local-").partition("_")
    return int(pid), start


def environment_of(job: str) -> dict[str, str]:
    """The variables that a living job of this user was started with."""
    with contextlib.suppress(OSError):
        text = os.fsdecode(Path(f"/proc/{_pid_and_start(job)[0]}/environ").read_bytes())
        return {name: value for name, _, value in (v.partition("=") for v in text.split("\0"))}
    return {}


def is_alive(job: str) -> bool:
    """Whether the process of a job runs; only its own host, boot and namespace know."""
    pid, start = _pid_and_start(job)
    letter, started = process_state(pid)
    if letter == "?":
        return True  # another user's, or of another one's that has its number by now
    return started == start != "" and letter not in "ZX"
