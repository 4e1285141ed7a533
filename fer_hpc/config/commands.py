"""The flags of every command but the trainings: a frozen dataclass each. Standard library only.

The types of the fields are read by the command line and the checks, so they are not postponed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.errors import UserError
from fer_hpc.config.fields import check_fields, option, required
from fer_hpc.config.prepare import MAX_DRAWN as MAX_DRAWN
from fer_hpc.config.prepare import SOURCE_HELP as SOURCE_HELP
from fer_hpc.config.prepare import SPLITTING_HELP as SPLITTING_HELP
from fer_hpc.config.prepare import DoctorConfig as DoctorConfig
from fer_hpc.config.prepare import PreprocessConfig as PreprocessConfig
from fer_hpc.config.prepare import Splitting as Splitting
from fer_hpc.config.prepare import SyntheticConfig as SyntheticConfig
from fer_hpc.config.scoring import DEVICE_HELP as DEVICE_HELP
from fer_hpc.config.scoring import CompareConfig as CompareConfig
from fer_hpc.config.scoring import Device as Device
from fer_hpc.config.scoring import EvaluateConfig as EvaluateConfig
from fer_hpc.config.scoring import Split as Split


@dataclass(frozen=True)
class TransferConfig:
    """Give the person on one photo the expression on another."""

    neutral: Path = required("photo of a neutral face", positional=True, file=True)
    expression: Path = required("photo of another person's expression", positional=True, file=True)
    run: Path = required("run folder of a GAN")
    out: Path = required("PNG file to write", file=True)
    whole: bool = option(False, "the photos are cropped faces: skip face detection")
    strip: bool = option(
        False, "also show both photos, with the detected faces marked, in the file"
    )
    scale: int = option(
        0, "times to enlarge the output; 0: to at least 256 pixels, 384 in a strip", low=0, high=64
    )
    device: Device = option("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.out.suffix.lower() != ".png":
            raise UserError(f"--out {self.out}: a PNG is written; give a name that ends in .png")


@dataclass(frozen=True)
class GenerateConfig:
    """Copy shards and add generated faces of rare classes to the train split."""

    data: Path = required("folder of shards")
    run: Path = required("run folder of a GAN that was trained on the same faces, at any size")
    out: Path = required("folder for the larger set")
    classes: tuple[str, ...] = option(
        (), "classes to fill up; default: those below half of the mean count"
    )
    fill: int = option(
        0, "number of faces to reach in these classes; 0: half of the mean count", low=0
    )
    seed: int = option(0, "seed of the choice of face pairs", low=0)
    device: Device = option("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ReportConfig:
    """Put runs, sweeps and GANs into one HTML page of tables and plots."""

    runs: tuple[Path, ...] = required("run folders, sweeps, or folders of them", positional=True)
    out: Path = option(Path("report"), "folder for index.html, tables and pictures")
    oracle: bool = option(
        False, "also show the best number on test, labelled: chosen on test it is optimistic"
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class SweepConfig:
    """Train every batch size x learning rate x seed; rank the configurations by their mean.

    The metric is --best-on, at each trial's best epoch. The same command continues a sweep; with
    more values it runs only what is new.
    """

    data: Path = required("folder of shards", group="sweep")
    out: Path = required("folder for trials/, results.csv, summary.json, best.json, heatmap.png")
    batch_sizes: tuple[int, ...] = option((64, 128, 256), "images per step", low=1)
    lrs: tuple[float, ...] = option((0.001, 0.005, 0.01), "initial learning rates", low=0)
    seeds: tuple[int, ...] = option(
        (0, 1, 2), "seeds of each configuration; their mean is ranked", low=0
    )
    grid: tuple[str, ...] = option(
        (), "more fields to sweep: weight_decay=1e-4,5e-4", repeat=True, commas=False
    )
    workers_per_trial: int = option(1, "processes per trial; several train it with DDP", low=1)
    gpus_per_worker: float | None = option(
        None,
        "GPUs per process; below 1, trials share a GPU; default: 1, down to 0.25 for faces "
        "below 96 pixels",
        low=0,
        high=1,
    )
    mps: Literal["auto", "on", "off"] = option(
        "auto",
        "trials on one GPU at the same time, by CUDA's MPS; auto: where it starts; off: in turns",
    )
    scheduler: Literal["fifo", "asha"] = option(
        "fifo", "fifo: train all to the end; asha: stop the worse configurations early"
    )
    asha_reduction_factor: int = option(
        3, "asha: one in this many configurations passes a rung, at least two", low=2
    )
    asha_first_rung: int = option(
        0, "asha: epochs up to the first rung; 0: epochs / reduction factor squared", low=0
    )
    at_once: int = option(0, "trials at a time; 0: as many as cores, memory and GPUs allow", low=0)
    retries: int = option(2, "restarts of a trial whose process died", low=0)
    collect: bool = option(False, "only write the tables, train nothing")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("batch_sizes", "lrs", "seeds"):
            if not getattr(self, name):
                raise UserError(f"--{name.replace('_', '-')}: wanted at least one value")
        share = self.gpus_per_worker
        if share and share < 1 and self.workers_per_trial > 1:
            raise UserError(
                f"--gpus-per-worker {share:g} with --workers-per-trial {self.workers_per_trial}: "
                "processes of one trial cannot share a GPU (NCCL refuses it); "
                "use --gpus-per-worker 1, or --workers-per-trial 1"
            )


@dataclass(frozen=True)
class DrillConfig:
    """Kill, freeze and damage small real runs, and compare them with undisturbed ones.

    With drawn faces, on this machine or as jobs. Exit code 3: a fault was not survived.
    """

    out: Path = required(
        "new folder, or that of a drill that was stopped; for jobs where every node sees it",
        positional=True,
    )
    faults: int = option(40, "number of faults; kinds and commands take turns", low=1, high=100_000)
    seed: int = option(0, "seed of what is drawn: steps, file events, bytes", low=0)
    only: int = option(0, "only the fault of this number", low=0)
    json: bool = option(False, "print JSON instead of the table")
    cluster: Literal["here", "slurm", "sge"] = option(
        "here", "here: processes of this machine; slurm, sge: jobs, struck as their owner can"
    )
    partition: str | None = option(None, "partition (sge: queue) of the jobs")
    account: str | None = option(None, "account (sge: project) of the jobs")
    sbatch: tuple[str, ...] = option((), "any other option of sbatch", repeat=True, commas=False)
    qsub: tuple[str, ...] = option((), "any other option of qsub", repeat=True, commas=False)
    breaker: Path | None = option(
        None,
        "program that breaks a cluster of your own, called as PROGRAM lose NODE: docs/drill.md",
        file=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("partition", "account", "sbatch", "qsub", "breaker"):
            if self.cluster == "here" and getattr(self, name):
                raise UserError(f"--{name} is for jobs; give --cluster slurm or --cluster sge too")


@dataclass(frozen=True)
class VerifyConfig:
    """Prove that two runs are equal, or name the first difference and its likely cause.

    Exit code 3: they differ, or have nothing in common to compare.
    """

    a: Path = required("run folder", positional=True)
    b: Path = required("run folder to compare it with", positional=True)
    json: bool = option(False, "print JSON, for programs")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class StatusConfig:
    """Show which runs and jobs wait, run, have finished or failed, and why."""

    paths: tuple[Path, ...] = option(
        (), "run folders, or folders of them; default: FER_RUNS, else runs", positional=True
    )
    json: bool = option(False, "print JSON, for programs")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class LogsConfig:
    """Show the logs of all ranks of a run's newest job."""

    run: Path = required("run folder", positional=True)
    follow: bool = option(False, "show new lines until Ctrl-C")
    lines: int = option(20, "lines from the end of each log", low=0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class CancelConfig:
    """Cancel the waiting and running jobs of run folders, or of a pipeline's folder."""

    paths: tuple[Path, ...] = required("run folders, or folders of them", positional=True)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class InitConfig:
    """Write slurm/, sge/ and jobs/ into a folder: clusters without a clone of the repository.

    Run again after an update, it renews what you have not edited. An edited file is kept, and its
    new version written beside it as NAME.new.
    """

    site: Path = required("folder for slurm/, sge/ and jobs/", positional=True)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class StartConfig:
    """The configuration of a training, where it does not come from a PRESET."""

    from_sweep: Path | None = option(
        None, "use the best configuration of this sweep instead of a PRESET", group="run"
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class RanksConfig:
    """The number of processes of a run."""

    procs: int = option(
        1,
        "processes on this machine, one rank each",
        low=1,
        high=1024,
        group="run",
    )

    def __post_init__(self) -> None:
        check_fields(self)
