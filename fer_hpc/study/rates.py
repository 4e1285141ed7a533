"""How fast trainings are, for plans: figures of docs/benchmarks.md, or this study's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fer_hpc.config import PRESETS
from fer_hpc.run.folder import read_rows
from fer_hpc.study.graph import Part
from fer_hpc.study.plan import shape_of

# Images/s (GAN: pairs/s) at the preset's batch size, and the side of the faces in pixels.
# GPU: one NVIDIA H200, bf16, docs/benchmarks.md. CPU: two cores of an AMD EPYC with AVX2, fp32.
GPU = {
    "cnn_baseline": (57_462, 48),
    "cnn_improved": (82_133, 48),
    "resnet_baseline": (27_826, 48),
    "resnet_improved": (2_768, 224),
    "vgg": (10_687, 48),
    "fer2013": (61_492, 48),
    "gan": (787, 64),
}
CPU = {
    "cnn_baseline": (700, 48),
    "cnn_improved": (630, 48),
    "resnet_baseline": (520, 48),
    "resnet_improved": (5.0, 224),
    "vgg": (50, 48),
    "fer2013": (120, 48),
    "gan": (15, 64),
}
CPU_CORES = 2
SHARED_GPU = 1.6  # four trials of a grid on one GPU, beside one alone
GPU_FIGURES = "an H200's figures, docs/benchmarks.md"
CPU_FIGURES = "figures of two EPYC cores"
MEASURED = "measured in this study"
FACES_PER_CORE_S = 900.0  # of preprocessing: docs/benchmarks.md, 1,867 on two cores
SCORING = 3.0  # scoring takes no backward pass
# Weights of a network for eight classes, in millions.
PARAMETERS = {
    "cnn_baseline": 2.4,
    "cnn_improved": 4.9,
    "resnet_baseline": 0.2,
    "resnet_improved": 26.1,
    "vgg": 40.4,
    "fer2013": 7.8,
    "gan": 21.0,
}


@dataclass(frozen=True)
class Rate:
    """Images per second of a part, and where the figure comes from."""

    images_per_s: float
    origin: str


def rate_of(part: Part, on_gpu: bool, measured: dict[tuple[str, str], float]) -> Rate:
    """The rate of a training on one GPU, or on the cores that it takes."""
    key = _key(part)
    if key in measured:
        return Rate(measured[key], MEASURED)
    name = key[0] if key[0] in CPU else str(PRESETS.get(key[0], {}).get("model", "vgg"))
    images_per_s, side = (GPU if on_gpu else CPU)[name if name in CPU else "vgg"]
    images_per_s *= (side / shape_of(part.product)[0]) ** 2
    if not on_gpu:
        images_per_s *= max(part.threads, 1) / CPU_CORES
    return Rate(images_per_s, GPU_FIGURES if on_gpu else CPU_FIGURES)


def _key(part: Part) -> tuple[str, str]:
    return ("gan" if part.is_gan else part.preset), part.product


def measured_rates(parts: list[Part]) -> dict[tuple[str, str], float]:
    """(preset, product) -> images/s of the trainings of this study that have ended an epoch."""
    rates_by_key: dict[tuple[str, str], list[float]] = {}
    for part in parts:
        folders: list[Path] = [part.folder] if part.kind in ("train", "gan") else []
        if part.kind == "grid":
            folders = [path.parent for path in part.folder.glob("trials/*/config.json")][:3]
        for folder in folders:
            rows = read_rows(folder, "timing.jsonl")
            rates = [row["images_per_s"] for row in rows if row.get("images_per_s")]
            rates_by_key.setdefault(_key(part), []).extend(rates[-1:])
    return {key: sum(rates) / len(rates) for key, rates in rates_by_key.items() if rates}
