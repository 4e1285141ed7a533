"""`--procs N`: the ranks of one run as processes of this machine, without torchrun.

    fer-hpc train cnn_improved --data DIR --run RUN --procs 2

Each rank is the same command with the variables that torchrun would set. Signals are passed on, the
ranks die with this process, and a user's mistake is one message. Standard library only.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO

from fer_hpc.config import EXIT_CRASHED, EXIT_FINISHED, EXIT_RUN_AGAIN, EXIT_USER_ERROR, UserError
from fer_hpc.parallel.process import end_with_parent, hangup_signals, process_count
from fer_hpc.parallel.world import World, free_port, has_ranks

LOCAL_VERBS = ("train", "train_gan", "evaluate")  # the commands that take --procs
GRACE_S = 20.0  # for the other ranks to notice that one is gone, and to end by themselves
STOP_GRACE_S = 300.0  # for rank 0, which may still write a checkpoint, after the others
MISTAKE_GRACE_S = 3.0  # after a user's mistake, which all ranks find at about the same time
MAX_OUTPUT = 20_000  # bytes of a failed rank's output that are shown, from its end
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def run_ranks(
    count: int, verb: str, args: list[str], fewer: Callable[[int], int] | None = None
) -> int:
    """Run `fer-hpc VERB ARGS` as `count` ranks of this machine; gives the exit code.

    Rank 0 has this process's output. Of the others only the first that fails is shown, and the
    first failure decides the exit code. With `fewer` (--elastic), which gives the largest possible
    number of ranks up to a number, the command goes on after ranks were lost.
    """
    if has_ranks() or World.detect().size > 1:
        raise UserError("--procs starts the ranks by itself; leave it out under torchrun and srun")
    process_count("--procs", count)
    while True:
        ranks = _run_once(count, verb, args)
        code, left = ranks.report(verb), fewer(count - ranks.lost()) if fewer else 0
        if not ranks.lost() or ranks.signals or not left:
            return code
        print(
            f"fer-hpc {verb}: {ranks.lost()} of {count} ranks were lost: going on with {left} "
            "(--elastic); the same command takes all again later",
            file=sys.stderr,
        )
        count = left


def _run_once(count: int, verb: str, args: list[str]) -> _Ranks:
    """Run the command as `count` ranks until all have ended."""
    ranks = _Ranks()
    with ranks.stopped_by_signals():
        port = free_port()
        for rank in range(count):
            ranks.start(rank, count, port, [verb, *args])
        ranks.wait()
    return ranks


class _Ranks:
    """The processes, and in which order they ended."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.outputs: list[IO[bytes] | None] = []
        self.ended: list[int] = []  # ranks, the first to end first
        self.killed: set[int] = set()  # ranks that were ended from here, after the grace
        self.signals: list[int] = []  # those that were passed on

    @contextlib.contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Pass stop signals on to the ranks inside the block; no rank outlives it."""

        def pass_on(number: int, _: object) -> None:
            self.signals.append(number)
            for process in self.processes:
                process.send_signal(number)

        numbers = (*STOP_SIGNALS, *hangup_signals())
        before = {number: signal.signal(number, pass_on) for number in numbers}
        try:
            yield
        finally:
            self._kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self, rank: int, count: int, port: int, args: list[str]) -> None:
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        output = tempfile.TemporaryFile() if rank else None  # noqa: SIM115 (read by report)
        process = subprocess.Popen(
            [sys.executable, "-m", "fer_hpc", *args],
            env={**os.environ, **{name: str(value) for name, value in variables.items()}},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # a Ctrl-C reaches it once, through this process
            preexec_fn=functools.partial(end_with_parent, os.getpid()),
        )
        self.processes.append(process)
        self.outputs.append(output)
        for number in self.signals:  # it came before this rank was there
            process.send_signal(number)

    def wait(self) -> None:
        """Wait until all ranks have ended; kill those that do not follow a failure in time."""
        deadline = math.inf
        while len(self.ended) < len(self.processes):
            time.sleep(0.05)
            now = [
                rank
                for rank, process in enumerate(self.processes)
                if rank not in self.ended and process.poll() is not None
            ]
            # Of those that ended at about the same time, a failed one is the cause.
            self.ended += sorted(now, key=lambda rank: (not self._failed(rank), rank))
            for rank in now:
                code = self.processes[rank].returncode
                if code == EXIT_FINISHED and rank:
                    continue
                grace = MISTAKE_GRACE_S if code == EXIT_USER_ERROR else GRACE_S
                if code == EXIT_RUN_AGAIN and rank:
                    grace = STOP_GRACE_S
                deadline = min(deadline, time.monotonic() + grace)
            if self.signals and deadline == math.inf:  # one that does not follow it hangs
                deadline = time.monotonic() + STOP_GRACE_S
            if time.monotonic() > deadline:
                self._kill()

    def _failed(self, rank: int) -> bool:
        code = self.processes[rank].returncode
        return code not in (EXIT_FINISHED, EXIT_RUN_AGAIN) and rank not in self.killed

    def lost(self) -> int:
        """How many ranks a signal has ended that did not come from here."""
        ended = {r: p.returncode for r, p in enumerate(self.processes) if r not in self.killed}
        return sum(code < 0 and -code not in self.signals for code in ended.values())

    def _kill(self) -> None:
        for rank, process in enumerate(self.processes):
            if process.poll() is None:
                self.killed.add(rank)
                process.kill()

    def report(self, verb: str) -> int:
        """Show why the run failed, where rank 0 has not; gives the exit code of the whole."""
        first = next((rank for rank in self.ended if self._failed(rank)), None)
        if first is None:
            codes = {p.returncode for r, p in enumerate(self.processes) if r not in self.killed}
            return EXIT_RUN_AGAIN if EXIT_RUN_AGAIN in codes else EXIT_FINISHED
        code = self.processes[first].returncode
        output = self.outputs[first]
        if output and self.processes[0].returncode != code:
            output.seek(max(0, output.seek(0, os.SEEK_END) - MAX_OUTPUT))
            sys.stderr.write(output.read().decode(errors="replace"))
        if code > 0:
            return code
        if -code not in self.signals:
            name = signal.Signals(-code).name
            print(f"fer-hpc {verb}: rank {first} was ended by {name}", file=sys.stderr)
        crashed = -code in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)
        return EXIT_CRASHED if crashed else EXIT_RUN_AGAIN
