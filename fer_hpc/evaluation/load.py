"""A trained classifier for use from Python: `load(run)` gives a Predictor.

from fer_hpc.evaluation.load import load
predictor = load("runs/first")
predictor(faces)  # probabilities [N, K]
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fer_hpc.config import UserError
from fer_hpc.data.faces import Reject, crop_and_resize, decode, pixel_fault, with_channels
from fer_hpc.evaluation.calibration import calibration_file, stored_temperature
from fer_hpc.evaluation.metrics import log_softmax
from fer_hpc.files import check_shape, read_file, sha256
from fer_hpc.models.registry import (
    MODELS,
    build_network,
    check_outputs,
    model_spec,
    output_count,
)
from fer_hpc.parallel.device import inference, pick_device
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import list_checkpoints, outcome_file, read_run_config, read_status
from fer_hpc.run.outcome import check_history
from fer_hpc.run.plugins import load_run_plugins
from fer_hpc.run.restore import check_origin

CHUNK = 256  # faces per forward pass
MIN_SIDE = 8  # pixels of a face that is worth enlarging


# ---- a stored run as a network --------------------------------------------------------------

NETWORK = {  # what a network is rebuilt from
    "science": {"model": str, "precision": str},
    "data": {"classes": [str, ...], "image_shape": [int, int, int]},
}


@dataclass(frozen=True)
class StoredNetwork:
    """The network of a run with its best weights, in eval mode on a device."""

    model: nn.Module  # faces [B, C, H, W] in [0, 1] -> outputs [B, classes (+ 2)]
    science: dict[str, Any]  # the run's science fields
    data: dict[str, Any]  # classes, image_shape and faces (how they were cropped)
    weights: Path  # file that holds them
    best: dict[str, Any]  # epoch and scores that belong to the weights

    @property
    def is_final(self) -> bool:
        """Whether the run is finished; else these are the best weights so far."""
        return self.weights.name == "best.pt"


def load_network(
    run: Path, device: torch.device, plugins: Sequence[str | Path] = ()
) -> StoredNetwork:
    """Rebuild a classifier from its run folder, with best.pt or the best weights so far.

    `plugins` are the files that register the network; without them, those of its training.
    """
    stored = read_run_config(run)
    if stored.get("kind", "classifier") != "classifier":
        raise UserError(f"{run} holds a {stored['kind']}; wanted the run of a classifier")
    check_shape(stored, NETWORK, str(run / "config.json"))
    science, data = stored["science"], stored["data"]
    _load_plugins_of(run, stored, plugins)
    path, saved = _find_weights(run)
    check_origin(path, saved, stored)
    best = saved.get("best") or saved  # a checkpoint holds the best weights so far within
    if not isinstance(best, dict):
        raise checkpoint.DamagedCheckpoint(f"{path} has unexpected content; restore it from a copy")
    if "model" not in best or "epoch" not in best:
        raise UserError(
            f"{run} has no weights of a finished epoch yet; the same training command goes on"
        )
    model = build_network(science, len(data["classes"]), tuple(data["image_shape"]))
    try:
        model.load_state_dict(best["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{run}: its weights do not fit the network {science['model']} of this version "
            f"or of its plugin: {str(error).splitlines()[-1].strip()}"
        ) from None
    model.register_forward_hook(_OutputCheck(run, science, len(data["classes"])))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(torch.float64 if science["precision"] == "fp64" else torch.float32)
    return StoredNetwork(
        model.eval(),
        science,
        {**data, **saved.get("data", {})},
        path,
        {key: value for key, value in best.items() if key != "model"},
    )


class _OutputCheck:
    """A hook of the network of `run`: UserError where it gives what no score can be made of."""

    def __init__(self, run: Path, science: dict[str, Any], classes: int) -> None:
        self.run, self.spec = run, model_spec(science["model"])
        self.outputs = output_count(science, classes)

    def __call__(self, _: nn.Module, faces: tuple[torch.Tensor, ...], result: Any) -> None:
        if torch.onnx.is_in_onnx_export():  # an export, which has called the network before
            return
        check_outputs(self.spec, self.outputs, len(faces[0]), result)
        if not bool(result.isfinite().all()):
            raise UserError(
                f"{self.run}: its network {self.spec.name} gives values that are no finite numbers "
                "for some of these faces; correct its plugin if it has one, or train with a "
                "smaller --lr or another --precision in another --run folder"
            )


def _find_weights(run: Path) -> tuple[Path, dict[str, Any]]:
    """best.pt of a finished run, else its newest good checkpoint; the file and what it holds."""
    check_history(run)
    state = read_status(run)["state"]
    if state == "finished" and (best := outcome_file(run, "best.pt")):
        return best, checkpoint.load(best)
    for _, _, path in list_checkpoints(run):
        with contextlib.suppress(checkpoint.DamagedCheckpoint):
            return path, checkpoint.load(path)
    if state == "running":
        raise UserError(
            f"{run} is running and has saved nothing yet; its first checkpoint comes within a "
            "minute or so"
        )
    raise UserError(f"{run} holds no weights yet; train it first")


def _load_plugins_of(run: Path, stored: dict[str, Any], plugins: Sequence[str | Path]) -> None:
    """Import the file that registers the run's network; a warning where it has changed."""
    for warning in load_run_plugins(run, plugins, needed=["model"]):
        print(f"warning: {warning}; its predictions may differ", file=sys.stderr)
    name, registered = stored["science"]["model"], stored.get("plugins", {}).get("model")
    if registered and name not in MODELS:
        what = "plugin" if registered["is_plugin"] else "program"
        raise UserError(
            f"{run}: its network {name!r} was registered by the {what} {registered['path']}; "
            "give a file that registers it with --plugin FILE, in Python plugin=FILE, "
            "or call register_model before"
        )


# ---- for Python users -----------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """A trained classifier: faces in, class probabilities out."""

    model: nn.Module  # faces [B, C, H, W] in [0, 1] -> outputs [B, classes (+ 2)]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels of the faces it was trained on
    crop: dict[str, Any]  # how those faces were cropped and resized
    precision: str
    device: torch.device
    temperature: float | None = None  # that the logits are divided by; None: not calibrated

    def __call__(self, faces: Any) -> NDArray[np.float64]:
        """Class probabilities [N, K] of one face or a batch, in the order of `classes`.

        They are calibrated where there is a `temperature`, as those of `predict`.
        Faces are uint8 arrays or float arrays in [0, 1] of shape [H, W], [H, W, C], [N, H, W] or
        [N, H, W, C] (C: 1 gray, 3 RGB), a path of a picture file, or a sequence of these. They are
        resized to `image_shape`. Of a picture the whole is taken: cut out the face before.
        Raises UserError for anything else.
        """
        batch = np.stack([self._fit(face) for face in _faces_of(faces)])
        parts = np.split(batch, range(CHUNK, len(batch), CHUNK))
        logits = np.concatenate([self._logits(part) for part in parts])
        return np.exp(log_softmax(logits / (self.temperature or 1.0)))

    def predict_names(self, faces: Any) -> list[str]:
        """The name of the most likely class of each face."""
        return [self.classes[k] for k in self(faces).argmax(1)]

    def _fit(self, face: str | Path | NDArray[Any]) -> NDArray[np.float32]:
        """One face as the network takes it: [H, W, C] in [0, 1]."""
        size, _, channels = self.image_shape
        pixels = _read_picture(Path(face), channels) if isinstance(face, str | Path) else face
        pixels = with_channels(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, channels)
        resized = crop_and_resize(pixels, None, size)[0]
        if resized.dtype == np.uint8:
            return resized.astype(np.float32) * np.float32(1 / 255)  # as the loader does
        return resized.astype(np.float32)

    def _logits(self, faces: NDArray[np.float32]) -> NDArray[np.float64]:
        images = torch.from_numpy(faces).to(self.device).permute(0, 3, 1, 2)  # [B, C, H, W]
        if self.precision == "fp64":
            images = images.double()
        self.model.eval()
        with inference(self.precision, self.device):
            outputs = self.model(images).float().cpu().numpy()
        return np.asarray(outputs[:, : len(self.classes)], dtype=np.float64)


def load(
    run: str | Path,
    *,
    device: str = "cpu",
    plugin: str | Path | Sequence[str | Path] = (),
    calibrated: bool = True,
) -> Predictor:
    """The trained classifier of a run folder: its best weights, or the best so far.

    `device` is cpu, cuda or auto. `plugin` names the Python files that register its network,
    where those of its training have moved. `calibrated`: use the temperature that `evaluate` has
    fitted on val for these weights, if it has; else the probabilities are those of the softmax.
    """
    plugins = [plugin] if isinstance(plugin, str | Path) else list(plugin)
    on = pick_device(device)
    network = load_network(Path(run), on, plugins)
    temperature = _temperature(Path(run), network) if calibrated else None
    return Predictor(
        network.model,
        tuple(network.data["classes"]),
        tuple(network.data["image_shape"]),
        network.data.get("faces", {}),
        network.science["precision"],
        on,
        temperature,
    )


def _temperature(run: Path, network: StoredNetwork) -> float | None:
    """The run's temperature; a warning where there is one that cannot be used."""
    if not calibration_file(run).exists():
        return None
    temperature, note = stored_temperature(run, sha256(network.weights))
    if note:
        print(f"warning: probabilities are not calibrated: {note}", file=sys.stderr)
    return temperature


def _faces_of(faces: Any) -> list[str | Path | NDArray[Any]]:
    """One face or a batch as a list of faces: paths, or checked arrays [H, W (, C)]."""
    if isinstance(faces, str | Path):
        return [faces]
    if isinstance(faces, torch.Tensor):
        raise UserError(
            "faces are a torch tensor; wanted arrays with channels last: "
            "tensor.permute(0, 2, 3, 1).numpy()"
        )
    if isinstance(faces, list | tuple):
        face_list = [face for part in faces for face in _faces_of(part)]
    else:
        face_list = _split_batch(np.asarray(faces))
    if not face_list:
        raise UserError("faces are empty; wanted at least one")
    return face_list


def _split_batch(array: NDArray[Any]) -> list[str | Path | NDArray[Any]]:
    """An array of one face or of several as a list of faces; UserError where it holds no faces."""
    has_channels = array.ndim > 2 and array.shape[-1] in (1, 3)
    sides = array.shape[-3:-1] if has_channels else array.shape[-2:]
    dimensions = (3, 4) if has_channels else (2, 3)
    if array.ndim not in dimensions or min(sides) < MIN_SIDE:
        raise UserError(
            f"faces of shape {list(array.shape)}; wanted [H, W], [H, W, C], [N, H, W] or "
            f"[N, H, W, C] with 1 or 3 channels last and sides of {MIN_SIDE} pixels or more"
        )
    if fault := pixel_fault(array):
        raise UserError(f"faces {fault}")
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
    one = array.ndim == 2 or (array.ndim == 3 and has_channels)
    return [array] if one else list(array)


def _read_picture(path: Path, channels: int) -> NDArray[np.uint8]:
    try:
        return decode(read_file(path), channels)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; wanted a picture file") from None
    except (Reject, cv2.error) as why:
        raise UserError(f"{path}: {why}; wanted a JPEG or PNG file") from None
