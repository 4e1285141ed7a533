"""CUDA's Multi-Process Service (MPS): processes that share a GPU compute at the same time.

Without it they take turns, and four small trainings are together no faster than one. The results
are the same bytes. https://docs.nvidia.com/deploy/mps
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fer_hpc.config import UserError
from fer_hpc.parallel.process import end_with_parent

PROGRAM = "nvidia-cuda-mps-control"
PLACES = ("/usr/bin", "/usr/local/nvidia/bin")  # the driver's, where PATH has not got them
VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
USUAL_FOLDER = "/tmp/nvidia-mps"  # where a service is that the site or the user has started
START_S, END_S = 20.0, 10.0


@contextlib.contextmanager
def multi_process_service(folder: Path, required: bool = False) -> Iterator[dict[str, str]]:
    """A service as long as the block; gives the environment with which processes use it.

    `folder` is for its sockets, whose paths must be short, and its logs. A service that runs
    already is used as it is. Where none starts, the environment is empty and a line says why; with
    `required`, a UserError.
    """
    current_folder = os.environ.get(VARIABLE, USUAL_FOLDER)
    if Path(current_folder, "control").exists():
        yield {VARIABLE: current_folder}
        return
    process, why = _start(folder)
    if process is None:
        if required:
            raise UserError(f"--mps on: {why}; use --mps auto, and processes take turns")
        print(f"processes that share a GPU take turns: {why}", file=sys.stderr, flush=True)
        yield {}
        return
    try:
        yield {VARIABLE: str(folder)}
    finally:
        _end(process, folder)


def _environment(folder: Path) -> dict[str, str]:
    environment = os.environ | {VARIABLE: str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    # With numbers here the service would count the visible GPUs anew, and the numbers that Ray
    # gives to the trials would name others.
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment


def _program() -> str | None:
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path=os.pathsep.join(PLACES))


def _start(folder: Path) -> tuple[subprocess.Popen[bytes] | None, str]:
    """The running service, or None and why there is none."""
    program = _program()
    if program is None:
        return None, f"this node has no {PROGRAM}, which comes with the driver"
    folder.mkdir(parents=True, exist_ok=True)
    ignored = (signal.SIGUSR1, signal.SIGUSR2)  # Slurm's warnings reach every process of a step
    handlers = [signal.signal(number, signal.SIG_IGN) for number in ignored]  # a child inherits it
    try:
        process = subprocess.Popen(
            [program, "-f"],
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=(folder / "output").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),
        )
    except OSError as error:
        return None, f"{program}: {error.strerror}"
    finally:
        for number, handler in zip(ignored, handlers, strict=True):
            signal.signal(number, handler)
    deadline = time.monotonic() + START_S
    while not (folder / "control").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            _end(process, folder)
            lines = (folder / "output").read_text(errors="replace").strip().splitlines()
            return None, f"{PROGRAM} did not start: {' '.join(lines[-1:]) or 'it says nothing'}"
        time.sleep(0.05)
    return process, ""


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Ask the service to end, and after END_S end it: its clients are gone or of no use."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if process.poll() is None:
            subprocess.run(
                [str(_program())],
                input=b"quit\n",
                env=_environment(folder),
                capture_output=True,
                timeout=END_S,
            )
        process.wait(END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
