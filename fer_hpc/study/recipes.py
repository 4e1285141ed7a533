"""What a new study holds, by its source and scale: products of faces, models, grid and GAN."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fer_hpc.config import PRESETS, GanConfig
from fer_hpc.config.jobs import JobConfig
from fer_hpc.config.study import TINY, StudyConfig, scale_factor

MODELS = ("cnn_baseline", "cnn_improved", "resnet_baseline", "resnet_improved", "vgg")
LARGE_MODELS = ("resnet_improved",)  # take the large faces
GRAY_48 = ("fer2013", "ferplus")  # sources whose faces are gray and have 48 pixels
SEEDS = [0, 1, 2]
WINNER_SEEDS = [3, 4, 5]  # not those of the grid, which chose the winner
BATCH_SIZES, LRS = [64, 128, 256], [0.001, 0.005, 0.01]
TINY_FACES, USUAL_FACES = 240, 6000

Table = dict[str, Any]


def new_tables(config: StudyConfig, job: JobConfig) -> Table:
    """The content of a new study.toml."""
    tiny, factor = config.scale == TINY, scale_factor(config.scale)
    small, large, faces_of_gan = _products(config.source, tiny)
    one, all_cores = _threads(job, tiny)

    def epochs(usual: int) -> int:
        return 2 if tiny else max(1, round(usual * factor))

    models: Table = {}
    for name in MODELS:
        is_large = name in LARGE_MODELS
        models[name] = {
            "data": large if is_large else small,
            "seeds": SEEDS,
            "epochs": 1 if tiny and is_large else epochs(PRESETS[name]["epochs"]),
            "threads": all_cores if is_large else one,
        }
        if tiny:
            models[name] |= {"batch_size": 32, "tensorboard": False}
            models[name] |= {"lr": 0.001} if name == "vgg" else {}  # .01 diverges in so few steps
    grid: Table = {
        "preset": "cnn_improved",
        "data": small,
        "batch_sizes": [16, 32, 64] if tiny else BATCH_SIZES,
        "lrs": LRS,
        "seeds": SEEDS,
        "epochs": 1 if tiny else epochs(PRESETS["cnn_improved"]["epochs"]),
        "threads": one,
    }
    gan: Table = {
        "data": faces_of_gan,
        "seeds": [0],
        "epochs": 1 if tiny else epochs(GanConfig(data=Path("d"), run=Path("r")).epochs),
        "threads": all_cores,
    }
    if tiny:
        grid["tensorboard"] = gan["tensorboard"] = False
    faces = config.count or (TINY_FACES if tiny else USUAL_FACES)
    return {
        "source": config.source,
        "input": str(config.input.absolute()) if config.input else "",
        "split": config.split,
        "classes": absolute_if_file(config.classes),
        "count": faces if config.source == "synthetic" else 0,
        "scale": config.scale,
        "leave_out": [],
        "models": models,
        "grid": grid,
        "winner": {"seeds": WINNER_SEEDS},
        "gan": gan,
        "evaluate": {
            "robust": not tiny,
            "gallery": not tiny,
            "gan_pairs": 64 if tiny else 2000,
            # A judge takes faces of any size, but of the GAN's number of channels.
            "gan_judge": f"{'cnn_improved' if faces_of_gan[-1] == '1' else LARGE_MODELS[0]}-seed0",
        },
    }


def absolute_if_file(text: str) -> str:
    """--classes with a whole path, where it names a file: later calls may come from elsewhere."""
    return str(Path(text).absolute()) if text and Path(text).is_file() else text


def _products(source: str, tiny: bool) -> tuple[str, str, str]:
    """The faces of most models, of the large ones, and of the GAN: height x width x channels."""
    if tiny:
        return "32x32x1", "64x64x3", "32x32x1"
    if source in GRAY_48:
        return "48x48x1", "96x96x1", "64x64x1"
    return "48x48x1", "224x224x3", "128x128x3"


def _threads(job: JobConfig, tiny: bool) -> tuple[int, int]:
    """CPU threads of a small training, and of a large one, which has the machine for itself."""
    if tiny or job.cluster in ("slurm", "sge"):
        return job.cpus, job.cpus
    return job.cpus, max(job.cpus, len(os.sched_getaffinity(0)))
