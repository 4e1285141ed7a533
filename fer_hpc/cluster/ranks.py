"""What each process of a job runs: one fer_hpc command, found by its name as a shell finds it."""

from __future__ import annotations

import runpy
import signal
import sys
from dataclasses import dataclass

from fer_hpc.config import EXIT_FINISHED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class RankCommand:
    """A command that submitit stores and calls in each process of a Slurm job."""

    args: tuple[str, ...]

    def __call__(self) -> None:
        # submitit's handlers requeue and exit from within the signal. The default handlers end the
        # process until train() installs those that only note the signal.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        code = run_here(self.args)
        if code != EXIT_FINISHED:
            sys.exit(code)


def run_here(args: tuple[str, ...]) -> int:
    """Run `python -m fer_hpc ARGS` in this process; gives its exit code.

    The command line is above this package, so it is found by name.
    """
    sys.argv = ["fer-hpc", *args]
    try:
        runpy.run_module("fer_hpc", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    return EXIT_FINISHED
