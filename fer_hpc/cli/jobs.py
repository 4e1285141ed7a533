"""Commands as jobs: submitted by jobs/*.py, checked and started again by slurm/launch.sh."""

from __future__ import annotations

import shlex
import sys

from fer_hpc.cli.parse import configure, configure_job, configure_pipeline
from fer_hpc.config import EXIT_FINISHED, UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.jobs import JobConfig


def submit(verb: str, args: list[str], command: str) -> int:
    """Submit one command as a job; `command` is the script that the user called."""
    from fer_hpc.cluster.launch import check_job
    from fer_hpc.cluster.records import results_dir
    from fer_hpc.cluster.submit import dry_run, layout
    from fer_hpc.cluster.submit import submit as submit_job

    settings, config = configure_job(verb, args, (JobConfig,), command)
    resources = settings.build(JobConfig)
    folder, gpus = results_dir(config), 0 if verb == "preprocess" else resources.gpus_per_node
    tasks = config.tasks if isinstance(config, PreprocessConfig) else 1
    once = [verb, *settings.arguments(JobConfig)]
    commands = [[*once, "--task", str(i)] for i in range(tasks)] if tasks > 1 else [once]
    print(layout(resources, config, gpus))
    if resources.dry_run:
        print(dry_run(resources, folder, commands, gpus=gpus))
        try:
            check_job(config, resources.nodes * max(gpus, 1))
        except UserError as error:
            print(f"as things are, submitting would be refused: {error}", file=sys.stderr)
        return EXIT_FINISHED
    jobs = submit_job(resources, folder, commands, config, gpus=gpus)
    if jobs:
        print(f"job {', '.join(jobs)}    logs {folder / 'jobs'}    results {folder}")
        print(f"fer-hpc status {folder}")
        print(f"fer-hpc logs {folder} --follow")
        print(f"fer-hpc cancel {folder}")
    return EXIT_FINISHED


def pipeline(args: list[str]) -> int:
    """Submit preprocessing, trainings, scorings and the report as jobs that wait for each other."""
    settings, resources, study = configure_pipeline(args)
    from fer_hpc.cluster.pipeline import pipeline

    train_args = settings.arguments(JobConfig, type(study))
    for line in pipeline(resources, study, train_args[0], train_args[1:], configure):
        print(line, flush=True)
    return EXIT_FINISHED


def sweep(args: list[str]) -> int:
    """Submit a sweep's trials as the tasks of an array, without Ray."""
    settings, (config, preset, base) = configure_job("tune", args, (JobConfig,), "jobs/sweep.py")
    from fer_hpc.cluster.pipeline import sweep_array

    resources = settings.build(JobConfig)
    for line in sweep_array(resources, config, preset, base, settings.arguments(JobConfig)):
        print(line, flush=True)
    return EXIT_FINISHED


def several(args: list[str]) -> int:
    """Run command lines one after another in this process; the first failure is the exit code."""
    from fer_hpc.cli.main import main

    codes = []
    for line in args:
        print(f"-- fer-hpc {line}", flush=True)
        codes.append(main(shlex.split(line)))
    return next(filter(None, codes), EXIT_FINISHED)


def begin(args: list[str]) -> int:
    """[--job] VERB ARGUMENTS, with the scheduler's answer on stdin: what launch.sh is to do."""
    from fer_hpc.cluster.launch import begin

    print(begin(args, _facts(), configure), end="")
    return EXIT_FINISHED


def end(args: list[str]) -> int:
    """CODE yes|no VERB ARGUMENTS: after the processes have ended; what launch.sh is to do.

    yes: the job is a script, which may be started again.
    """
    from fer_hpc.cluster.launch import end

    code, may_start, *command = args
    print(end(int(code), may_start == "yes", command, _facts(), configure), end="")
    return EXIT_FINISHED


def _facts() -> str:
    return "" if sys.stdin.isatty() else sys.stdin.read()
