"""The network of a run and what updates it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from fer_hpc.config import TrainConfig
from fer_hpc.data.loader import TrainLoader
from fer_hpc.run.state import Stateful
from fer_hpc.training.losses import LossNormalizer
from fer_hpc.training.objective import Objective


@dataclass
class Learner:
    """`model` holds the weights; `net` is what a step calls: it may be compiled, or average
    gradients over the ranks."""

    config: TrainConfig
    model: nn.Module
    net: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    plateau: ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None

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

    def normalizer(self, loader: TrainLoader, images_seen: int) -> LossNormalizer:
        """What the losses of the global batch after `images_seen` images are divided by."""
        return LossNormalizer(*loader.loss_normalizer(images_seen, self.objective.weights_on_host))
