"""Training rate of fer_hpc beside a bare loop of the same network, Lightning and Keras, on CPUs.

    python bench/train_step.py [--presets cnn_baseline ...] [--steps 12] [--batch-size 128]

`ours` is `train()` itself: the loader, the preset's augmentation, sums, logs and the checks of
every step, without validation and checkpoints. `bare loop` is forward, cross-entropy, backward and
optimiser step on one batch that stays in memory, with the same network, optimiser, precision and
memory format. Lightning and Keras run with their defaults (fp32, their own loop, batches from
memory) and, where ours is bf16, also in mixed bf16.
Rounds are interleaved and the best of each counts. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fer_hpc import config
from fer_hpc.config import PRESETS, TrainConfig, fields_of, preset
from fer_hpc.data import shards
from fer_hpc.models.registry import build_network
from fer_hpc.parallel.device import autocast, supports_bf16
from fer_hpc.parallel.process import keep_freed_memory
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import read_rows
from fer_hpc.training.loop import train
from fer_hpc.training.optim import make_optimizer

CLASSES = 8


def make_shards(folder: Path, n: int, size: int, channels: int) -> Path:
    """Noise as shards: n training and 256 validation images."""
    rng = np.random.default_rng(0)
    entries = {}
    for split, count in (("train", n), ("val", 256)):
        columns = {
            name: np.zeros((count, *shape), kind) for name, (kind, shape) in shards.COLUMNS.items()
        }
        columns["images"] = rng.integers(0, 256, (count, size, size, channels), np.uint8)
        columns["labels"] = np.arange(count) % CLASSES
        columns["source_id"] = np.arange(count).astype(str).astype(object)
        folder.mkdir(exist_ok=True)
        entry = shards.write_shard(folder / f"{split}-00000.h5", columns, {})
        counts = dict(zip(config.CLASSES, np.bincount(columns["labels"]).tolist(), strict=True))
        entries[split] = {"n": count, "class_counts": counts, "shards": [entry]}
    content = {
        "format": 1,
        "image_shape": [size, size, channels],
        "classes": list(config.CLASSES),
        "splits": entries,
        "faces": {},
    }
    shards.write_manifest(folder, content)
    return folder


def ours(recipe: TrainConfig, steps: int) -> float:
    """Images/s of a run of one epoch, from its own timing.jsonl."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        run = Path(name) / "run"
        train(dataclasses.replace(recipe, run=run, epochs=1), World())
        return float(read_rows(run, "timing.jsonl")[0]["images_per_s"])


def bare_loop(recipe: TrainConfig, shape: tuple[int, int, int]) -> Callable[[int], float]:
    torch.manual_seed(0)
    model = (
        build_network(fields_of(recipe, "science"), CLASSES, shape)
        .to(memory_format=torch.channels_last)
        .train()
    )
    optimizer = make_optimizer(recipe, model)
    images = torch.rand(recipe.batch_size, shape[2], shape[0], shape[1]).to(
        memory_format=torch.channels_last
    )
    labels = torch.arange(recipe.batch_size) % CLASSES

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            with autocast(recipe.precision, torch.device("cpu")):
                logits = model(images)
            cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return steps * recipe.batch_size / (time.perf_counter() - start)

    return run


def lightning(
    recipe: TrainConfig, shape: tuple[int, int, int], mixed: bool = False
) -> Callable[[int], float]:
    import logging
    import warnings

    import lightning as L

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build_network(fields_of(recipe, "science"), CLASSES, shape)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9, nesterov=True)

    def run(steps: int) -> float:
        n = steps * recipe.batch_size
        data = torch.utils.data.TensorDataset(
            torch.rand(n, shape[2], shape[0], shape[1]), torch.arange(n) % CLASSES
        )
        batches = torch.utils.data.DataLoader(data, recipe.batch_size, shuffle=True)
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            precision="bf16-mixed" if mixed else "32-true",
        )
        module = Module()
        start = time.perf_counter()
        trainer.fit(module, batches)
        return n / (time.perf_counter() - start)

    return run


def keras_model(name: str, shape: tuple[int, int, int]) -> Any:
    """The AffectNet report's two baselines in Keras, the library it used."""
    from keras import Input, Model, Sequential, layers

    def conv(filters: int, **more: object) -> object:
        return layers.Conv2D(filters, 3, padding="same", **more)

    if name == "cnn_baseline":
        stages: list[object] = [Input(shape), layers.BatchNormalization()]
        for filters, pool in ((32, False), (32, True), (64, True), (64, True)):
            stages += [conv(filters, activation="relu"), layers.BatchNormalization()]
            stages += [layers.MaxPooling2D()] if pool else []
            stages.append(layers.Dropout(0.2))
        stages += [
            layers.Flatten(),
            layers.Dense(1024, activation="relu"),
            layers.Dropout(0.3),
            layers.BatchNormalization(),
        ]
        return Sequential([*stages, layers.Dense(CLASSES, activation="softmax")])
    inputs = Input(shape)
    x = layers.ReLU()(layers.BatchNormalization()(conv(16)(inputs)))
    for filters, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        y = layers.ReLU()(layers.BatchNormalization()(conv(filters, strides=stride)(x)))
        y = layers.BatchNormalization()(conv(filters)(y))
        shortcut = (
            x
            if stride == 1
            else layers.BatchNormalization()(layers.Conv2D(filters, 1, strides=stride)(x))
        )
        x = layers.ReLU()(layers.Add()([y, shortcut]))
    return Model(
        inputs, layers.Dense(CLASSES, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    )


def keras(
    recipe: TrainConfig, shape: tuple[int, int, int], mixed: bool = False
) -> Callable[[int], float]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from keras import mixed_precision, optimizers

    mixed_precision.set_global_policy("mixed_bfloat16" if mixed else "float32")
    model = keras_model(recipe.model, shape)
    optimizer = optimizers.SGD(1e-3, momentum=0.9, nesterov=True)
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"])

    def run(steps: int) -> float:
        n = steps * recipe.batch_size
        images, labels = (
            np.random.default_rng(0).random((n, *shape), np.float32),
            np.arange(n) % CLASSES,
        )
        start = time.perf_counter()
        model.fit(images, labels, batch_size=recipe.batch_size, epochs=1, verbose=0)
        return n / (time.perf_counter() - start)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=[*PRESETS])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    keep_freed_memory()
    precision = "bf16" if supports_bf16(torch.device("cpu")) else "fp32"
    for name in args.presets:
        big = name == "resnet_improved"
        shape = (224, 224, 3) if big else (48, 48, 1)
        batch, steps = (16, max(4, args.steps // 2)) if big else (args.batch_size, args.steps)
        with tempfile.TemporaryDirectory() as folder:
            data = make_shards(Path(folder) / "data", batch * steps, shape[0], shape[2])
            recipe = preset(
                name,
                data=data,
                run=Path(folder),
                batch_size=batch,
                precision=precision,
                threads=threads,
            )
            candidates: dict[str, Callable[[int], float]] = {
                "ours": functools.partial(ours, recipe),
                "bare loop": bare_loop(recipe, shape),
            }
            if name in ("cnn_baseline", "resnet_baseline"):
                peers: list[tuple[str, Callable[..., Callable[[int], float]], bool]] = [
                    ("Lightning", lightning, False),
                    ("Keras", keras, False),
                ]
                if precision == "bf16":
                    peers += [("Lightning, bf16", lightning, True), ("Keras, bf16", keras, True)]
                for peer, make, mixed in peers:
                    try:
                        candidates[peer] = make(recipe, shape, mixed)
                    except ImportError as missing:
                        print(f"{peer}: left out ({missing})", file=sys.stderr)
            for run in candidates.values():
                run(2)  # an unmeasured start
            rates = {
                who: max(values) for who, values in _rounds(candidates, steps, args.rounds).items()
            }
        print(
            json.dumps(
                {
                    "preset": name,
                    "batch": batch,
                    "cores": threads,
                    "precision": precision,
                    **{k: round(v, 1) for k, v in rates.items()},
                }
            )
        )
        for who, value in rates.items():
            ratio = rates["ours"] / value
            text = f"{value:8,.1f} images/s   ours is {ratio:5.2f} times that"
            print(f"  {name:<16} {who:<15} {text}", flush=True)


def _rounds(
    candidates: dict[str, Callable[[int], float]], steps: int, rounds: int
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {who: [] for who in candidates}
    for _ in range(rounds):
        for who, run in candidates.items():
            rates[who].append(run(steps))
    return rates


if __name__ == "__main__":
    main()
