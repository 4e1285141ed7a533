"""The flags of `fer-hpc study`. Standard library only.

The types of the fields are read by the command line and the checks, so they are not postponed.
"""

from dataclasses import dataclass
from pathlib import Path

from fer_hpc.config.errors import UserError
from fer_hpc.config.fields import check_fields, option, required
from fer_hpc.config.prepare import MAX_DRAWN, SOURCE_HELP, SPLITTING_HELP, Splitting

TINY = "tiny"
MAX_SCALE = 10.0


@dataclass(frozen=True)
class StudyConfig:
    """Run a whole study: shards, all models with their seeds, grid, GAN, scores and one page.

    The first call writes OUT/study.toml, the plan, which may be edited before a part has run. The
    same command, or `fer-hpc study OUT` alone, goes on wherever it was stopped.
    """

    out: Path = required("folder of the study", positional=True, group="study")
    source: str = option("", f"{SOURCE_HELP}; needed at the first call")
    input: Path | None = option(None, "folder or file to read; not needed for synthetic", file=True)
    split: Splitting = option("auto", SPLITTING_HELP)
    classes: str = option(
        "", "class names in the order of the data's numbers, or a CSV, as for preprocess"
    )
    count: int = option(
        0, "synthetic: number of faces; 0: 6,000, or 240 in a tiny study", low=0, high=MAX_DRAWN
    )
    scale: str = option(
        "1", "the recipes' epochs are multiplied by this; tiny: everything small, for a test"
    )
    tasks: int = option(4, "jobs that share the preprocessing on a scheduler", low=1)

    def __post_init__(self) -> None:
        check_fields(self)
        scale_factor(self.scale)


def scale_factor(scale: str) -> float:
    """The factor of --scale; 1 for tiny, whose epochs are its own."""
    if scale == TINY:
        return 1.0
    try:
        value = float(scale)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SCALE:
        raise UserError(
            f"--scale {scale}: wanted a number above 0 and up to {MAX_SCALE:g}, or {TINY}"
        )
    return value
