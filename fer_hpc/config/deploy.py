"""The flags of the commands that use a trained classifier: a frozen dataclass each.

Standard library only. The types of the fields are read by the command line and the checks, so they
are not postponed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.errors import UserError
from fer_hpc.config.fields import check_fields, option, required

PLUGIN_HELP = "Python files that the network needs; default: those of the training"
DEVICE_HELP = "auto: cuda if there is a GPU, else cpu"


@dataclass(frozen=True)
class PredictConfig:
    """Find the faces in photos and name their expressions.

    Exit code 3: a file could not be read, or there is no face in any photo.
    """

    run: Path = required(
        "run folder, or a .onnx file of fer-hpc export", positional=True, file=True
    )
    photos: tuple[Path, ...] = option(
        (), "photos, folders of them, or patterns such as 'day1/*.jpg'", positional=True, file=True
    )
    out: Path | None = option(
        None, "folder for predictions.csv, predictions.json, sheet-1.jpg; default: only print"
    )
    boxes: Path | None = option(
        None,
        "CSV of path and left,top,right,bottom or landmarks, in place of finding faces",
        file=True,
    )
    crop: Literal["auto", "none"] = option(
        "auto", "auto: find faces, cut as in training; none: every picture is a face"
    )
    faces: Literal["all", "largest"] = option("all", "which faces of a photo")
    sheets: int = option(10, "most pages of the contact sheet, 18 photos each", low=0)
    batch_size: int = option(64, "faces per pass of the network", low=1)
    workers: int = option(
        0, "threads that read photos and find faces; 0: the cores this process may use", low=0
    )
    plugin: tuple[Path, ...] = option((), PLUGIN_HELP, repeat=True, file=True)
    device: Literal["auto", "cpu", "cuda"] = option("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.boxes and self.crop == "none":
            raise UserError("--boxes with --crop none: give one of them")
        if not self.photos and not self.boxes:
            raise UserError("PHOTOS are missing: give photos or folders, or --boxes FILE")


@dataclass(frozen=True)
class ExportConfig:
    """Write a run as ONNX and safetensors with a model card.

    The ONNX file takes faces as they are (normalisation inside) and gives calibrated probabilities.
    """

    run: Path = required("run folder of a classifier", positional=True)
    out: Path = required("folder for model.onnx, model.safetensors and README.md")
    input: Literal["uint8", "float"] = option(
        "uint8", "faces [N, H, W, C] that the ONNX file takes: uint8 0 to 255, or float 0 to 1"
    )
    plugin: tuple[Path, ...] = option((), PLUGIN_HELP, repeat=True, file=True)

    def __post_init__(self) -> None:
        check_fields(self)
