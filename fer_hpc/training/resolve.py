"""Which run a start is: `auto` values resolved, checked against the data, the ranks and the run that it continues."""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import Any, TypeVar

import numpy as np
import torch

from fer_hpc.config import (
    GanConfig,
    TrainConfig,
    UserError,
    check_divides,
    fields_of,
    merge_for_resume,
    science_hash,
)
from fer_hpc.data.shards import Manifest, open_split, staged
from fer_hpc.data.store import affect_of
from fer_hpc.files import read_json, sha256
from fer_hpc.models.gan import SIDES
from fer_hpc.models.registry import build_network, model_spec
from fer_hpc.parallel.collectives import sum_over_ranks
from fer_hpc.parallel.device import supports_bf16
from fer_hpc.parallel.world import World
from fer_hpc.training import weights

Config = TypeVar("Config", TrainConfig, GanConfig)
ALLOWED_BEFORE_START = (
    "attempts",
    "tb",
    "logs",
    "jobs",
    "status.json",
    "sheet.png",
)  # what may lie in a run folder before its first start


def resolve_config(
    config: Config, manifest: Manifest, device: torch.device, world: World
) -> tuple[Config, dict[str, Any]]:
    """The configuration with `auto` values resolved, and what the run's config.json says beside it; a UserError where it
    cannot run, or is another experiment than the folder's."""
    for split in ("train", "val"):
        open_split(manifest, split)  # says so if it is absent or damaged
    if config.batch_size > manifest.n("train"):
        raise UserError(
            f"--batch-size {config.batch_size} is larger than the training split; use at most {manifest.n('train')}"
        )
    stored = read_json(config.run / "config.json")
    if isinstance(config, TrainConfig):
        _check_classifier(config, manifest, device, world)
        if config.init_from and (
            stored is None or config.init_from.exists()
        ):  # a run that goes on does not need it any more
            begin_with = weights.weights_file(config.init_from)
            if stored is None:  # before the run folder says that it began with them
                model = build_network(
                    fields_of(config, "science"), len(manifest.classes), manifest.image_shape
                )
                weights.init_from(model, begin_with, manifest.classes)
            config = dataclasses.replace(config, init_hash=sha256(begin_with))  # type: ignore[call-arg]
    else:
        _check_gan(config, manifest, world)
    if stored is None:
        _check_new(config)
        precision: Any = (
            config.precision
            if config.precision != "auto"
            else ("bf16" if supports_bf16(device) else "fp32")
        )
        threads = config.threads or max(1, len(os.sched_getaffinity(0)) // world.local_size)
        config = dataclasses.replace(config, precision=precision, threads=threads)
        return config, _identity(config, manifest)
    kind = stored.get("kind", "classifier")
    if kind != run_kind(config):
        raise UserError(f"{config.run} holds a {kind}; give another --run folder")
    if stored["data"]["fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"{config.run} was trained on other data: fingerprint {stored['data']['fingerprint']} "
            f"({stored['data']['path']}), now {manifest.fingerprint} (--data {config.data}); use another --run folder"
        )
    config = merge_for_resume(config, stored["science"])
    return config, _identity(config, manifest)


def run_kind(config: TrainConfig | GanConfig) -> str:
    return "GAN" if isinstance(config, GanConfig) else "classifier"


def _check_classifier(
    config: TrainConfig, manifest: Manifest, device: torch.device, world: World
) -> None:
    spec = model_spec(config.model)
    height, width, channels = manifest.image_shape
    least, most = spec.sides
    if not least <= height <= most:
        raise UserError(
            f"--data {config.data} holds {height}x{width}x{channels} faces, {config.model} takes "
            f"{least} to {most} pixels; "
            f"preprocess with --size {spec.face[0]} --channels {spec.face[1]}"
        )
    check_divides(config.batch_size, world.size, config.accumulate)
    if config.va_weight and not np.isfinite(affect_of(open_split(manifest, "train"))).any():
        raise UserError(
            f"--va-weight {config.va_weight}: no training face of {config.data} has a valence or arousal"
        )
    if config.sync_bn and (device.type != "cuda" or world.size == 1):
        raise UserError(
            "--sync-bn needs several ranks on GPUs (torch has it for CUDA only); leave it out"
        )
    compiler = os.environ.get("CXX", "g++")  # as torch looks for it
    if config.compile and device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"--compile needs a C++ compiler, and there is no {compiler}; load or install one, set CXX, or leave --compile out"
        )


def _check_gan(config: GanConfig, manifest: Manifest, world: World) -> None:
    height, width, channels = manifest.image_shape
    if height not in SIDES:
        sides = ", ".join(map(str, SIDES[:-1]))
        raise UserError(
            f"--data {config.data} holds {height}x{width}x{channels} faces, the GAN takes {sides} or {SIDES[-1]} pixels; "
            f"preprocess with --size {min(SIDES, key=lambda side: abs(side - height))}"
        )
    if "Neutral" not in manifest.classes or len(manifest.classes) < 2:
        raise UserError(
            f"--data {config.data} has the classes {', '.join(manifest.classes)}: wanted Neutral and others"
        )
    for split in ("train", "val"):
        counts = dict(zip(manifest.classes, manifest.class_counts(split), strict=True))
        if not counts["Neutral"] or not sum(counts.values()) - counts["Neutral"]:
            raise UserError(
                f"--data {config.data}: its {split} split has {counts}: wanted neutral faces and others"
            )
    check_divides(config.batch_size, world.size, 1)


def _check_new(config: TrainConfig | GanConfig) -> None:
    if config.run.is_dir():
        strangers = [
            p.name
            for p in config.run.iterdir()
            if p.name not in ALLOWED_BEFORE_START and p.name[0] != "."
        ]
        if strangers:
            raise UserError(
                f"--run {config.run} holds other things ({', '.join(sorted(strangers)[:3])}, ...); give a new folder"
            )
    if isinstance(config, TrainConfig) and config.init_hash and not config.init_from:
        raise UserError("--init-hash says what --init-from was; give --init-from FILE instead")


def _identity(config: TrainConfig | GanConfig, manifest: Manifest) -> dict[str, Any]:
    data = {
        "path": str(config.data.absolute()),
        "fingerprint": manifest.fingerprint,
        "classes": manifest.classes,
        "image_shape": manifest.image_shape,
        "train": manifest.n("train"),
        "val": manifest.n("val"),
    }
    return {
        "id": science_hash(config, manifest.fingerprint),
        "kind": run_kind(config),
        "data": data,
    }


def stage_data(manifest: Manifest, config: TrainConfig | GanConfig, world: World) -> Manifest:
    """The data at --stage, copied there by one process of each node."""
    if config.stage is None:
        return manifest
    if world.local_rank == 0:
        staged(manifest, config.stage)
    sum_over_ranks(torch.zeros(1), world)  # all wait here
    return staged(manifest, config.stage)
