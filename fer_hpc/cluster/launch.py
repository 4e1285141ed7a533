"""The two decisions of slurm/launch.sh: may the job start, and is it requeued."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from fer_hpc.cluster.records import JobCommand, read_records, record_job, results_dir
from fer_hpc.config import (
    EXIT_FINDINGS,
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_TAKEN_OVER,
    EXIT_USER_ERROR,
    GanConfig,
    TrainConfig,
    UserError,
    check_divides,
    merge_for_resume,
)
from fer_hpc.config.commands import EvaluateConfig, PreprocessConfig, SweepConfig
from fer_hpc.files import read_stored
from fer_hpc.parallel.world import current_job, job_name
from fer_hpc.run.folder import (
    MAX_STARTS,
    no_gain_message,
    read_run_config,
    read_status,
    starts_without_gain,
)

# A command other than a training is requeued only with one of these exit codes.
INTERRUPTED_CODES = (
    EXIT_RUN_AGAIN,
    128 + signal.SIGTERM,
    128 + signal.SIGUSR1,
    128 + signal.SIGUSR2,
)


def check_job(config: JobCommand, ranks: int) -> None:
    """Raise a UserError for a command that is certain to fail, before its processes start."""
    if isinstance(config, PreprocessConfig):
        if config.input is not None and not config.input.exists():
            raise UserError(f"--input {config.input} does not exist on {socket.gethostname()}")
        return
    if isinstance(config, EvaluateConfig):
        read_run_config(config.run)
    if not isinstance(config, TrainConfig | GanConfig):
        return
    if read_stored(config.data / "manifest.json") is None:
        problem = "holds no shards (no manifest.json)" if config.data.is_dir() else "does not exist"
        raise UserError(
            f"--data {config.data} {problem} on {socket.gethostname()}; "
            "preprocess first, or give FER_DATA or --data"
        )
    accumulate = config.accumulate if isinstance(config, TrainConfig) else 1
    check_divides(config.batch_size, ranks, accumulate)
    stored = read_stored(config.run / "config.json")
    if stored:
        merge_for_resume(config, stored["science"])


def begin(config: JobCommand, ranks: int, command: list[str]) -> Path:
    """Check the job that has just started and record it in its results folder.

    Gives the folder for the ranks' logs, an absolute path.
    """
    check_job(config, ranks)
    folder = results_dir(config)
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    job = current_job()
    if job:
        record_job(folder, job_name(), command, [job.id])
    return logs.absolute()


def should_requeue(config: JobCommand, code: int) -> tuple[bool, str]:
    """Whether a job whose processes ended with exit code `code` is to run again, and why.

    For a training its run folder decides, not the code: srun was seen to end with code 0 after one
    of its nodes had died.
    """
    if isinstance(config, TrainConfig | GanConfig):
        return _should_requeue_training(config.run, code)
    if isinstance(config, SweepConfig):
        again = _sweep_can_continue(config, code)
        reason = f"sweep ended with code {code}"
    else:
        again = code in INTERRUPTED_CODES
        reason = "done" if code == EXIT_FINISHED else f"ended with code {code}"
    return again, f"{reason}; it continues from there" if again else reason


def _should_requeue_training(run: Path, code: int) -> tuple[bool, str]:
    status = read_status(run)
    state, why = status["state"], status["why"] or f"ended with code {code}"
    over = state in ("finished", "failed", "superseded")
    if over or code in (EXIT_USER_ERROR, EXIT_TAKEN_OVER):
        return False, f"{run}: {state}" + (f", {why}" if state != "finished" else "")
    if starts_without_gain(run) >= MAX_STARTS:
        return False, no_gain_message(run)
    return True, f"{run}: {why}; the same command continues from there"


def _sweep_can_continue(config: SweepConfig, code: int) -> bool:
    """Whether a sweep was interrupted, or crashed after some trial had started in this job."""
    if code in (EXIT_FINISHED, EXIT_USER_ERROR, EXIT_FINDINGS):
        return False
    if code == EXIT_RUN_AGAIN:
        return True
    # Ray ends in many ways, with many exit codes. So the sweep is requeued if a trial has started.
    job_start = max((record["time"] for record in read_records(config.out)), default=0.0)
    trial_starts = config.out.glob("trials/*/attempts/*/environment.json")
    return any(path.stat().st_mtime > job_start for path in trial_starts)
