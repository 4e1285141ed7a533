"""The data of a configuration: shards, staged if wanted, and training batches of them."""

from __future__ import annotations

import dataclasses
import os
import sys
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from fer_hpc.config import GanConfig, TrainConfig, fields_of
from fer_hpc.data.augment import Augmentation
from fer_hpc.data.checksums import verify_in_background
from fer_hpc.data.loader import TrainLoader
from fer_hpc.data.manifest import Manifest
from fer_hpc.data.shards import open_split
from fer_hpc.data.staging import staged
from fer_hpc.data.step_inputs import Block
from fer_hpc.parallel.collectives import barrier
from fer_hpc.parallel.world import World
from fer_hpc.run.chain import chain_inputs
from fer_hpc.training.objective import class_weights
from fer_hpc.training.optim import cosine_lr


def stage_data(manifest: Manifest, config: TrainConfig | GanConfig, world: World) -> Manifest:
    """The data at --stage, copied there by one process of each node; else where it is."""
    if config.stage is None:
        return manifest
    if world.local_rank == 0:
        staged(manifest, config.stage)
    barrier(world)
    return staged(manifest, config.stage)


def check_data(data: Manifest, config: TrainConfig | GanConfig, world: World) -> Future[None]:
    """Verifies the shards' checksums beside the training: on rank 0, and on each node a copy of
    its own; ends with the UserError where one differs."""
    if world.rank == 0 or (config.stage and world.local_rank == 0):
        return verify_in_background(data, ("train", "val"), config.run)
    good: Future[None] = Future()
    good.set_result(None)
    return good


def train_loader(
    config: TrainConfig, manifest: Manifest, device: torch.device, world: World | None = None
) -> TrainLoader:
    """The configuration's batches of the train split, for this rank.

    Prints a hint where the set is larger than the memory and --shard-window is not used.
    """
    world = world or World()
    augmentation = {f.name: getattr(config, f.name) for f in dataclasses.fields(Augmentation)}
    loader = TrainLoader(
        open_split(manifest, "train"),
        config.batch_size,
        config.seed,
        Augmentation(**augmentation),
        device,
        config.shard_window,
        config.balanced,
        bool(config.va_weight),
        world.rank,
        world.size,
        world.processes_per_gpu,
        class_weights(manifest.class_counts("train"), config.class_weights)
        if config.class_weights
        else None,
    )
    size = sum(part.nbytes for part in loader.images.split.images)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory and not config.shard_window and world.rank == 0:
        print(
            f"warning: {size / 1e9:.0f} GB of images in {memory / 1e9:.0f} GB of memory are read "
            "from storage again and again; --shard-window 8 reads shards in turn "
            "(another order, hence another experiment)",
            file=sys.stderr,
        )
    return loader


def step_block(config: TrainConfig, loader: TrainLoader, images_seen: int, steps: int) -> Block:
    """The inputs of the next steps: this rank's batches and, with a cosine schedule, lr [steps]."""
    arrays = loader.block(images_seen, steps)
    if config.schedule == "cosine":
        seen = arrays["images_seen"].tolist()
        arrays["lr"] = np.array([cosine_lr(config, n, loader.n) for n in seen])
    clock = loader.batch_size, loader.n, loader.rank
    return Block(arrays | chain_inputs([arrays["rows"]], arrays["images_seen"], *clock))


def weights_context(config: TrainConfig | GanConfig, manifest: Manifest) -> dict[str, Any]:
    """The metadata that a file of weights needs to be usable on its own: science fields, data."""
    data = {
        "fingerprint": manifest.fingerprint,
        "classes": list(manifest.classes),
        "image_shape": list(manifest.image_shape),
        "faces": manifest.content["faces"],
    }
    return {"science": fields_of(config, "science"), "data": data}
