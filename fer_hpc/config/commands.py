"""What every command but the trainings takes: one frozen dataclass each, whose comments are the help. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.errors import UserError, flag_name


@dataclass(frozen=True)
class SyntheticConfig:
    """Draw synthetic faces as AffectNet's annotations folder. Run again, it says that they are there."""

    out: Path  # folder to fill
    count: int = 6000  # faces
    seed: int = 0  # which endless set to draw from
    workers: int = 0  # processes; 0: the cores this process may use

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"--count {self.count}: wanted at least 1 face")


@dataclass(frozen=True)
class PreprocessConfig:
    """Turn faces into HDF5 shards. Run again, it goes on where it stopped, or says that all is done."""

    source: str  # form of the input, one of fer_hpc.data.sources.SOURCES
    out: Path  # folder for the shards
    input: Path | None = None  # folder or file to read; not needed for synthetic
    size: int = 48  # height and width of the stored faces, pixels
    channels: Literal[1, 3] = 1  # 1: gray, 3: RGB
    split: Literal["auto", "official", "report", "person"] = "auto"  # see README, Data
    image_root: Path | None = (
        None  # affectnet_csv: folder of the pictures; default: the table's own
    )
    classes: str = (
        ""  # class names in the order of the data's numbers, or a CSV file: name in the data,class
    )
    columns: Path | None = (
        None  # CSV with source_id and more columns (group, synthetic, age, ...) to join
    )
    count: int = 0  # synthetic: faces to draw
    seed: int = 0  # synthetic: which endless set to draw from
    workers: int = 0  # processes; 0: the cores this process may use
    task: int = 0  # this process is number TASK of TASKS that share the work (an array job)
    tasks: int = 1  # how many share it; their number does not change a byte
    plugin: tuple[Path, ...] = ()  # Python files that register sources
    max_rejects: float = 0.05  # share of unusable faces above which the run fails

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 1024:
            raise UserError(f"--size {self.size}: wanted 8 to 1024 pixels")
        if not 0 <= self.max_rejects <= 1:
            raise UserError(f"--max-rejects {self.max_rejects}: wanted a share from 0 to 1")
        if self.workers < 0:
            raise UserError(
                f"--workers {self.workers}: wanted 0 (the cores this process may use) or more"
            )
        if not 0 <= self.task < self.tasks:
            raise UserError(
                f"--task {self.task} of --tasks {self.tasks}: wanted 0 to {self.tasks - 1}"
            )
        if self.source != "synthetic" and self.input is None:
            raise UserError(f"--source {self.source} needs --input PATH")


@dataclass(frozen=True)
class DoctorConfig:
    """Verify shards and audit what is in them. Exit code 0: clean, 3: something was found."""

    folder: Path  # folder of shards
    json: bool = False  # print the findings as JSON
    fix: Path | None = (
        None  # write a clean copy to this folder, with dropped.csv saying what is missing and why
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a run's best weights on a split (again with the same weights and data, it says what was found), or measure what a
    GAN's run makes of it."""

    run: Path  # run folder
    split: Literal["train", "val", "test"] = "val"  # which faces
    data: Path | None = None  # folder of shards; default: the one it was trained on
    tta: Literal["none", "flip", "ten_crop"] = (
        "none"  # views averaged: the face; and its mirror image; five crops of both
    )
    judge: Path | None = (
        None  # GAN: a classifier's run that judges, its faces of any size; default: one trained in RUN/judge
    )
    pairs: int = 2000  # GAN: at most so many pairs of faces
    plugin: tuple[
        Path, ...
    ] = ()  # Python files that the run's network needs; default: those of its training
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self) -> None:
        if self.pairs < 8:
            raise UserError(f"--pairs {self.pairs}: wanted at least 8")


@dataclass(frozen=True)
class TransferConfig:
    """Give the person on one photo the expression on another."""

    neutral: Path  # photo of a neutral face
    expression: Path  # photo of somebody else's expression
    run: Path = Path()  # run folder of a GAN; must be given
    out: Path = Path()  # PNG to write; must be given
    whole: bool = False  # the photos are cut-out faces: take all of them, do not look for a face
    strip: bool = False  # write both inputs beside the output
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self) -> None:
        for name in ("run", "out"):
            if getattr(self, name) == Path():
                raise UserError(
                    f"--{name} is missing: python -m fer_hpc.transfer NEUTRAL EXPRESSION --run RUN --out PNG"
                )
        if self.out.suffix.lower() != ".png":
            raise UserError(f"--out {self.out}: a PNG is written; give a name that ends in .png")


@dataclass(frozen=True)
class GenerateConfig:
    """Copy shards, with faces that a GAN makes of train faces added to the train split's rare classes."""

    data: Path  # folder of shards
    run: Path  # run folder of a GAN that was trained on the same faces, of this or another size
    out: Path  # folder for the larger set
    classes: tuple[str, ...] = ()  # which to fill up; default: those below half of the mean count
    fill: int = 0  # train faces that each of these shall have; 0: half of the mean count
    seed: int = 0  # of which faces are paired
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self) -> None:
        if self.fill < 0:
            raise UserError(
                f"--fill {self.fill}: wanted a number of faces, or 0 for half of the mean count"
            )


@dataclass(frozen=True)
class ReportConfig:
    """Put runs, sweeps and GANs into one HTML page of tables and plots."""

    runs: tuple[Path, ...]  # run folders, sweeps, or folders of them
    out: Path = Path("report")  # folder for index.html, tables and pictures


@dataclass(frozen=True)
class SweepConfig:
    """Train every batch size x learning rate x seed, and say which is best on average over the seeds. Run again, it goes on;
    with more values, it runs only what is new. The metric is --best-on (val_accuracy), at each trial's best epoch."""

    data: Path  # folder of shards
    out: Path  # folder for trials/, results.csv, summary.json, best.json and heatmap.png
    batch_sizes: tuple[int, ...] = (64, 128, 256)  # images per step
    lrs: tuple[float, ...] = (0.001, 0.005, 0.01)  # learning rates at the start
    seeds: tuple[int, ...] = (0, 1, 2)  # a configuration's score is its mean over these
    grid: tuple[
        str, ...
    ] = ()  # more fields to sweep: weight_decay=1e-4,5e-4; may be given several times
    workers_per_trial: int = 1  # processes of one trial; several train it with DDP
    gpus_per_worker: float | None = (
        None  # below 1, trials share a GPU; default: 1 where there are GPUs, else 0
    )
    scheduler: Literal["fifo", "asha"] = (
        "fifo"  # asha: only the better configurations are trained to the end, all their seeds
    )
    asha_reduction_factor: int = (
        3  # asha: at each halt one configuration in so many goes on, but at least two
    )
    asha_first_rung: int = 0  # asha: epochs before the first halt; the next come after --asha-reduction-factor times as many; 0: a ninth of all
    at_once: int = 0  # trials at a time; 0: as many as there is room for
    retries: int = 2  # new starts of a trial whose process has died
    collect: bool = False  # train nothing, only write the tables from what is there

    def __post_init__(self) -> None:
        for name, low in (
            ("workers_per_trial", 1),
            ("asha_reduction_factor", 2),
            ("asha_first_rung", 0),
            ("at_once", 0),
            ("retries", 0),
        ):
            if getattr(self, name) < low:
                raise UserError(f"{flag_name(name)} {getattr(self, name)}: wanted at least {low}")
        for name in ("batch_sizes", "lrs", "seeds"):
            if not getattr(self, name):
                raise UserError(f"{flag_name(name)}: wanted at least one value")
        share = self.gpus_per_worker
        if share is not None and not 0 <= share <= 1:
            raise UserError(
                f"--gpus-per-worker {share:g}: wanted 0 (no GPU) to 1; a process uses one GPU, a trial several processes"
            )
        if share and share < 1 and self.workers_per_trial > 1:
            raise UserError(
                f"--gpus-per-worker {share:g} with --workers-per-trial {self.workers_per_trial}: processes of one trial cannot "
                "share a GPU (NCCL refuses it); use --gpus-per-worker 1, or --workers-per-trial 1"
            )


@dataclass(frozen=True)
class StatusConfig:
    """What runs, waits, has finished or failed, and why; from run folders and Slurm."""

    paths: tuple[
        Path, ...
    ]  # run folders, or folders of run folders; none given: FER_RUNS, else runs
    json: bool = False  # for programs


@dataclass(frozen=True)
class LogsConfig:
    """The logs of all ranks of a run's newest job."""

    run: Path  # run folder
    follow: bool = False  # go on with what is written from now on, until Ctrl-C
    lines: int = 20  # of each log, to begin with


@dataclass(frozen=True)
class CancelConfig:
    """End every waiting or running job of run folders, or of a whole pipeline's folder."""

    paths: tuple[Path, ...]  # run folders, or folders of run folders


@dataclass(frozen=True)
class JobConfig:
    """Resources of a submitted job; everything else on the line goes to the command."""

    cluster: Literal["slurm", "local", "debug"] = (
        "slurm"  # local: in the background here; debug: here and now
    )
    nodes: int = 1  # how many
    gpus_per_node: int = 1  # one process per GPU; 0: one process a job, on CPUs
    cpus: int = 1  # cores per process
    mem: str = ""  # per node, as 32G; default: the site's
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_min: int = 720  # limit in minutes; a run that needs longer saves, is requeued and goes on
    signal_lead_s: int = 30  # seconds before the limit at which Slurm warns
    dry_run: bool = False  # show the batch script and the layout, submit nothing

    def __post_init__(self) -> None:
        for name, low in (
            ("nodes", 1),
            ("gpus_per_node", 0),
            ("cpus", 1),
            ("time_min", 1),
            ("signal_lead_s", 0),
        ):
            if getattr(self, name) < low:
                raise UserError(f"{flag_name(name)} {getattr(self, name)}: wanted at least {low}")


@dataclass(frozen=True)
class PipelineConfig:
    """preprocess (an array) -> train, once per seed -> evaluate -> report, as jobs that wait for each other."""

    source: Literal[
        "affectnet", "affectnet_csv", "fer2013", "arrays", "folder", "synthetic"
    ]  # form of the input
    out: Path  # folder for shards/, runs/ and report/
    input: Path | None = None  # folder or file to read; not needed for synthetic
    count: int = 0  # synthetic: faces to draw
    size: int = 0  # height and width of the stored faces; 0: what the preset's network takes
    channels: int = 0  # 1: gray, 3: RGB; 0: what the preset's network takes
    tasks: int = 4  # array tasks that share the preprocessing
    seeds: tuple[int, ...] = (0, 1, 2)  # one training each
    eval_split: Literal["train", "val", "test"] = "val"  # which faces score the runs
