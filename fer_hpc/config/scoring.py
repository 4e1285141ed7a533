"""The flags of the commands that score and compare. Standard library only.

The types of the fields are read by the command line and the checks, so they are not postponed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.errors import UserError
from fer_hpc.config.fields import check_fields, option, required

Device = Literal["auto", "cpu", "cuda"]
Split = Literal["train", "val", "test"]

DEVICE_HELP = "auto: cuda if there is a GPU, else cpu"


@dataclass(frozen=True)
class EvaluateConfig:
    """Score the best weights of a run on a split, or measure a GAN.

    Scores of the same weights and data are kept, not computed again.
    """

    run: Path = required("run folder", positional=True)
    split: Split = option("val", "faces to score on")
    data: Path | None = option(None, "folder of shards; default: the one of the training")
    tta: Literal["none", "flip", "ten_crop"] = option(
        "none", "views averaged; flip: face and mirror image; ten_crop: five crops of both"
    )
    judge: Path | None = option(
        None,
        "GAN: run folder of the classifier that scores it; default: one is trained in RUN/judge",
    )
    identity_judge: str = option(
        "auto",
        "GAN: run folder of a classifier of persons; auto: trained in RUN/identity; off: none",
    )
    pairs: int = option(2000, "GAN: largest number of pairs of faces", low=8)
    robust: bool = option(
        False, "also score under blur, noise, masks, ...: RUN/robust-NAME.json, .csv and .png"
    )
    robust_faces: int = option(
        0, "--robust: most faces, evenly spaced; 0: 5000 on a GPU, 1000 on a CPU", low=0
    )
    gallery: bool = option(
        False, "also write RUN/gallery-NAME.png, surest misses and hits, and label-noise-NAME.csv"
    )
    by: tuple[str, ...] = option(
        (), "columns of the shards to score by; default: all that have 2 to 40 values"
    )
    min_group: int = option(30, "--by: faces of a group that counts for the gap", low=1)
    plugin: tuple[Path, ...] = option(
        (),
        "Python files that the network needs; default: those of the training",
        repeat=True,
        file=True,
    )
    device: Device = option("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class CompareConfig:
    """Compare the stored predictions of runs on the same faces, in pairs, or two sets of seeds.

    A difference in accuracy whose interval contains zero is called not distinguishable.
    """

    runs: tuple[Path, ...] = required("run folders", positional=True)
    versus: tuple[Path, ...] = option(
        (), "run folders of the other configuration: two sets of seeds are compared", repeat=True
    )
    split: Split = option("val", "predictions of this split")
    name: str = option(
        "", "predictions of another NAME, as test-flip or test-on-rafdb; replaces --split"
    )
    json: bool = option(False, "print JSON, for programs")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.versus and len(self.runs) < 2:
            raise UserError("wanted two run folders or more; or --versus RUN ... for two sets")
