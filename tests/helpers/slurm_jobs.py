"""Trainings as jobs of the Slurm of the tests, and what their logs say."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.helpers.slurm import Cluster

PYTHON = {"FER_PYTHON": sys.executable}


def logs(site: Path) -> str:
    return "\n".join(f"== {p.name}\n{p.read_text()}" for p in sorted(site.glob("**/*.log")))


def train(
    cluster: Cluster,
    site: Path,
    shards: Path,
    run: Path,
    flags: tuple[object, ...],
    *sbatch: object,
) -> str:
    call = ("slurm/train_cnn.sh", "cnn_baseline", "--data", shards, "--run", run, *flags)
    return cluster.sbatch(*sbatch, *call, cwd=site, **PYTHON)
