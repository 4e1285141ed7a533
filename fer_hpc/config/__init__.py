"""What a run is: configurations, presets, names and errors. Standard library only."""

from fer_hpc.config.classes import CLASSES
from fer_hpc.config.errors import (
    EXIT_CRASHED,
    EXIT_FINDINGS,
    EXIT_FINISHED,
    EXIT_RUN_AGAIN,
    EXIT_TAKEN_OVER,
    EXIT_USER_ERROR,
    UserError,
    flag_name,
    unknown_name_error,
)
from fer_hpc.config.fields import (
    SCHEMA,
    fields_of,
    flag_arguments,
    format_flag,
    merge_for_resume,
    non_default_fields,
    runtime,
    science,
    science_hash,
)
from fer_hpc.config.gan import GanConfig
from fer_hpc.config.presets import PRESETS, changed_fields, preset, preset_changes
from fer_hpc.config.train import TrainConfig, check_divides, ranks_that_fit

RunConfig = TrainConfig | GanConfig  # what a run folder can be of

__all__ = [
    "CLASSES",
    "EXIT_CRASHED",
    "EXIT_FINDINGS",
    "EXIT_FINISHED",
    "EXIT_RUN_AGAIN",
    "EXIT_TAKEN_OVER",
    "EXIT_USER_ERROR",
    "PRESETS",
    "SCHEMA",
    "GanConfig",
    "RunConfig",
    "TrainConfig",
    "UserError",
    "changed_fields",
    "check_divides",
    "fields_of",
    "flag_arguments",
    "flag_name",
    "format_flag",
    "merge_for_resume",
    "non_default_fields",
    "preset",
    "preset_changes",
    "ranks_that_fit",
    "runtime",
    "science",
    "science_hash",
    "unknown_name_error",
]
