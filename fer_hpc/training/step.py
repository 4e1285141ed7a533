"""One training step on one batch."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fer_hpc.data.store import Batch
from fer_hpc.parallel.device import autocast
from fer_hpc.run.state import UNIT, TrainState
from fer_hpc.training.learner import Learner
from fer_hpc.training.losses import LossNormalizer
from fer_hpc.training.optim import set_mode

MAX_MEAN_LOSS = 1024  # a larger mean counts as this: sums over 2 million images stay within 64 bits
SUMS = 4  # images, correct, plain loss, recipe's loss; losses in units of 1 / UNIT


class PartSums(NamedTuple):
    """What one part of a batch adds to the epoch's sums; tensors on the device."""

    images: int
    correct: torch.Tensor
    loss: torch.Tensor  # sum of plain cross-entropies
    recipe: torch.Tensor  # sum of what the recipe minimises


def step(
    learner: Learner,
    state: TrainState,
    batch: Batch,
    norm: LossNormalizer,
    ranks: int,
    want_norm: bool,
) -> float | None:
    """Update the network by one batch and the epoch's sums; `state.images_seen` is the caller's.

    `batch` is this rank's share of a global batch, `norm` belongs to the global one. Gives the
    gradient's norm if `want_norm`.
    """
    for part in accumulate_gradients(learner, batch, norm, ranks):
        add_to_sums(state, part)
    grad_norm = _clip(learner, want_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.ema:
        learner.ema.update_parameters(learner.model)
    return grad_norm


def accumulate_gradients(
    learner: Learner, batch: Batch, norm: LossNormalizer, ranks: int
) -> list[PartSums]:
    """Forward and backward passes over the parts of a batch; gives what each adds to the sums."""
    config, net = learner.config, learner.net
    set_mode(net, config.freeze_bn)
    sums = []
    parts = batch.parts(config.accumulate)
    for k, part in enumerate(parts):
        last = k == len(parts) - 1
        with sync_gradients(net, last), autocast(config.precision, batch.images.device):
            images = part.images.double() if config.precision == "fp64" else part.images
            outputs = net(images)
            full = outputs if outputs.dtype == torch.float64 else outputs.float()
            total, loss, recipe = learner.objective(full, part, norm)
            learner.scaler.scale(total * ranks).backward()  # DDP divides by the number of ranks
        predicted = outputs.detach()[:, : learner.objective.classes].argmax(1)
        sums.append(PartSums(len(part.labels), (predicted == part.labels).sum(), loss, recipe))
    return sums


def sync_gradients(net: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Average gradients over the ranks in the backward pass of a step's last part only."""
    if last or not isinstance(net, DistributedDataParallel):
        return contextlib.nullcontext()
    return net.no_sync()


def add_to_sums(state: TrainState, part: PartSums) -> None:
    """Count a part of a batch. Stays on the device; integers, so no order changes the result."""
    limit = float(MAX_MEAN_LOSS * part.images)
    units = [
        (value.double().nan_to_num().clamp(-limit, limit) * UNIT).round().long()
        for value in (part.loss, part.recipe)
    ]
    images = torch.full_like(state.bad_step, part.images)
    state.sums += torch.stack([images, part.correct, *units])
    state.note_bad(part.loss.isfinite() & part.recipe.isfinite())


def _clip(learner: Learner, want_norm: bool) -> float | None:
    """Limit the gradient's norm if the recipe has --clip; gives the norm if it is wanted."""
    clip = learner.config.clip
    if not (clip or want_norm):
        return None
    learner.scaler.unscale_(learner.optimizer)
    norm = nn.utils.get_total_norm(
        [p.grad for p in learner.model.parameters() if p.grad is not None]
    )
    if clip:
        nn.utils.clip_grads_with_norm_(learner.model.parameters(), clip, norm)
    return norm.item() if want_norm else None
