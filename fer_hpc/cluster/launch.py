"""What slurm/launch.sh asks before and after the processes of a job."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from fer_hpc.cluster.records import JobCommand, read_records, record_job, results_dir
from fer_hpc.cluster.slurm import current_job_id
from fer_hpc.config import (
    EXIT_FINDINGS,
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_USER_ERROR,
    GanConfig,
    TrainConfig,
    UserError,
    check_divides,
    merge_for_resume,
)
from fer_hpc.config.commands import EvaluateConfig, PreprocessConfig, SweepConfig
from fer_hpc.files import read_json
from fer_hpc.run.folder import (
    MAX_STARTS,
    no_gain_message,
    read_run_config,
    read_status,
    starts_without_gain,
)

# ---- around one job, asked by launch.sh ------------------------------------------------------------------------------


def check_job(config: JobCommand, ranks: int) -> None:
    """A UserError for what can be known to fail before any rank starts."""
    if isinstance(config, PreprocessConfig):
        if config.input is not None and not config.input.exists():
            raise UserError(f"--input {config.input} is not there on {socket.gethostname()}")
        return
    if isinstance(config, EvaluateConfig):
        read_run_config(config.run)
    if not isinstance(config, TrainConfig | GanConfig):
        return
    manifest = read_json(config.data / "manifest.json")
    if manifest is None:
        what = "holds no shards (no manifest.json)" if config.data.is_dir() else "is not there"
        raise UserError(
            f"--data {config.data} {what} on {socket.gethostname()}; preprocess first, or give FER_DATA or --data"
        )
    check_divides(
        config.batch_size, ranks, config.accumulate if isinstance(config, TrainConfig) else 1
    )
    stored = read_json(config.run / "config.json")
    if stored:
        merge_for_resume(config, stored["science"])


def begin(config: JobCommand, ranks: int, command: list[str]) -> Path:
    """Check the job that has just started, and record it with its results; gives the folder for the ranks' logs."""
    check_job(config, ranks)
    logs = results_dir(config) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    if "SLURM_JOB_ID" in os.environ:
        record_job(results_dir(config), current_job_id(), command, [os.environ["SLURM_JOB_ID"]])
    return logs.absolute()


def should_requeue(config: JobCommand, code: int) -> tuple[bool, str]:
    """Whether a job whose processes ended with `code` is to run again, and why.

    Of a training its run folder is believed: a step of Slurm was seen to end with code 0 after one of its nodes had died.
    """
    if isinstance(config, SweepConfig):
        began = max((entry["time"] for entry in read_records(config.out)), default=0.0)
        starts = config.out.glob("trials/*/attempts/*/environment.json")
        again = code not in (
            EXIT_FINISHED,
            EXIT_USER_ERROR,
            EXIT_FINDINGS,
        )  # Ray has many ways to end with its processes
        again &= code == EXIT_RUN_AGAIN or any(path.stat().st_mtime > began for path in starts)
        return again, f"sweep ended with code {code}" + ("; it goes on from there" if again else "")
    if not isinstance(config, TrainConfig | GanConfig):
        again = code in (
            EXIT_RUN_AGAIN,
            128 + signal.SIGTERM,
            128 + signal.SIGUSR1,
            128 + signal.SIGUSR2,
        )
        return again, "done" if code == 0 else f"ended with code {code}" + (
            "; it goes on from there" if again else ""
        )
    status = read_status(config.run)
    state, why = status["state"], status["why"] or f"ended with code {code}"
    if state in ("finished", "failed", "superseded") or code in (2, 4):
        return False, f"{config.run}: {state}" + (f", {why}" if state != "finished" else "")
    if starts_without_gain(config.run) >= MAX_STARTS:
        return False, no_gain_message(config.run)
    return True, f"{config.run}: {why}; the same command goes on from there"
