"""What the owner of a job can do to it by the scheduler's own programs, and jobs that are foreign.

Beside submitting, asking and cancelling, which fer_hpc.cluster does, for the drill alone.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

from fer_hpc.cluster.scheduler import Scheduler
from fer_hpc.config import UserError
from fer_hpc.config.jobs import JobConfig

START_S = 900.0  # within which a job of one core must start
# It writes a line when it starts and one for each signal, and ends when it may.
SCRIPT = """\
#!/bin/bash
for name in HUP INT QUIT USR1 USR2 TERM CONT; do
    trap "echo signal $name >>{file}" $name
done
echo start $(uname -n) >>{file}
until [ -e {file}.stop ] || [ $SECONDS -gt {seconds} ]; do sleep 0.5; done
"""


def call(*args: object) -> str:
    """What a program of the scheduler prints; a UserError with its message where it fails."""
    done = subprocess.run([*map(str, args)], capture_output=True, text=True, check=False)
    if done.returncode:
        message = (done.stderr or done.stdout).strip().replace("\n", " ")
        raise UserError(f"{shlex.join(map(str, args))}: {message or done.returncode}")
    return done.stdout


class SlurmOwner:
    """The owner's commands of Slurm."""

    name = "slurm"

    def submit(self, script: Path, job: JobConfig, held: bool) -> str:
        settings = {"partition": job.partition, "account": job.account}
        options = [f"--{name}={value}" for name, value in settings.items() if value]
        options += [f"--{option}" for option in job.sbatch]
        options += ["--job-name=other-study", "--output=/dev/null", f"--time={job.time_min}"]
        options += ["--hold"] if held else []
        return call("sbatch", "--parsable", *options, script).strip().partition(";")[0]

    def signal(self, job: str, number: signal.Signals) -> None:
        """To the job's batch script, as Slurm does before a limit."""
        call("scancel", "--batch", f"--signal={number.name[3:]}", job)

    def kill_processes(self, job: str) -> None:
        """End the job's processes, but not its script."""
        call("scancel", "--signal=KILL", f"{job}.0")

    def start_again(self, job: str) -> None:
        call("scontrol", "requeue", job)

    def release(self, job: str) -> None:
        """A job that Slurm holds because a node that had just come back could not start it."""
        call("scontrol", "release", job)

    def nodes_of(self, job: str) -> list[str]:
        nodes = call("squeue", "-h", "-j", job, "-o", "%N").strip()
        return call("scontrol", "show", "hostnames", nodes).split() if nodes else []

    def elsewhere(self, node: str) -> dict[str, tuple[str, ...]]:
        """Options of a job that must not use a node."""
        return {"sbatch": (f"exclude={node}",)}


class GridEngineOwner:
    """The owner's commands of Grid Engine."""

    name = "sge"

    def submit(self, script: Path, job: JobConfig, held: bool) -> str:
        options = ["-N", "other-study", "-S", "/bin/bash", "-o", "/dev/null", "-j", "y"]
        for flag, value in (("-q", job.partition), ("-P", job.account)):
            options += [flag, value] if value else []
        options += [word for option in job.qsub for word in f"-{option}".split("=", 1)]
        options += ["-h"] if held else []
        return call("qsub", "-terse", *options, script).strip().partition(".")[0]

    def suspend(self, job: str) -> None:
        call("qmod", "-sj", job)

    def unsuspend(self, job: str) -> None:
        call("qmod", "-usj", job)

    def start_again(self, job: str) -> None:
        call("qmod", "-rj", job)

    def release(self, job: str) -> None:
        """A job whose start failed on its node."""
        call("qmod", "-cj", job)

    def nodes_of(self, job: str) -> list[str]:
        number = job.partition(".")[0]
        queues = re.findall(
            rf"(?m)^\s*{number} .*?@([^\s.]+)", call("qstat", "-s", "rs", "-u", "*")
        )
        return list(dict.fromkeys(queues))

    def elsewhere(self, node: str) -> dict[str, tuple[str, ...]]:
        return {"qsub": (f"l=h=!{node}",)}


Owner = SlurmOwner | GridEngineOwner


class Foreign:
    """Two jobs that the drill must not touch: one runs, one is held."""

    def __init__(self, folder: Path, by: Scheduler, owner: Owner, job: JobConfig) -> None:
        self.by, self.owner, self.job = by, owner, job
        self.file = folder / "foreign"
        self.script = folder / "foreign.sh"
        self.jobs: list[str] = []

    def start(self) -> None:
        """Submit both, and wait until the first runs."""
        self.script.parent.mkdir(parents=True, exist_ok=True)
        seconds = self.job.time_min * 60
        self.script.write_text(SCRIPT.format(file=shlex.quote(str(self.file)), seconds=seconds))
        self.jobs = [self.owner.submit(self.script, self.job, held) for held in (False, True)]
        deadline = time.monotonic() + START_S
        while not self.lines():
            if time.monotonic() > deadline:
                self.end()
                raise UserError(f"job {self.jobs[0]} did not start within {START_S:.0f} s")
            time.sleep(0.5)

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines() if self.file.exists() else []

    @property
    def node(self) -> str:
        """Where the running one is."""
        return self.lines()[0].split()[1].partition(".")[0]

    def touched(self) -> str:
        """What happened to them; "" where nothing did."""
        text = "; ".join(self.lines()[1:])
        if text:
            return f"the foreign job {self.jobs[0]} was touched: {text}"
        states = self.by.states(self.jobs)
        for job, wanted in zip(self.jobs, ("RUNNING", "PENDING"), strict=True):
            if job not in states or states[job].state != wanted:
                state = states[job].state if job in states else "gone"
                return f"the foreign job {job} is {state}, and was {wanted}"
        return ""

    def end(self) -> None:
        """Let the first end by itself; the held one, which is ours as well, is cancelled."""
        self.file.with_name("foreign.stop").touch()
        alive = [job for job, state in self.by.states(self.jobs).items() if state.alive]
        if self.jobs and self.jobs[-1] in alive:
            self.by.cancel(self.jobs[-1:])
        if not self.lines() and self.jobs and self.jobs[0] in alive:
            self.by.cancel(self.jobs[:1])
