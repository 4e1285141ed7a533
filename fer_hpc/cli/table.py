"""The table of the verbs: what each takes, its line of help, the function that it calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fer_hpc.cli import deploy, scoring, trust, verbs
from fer_hpc.config import GanConfig, TrainConfig
from fer_hpc.config.commands import (
    CancelConfig,
    CompareConfig,
    DoctorConfig,
    DrillConfig,
    EvaluateConfig,
    GenerateConfig,
    InitConfig,
    LogsConfig,
    PreprocessConfig,
    ReportConfig,
    StatusConfig,
    SweepConfig,
    SyntheticConfig,
    TransferConfig,
    VerifyConfig,
)
from fer_hpc.config.deploy import ExportConfig, PredictConfig
from fer_hpc.config.study import StudyConfig


@dataclass(frozen=True)
class Verb:
    """A command: what it takes, one line of help, what it does with the configuration."""

    config_class: type
    help: str
    run: Callable[[Any], int]

    @property
    def about(self) -> str:
        """The text at the head of the verb's own help."""
        if self.run is verbs.sheet:
            return self.help
        return inspect.cleandoc(self.config_class.__doc__ or "")


VERBS = {
    "synthetic": Verb(
        SyntheticConfig, "draw synthetic faces, to try the commands", verbs.synthetic
    ),
    "preprocess": Verb(PreprocessConfig, "faces -> HDF5 shards", verbs.preprocess),
    "doctor": Verb(DoctorConfig, "shards -> a list of damage, duplicates and leaks", verbs.doctor),
    "sheet": Verb(
        TrainConfig, "shards -> RUN/sheet.png: images as the network sees them", verbs.sheet
    ),
    "train": Verb(
        TrainConfig, "PRESET and shards -> a trained classifier in a run folder", verbs.train
    ),
    "evaluate": Verb(
        EvaluateConfig, "run and split -> scores, predictions, plots", scoring.evaluate
    ),
    "compare": Verb(
        CompareConfig,
        "scored runs -> which is better, or not distinguishable",
        scoring.compare,
    ),
    "predict": Verb(
        PredictConfig, "run and photos -> the expression of every face in them", deploy.predict
    ),
    "export": Verb(ExportConfig, "run -> ONNX, safetensors and a model card", deploy.export),
    "tune": Verb(
        SweepConfig,
        "preset and shards -> a ranking of batch sizes, learning rates and seeds",
        verbs.tune,
    ),
    "train_gan": Verb(GanConfig, "shards -> a GAN for expression transfer", verbs.train_gan),
    "transfer": Verb(
        TransferConfig,
        "two photos and a GAN -> the first face with the other's expression",
        verbs.transfer,
    ),
    "generate": Verb(
        GenerateConfig, "shards and a GAN -> shards with more faces of rare classes", verbs.generate
    ),
    "report": Verb(ReportConfig, "run folders -> one HTML page of tables and plots", verbs.report),
    "study": Verb(
        StudyConfig, "faces -> a whole study: all models, grid, GAN, scores, one page", verbs.study
    ),
    "drill": Verb(
        DrillConfig, "kill and damage small runs, and prove that they end the same", trust.drill
    ),
    "verify": Verb(
        VerifyConfig, "two runs -> equal, or the first difference and its cause", trust.verify
    ),
    "init": Verb(InitConfig, "batch scripts and jobs -> a folder of your own, to edit", verbs.init),
    "status": Verb(
        StatusConfig, "which runs wait, run, have finished or failed, and why", verbs.status
    ),
    "logs": Verb(LogsConfig, "the logs of all ranks of a run's newest job", verbs.logs),
    "cancel": Verb(CancelConfig, "cancel the jobs of run folders", verbs.cancel),
}
