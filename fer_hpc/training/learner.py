"""The network of a run and what updates it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fer_hpc.config import TrainConfig
from fer_hpc.data.store import Batch
from fer_hpc.parallel.device import autocast
from fer_hpc.run.state import Stateful
from fer_hpc.training.losses import LossNormalizer
from fer_hpc.training.objective import Objective
from fer_hpc.training.optim import LearningRate, MovingAverage

# (objective, outputs, sum of plain cross-entropies, sum of the recipe's loss)
Losses = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Learner:
    """`model` holds the weights; `net` is what a step calls: with several ranks it averages
    gradients over them. `forward` is forward pass and losses, compiled with --compile."""

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
    forward: Callable[[Batch, LossNormalizer], Losses] = field(init=False)

    def __post_init__(self) -> None:
        self.grad_norm = torch.zeros((), device=self.lr.tensors[0].device)
        self.forward = self._forward
        if self.config.compile and self.ranks == 1:  # with ranks, the network alone is compiled
            self.forward = torch.compile(self._forward, dynamic=False)

    def _forward(self, part: Batch, norm: LossNormalizer) -> Losses:
        precision = self.config.precision
        with autocast(precision, part.images.device):
            outputs = self.net(part.images.double() if precision == "fp64" else part.images)
            full = outputs if outputs.dtype == torch.float64 else outputs.float()
            total, loss, recipe = self.objective(full, part, norm)
        return total, outputs, loss, recipe

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
