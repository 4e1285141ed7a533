"""Commands as jobs: submitted by jobs/*.py, checked and requeued by slurm/launch.sh."""

from __future__ import annotations

import sys

from fer_hpc.cli.parse import configure, configure_job, configure_pipeline
from fer_hpc.config import EXIT_CRASHED, EXIT_FINISHED, UserError
from fer_hpc.config.commands import JobConfig, PreprocessConfig


def submit(verb: str, args: list[str], command: str) -> int:
    """Submit one command as a job; `command` is the script that the user called."""
    from fer_hpc.cluster.launch import check_job
    from fer_hpc.cluster.records import results_dir
    from fer_hpc.cluster.submit import dry_run, layout
    from fer_hpc.cluster.submit import submit as submit_job

    given, config = configure_job(verb, args, (JobConfig,), command)
    resources = given.build(JobConfig)
    folder, gpus = results_dir(config), 0 if verb == "preprocess" else resources.gpus_per_node
    tasks = config.tasks if isinstance(config, PreprocessConfig) else 1
    once = [verb, *given.arguments(JobConfig)]
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
        log = folder / "jobs" / f"{jobs[0]}_0_log.out"
        print(f"job {', '.join(jobs)}    log {log}    results {folder}")
        print(f"fer-hpc status {folder}")
        print(f"fer-hpc logs {folder} --follow")
        print(f"fer-hpc cancel {folder}")
    return EXIT_FINISHED


def pipeline(args: list[str]) -> int:
    """Submit preprocessing, trainings, scorings and the report as jobs that wait for each other."""
    given, resources, study = configure_pipeline(args)
    from fer_hpc.cluster.pipeline import pipeline

    train_args = given.arguments(JobConfig, type(study))
    for line in pipeline(resources, study, train_args[0], train_args[1:], configure):
        print(line, flush=True)
    return EXIT_FINISHED


def sweep(args: list[str]) -> int:
    """Submit a sweep's trials as the tasks of an array, without Ray."""
    given, (config, preset, base) = configure_job("tune", args, (JobConfig,), "jobs/sweep.py")
    from fer_hpc.cluster.pipeline import sweep_array

    resources = given.build(JobConfig)
    for line in sweep_array(resources, config, preset, base, given.arguments(JobConfig)):
        print(line, flush=True)
    return EXIT_FINISHED


def begin(args: list[str]) -> int:
    """RANKS VERB ARGS: check that the command can start; print the folder of its ranks' logs."""
    from fer_hpc.cluster.launch import begin

    ranks, *command = args
    config = configure(command[0], command[1:])
    if command[0] == "tune":
        from fer_hpc.sweep.grid import check_sweep, grid

        check_sweep(config[0], grid(config[0], config[2]))
        config = config[0]
    print(begin(config, int(ranks), command))
    return EXIT_FINISHED


def end(args: list[str]) -> int:
    """CODE VERB ARGS: after the processes have ended; exit code 0 means: requeue the job."""
    from fer_hpc.cluster.launch import should_requeue

    code, verb, *rest = args
    config = configure(verb, rest)
    again, why = should_requeue(config[0] if verb == "tune" else config, int(code))
    print(f"fer-hpc: {why}", flush=True)
    return EXIT_FINISHED if again else EXIT_CRASHED
