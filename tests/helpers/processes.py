"""Commands as forks of a process that has torch loaded, which costs 3 s of CPU a start."""

from __future__ import annotations

import contextlib
import itertools
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
HOLD = (
    "FER_TEST_HOLD"  # environment variable: images at which a training saves and waits, see _hold
)
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
    if HOLD in os.environ:
        _hold(*map(int, os.environ.pop(HOLD).split()))
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    from fer_hpc.cli.main import main, run_command

    if args[0] != FIELDS:
        sys.exit(main(args))
    from fer_hpc.cli.table import VERBS

    verb = VERBS[args[1]]
    sys.exit(run_command(args[1], lambda: verb.run(verb.config_class(**json.loads(args[2])))))


def _hold(saves: int, waits: int) -> None:
    """Let a training save at `saves` images, and wait after `waits` until a signal comes.

    So a test that kills or stops it never meets one that has finished, on however fast a machine.
    Both are multiples of the batch; several ranks, of which the last one waits, save a step late.
    Any signal with a handler lets it go on, also one that came before, and SIGCONT.
    """
    from fer_hpc.run.saver import Saver
    from fer_hpc.run.watchdog import Watchdog

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCONT, lambda *_: None)
    holds = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    seen, step, due = 0, Watchdog.step, Saver.due

    def held_step(watch: Watchdog, images_seen: int) -> None:
        nonlocal seen, holds
        seen = images_seen
        step(watch, images_seen)
        if holds and seen >= waits:
            os.read(reader, 1)
            holds = False

    def due_at_images(saver: Saver) -> bool:
        return due(saver) or (saver.attempt is not None and seen == saves)

    Watchdog.step, Saver.due = held_step, due_at_images  # type: ignore[method-assign]


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


_ports = itertools.count(97 * os.getpid())  # test processes have numbers that follow each other


def free_port() -> int:
    """A port that is free, and stays so until it is used: the system gives it to nobody.

    Those that the system gives by itself begin at 32,768, so one of these may be taken at any time.
    """
    for number in _ports:
        port = 21_000 + number % 11_000
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def start_ranks(size: int, verb: str, *args: object, hold: str = "") -> list[Started]:
    """`size` processes of one command, with the variables that torchrun sets; `hold`: see _hold."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        **({HOLD: hold} if hold else {}),
    }
    environments = [
        {**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)
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
