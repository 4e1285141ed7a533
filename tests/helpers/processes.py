"""Commands as forks of a process that has torch loaded, which costs 3 s of CPU a start."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fer_hpc.config import PRESETS

FIELDS = "--fields"
FOLDER = "FER_TEST_FOLDER"  # environment variable: where a command begins
FORK = "FER_TEST_FORK"  # environment variable: preprocess forks its workers
VERBS = tuple(
    "train train_gan evaluate predict export generate transfer report preprocess doctor sheet"
    " status logs synthetic tune".split()
)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "fer_hpc.training.loop",
        "fer_hpc.gan.loop",
        "fer_hpc.evaluation.score",
        "fer_hpc.report.report",
        "fer_hpc.data.preprocess",
        "fer_hpc.data.doctor",
        "torch._dynamo",
        "sklearn.model_selection",
        "torch.utils.tensorboard",
        "tyro",
        "tests.helpers.processes",
    ]
)


def _enter(args: list[str], environment: dict[str, str], out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(os.environ.pop(FOLDER, "."))
    if os.environ.pop(FORK, ""):
        from fer_hpc.data import workers

        workers.get_context = lambda _: multiprocessing.get_context("fork")  # type: ignore
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    from fer_hpc.cli.main import main, run_command

    if args[0] != FIELDS:
        sys.exit(main(args))
    from fer_hpc.cli.table import VERBS

    verb = VERBS[args[1]]
    sys.exit(run_command(args[1], lambda: verb.run(verb.config_class(**json.loads(args[2])))))


def call(verb: str, preset: str = "", **fields: object) -> tuple[str, str, str]:
    """Arguments of `Started` that need no parser of command lines: a verb and its fields."""
    recipe = PRESETS[preset] if preset else {}
    return FIELDS, verb, json.dumps({**recipe, **fields}, default=str)


_enter_target = _enter  # a test may put a function with another set-up in its place


class Started:
    """`fer-hpc ARGS` in a process of its own; the part of subprocess.Popen that the tests use."""

    def __init__(
        self, *args: object, env: Mapping[str, str] = os.environ, daemon: bool = True
    ) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="fer-output")
        self.out, self.err = (str(Path(self.folder.name, name)) for name in ("out", "err"))
        self.process = FORKS.Process(
            target=_enter_target,
            args=([str(a) for a in args], dict(env), self.out, self.err),
            daemon=daemon,
        )
        self.process.start()
        assert self.process.pid
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("fer-hpc", timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return Path(self.out).read_text(), Path(self.err).read_text()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.process.is_alive():
            self.send_signal(signal.SIGKILL)


def run(
    *args: object, env: Mapping[str, str] = os.environ, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """`fer-hpc ARGS` to its end. No daemon, which may have no workers."""
    started = Started(*args, env=env, daemon=False)
    try:
        out, err = started.communicate(timeout)
    finally:
        started.kill()
    return subprocess.CompletedProcess(list(map(str, args)), started.returncode or 0, out, err)


def start_ranks(size: int, verb: str, *args: object) -> list[Started]:
    """`size` processes of one command, with the variables that torchrun sets."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(s.getsockname()[1]),
            "WORLD_SIZE": str(size),
        }
    local = {"LOCAL_WORLD_SIZE": str(size)}
    environments = [
        {**os.environ, **address, **local, "RANK": str(r), "LOCAL_RANK": str(r)}
        for r in range(size)
    ]
    return [Started(verb, *args, env=environment) for environment in environments]


def finish(ranks: list[Started], seconds: float = 400) -> list[int]:
    """The exit codes of all ranks, once they have ended; kills what is left after `seconds`."""
    try:
        texts = [rank.communicate(timeout=seconds)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        print("\n".join(texts))
    return codes
