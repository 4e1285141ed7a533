"""Losses other than cross-entropy, registered by plugins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fer_hpc.config import unknown_name_error
from fer_hpc.config.plugins import Origin, check_name, check_name_free, origin_of_caller
from fer_hpc.data.store import Batch

DEFAULT = "cross_entropy"  # see objective.py: smoothing, class weights, mixup


@dataclass(frozen=True)
class LossNormalizer:
    """What the sums over a global batch are divided by, so that ranks and parts add up to a mean.

    `weight_sum` is the sum of the images' class weights (their number without weights),
    `affect_count` the number of known valence and arousal values, at least 1. In training both are
    tensors on the device, of the outputs' type; in validation numbers.
    """

    weight_sum: float | torch.Tensor
    affect_count: float | torch.Tensor = 1.0

    def cast(self, dtype: torch.dtype) -> LossNormalizer:
        """The same, tensors in `dtype`: a wider one would widen the loss."""
        sums = (self.weight_sum, self.affect_count)
        return LossNormalizer(*(s.to(dtype) if isinstance(s, torch.Tensor) else s for s in sums))


# loss(outputs [b, classes] float, batch, norm) -> scalar: the batch's part of the global mean
Loss = Callable[[torch.Tensor, Batch, LossNormalizer], torch.Tensor]


@dataclass(frozen=True)
class LossSpec:
    """A loss that `--loss NAME` trains with, and the plugin that registered it."""

    name: str
    loss: Loss
    origin: Origin | None


LOSSES: dict[str, LossSpec] = {}


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Decorator: make a function known as `--loss NAME`.

    It is called as loss(outputs, batch, norm) with outputs [b, classes] in float32 or float64, a
    `Batch` of b images (`batch.labels` [b] int64; with mixup also `batch.other_labels` and
    `batch.weights`; where labels are distributions `batch.targets` [b, classes]), and gives a
    scalar: the sum over the batch divided by `norm.weight_sum`.
    Raises UserError where the name is taken by something else.
    """

    check_name("loss", name)

    def register(loss: Loss) -> Loss:
        spec = LossSpec(name, loss, origin_of_caller())
        built_in = LossSpec(name, loss, None) if name == DEFAULT else None
        check_name_free("loss", name, spec.origin, LOSSES.get(name, built_in))
        LOSSES[name] = spec
        return loss

    return register


def loss_spec(name: str) -> LossSpec | None:
    """The spec of `--loss NAME`; None for the built-in cross-entropy."""
    if name == DEFAULT:
        return None
    if name not in LOSSES:
        raise unknown_name_error("loss", name, [DEFAULT, *LOSSES])
    return LOSSES[name]
