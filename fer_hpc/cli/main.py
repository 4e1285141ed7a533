"""`fer-hpc VERB ...`, the same commands as `python -m fer_hpc.<module> ...`.

Arguments are checked here, before torch, h5py or matplotlib is loaded, so that help and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from fer_hpc import __version__
from fer_hpc.cli.parse import configure, parse, split_args, take_preset
from fer_hpc.cli.text import format_scores
from fer_hpc.config import (
    EXIT_CRASHED,
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_TAKEN_OVER,
    EXIT_USER_ERROR,
    PRESETS,
    GanConfig,
    RunConfig,
    TrainConfig,
    UserError,
    merge_for_resume,
    unknown_name_error,
)
from fer_hpc.config.commands import (
    CancelConfig,
    DoctorConfig,
    EvaluateConfig,
    GenerateConfig,
    JobConfig,
    LogsConfig,
    PipelineConfig,
    PreprocessConfig,
    ReportConfig,
    StatusConfig,
    SweepConfig,
    SyntheticConfig,
    TransferConfig,
)
from fer_hpc.evaluation.results import result_name
from fer_hpc.files import read_json, sha256
from fer_hpc.run.folder import data_folder, outcome_file, read_run_config, read_status


def synthetic(args: list[str]) -> int:
    """drawn faces in AffectNet's layout, to try everything out"""
    config = parse(SyntheticConfig, "synthetic", args)
    from fer_hpc.data.synthetic.source import write_affectnet

    print(write_affectnet(config))
    return EXIT_FINISHED


def preprocess(args: list[str]) -> int:
    """faces -> HDF5 shards"""
    config = configure("preprocess", args)
    from fer_hpc.data.preprocess import preprocess

    preprocess(config)
    return EXIT_FINISHED


def train(args: list[str]) -> int:
    """PRESET and shards -> a trained classifier in a run folder"""
    config = configure("train", args)
    if _is_finished(config):
        print(
            f"{config.run}: finished, nothing to do (python -m fer_hpc.evaluate {config.run} scores it)"
        )
        return EXIT_FINISHED
    status = _guarded("train", config)
    if status is None or isinstance(status, int):
        return status or EXIT_FINISHED
    best = status["best"]
    scores = f"val accuracy {best['val_accuracy']:.4f}, loss {best['val_loss']:.4f}"
    print(f"{config.run}: finished; best epoch {best['epoch']}: {scores}")
    return EXIT_FINISHED


def train_gan(args: list[str]) -> int:
    """shards -> a GAN that gives a neutral face another's expression"""
    config = configure("train_gan", args)
    if _is_finished(config):
        print(
            f"{config.run}: finished, nothing to do (python -m fer_hpc.transfer NEUTRAL EXPRESSION --run {config.run} uses it)"
        )
        return EXIT_FINISHED
    status = _guarded("train_gan", config)
    if status is None or isinstance(status, int):
        return status or EXIT_FINISHED
    print(f"{config.run}: finished after epoch {status['best']['epoch']}")
    return EXIT_FINISHED


def transfer(args: list[str]) -> int:
    """two photos and a GAN's run -> a picture: the one person with the other's expression"""
    config = parse(TransferConfig, "transfer", args)
    stored = read_run_config(config.run)
    if stored.get("kind") != "GAN":
        raise UserError(f"--run {config.run} holds a classifier; give a run of fer_hpc.train_gan")
    from fer_hpc.gan.transfer import transfer

    print(f"transfer: {transfer(config)}")
    return EXIT_FINISHED


def generate(args: list[str]) -> int:
    """shards and a GAN's run -> the same shards with made faces of rare classes"""
    config = parse(GenerateConfig, "generate", args)
    from fer_hpc.gan.generate import generate

    print(generate(config))
    return EXIT_FINISHED


def _guarded(verb: str, config: TrainConfig | GanConfig) -> dict[str, Any] | int | None:
    """Run a training: the status of a finished one on rank 0, None on the other ranks, else an exit code."""
    if not (config.data / "manifest.json").exists():
        from fer_hpc.data.shards import read_manifest

        read_manifest(config.data)  # says what is wrong before torch is loaded
    from fer_hpc.parallel.collectives import PeerLost
    from fer_hpc.parallel.world import World
    from fer_hpc.run.session import Superseded

    run: Callable[..., dict[str, Any]]
    if verb == "train":
        from fer_hpc.training.loop import train as run
    else:
        from fer_hpc.gan.loop import train_gan as run

    import torch.distributed

    world = World.detect()
    try:
        status = run(config, world)
    except Superseded as why:
        # Within a job 0: srun answers any other code by killing the step of this number, which is the new start's by now.
        return _leave(
            world.size, EXIT_FINISHED if world.job else EXIT_TAKEN_OVER, f"fer-hpc {verb}: {why}"
        )
    except PeerLost as why:
        return _leave(
            world.size,
            EXIT_RUN_AGAIN,
            f"fer-hpc {verb}: {why}; the same command goes on from the last checkpoint",
        )
    except UserError as error:  # rank 0 says it for all, once they are connected
        said = world.rank and torch.distributed.is_initialized()
        return _leave(
            world.size, EXIT_USER_ERROR, "" if said else f"fer-hpc {verb}: error: {error}"
        )
    if world.rank:
        return None if status["state"] == "finished" else EXIT_RUN_AGAIN
    if status["state"] != "finished":
        print(
            f"{config.run}: {status['why']} at {status['images_seen']:,} images, saved; the same command goes on from there"
        )
        return EXIT_RUN_AGAIN
    return status


def _leave(ranks: int, code: int, why: str) -> int:
    """End with `code`; of several ranks at once: torch's orderly exit waits for, or trips over, ranks that are gone."""
    if why:
        print(why, file=sys.stderr, flush=True)
    if ranks > 1:
        sys.stdout.flush()
        os._exit(code)
    return code


def tune(args: list[str]) -> int:
    """every batch size x learning rate x seed under Ray Tune -> which is best on average"""
    if {"-h", "--help"} & set(args):
        return _help_of_two(SweepConfig, "tune [PRESET]", "train")
    sweep, name, base = configure("tune", args)
    from fer_hpc.parallel.world import current_step_node
    from fer_hpc.sweep.grid import check_sweep, grid
    from fer_hpc.sweep.tables import collect

    if sweep.collect:
        print(collect(sweep.out))
        return EXIT_FINISHED
    node = current_step_node()
    if node and node.index:
        from fer_hpc.sweep.ray_nodes import serve

        return serve(node)
    check_sweep(sweep, grid(sweep, base))  # says what is wrong before ray is loaded
    from fer_hpc.sweep.ray_tune import tune as run

    return run(sweep, name, base)


def _help_of_two(config_class: type[Any], command: str, verb: str) -> int:
    with contextlib.suppress(SystemExit):
        parse(config_class, command, ["--help"])
    print(f"\nAll other flags are those of fer-hpc {verb}; see fer-hpc {verb} --help.")
    return EXIT_FINISHED


def sheet(args: list[str]) -> int:
    """train's arguments -> RUN/sheet.png: the first images as the network will see them"""
    config = configure("sheet", args)
    from fer_hpc.training.sheet import sheet

    print(f"sheet: {sheet(config)}")
    return EXIT_FINISHED


def doctor(args: list[str]) -> int:
    """a folder of shards -> what is wrong with it: damage, duplicates, leaks"""
    config = parse(DoctorConfig, "doctor", args)
    from fer_hpc.data.doctor import doctor

    return doctor(config)


def _is_finished(config: RunConfig) -> bool:
    """Whether the run folder already holds the end of exactly this run."""
    stored, manifest = (
        read_json(config.run / "config.json"),
        read_json(config.data / "manifest.json"),
    )
    if not stored or not manifest or read_status(config.run)["state"] != "finished":
        return False
    same = stored["data"]["fingerprint"] == manifest["fingerprint"]
    if not same or stored.get("kind", "classifier") != (
        "GAN" if isinstance(config, GanConfig) else "classifier"
    ):
        return False
    return merge_for_resume(config, stored["science"]).epochs == int(stored["science"]["epochs"])


def evaluate(args: list[str]) -> int:
    """a run and a split -> scores, predictions, confusion plot"""
    config = configure("evaluate", args)
    stored = read_run_config(config.run)  # says so if it is no run folder, before torch is loaded
    if stored.get("kind") == "GAN":
        return _measure(config)
    r = _scored_before(config)
    if r:
        print(f"{config.run}: {config.split} was scored before with these weights, nothing to do")
    else:
        from fer_hpc.evaluation.score import evaluate
        from fer_hpc.parallel.world import World

        world = World.detect()
        r = evaluate(config, world)
        if world.rank:
            return EXIT_FINISHED
    print(format_scores(config, r))
    return EXIT_FINISHED


def _measure(config: EvaluateConfig) -> int:
    """Measure a GAN's run."""
    if config.tta != "none":
        raise UserError(f"--tta {config.tta} is for classifiers; {config.run} holds a GAN")
    from fer_hpc.gan.evaluate import Interrupted, evaluate_gan, format_gan_scores
    from fer_hpc.parallel.world import World

    if World.detect().rank:
        return EXIT_FINISHED  # one process measures
    try:
        print(format_gan_scores(config.run, evaluate_gan(config)))
    except Interrupted as why:
        print(why)
        return EXIT_RUN_AGAIN
    return EXIT_FINISHED


def _scored_before(config: EvaluateConfig) -> dict[str, Any] | None:
    """The scores of this split if they stand there already, from the same weights and data."""
    trained_on = read_run_config(config.run)["data"]["fingerprint"]
    found = read_json(config.run / f"eval-{result_name(config, trained_on)}.json")
    weights = outcome_file(config.run, "best.pt")
    if not found or not weights or read_status(config.run)["state"] != "finished":
        return None
    manifest = read_json((config.data or data_folder(config.run)) / "manifest.json")
    same = (
        manifest
        and found["data"] == manifest["fingerprint"]
        and found["weights"] == sha256(weights)
    )
    return dict(found) if same and "pairs" in found else None


def report(args: list[str]) -> int:
    """run folders -> one HTML page of tables and plots"""
    config = parse(ReportConfig, "report", args)
    from fer_hpc.report.report import report

    print(f"report: {report(config)}")
    return EXIT_FINISHED


def status(args: list[str]) -> int:
    """what runs, waits, finished, failed, and why"""
    if all(arg.startswith("-") for arg in args):
        args = [*args, os.environ.get("FER_RUNS") or "runs"]
    config = parse(StatusConfig, "status", args)
    from fer_hpc.cluster.status import format_status, job_status, to_json

    rows = job_status(config.paths)
    print(to_json(rows) if config.json else format_status(rows))
    return EXIT_FINISHED


def logs(args: list[str]) -> int:
    """the logs of all ranks of a run's newest job"""
    config = parse(LogsConfig, "logs", args)
    from fer_hpc.cluster.status import follow_logs

    with contextlib.suppress(KeyboardInterrupt):
        for line in follow_logs(config):
            print(line, flush=True)
    return EXIT_FINISHED


def cancel(args: list[str]) -> int:
    """end the jobs of run folders"""
    config = parse(CancelConfig, "cancel", args)
    from fer_hpc.cluster.status import cancel

    print("\n".join(cancel(config.paths)))
    return EXIT_FINISHED


def begin(args: list[str]) -> int:
    """RANKS VERB ARGS: slurm/launch.sh asks whether the command can start, and where its ranks' logs go"""
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
    """CODE VERB ARGS: slurm/launch.sh asks whether to requeue, after the processes have ended; exit code 0 says yes"""
    from fer_hpc.cluster.launch import should_requeue

    code, verb, *rest = args
    config = configure(verb, rest)
    again, why = should_requeue(config[0] if verb == "tune" else config, int(code))
    print(f"fer-hpc: {why}", flush=True)
    return EXIT_FINISHED if again else EXIT_CRASHED


def job(verb: str, args: list[str]) -> int:
    """Submit a command as a job; what jobs/*.py do."""
    if {"-h", "--help"} & set(args):
        with contextlib.suppress(SystemExit):
            parse(JobConfig, f"{verb}, submitted", ["--help"])
        print(f"\nAll other flags are those of fer-hpc {verb}:")
    resources, rest = split_args(JobConfig, args)
    return run_command(
        f"{verb} job", lambda: _submit(parse(JobConfig, "job", resources), verb, rest)
    )


def pipeline(args: list[str]) -> int:
    """Submit preprocessing, trainings, scorings and the report as jobs that wait for each other; what jobs/pipeline.py does."""
    resources_args, args = split_args(JobConfig, args)
    own, train_args = split_args(PipelineConfig, args)
    resources, study = (
        parse(JobConfig, "pipeline job", resources_args),
        parse(PipelineConfig, "pipeline", own),
    )
    name, rest = take_preset(train_args)
    if name is None:
        raise UserError(
            f"which preset? python jobs/pipeline.py PRESET --source ... --out DIR (presets: {', '.join(PRESETS)})"
        )
    from fer_hpc.cluster.pipeline import pipeline

    for line in pipeline(resources, study, name, rest, configure):
        print(line, flush=True)
    return EXIT_FINISHED


def sweep_array(args: list[str]) -> int:
    """Submit a sweep's trials as the tasks of an array, without Ray; what jobs/sweep.py does."""
    if {"-h", "--help"} & set(args):
        with contextlib.suppress(SystemExit):
            parse(JobConfig, "sweep, submitted", ["--help"])
        return _help_of_two(SweepConfig, "sweep [PRESET], submitted", "train")
    resources_args, rest = split_args(JobConfig, args)
    resources, (sweep, name, base) = (
        parse(JobConfig, "sweep job", resources_args),
        configure("tune", rest),
    )
    from fer_hpc.cluster.pipeline import sweep_array

    for line in sweep_array(resources, sweep, name, base, rest):
        print(line, flush=True)
    return EXIT_FINISHED


def _submit(resources: JobConfig, verb: str, args: list[str]) -> int:
    from fer_hpc.cluster.launch import check_job
    from fer_hpc.cluster.records import results_dir
    from fer_hpc.cluster.submit import dry_run, layout, submit

    config = configure(verb, args)
    folder, gpus = results_dir(config), 0 if verb == "preprocess" else resources.gpus_per_node
    tasks = config.tasks if isinstance(config, PreprocessConfig) else 1
    commands = [[verb, *args, *(("--task", str(i)) if tasks > 1 else ())] for i in range(tasks)]
    print(layout(resources, config, gpus))
    if resources.dry_run:
        print(dry_run(resources, folder, commands, gpus=gpus))
        try:
            check_job(config, resources.nodes * max(gpus, 1))
        except UserError as error:
            print(f"as things are, submitting would be refused: {error}", file=sys.stderr)
        return EXIT_FINISHED
    jobs = submit(resources, folder, commands, config, gpus=gpus)
    if jobs:
        print(
            f"job {', '.join(jobs)}    log {folder / 'jobs' / f'{jobs[0]}_0_log.out'}    results {folder}"
        )
        print(
            f"fer-hpc status {folder}    fer-hpc logs {folder} --follow    fer-hpc cancel {folder}"
        )
    return EXIT_FINISHED


VERBS: dict[str, Callable[[list[str]], int]] = {
    "synthetic": synthetic,
    "preprocess": preprocess,
    "doctor": doctor,
    "sheet": sheet,
    "train": train,
    "evaluate": evaluate,
    "tune": tune,
    "train_gan": train_gan,
    "transfer": transfer,
    "generate": generate,
    "report": report,
    "status": status,
    "logs": logs,
    "cancel": cancel,
}
INTERNAL = {"begin": begin, "end": end}


def run_command(verb: str, command: Callable[[], int]) -> int:
    """Run a command; a UserError becomes one message on stderr and exit code 2, never a traceback."""
    try:
        return command()
    except UserError as error:
        print(f"fer-hpc {verb}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("fer_hpc"):
            raise
        print(
            f"fer-hpc {verb}: error: {sys.executable} has no {error.name}: pip install -e . for it, or name another "
            "interpreter (FER_PYTHON, or fer_python in slurm/env.sh, for the scripts)",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    except OSError as error:
        if error.filename is None:
            raise
        print(f"fer-hpc {verb}: error: {error.strerror}: {error.filename}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"\nfer-hpc {verb}: stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_RUN_AGAIN


def main(args: list[str] | None = None, verb: str | None = None) -> int:
    """Run one command line; `verb` is put before the process's own arguments. Gives the exit code."""
    args = sys.argv[1:] if args is None else args
    args = [verb, *args] if verb else args
    if args[1:2] == [
        "--"
    ]:  # torchrun passes on the -- that it needs before arguments like --run, a prefix of its own
        del args[1]
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: fer-hpc VERB ...   (python -m fer_hpc.VERB is the same for all that compute)\n"
        )
        for verb, command in VERBS.items():
            print(f"  {verb:<12}{command.__doc__}")
        print("\nfer-hpc VERB --help lists the flags of one.")
        return EXIT_FINISHED
    if args[0] == "--version":
        print(f"fer-hpc {__version__}")
        return EXIT_FINISHED
    if args[0] in INTERNAL:
        return run_command(args[0], lambda: INTERNAL[args[0]](args[1:]))
    if args[0] not in VERBS:
        print(
            f"fer-hpc: error: {unknown_name_error('verb', args[0], list(VERBS))}", file=sys.stderr
        )
        return EXIT_USER_ERROR
    return run_command(args[0], lambda: VERBS[args[0]](args[1:]))


if __name__ == "__main__":
    sys.exit(main())
