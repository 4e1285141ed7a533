"""Commands as forks of one process that has torch loaded: a start costs no import."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from fer_hpc.drill.trap import Armed, Probe, Trap
from fer_hpc.parallel.process import end_with_parent
from fer_hpc.parallel.world import LOOPBACK, free_port
from fer_hpc.run.lease import process_state

FORKS = multiprocessing.get_context("forkserver")
PRELOAD = [
    "fer_hpc.training.loop",
    "fer_hpc.gan.loop",
    "fer_hpc.data.preprocess",
    "fer_hpc.drill.starts",
]
LIMIT_S = 600.0  # a start that lasts longer hangs
# What decides how a command works, from a job or a launcher around the drill.
INHERITED = ("SLURM", "SGE", "JOB_", "RANK", "LOCAL_", "WORLD_", "MASTER_", "FER_", "TORCHELASTIC")


def prepare() -> None:
    """Settings of the process that is forked; before the first start."""
    # Threads that spin cost the time of other processes on the same cores.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    # Of a killed process, semaphores are left: its tracker removes them, and warns.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"
    FORKS.set_forkserver_preload(PRELOAD)


def rank_variables(size: int) -> list[dict[str, str]]:
    """What each of `size` ranks on this machine has in its environment, as from --procs."""
    if size == 1:
        return [{}]
    shared = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(free_port())}
    sizes = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    return [shared | sizes | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]


def _enter(
    args: list[str],
    environment: dict[str, str],
    output: Path,
    folder: Path,
    trap: Trap | None,
) -> None:
    """The fork: a session of its own, the trap, then the command as a user has it."""
    os.setsid()
    end_with_parent(os.getppid())
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    Armed(trap, folder, Probe(output.with_suffix(".probe"))).set()
    sys.argv = ["fer-hpc", *args]
    runpy.run_module("fer_hpc", run_name="__main__")


class Start:
    """`fer-hpc ARGS` in a process of its own, which may have a trap.

    folder: what the command writes into; output: the file for what it prints
    target: images seen of which is wanted when they are reached
    """

    def __init__(
        self,
        args: list[str],
        folder: Path,
        output: Path,
        trap: Trap | None = None,
        target: int = 0,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.output, self.began = output, time.monotonic()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(INHERITED)}
        environment = kept | {"CUDA_VISIBLE_DEVICES": ""} | (variables or {})
        self.probe = Probe(output.with_suffix(".probe"), target, create=True)
        self.process = FORKS.Process(target=_enter, args=(args, environment, output, folder, trap))
        self.process.start()
        assert self.process.pid
        self.pid: int = self.process.pid

    @property
    def code(self) -> int:
        """The exit code; negative: the signal that ended it."""
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def images(self) -> int:
        return self.probe.read()[0]

    @property
    def struck(self) -> bool:
        return bool(self.probe.read()[3])

    def seconds_to_target(self) -> float:
        """Seconds from its beginning until the target was passed; to now where it was not."""
        return (self.probe.read()[2] or time.monotonic()) - self.began

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def send(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.pid, number)

    def wait_until_stopped(self, limit_s: float = LIMIT_S) -> bool:
        """Whether the process stops itself by SIGSTOP; False where it ends first."""
        deadline = time.monotonic() + limit_s
        while self.process.is_alive() and time.monotonic() < deadline:
            if process_state(self.pid)[0] == "T":
                return True
            time.sleep(0.01)
        return False

    def wait(self, limit_s: float = LIMIT_S) -> bool:
        """Wait for the end; False where it does not come, and the process is then killed."""
        self.process.join(limit_s)
        ended = self.process.exitcode is not None
        if not ended:
            self.end()
        return ended

    def end(self) -> None:
        """Kill the process, and what it has started."""
        for pid in (*([self.pid] if self.process.is_alive() else []), *self.children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.join(10)

    def children(self) -> list[int]:
        """Living processes of this start's session: once it has ended, orphans."""
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.pid and fields[0] not in "ZX":
                    pids.append(int(entry.name))
        return pids
