"""Sweeps on a real Ray: the call of one, and what marks all processes that belong to it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.helpers import processes

SHORT = ("cnn_baseline", "--epochs", "3", "--batch-sizes", "36", "--checkpoint-every-s", "0.3")


MARK = f"sweep-{os.getpid()}"  # in the environment of all that these tests start


def sweep(shards: Path, out: Path, *flags: object) -> tuple[object, ...]:
    return ("tune", *SHORT, "--data", shards, "--out", out, *flags)


def marked(cwd: Path | None = None, **env: str) -> dict[str, str]:
    return {**os.environ, "FER_TEST": MARK, processes.FOLDER: str(cwd or Path.cwd()), **env}


def done(
    call: tuple[object, ...], cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return processes.run(*call, env=marked(cwd, **env), timeout=480)
