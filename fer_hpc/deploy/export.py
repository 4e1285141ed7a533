"""A run as files for others: python -m fer_hpc.export RUN --out DIR.

model.onnx has the normalisation and the calibration inside, model.safetensors the weights by the
network's own names, README.md the model card.
"""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fer_hpc.config import UserError
from fer_hpc.config.deploy import ExportConfig
from fer_hpc.config.errors import apart, counted
from fer_hpc.deploy.card import model_card
from fer_hpc.deploy.model import METADATA, About, OnnxModel, calibrated
from fer_hpc.deploy.torch_model import describe
from fer_hpc.evaluation.load import StoredNetwork, load_network
from fer_hpc.evaluation.score import split_outputs
from fer_hpc.files import check_output, remove_leftovers, write_bytes, write_text
from fer_hpc.parallel.device import autocast

TOLERANCE = 1e-3  # largest difference of a probability between onnxruntime and torch
FILES = {  # and what each has in it
    "model.onnx": METADATA,
    "model.safetensors": f'"{METADATA}"',
    "README.md": "Written by fer_hpc ",
}
CHECKED = 1, 31  # batch sizes
CPU = torch.device("cpu")

Faces = NDArray[np.uint8]  # [N, H, W, C]


class Exported(nn.Module):
    """A network with all that stands between a face and a probability."""

    def __init__(self, network: nn.Module, about: About) -> None:
        super().__init__()
        self.network, self.classes = network, len(about.classes)
        self.of_bytes = about.input == "uint8"
        self.temperature: torch.Tensor
        self.register_buffer("temperature", torch.tensor(about.temperature or 1.0))

    def forward(self, faces: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Faces [N, H, W, C] -> logits [N, K], probabilities [N, K], and affect [N, 2] if any."""
        images = faces.permute(0, 3, 1, 2).float()
        outputs = self.network(images * (1 / 255) if self.of_bytes else images)
        logits = outputs[:, : self.classes]
        tensors = logits, torch.softmax(logits / self.temperature, 1)
        affect = outputs[:, self.classes :]
        return (*tensors, torch.tanh(affect)) if affect.shape[1] else tensors


def export(config: ExportConfig) -> list[str]:
    """Write the files to `config.out`; gives what was written and how it was checked, as lines.

    UserError where the network cannot be exported, or onnxruntime's probabilities differ from
    torch's by more than TOLERANCE.
    """
    require("onnx", "onnxruntime", "safetensors")
    onnx_file, weights_file, card = (config.out / name for name in FILES)
    for path, marker in zip((onnx_file, weights_file, card), FILES.values(), strict=True):
        check_output(path, marker)
    network = load_network(config.run, CPU, config.plugin)
    about, note = describe(config.run, network)
    about = replace(about, input=config.input)
    if note:
        print(f"note: {note}", file=sys.stderr)
    faces = _sample_faces(about.image_shape)
    _probabilities(network, about, faces[: min(CHECKED)])  # refuses a network for many at a time
    in_own_precision = _probabilities(network, about, faces)
    network.model.float()
    exact = replace(network, science={**network.science, "precision": "fp32"})
    in_fp32 = _probabilities(exact, about, faces)
    content = _onnx(Exported(network.model, about).eval(), about, faces)
    difference = _check(onnx_file, content, about, faces, in_fp32)
    config.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(config.out)
    write_bytes(onnx_file, content)
    write_bytes(weights_file, _safetensors(network.model, about))
    shape = ", ".join(map(str, about.image_shape))
    rounding = float(np.abs(in_fp32 - in_own_precision).max())
    facts = {
        "difference": difference,
        "precision": network.science["precision"],
        "rounding": rounding,
        "parameters": sum(p.numel() for p in network.model.parameters()),
    }
    write_text(card, model_card(config.run, about, network.is_final, facts))
    lines = [
        f"{onnx_file}: {len(content) / 1e6:.1f} MB, faces [N, {shape}] {about.input} -> logits, "
        f"probabilities ({'calibrated' if about.temperature else 'not calibrated'})",
        f"  checked with onnxruntime on {counted(len(faces), 'face')}: probabilities differ from "
        f"torch's by at most {difference:.1e}",
    ]
    if network.science["precision"] not in ("fp32", "fp64"):
        lines.append(
            f"  it computes in fp32; in {network.science['precision']}, as the run does, "
            f"probabilities differ by at most {rounding:.1e}"
        )
    return [*lines, f"{weights_file}: {facts['parameters']:,} parameters", f"{card}: model card"]


def require(*modules: str) -> None:
    """A UserError that says how to install what is missing."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            raise UserError(
                f"{sys.executable} has no {name}: pip install 'fer-hpc[export]', "
                "or pip install onnx onnxruntime safetensors"
            ) from None


def _sample_faces(shape: list[int]) -> Faces:
    """Noise of several kinds, [sum of CHECKED, H, W, C]."""
    rng = np.random.default_rng(0)
    count = sum(CHECKED)
    coarse = rng.integers(0, 256, (count, 4, 4, shape[2]))
    smooth = coarse.repeat(-(-shape[0] // 4), 1).repeat(-(-shape[1] // 4), 2)
    smooth = smooth[:, : shape[0], : shape[1]]
    noise = rng.normal(0, 1, smooth.shape) * rng.uniform(0, 40, (count, 1, 1, 1))
    return np.asarray(np.clip(smooth + noise, 0, 255), dtype=np.uint8)


@torch.no_grad()
def _probabilities(network: StoredNetwork, about: About, faces: Faces) -> NDArray[np.float64]:
    """What torch gives, in the precision that the weights have now."""
    parameter = next(network.model.parameters())
    images = torch.from_numpy(faces).permute(0, 3, 1, 2).to(parameter.dtype) * (1 / 255)
    is_single = parameter.dtype == torch.float32
    with autocast(network.science["precision"] if is_single else "fp32", CPU):
        outputs = network.model(images).double().numpy()
    return calibrated(split_outputs(outputs, len(about.classes))[0], about.temperature)


def _onnx(model: Exported, about: About, faces: Faces) -> bytes:
    """The ONNX file's content, with `about` in its metadata."""
    import onnx

    names = ["logits", "probabilities"]
    example = torch.from_numpy(faces[:2] if about.input == "uint8" else faces[:2] / np.float32(255))
    with torch.no_grad():
        names += ["affect"] if len(model(example)) > 2 else []
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # torch's newer exporter needs onnxscript; what this one gives is checked below
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (example,),
                buffer,
                input_names=["faces"],
                output_names=names,
                dynamic_axes={name: {0: "n"} for name in ("faces", *names)},
                dynamo=False,
            )
    except Exception as error:  # anything that a plugin's network raises or lacks
        raise UserError(
            f"--model {about.network} cannot be exported as ONNX: {str(error).splitlines()[0]}"
        ) from error
    onnx_model = onnx.load_model_from_string(buffer.getvalue())
    entry = onnx_model.metadata_props.add()
    entry.key, entry.value = METADATA, about.as_json()
    onnx.checker.check_model(onnx_model)
    return bytes(onnx_model.SerializeToString())


def _check(
    path: Path, content: bytes, about: About, faces: Faces, in_fp32: NDArray[np.float64]
) -> float:
    """The largest difference of a probability to torch's, over batches of several sizes."""
    model = OnnxModel(path, "cpu", content)
    batches = np.split(faces, np.cumsum(CHECKED)[:-1])
    probabilities = np.concatenate([model(batch).probabilities for batch in batches])
    difference = float(np.abs(probabilities - in_fp32).max())
    if not difference <= TOLERANCE:  # also for NaN
        raise UserError(
            f"--model {about.network}: its ONNX file gives probabilities that differ from torch's "
            f"by {apart(difference, TOLERANCE)}, more than {TOLERANCE:g}; nothing was written"
        )
    return difference


def _safetensors(model: nn.Module, about: About) -> bytes:
    from safetensors.torch import save

    tensors: dict[str, Any] = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    return bytes(save(tensors, {METADATA: about.as_json()}))
