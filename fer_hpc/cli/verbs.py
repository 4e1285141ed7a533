"""What each verb does with its configuration; `table.py` lists the verbs.

Heavy modules are imported where they are used, so that help and errors appear without delay.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fer_hpc.config import (
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_TAKEN_OVER,
    EXIT_USER_ERROR,
    GanConfig,
    RunConfig,
    TrainConfig,
    UserError,
    merge_for_resume,
)
from fer_hpc.config.commands import (
    CancelConfig,
    DoctorConfig,
    GenerateConfig,
    InitConfig,
    LogsConfig,
    PreprocessConfig,
    ReportConfig,
    StatusConfig,
    SweepConfig,
    SyntheticConfig,
    TransferConfig,
)
from fer_hpc.config.jobs import JobConfig
from fer_hpc.config.study import StudyConfig
from fer_hpc.data.manifest import find_manifest
from fer_hpc.run.folder import (
    find_run_config,
    read_run_config,
    read_status,
)
from fer_hpc.run.outcome import check_history, restore_copies
from fer_hpc.run.plugins import has_other_plugins


def synthetic(config: SyntheticConfig) -> int:
    if config.scenes:
        from fer_hpc.data.synthetic.scenes import write_scenes as write
    else:
        from fer_hpc.data.synthetic.source import write_affectnet as write

    print(write(config))
    return EXIT_FINISHED


def preprocess(config: PreprocessConfig) -> int:
    from fer_hpc.data.preprocess import preprocess

    preprocess(config)
    return EXIT_FINISHED


def doctor(config: DoctorConfig) -> int:
    from fer_hpc.data.doctor import doctor

    return doctor(config)


def sheet(config: TrainConfig) -> int:
    from fer_hpc.training.sheet import sheet

    print(f"sheet: {sheet(config)}")
    return EXIT_FINISHED


def train(config: TrainConfig) -> int:
    if is_finished(config):
        _say_restored(config.run)
        print(f"{config.run}: finished, nothing to do (fer-hpc evaluate {config.run} scores it)")
        return EXIT_FINISHED
    status = _training("train", config)
    if isinstance(status, int):
        return status
    best = status["best"]
    scores = f"val accuracy {best['val_accuracy']:.4f}, loss {best['val_loss']:.4f}"
    print(f"{config.run}: finished; best epoch {best['epoch']}: {scores}")
    return EXIT_FINISHED


def train_gan(config: GanConfig) -> int:
    if is_finished(config):
        _say_restored(config.run)
        use = f"fer-hpc transfer NEUTRAL EXPRESSION --run {config.run} --out PNG"
        print(f"{config.run}: finished, nothing to do ({use} uses it)")
        return EXIT_FINISHED
    status = _training("train_gan", config)
    if isinstance(status, int):
        return status
    print(f"{config.run}: finished after epoch {status['best']['epoch']}")
    return EXIT_FINISHED


def _say_restored(run: Path) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        check_history(run)
        for line in restore_copies(run):
            print(f"warning: {line}", file=sys.stderr)


def is_finished(config: RunConfig) -> bool:
    """Whether the run folder already holds the end of exactly this run."""
    stored = find_run_config(config.run)
    manifest = find_manifest(config.data)
    if not stored or not manifest or read_status(config.run)["state"] != "finished":
        return False
    kind = "GAN" if isinstance(config, GanConfig) else "classifier"
    if stored.get("kind", "classifier") != kind:
        return False
    if stored["data"]["fingerprint"] != manifest.fingerprint:
        return False
    if isinstance(config, TrainConfig) and has_other_plugins(stored, config.plugin):
        return False  # the training refuses it
    epochs = merge_for_resume(config, stored["science"]).epochs
    return bool(epochs == stored["science"].get("epochs", epochs))


def _training(verb: str, config: TrainConfig | GanConfig) -> dict[str, Any] | int:
    """The status of a training that has finished, on rank 0; else the exit code."""
    if not (config.data / "manifest.json").exists():
        from fer_hpc.data.manifest import read_manifest

        read_manifest(config.data)  # raises the error before torch is loaded
    from fer_hpc.parallel.collectives import PeerLost
    from fer_hpc.parallel.world import World
    from fer_hpc.run.attempts import Superseded
    from fer_hpc.run.ending import RankError

    run: Callable[..., dict[str, Any]]
    if verb == "train":
        from fer_hpc.training.loop import train as run
    else:
        from fer_hpc.gan.loop import train_gan as run

    import torch.distributed

    world = World.detect()
    try:
        status = run(config, world)
    except Superseded as error:
        # Within a job 0: srun answers any other code by ending the step of this number, which is
        # the new start's by now.
        code = EXIT_FINISHED if world.job else EXIT_TAKEN_OVER
        return _leave(world.size, code, f"fer-hpc {verb}: {error}")
    except PeerLost as error:
        message = f"fer-hpc {verb}: {error}; the same command continues from the last checkpoint"
        return _leave(world.size, EXIT_RUN_AGAIN, message)
    except UserError as error:  # rank 0 prints it for all, once they are connected
        of_all = not isinstance(error, RankError) and torch.distributed.is_initialized()
        silent = world.rank and of_all
        message = "" if silent else f"fer-hpc {verb}: error: {error}"
        return _leave(world.size, EXIT_USER_ERROR, message)
    if status["state"] == "finished":
        return EXIT_FINISHED if world.rank else status
    if not world.rank:
        seen = status.get("images_seen")  # missing where storage failed for status.json alone
        where = f" at {seen:,} images" if isinstance(seen, int) else ""
        why = status["why"] or "stopped"
        print(f"{config.run}: {why}{where}, saved; the same command continues from there")
    return EXIT_RUN_AGAIN


def _leave(ranks: int, code: int, message: str) -> int:
    """End with `code`; several ranks at once, as torch's orderly exit waits for the others."""
    if message:
        print(message, file=sys.stderr, flush=True)
    if ranks > 1:
        sys.stdout.flush()
        os._exit(code)
    return code


def tune(sweep: tuple[SweepConfig, str, TrainConfig]) -> int:
    config, preset, base = sweep
    from fer_hpc.parallel.world import current_step_node
    from fer_hpc.sweep.grid import check_sweep, grid
    from fer_hpc.sweep.tables import collect

    if config.collect:
        print(collect(config.out))
        return EXIT_FINISHED
    node = current_step_node()
    if node and node.index:
        from fer_hpc.sweep.ray_nodes import serve, shared_gpus

        with shared_gpus(config, base):
            return serve(node)
    check_sweep(config, grid(config, base))  # raises the error before ray is loaded
    from fer_hpc.sweep.ray_tune import tune

    return tune(config, preset, base)


def transfer(config: TransferConfig) -> int:
    if read_run_config(config.run).get("kind") != "GAN":
        raise UserError(f"--run {config.run} holds a classifier; give a run of fer-hpc train_gan")
    from fer_hpc.gan.transfer import transfer

    print(transfer(config))
    return EXIT_FINISHED


def generate(config: GenerateConfig) -> int:
    from fer_hpc.gan.generate import generate

    print(generate(config))
    return EXIT_FINISHED


def report(config: ReportConfig) -> int:
    from fer_hpc.report.report import report

    print(f"report: {report(config)}")
    return EXIT_FINISHED


def study(study: tuple[StudyConfig, dict[str, Any], JobConfig]) -> int:
    from fer_hpc.cli.parse import configure
    from fer_hpc.study.study import study as run_study

    config, flags, job = study
    return run_study(config, flags, job, configure)


def status(config: StatusConfig) -> int:
    from fer_hpc.cluster.status import format_status, job_status, to_json
    from fer_hpc.study.plan import is_study
    from fer_hpc.study.study import status as study_status

    studies = [path for path in config.paths if is_study(path)]
    for path in studies:
        print(study_status(path, config.json))
    default = Path(os.environ.get("FER_RUNS") or "runs")  # the first job makes it
    paths = config.paths or ((default,) if default.is_dir() else ())
    paths = tuple(path for path in paths if path not in studies)
    if paths or not studies:
        rows = job_status(paths)
        print(to_json(rows) if config.json else format_status(rows))
    return EXIT_FINISHED


def logs(config: LogsConfig) -> int:
    from fer_hpc.cluster.status import follow_logs

    with contextlib.suppress(KeyboardInterrupt):
        for line in follow_logs(config):
            print(line, flush=True)
    return EXIT_FINISHED


def cancel(config: CancelConfig) -> int:
    from fer_hpc.cluster.status import cancel

    print("\n".join(cancel(config.paths)))
    return EXIT_FINISHED


def init(config: InitConfig) -> int:
    from fer_hpc.cluster.init import init

    print("\n".join(init(config.site)))
    return EXIT_FINISHED
