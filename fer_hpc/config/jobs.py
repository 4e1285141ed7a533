"""The flags of jobs/*.py: resources of a job, and a pipeline of several. Standard library only.

The types of the fields are read by the command line and the checks, so they are not postponed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.commands import MAX_DRAWN, SOURCE_HELP, SPLITTING_HELP, Split, Splitting
from fer_hpc.config.fields import check_fields, option, required


@dataclass(frozen=True)
class JobConfig:
    """Resources of a submitted job."""

    cluster: Literal["slurm", "sge", "local", "debug"] = option(
        "slurm",
        "sge: Grid Engine; local: in the background of this machine; debug: in this process",
        group="job",
    )
    nodes: int = option(1, "number of nodes", low=1)
    gpus_per_node: int = option(
        1, "GPUs per node, one process for each; 0: one process on CPUs", low=0
    )
    cpus: int = option(1, "cores per process", low=1)
    mem: str = option("", "memory per node, for example 32G; default: the site's")
    partition: str | None = option(None, "partition (sge: queue); default: the site's")
    account: str | None = option(None, "account (sge: project); default: the site's")
    qos: str | None = option(None, "quality of service; default: the site's")
    time_min: int = option(
        720, "time limit, minutes; a longer run saves, is requeued and continues", low=1
    )
    signal_lead_s: int = option(
        30, "seconds before the time limit at which Slurm sends its warning signal", low=0
    )
    sbatch: tuple[str, ...] = option(
        (), "any other option of sbatch, as constraint=h100", repeat=True, commas=False
    )
    qsub: tuple[str, ...] = option(
        (), "any other option of qsub, as l=gpu_c=7.0", repeat=True, commas=False
    )
    sge_gpus: str = option("gpus", "sge: the site's resource that counts GPUs")
    sge_pe: str = option("omp", "sge: the site's parallel environment for cores of one host")
    keep_code: bool = option(
        True, "run the code as it is now, also after a requeue, not as it is edited meanwhile"
    )
    dry_run: bool = option(False, "print the batch script and the layout, submit nothing")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class PipelineConfig:
    """preprocess (an array) -> train, once per seed -> evaluate -> report, as dependent jobs."""

    source: str = required(SOURCE_HELP, group="pipeline")
    out: Path = required("folder for shards/, runs/ and report/")
    input: Path | None = option(None, "folder or file to read; not needed for synthetic", file=True)
    classes: str = option(
        "", "class names in the order of the data's numbers, or a CSV, as for preprocess"
    )
    split: Splitting = option("auto", SPLITTING_HELP)
    count: int = option(0, "synthetic: number of faces", low=0, high=MAX_DRAWN)
    size: int = option(0, "height and width of the faces, pixels; 0: the preset's", low=0)
    channels: Literal[0, 1, 3] = option(0, "1: gray, 3: RGB; 0: the preset's")
    tasks: int = option(4, "array tasks that share the preprocessing", low=1)
    seeds: tuple[int, ...] = option((0, 1, 2), "one training for each seed", low=0)
    eval_split: Split = option("val", "faces to score the runs on")

    def __post_init__(self) -> None:
        check_fields(self)
