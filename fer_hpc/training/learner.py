"""The network of a run and what updates it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.func import functional_call
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fer_hpc.config import TrainConfig
from fer_hpc.data.store import Batch
from fer_hpc.models.registry import is_built_in
from fer_hpc.parallel.device import LOW_PRECISION, autocast
from fer_hpc.run.state import Stateful
from fer_hpc.training.batch_norm import counted_together, usual_batch_norms
from fer_hpc.training.casts import CastWeights, casts_together
from fer_hpc.training.losses import LossNormalizer
from fer_hpc.training.objective import Objective
from fer_hpc.training.optim import LearningRate, MovingAverage
from fer_hpc.training.sums import PartSums, part_sums

# the objective, and what the part adds to the epoch's sums
Losses = tuple[torch.Tensor, PartSums]


@dataclass
class Learner:
    """`model` holds the weights; `net` is what a step calls: with several ranks it averages
    gradients over them."""

    config: TrainConfig
    model: nn.Module
    net: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    lr: LearningRate
    plateau: ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    ema: MovingAverage | None
    ranks: int = 1
    grad_norm: torch.Tensor = field(init=False)  # of the last step that asked for it

    def __post_init__(self) -> None:
        device = self.lr.tensors[0].device
        self.grad_norm = torch.zeros((), device=device)
        built_in = is_built_in(self.config.model)  # another network may read what is set aside
        self._norms = usual_batch_norms(self.model) if built_in else []
        self._cast_weights: Callable[[], dict[str, torch.Tensor]] = dict
        if built_in and casts_together(self.config.precision, device, self.ranks):
            self._cast_weights = CastWeights(self.model, LOW_PRECISION[self.config.precision])
        # Not bound to this object: the cycle would keep its memory beyond the training.
        self._losses: Callable[..., Losses] = Learner._compute
        if self.config.compile and self.ranks == 1:  # with ranks, the network alone is compiled
            self._losses = torch.compile(Learner._compute, dynamic=False)

    def forward(self, part: Batch, norm: LossNormalizer) -> Losses:
        """Forward pass and losses of a part of a batch; compiled with --compile."""
        with counted_together(self._norms):
            return self._losses(self, part, norm, self._cast_weights())

    def _compute(
        self, part: Batch, norm: LossNormalizer, weights: dict[str, torch.Tensor]
    ) -> Losses:
        """`forward`, with `weights` in place of the network's own of these names."""
        precision = self.config.precision
        with autocast(precision, part.images.device):
            images = part.images.double() if precision == "fp64" else part.images
            outputs = functional_call(self.net, weights, (images,)) if weights else self.net(images)
        # not under autocast, which would round the class weights
        full = outputs if outputs.dtype == torch.float64 else outputs.float()
        total, loss, recipe = self.objective(full, part, norm)
        logits = full.detach()[:, : self.objective.classes]
        return total, part_sums(logits, part.labels, loss, recipe)

    @property
    def scored(self) -> nn.Module:
        """The network that is validated and kept: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def parts(self) -> dict[str, Stateful | None]:
        """What a checkpoint holds of it, by name."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "plateau": self.plateau,
            "scaler": self.scaler,
            "ema": self.ema,
        }
