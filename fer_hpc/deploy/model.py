"""A classifier for faces: a run folder with torch, or an exported ONNX file without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.files import DAMAGE, check_shape, damage_reason

MAX_SIDE = 4096  # pixels of a face
METADATA = "fer_hpc"  # the key of an ONNX file's metadata that holds `About` as JSON


@dataclass(frozen=True)
class About:
    """What belongs to a classifier beside its weights; kept in the ONNX file."""

    run: str  # name of the run folder
    network: str  # --model
    classes: list[str]
    image_shape: list[int]  # height, width, channels
    faces: dict[str, Any]  # how the training faces were cut and resized
    weights: str  # SHA-256 of the file that holds them
    epoch: int
    temperature: float | None  # that calibrates the probabilities; None: not calibrated
    input: str = "uint8"  # of the ONNX file

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str, where: str) -> About:
        """Raises a UserError, with `where` in it, for another content."""
        record = json.loads(text)
        wanted = {"run": str, "network": str, "classes": [str, ...], "image_shape": [int, ...]}
        more = {"faces": {}, "weights": str, "epoch": int, "temperature": (float, None)}
        check_shape(record, {**wanted, **more, "input": str}, where)
        sides, names = record["image_shape"], record["classes"]
        if len(sides) != 3 or not all(1 <= s <= MAX_SIDE for s in sides) or sides[2] not in (1, 3):
            raise UserError(f"{where}: image_shape is {sides}; wanted height, width, 1 or 3")
        if len(names) < 2 or record["input"] not in ("uint8", "float"):
            raise UserError(f"{where}: its classes or its input are impossible")
        return About(**{f.name: record[f.name] for f in fields(About)})


@dataclass(frozen=True)
class Outputs:
    """What a classifier says about N faces."""

    probabilities: NDArray[np.float64]  # [N, K], calibrated where there is a temperature
    affect: NDArray[np.float64] | None  # [N, 2] valence and arousal in [-1, 1]


class FaceModel(Protocol):
    """A classifier with what belongs to it."""

    @property
    def about(self) -> About: ...

    def __call__(self, faces: NDArray[np.uint8]) -> Outputs:
        """What it says about faces [N, H, W, C] of `about.image_shape`."""
        ...


def open_model(path: Path, device: str = "auto", plugins: Sequence[Path] = ()) -> FaceModel:
    """The classifier of a run folder, or of a .onnx file that `fer-hpc export` wrote."""
    if path.suffix.lower() == ".onnx" or path.is_file():
        return OnnxModel(path, device)
    from fer_hpc.deploy.torch_model import TorchModel  # loads torch

    return TorchModel(path, device, plugins)


def calibrated(logits: NDArray[Any], temperature: float | None) -> NDArray[np.float64]:
    """Probabilities [N, K] of logits [N, K]."""
    scaled = logits.astype(np.float64) / (temperature or 1.0)
    shares = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))


class OnnxModel:
    """An exported classifier, run by onnxruntime; `content`: of the file, before it is written."""

    def __init__(self, path: Path, device: str = "auto", content: bytes | None = None) -> None:
        if content is None and not path.is_file():
            raise UserError(f"{path}: no such file; wanted a .onnx file of fer-hpc export")
        self._path = path
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        has_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if device == "cuda" and not has_gpu:
            raise UserError("--device cuda: this onnxruntime has no CUDA; use --device cpu")
        on_gpu = ["CUDAExecutionProvider"] if has_gpu and device != "cpu" else []
        try:
            self._session = onnxruntime.InferenceSession(
                content or path, providers=[*on_gpu, "CPUExecutionProvider"]
            )
        except Exception as error:  # its own errors have no common class
            reason = str(error).splitlines()[0]
            if "INVALID_PROTOBUF" in reason:
                reason = "it is no ONNX file, or a damaged one; export the run again"
            raise UserError(f"{path} cannot be read by onnxruntime: {reason}") from None
        try:
            metadata = self._session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise UserError(f"{path}: its metadata are not text; export the run again") from None
        if METADATA not in metadata:
            raise UserError(
                f"{path} was not written by fer-hpc export: its metadata lack the classes"
            )
        try:
            self.about = About.from_json(metadata[METADATA], f"metadata of {path}")
        except DAMAGE as error:
            raise UserError(f"{path}: {damage_reason(error)}; export the run again") from None

    def __call__(self, faces: NDArray[np.uint8]) -> Outputs:
        inputs = faces if self.about.input == "uint8" else faces.astype(np.float32) / 255
        try:
            names = [each.name for each in self._session.get_outputs()]
            outputs = dict(zip(names, self._session.run(None, {"faces": inputs}), strict=True))
        except Exception as error:  # its own errors have no common class
            reason = str(error).splitlines()[0]
            raise UserError(f"{self._path} cannot be run: {reason}; export it again") from None
        shape = len(faces), len(self.about.classes)
        if "probabilities" not in outputs or np.shape(outputs["probabilities"]) != shape:
            raise UserError(f"{self._path} gives no probabilities {list(shape)}; export it again")
        affect = outputs.get("affect")
        return Outputs(
            outputs["probabilities"].astype(np.float64),
            None if affect is None else affect.astype(np.float64),
        )
