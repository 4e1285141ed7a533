"""Fill in what a configuration leaves open, and check it against data, ranks and run folder."""

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
from fer_hpc.config.gan import GAN_SIDES
from fer_hpc.config.plugins import Origin
from fer_hpc.data.shards import Manifest, open_split
from fer_hpc.data.store import affect_of
from fer_hpc.files import sha256
from fer_hpc.models.registry import build_network, check_network, model_spec
from fer_hpc.parallel.device import supports_bf16
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import find_run_config
from fer_hpc.run.outcome import weights_file
from fer_hpc.run.plugins import load_run_plugins, plugin_entries, plugin_hash
from fer_hpc.run.trial import earlier_trial
from fer_hpc.training import weights
from fer_hpc.training.loss_check import check_loss
from fer_hpc.training.losses import loss_spec

Config = TypeVar("Config", TrainConfig, GanConfig)

COMPILES_SAME_BITS = (2, 10)  # the first torch whose compiler heeds deterministic algorithms
# What may lie in a run folder before its first start.
KNOWN_FILES = ("attempts", "tb", "logs", "jobs", "status.json", "sheet.png")


def resolve_config(
    config: Config, manifest: Manifest, device: torch.device, world: World
) -> tuple[Config, dict[str, Any]]:
    """The configuration without `auto` values, and what the run's config.json holds beside it.

    UserError where it cannot run with this data and these ranks, or is another experiment than the
    one that its run folder holds.
    """
    for split in ("train", "val"):
        open_split(manifest, split)  # raises where it is absent or damaged
    stored = find_run_config(config.run)
    earlier = earlier_trial(config.run) if stored is None else None
    if stored is None:
        _check_folder_is_free(config)
        if earlier:
            _check_same_data(config, manifest, earlier, "the other trials of this sweep were")
    else:
        _check_same_run(config, manifest, stored)
    if config.batch_size > manifest.n("train"):
        raise UserError(
            f"--batch-size {config.batch_size} is larger than the training split; "
            f"use at most {manifest.n('train')}"
        )
    if isinstance(config, TrainConfig):
        load_run_plugins(config.run, config.plugin)
        _check_classifier(config, manifest, device, world)
        hashes = _file_hashes(config, manifest, stored, earlier)
        config = dataclasses.replace(config, **hashes)  # type: ignore[arg-type]
    else:
        _check_gan(config, manifest, world)
    if stored is not None:
        config = merge_for_resume(config, stored["science"])
    else:
        precision: Any = config.precision
        if precision == "auto" and earlier:  # on other hardware, too: their mean is taken
            precision = earlier["science"].get("precision", precision)
        if precision == "auto":
            precision = "bf16" if supports_bf16(device) else "fp32"
        threads = config.threads or max(1, len(os.sched_getaffinity(0)) // world.local_size)
        deterministic = config.deterministic
        if deterministic is None:
            deterministic = device.type == "cuda"
        config = dataclasses.replace(
            config, precision=precision, threads=threads, deterministic=deterministic
        )
    return config, _identity(config, manifest)


def run_kind(config: TrainConfig | GanConfig) -> str:
    """What a run folder is of, as its config.json names it."""
    return "GAN" if isinstance(config, GanConfig) else "classifier"


def _check_folder_is_free(config: TrainConfig | GanConfig) -> None:
    """UserError where the folder of a new run holds something else."""
    names = [p.name for p in config.run.iterdir()] if config.run.is_dir() else []
    unexpected = sorted(n for n in names if n not in KNOWN_FILES and n[0] != ".")
    if unexpected:
        raise UserError(
            f"--run {config.run} holds other things ({', '.join(unexpected[:3])}, ...); "
            "give a new folder"
        )


def _check_same_run(
    config: TrainConfig | GanConfig, manifest: Manifest, stored: dict[str, Any]
) -> None:
    """UserError where the run folder is of another kind or other data."""
    kind = stored.get("kind", "classifier")
    if kind != run_kind(config):
        raise UserError(f"{config.run} holds a {kind}; give another --run folder")
    _check_same_data(config, manifest, stored, "it was")


def _check_same_data(
    config: TrainConfig | GanConfig, manifest: Manifest, stored: dict[str, Any], who: str
) -> None:
    data = stored["data"]
    if data["fingerprint"] != manifest.fingerprint:
        raise UserError(
            f"{config.run}: {who} trained on other data: fingerprint {data['fingerprint']} "
            f"({data['path']}), now {manifest.fingerprint} (--data {config.data}); "
            "use another --run folder"
        )


def _file_hashes(
    config: TrainConfig,
    manifest: Manifest,
    stored: dict[str, Any] | None,
    earlier: dict[str, Any] | None,
) -> dict[str, str]:
    """The science fields that stand for the content of --init-from and of the plugins in use.

    `stored` is the run's own config.json, `earlier` that of another trial of its sweep. Hashes that
    `config` has already are those of the files that it wants.
    """
    entries = plugin_entries(_origins(config))
    hashes = {"plugin_hash": plugin_hash(_origins(config).values())}
    before = stored or earlier
    who = f"{config.run} was" if stored else f"{config.run}: the other trials of this sweep were"
    if before and before["science"].get("plugin_hash", "") != hashes["plugin_hash"]:
        raise UserError(
            f"{who} started with another content of the plugins "
            f"({_paths(before.get('plugins', {}))}; now {_paths(entries)}): this would be another "
            "experiment; restore the file, or use another folder"
        )
    if not stored and config.plugin_hash not in ("", hashes["plugin_hash"]):
        raise UserError(
            f"{_paths(entries)} has changed: {config.run} is to have the plugin of SHA-256 "
            f"{config.plugin_hash[:12]}, now it is {hashes['plugin_hash'][:12] or '(none)'}; "
            "restore the file, or give its copy with --plugin"
        )
    if stored is None:
        _check_initial_weights(config, manifest)
    # A run that goes on does not need the file of its initial weights any more.
    if config.init_from and (stored is None or config.init_from.exists()):
        hashes["init_hash"] = sha256(weights_file(config.init_from))
    now = hashes.get("init_hash", "")
    wanted = config.init_hash or (earlier["science"].get("init_hash", "") if earlier else now)
    if not stored and wanted != now:
        raise UserError(
            f"{config.run} is to start from weights of SHA-256 {wanted[:12] or '(none)'}, and "
            f"those of --init-from {config.init_from or '(none)'} have {now[:12] or '(none)'}: "
            "this would be another experiment; restore the file, or use another folder"
        )
    return hashes


def _check_initial_weights(config: TrainConfig, manifest: Manifest) -> None:
    """UserError where the initial weights do not fit the network, before the folder exists."""
    science, classes = fields_of(config, "science"), manifest.classes
    if config.init_from or config.pretrained:
        network = build_network(science, len(classes), manifest.image_shape)
        if config.init_from:
            weights.init_from(network, weights_file(config.init_from), classes)
        else:
            weights.load_pretrained(network, config.model)


def _origins(config: TrainConfig) -> dict[str, Origin | None]:
    """The files that register the configuration's model and loss; None: built in."""
    loss = loss_spec(config.loss)
    return {"model": model_spec(config.model).origin, "loss": loss.origin if loss else None}


def _paths(entries: dict[str, Any]) -> str:
    return ", ".join(sorted({entry["path"] for entry in entries.values()})) or "none"


def _check_classifier(
    config: TrainConfig, manifest: Manifest, device: torch.device, world: World
) -> None:
    spec = model_spec(config.model)
    height, width, channels = manifest.image_shape
    smallest, largest = spec.sides
    if not smallest <= height <= largest:
        raise UserError(
            f"--data {config.data} holds {height}x{width}x{channels} faces, {config.model} takes "
            f"{smallest} to {largest} pixels; "
            f"preprocess with --size {spec.face[0]} --channels {spec.face[1]}"
        )
    if config.init_from and config.pretrained:
        raise UserError("--init-from and --pretrained both give initial weights; give one of them")
    check_divides(config.batch_size, world.size, config.accumulate)
    part = config.batch_size // world.size // config.accumulate
    check_network(
        fields_of(config, "science"), len(manifest.classes), manifest.image_shape, min(part, 2)
    )
    check_loss(config, manifest, part)
    if config.va_weight and not np.isfinite(affect_of(open_split(manifest, "train"))).any():
        raise UserError(
            f"--va-weight {config.va_weight}: no training face of {config.data} "
            "has a valence or arousal"
        )
    if config.sync_bn and (device.type != "cuda" or world.size == 1):
        raise UserError(
            "--sync-bn needs several ranks on GPUs (torch has it for CUDA only); leave it out"
        )
    if config.precision == "tf32" and device.type == "cpu":
        raise UserError("--precision tf32 is fp32 as GPUs multiply it fastest; on a CPU take fp32")
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    compiles_for_gpu = config.compile and device.type == "cuda"
    if compiles_for_gpu and version < COMPILES_SAME_BITS and config.deterministic is not False:
        raise UserError(
            f"--compile with torch {torch.__version__} chooses kernels by their speed, so that "
            "two starts give other bits: use torch 2.10 or newer, or --no-deterministic"
        )
    compiler = os.environ.get("CXX", "g++")  # as torch looks for it
    if config.compile and device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"--compile needs a C++ compiler, and there is no {compiler}; load or install one, "
            "set CXX, or leave --compile out"
        )


def _check_gan(config: GanConfig, manifest: Manifest, world: World) -> None:
    if manifest.content.get("generated"):
        raise UserError(
            f"--data {config.data} holds faces that a GAN made; "
            "train on the shards that they were added to"
        )
    height, width, channels = manifest.image_shape
    if height not in GAN_SIDES:
        sides = f"{', '.join(map(str, GAN_SIDES[:-1]))} or {GAN_SIDES[-1]}"
        raise UserError(
            f"--data {config.data} holds {height}x{width}x{channels} faces, the GAN takes {sides} "
            f"pixels; preprocess with --size {min(GAN_SIDES, key=lambda side: abs(side - height))}"
        )
    if "Neutral" not in manifest.classes or len(manifest.classes) < 2:
        raise UserError(
            f"--data {config.data} has the classes {', '.join(manifest.classes)}: "
            "wanted Neutral and others"
        )
    for split in ("train", "val"):
        counts = dict(zip(manifest.classes, manifest.class_counts(split), strict=True))
        if not counts["Neutral"] or not sum(counts.values()) - counts["Neutral"]:
            raise UserError(
                f"--data {config.data}: its {split} split has {counts}: "
                "wanted neutral faces and others"
            )
    check_divides(config.batch_size, world.size, 1)


def _identity(config: TrainConfig | GanConfig, manifest: Manifest) -> dict[str, Any]:
    data = {
        "path": str(config.data.absolute()),
        "fingerprint": manifest.fingerprint,
        "classes": manifest.classes,
        "image_shape": manifest.image_shape,
        "train": manifest.n("train"),
        "val": manifest.n("val"),
    }
    identity = {"id": science_hash(config, manifest.fingerprint), "kind": run_kind(config)}
    entries = plugin_entries(_origins(config)) if isinstance(config, TrainConfig) else {}
    return {**identity, "data": data, **({"plugins": entries} if entries else {})}
