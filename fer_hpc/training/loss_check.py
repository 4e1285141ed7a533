"""A plugin's loss, tried before the run folder exists."""

from __future__ import annotations

import dataclasses

import torch

from fer_hpc.config import TrainConfig, UserError
from fer_hpc.config.errors import counted
from fer_hpc.config.plugins import MISTAKES, defined_at, describe, raised_at
from fer_hpc.data.manifest import Manifest
from fer_hpc.data.shards import open_split
from fer_hpc.data.store import Batch
from fer_hpc.training.losses import LossNormalizer, LossSpec, loss_spec


def check_loss(config: TrainConfig, manifest: Manifest, images: int) -> None:
    """Try a plugin's loss as training calls it with `images` at a time, then as validation does.

    The outputs and the batch are random, with the fields that this data and recipe give. UserError
    where the loss fails or gives something that no step can use.
    """
    spec = loss_spec(config.loss)  # raises where it is unknown
    if spec is None:
        return
    kind = torch.float64 if config.precision == "fp64" else torch.float32
    sums = torch.tensor(float(config.batch_size)), torch.tensor(1.0)
    with torch.random.fork_rng(devices=[]):
        batch = _random_batch(config, manifest, images)
        outputs = torch.randn(images, len(manifest.classes), dtype=kind, requires_grad=True)
        # A copy, as training's outputs are: a loss may change them in place.
        _try(spec, outputs.clone(), batch, LossNormalizer(*sums).cast(kind))
        batch = dataclasses.replace(
            batch,
            images=torch.empty(images, 0),
            other_labels=None,
            weights=None,
            affect=None,
            other_targets=None,
        )
        _try(spec, outputs.detach().double(), batch, LossNormalizer(float(images)))


def _random_batch(config: TrainConfig, manifest: Manifest, images: int) -> Batch:
    height, width, channels = manifest.image_shape
    classes = len(manifest.classes)
    labels = torch.arange(images) % classes
    faces = torch.rand(1, height, width, channels).expand(images, -1, -1, -1)
    has_targets = open_split(manifest, "train").targets is not None
    targets = torch.rand(images, classes).softmax(1) if has_targets else None
    return Batch(
        faces.permute(0, 3, 1, 2),
        labels,
        torch.arange(images),
        other_labels=labels.flip(0) if config.mixup else None,
        weights=torch.rand(images) if config.mixup else None,
        affect=torch.rand(images, 2) if config.va_weight else None,
        targets=targets,
        other_targets=targets.flip(0) if config.mixup and targets is not None else None,
    )


def _try(spec: LossSpec, outputs: torch.Tensor, batch: Batch, norm: LossNormalizer) -> None:
    """Call the loss, with a backward pass in training; UserError where that fails."""
    is_training = outputs.requires_grad
    use = "in training" if is_training else "in validation, without mixup and images"
    try:
        with torch.set_grad_enabled(is_training):
            result: object = spec.loss(outputs, batch, norm)
        if not (fault := _fault(result, is_training)) and isinstance(result, torch.Tensor):
            if is_training:
                result.backward()
            return
    except MISTAKES as error:
        raise UserError(
            f"--loss {spec.name} fails {use}: {raised_at(error, spec.loss, spec.origin)}"
            f"{describe(error)}; correct it"
        ) from error
    raise UserError(
        f"--loss {spec.name}: {defined_at(spec.loss, spec.origin)}{use} it gives {fault} for "
        f"{counted(len(outputs), 'image')}: wanted a tensor with one value and its gradient, the "
        "sum over the images divided by norm.weight_sum"
    )


def _fault(result: object, is_training: bool) -> str:
    """What a loss gave in place of a tensor with one value; "" where it gave that."""
    if not isinstance(result, torch.Tensor):
        return "" if isinstance(result, float) and not is_training else f"a {type(result).__name__}"
    if result.shape:
        return f"a tensor of shape {tuple(result.shape)}"
    if is_training and not result.requires_grad:
        return "a value without a gradient (detach, item, no_grad)"
    return ""
