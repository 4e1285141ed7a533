"""The flags of the commands that make and check shards: a frozen dataclass each.

Standard library only. The types of the fields are read by the command line and the checks, so they
are not postponed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.errors import UserError
from fer_hpc.config.fields import check_fields, option, required

Splitting = Literal["auto", "official", "report", "person", "test"]

SPLITTING_HELP = (
    "official: the source's; report, person: 70 / 15 / 15 % by face, by person; test: all test; "
    "auto"
)
MAX_DRAWN = 10_000_000  # synthetic faces; larger numbers are taken for typing mistakes
SOURCE_HELP = (
    "form of the input: auto, folder, table, fer2013, affectnet, affectnet_csv, rafdb, ... "
    "(docs/data.md)"
)


@dataclass(frozen=True)
class SyntheticConfig:
    """Draw synthetic faces into a folder in AffectNet's layout. Existing faces are kept.

    With --scenes, photographs of one to five people, and boxes.csv: for predict.
    """

    out: Path = required("folder to fill")
    count: int = option(6000, "number of faces, or of photographs", low=1, high=MAX_DRAWN)
    scenes: bool = option(False, "draw photographs of several people instead")
    seed: int = option(0, "another seed gives other faces", low=0)
    workers: int = option(0, "processes; 0: the cores this process may use", low=0, high=1024)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class PreprocessConfig:
    """Turn faces into HDF5 shards. The same command continues where it stopped."""

    source: str = required(SOURCE_HELP)
    out: Path = required("folder for the shards")
    input: Path | None = option(
        None, "folder, archive or file to read; not needed for synthetic", file=True
    )
    size: int = option(48, "height and width of the stored faces, pixels", low=8, high=1024)
    channels: Literal[1, 3] = option(1, "1: gray, 3: RGB")
    split: Splitting = option("auto", SPLITTING_HELP)
    image_root: Path | None = option(
        None, "tables: folder of the pictures; default: the folder of the table"
    )
    crop: Literal["auto", "none", "detect"] = option(
        "auto", "auto: by landmarks or boxes, if any; none: whole pictures; detect: find the face"
    )
    classes: str = option(
        "",
        "class names in the order of the numbers, whose numbers they are, or a CSV: label,class",
    )
    labels: Literal["majority", "distribution"] = option(
        "majority", "ferplus: the class with most votes, or their distribution as soft targets"
    )
    columns: Path | None = option(
        None, "CSV with source_id and columns to add to the shards (group, age, ...)", file=True
    )
    count: int = option(0, "synthetic: number of faces", low=0, high=MAX_DRAWN)
    seed: int = option(0, "synthetic: another seed gives other faces", low=0)
    workers: int = option(0, "processes; 0: the cores this process may use", low=0, high=1024)
    task: int = option(0, "index of this process, 0 to --tasks minus 1", low=0)
    tasks: int = option(
        1, "processes that share the work, as array jobs; any number gives the same shards", low=1
    )
    plugin: tuple[Path, ...] = option(
        (), "Python files that register sources", repeat=True, file=True
    )
    max_rejects: float = option(
        0.05,
        "accepted share of unusable, ignored or whole pictures; with more, the command fails",
        low=0,
        high=1,
    )
    strict: bool = option(
        False, "fail where anything is rejected, ignored, or taken whole for want of a box"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.labels == "distribution" and self.source not in ("ferplus", "auto"):
            raise UserError("--labels distribution needs --source ferplus: others have no votes")
        if self.task >= self.tasks:
            raise UserError(
                f"--task {self.task} of --tasks {self.tasks}: wanted 0 to {self.tasks - 1}"
            )


@dataclass(frozen=True)
class DoctorConfig:
    """Check shards for damage, duplicates, label conflicts and leaks. Exit code 3: findings."""

    folder: Path = required("folder of shards", positional=True)
    json: bool = option(False, "print the findings as JSON")
    out: Path | None = option(None, "JSON file to write the findings to as well", file=True)
    fix: Path | None = option(
        None, "folder for a copy without these faces; its dropped.csv lists them and why"
    )
    sheet: Path | None = option(
        None, "PNG to write: the faces of each duplicate or leak side by side", file=True
    )
    suspects: Path | None = option(
        None,
        "label-noise-NAME.csv of evaluate --gallery: faces to show as well; "
        "--fix drops those of train",
        file=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
