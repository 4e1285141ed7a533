"""Slurm's programs as people call them: submit jobs, wait for their states, resume nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.helpers.waiting import until


class Client:
    """Calls Slurm's programs in the environment `env`; `nodes` has the names of all nodes."""

    env: dict[str, str]
    nodes: list[str]

    def ask(self, *args: object) -> str:
        """What a Slurm command prints; "" where it fails."""
        done = subprocess.run(
            [*map(str, args)], env=self.env, capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    def sbatch(self, *args: object, cwd: Path, **env: object) -> str:
        """Submit; gives the job's number."""
        variables = {name: str(value) for name, value in env.items()}
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, args)],
            cwd=cwd,
            env={**self.env, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().partition(";")[0]

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ...; of an array: of its tasks, each once, sorted."""
        states = set(self.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").split())
        return ",".join(sorted(states))

    def released(self, job: str) -> bool:
        """True; releases a job that Slurm holds since a node that was back could not start it."""
        if "Reason=launch_failed" in self.ask("scontrol", "show", "job", job):
            for node in self.nodes:
                self.ask("scontrol", "update", f"nodename={node}", "state=resume")
            self.ask("scontrol", "release", job)
        return True

    def nodes_of(self, job: str) -> list[str]:
        """Names of the nodes that a running job has."""
        return self.ask(
            "scontrol", "show", "hostnames", self.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
        ).split()

    def wait(self, job: str, *states: str, seconds: float = 120) -> str:
        """Wait until the job is in one of `states` (default: ended)."""
        wanted = states or (
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "BOOT_FAIL",
        )
        until(
            lambda: self.state(job) in wanted,
            seconds,
            lambda: f"job {job} is {self.state(job)}, wanted {' or '.join(wanted)}",
        )
        return self.state(job)

    def resume(self) -> None:
        """As an operator: nodes that Slurm drained, as one that was to start a job it still had."""
        for node in self.nodes:
            if "drain" in self.ask("sinfo", "-h", "-n", node, "-o", "%t"):
                self.ask("scontrol", "update", f"nodename={node}", "state=resume")

    def idle(self) -> int:
        listed = self.ask("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split()
        return listed.count("idle")
