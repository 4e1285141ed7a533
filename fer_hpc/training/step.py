"""One training step on one batch: a function of tensors on the device.

The host gives nothing to it and reads nothing from it, so that a CUDA graph can repeat it.
"""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fer_hpc.data.step_inputs import Inputs
from fer_hpc.data.store import Batch
from fer_hpc.run.state import TrainState
from fer_hpc.training.learner import Learner
from fer_hpc.training.losses import LossNormalizer
from fer_hpc.training.sums import PartSums


def step(
    learner: Learner,
    state: TrainState,
    batch: Batch,
    inputs: Inputs,
    first: bool = False,
    want_norm: bool = False,
) -> None:
    """Update the network by one batch, and the epoch's sums.

    `batch` is this rank's share of a global batch and `inputs` that step's: weight_sum,
    affect_count, images_seen and, with a cosine schedule, lr. `first` is the run's first step.
    `want_norm` leaves the gradient's norm in `learner.grad_norm`, as --clip does in every step.
    """
    norm = LossNormalizer(inputs["weight_sum"], inputs["affect_count"])
    if "lr" in inputs:
        learner.lr.tensors[0].copy_(inputs["lr"])
    learner.optimizer.zero_grad(set_to_none=True)
    for part in accumulate_gradients(learner, batch, norm):
        state.sums += part.counts
        state.note_bad(part.finite, inputs["images_seen"])
    if learner.config.clip or want_norm:
        _clip(learner)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if learner.ema:
        learner.ema.update(1 if first else 1 - learner.config.ema)


def accumulate_gradients(learner: Learner, batch: Batch, norm: LossNormalizer) -> list[PartSums]:
    """Forward and backward passes over the parts of a batch; gives what each adds to the sums."""
    sums = []
    parts = batch.parts(learner.config.accumulate)
    for k, part in enumerate(parts):
        with sync_gradients(learner.net, k == len(parts) - 1):
            total, added = learner.forward(part, norm)
            if learner.ranks > 1:
                total = total * learner.ranks  # DDP divides by it
            learner.scaler.scale(total).backward()
        sums.append(added)
    return sums


def sync_gradients(net: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Average gradients over the ranks in the backward pass of a step's last part only."""
    if last or not isinstance(net, DistributedDataParallel):
        return contextlib.nullcontext()
    return net.no_sync()


def _clip(learner: Learner) -> None:
    """Note the gradient's norm, and limit it if the recipe has --clip."""
    clip, parameters = learner.config.clip, list(learner.model.parameters())
    learner.scaler.unscale_(learner.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    learner.grad_norm.copy_(norm)
