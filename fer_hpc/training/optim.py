"""Optimiser, learning rate schedules, moving average of the weights."""

from __future__ import annotations

import math
import sys

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fer_hpc.config import TrainConfig
from fer_hpc.evaluation.metrics import higher_is_better


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that --optimizer names, fused: one pass over the weights a step."""
    weights = model.parameters()
    if config.optimizer == "adamw":
        return torch.optim.AdamW(weights, config.lr, weight_decay=config.weight_decay, fused=True)
    nesterov = config.momentum > 0
    return torch.optim.SGD(
        weights,
        config.lr,
        momentum=config.momentum,
        nesterov=nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )


def make_plateau(
    config: TrainConfig, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """Keras' ReduceLROnPlateau: it lowers after `patience` epochs without gain, torch's one later.

    A factor of 1, which torch refuses, keeps the learning rate constant.
    """
    factor, patience = config.plateau_factor, config.plateau_patience - 1
    if factor == 1:
        factor, patience = 0.5, sys.maxsize
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        "max" if higher_is_better(config.plateau_on) else "min",
        factor=factor,
        patience=patience,
        threshold=1e-4,
        threshold_mode="abs",
        min_lr=config.lr_min,
        eps=0,
    )


def cosine_lr(config: TrainConfig, images_seen: int, epoch_images: int) -> float:
    """Learning rate of the step after `images_seen` images.

    Linear warm-up, then half a cosine down to --lr-min (Loshchilov & Hutter 2017, one cycle).
    """
    warmup, total = config.warmup_epochs * epoch_images, config.epochs * epoch_images
    if images_seen < warmup:
        return config.lr * (images_seen + config.batch_size) / (warmup + config.batch_size)
    done = min(1.0, (images_seen - warmup) / max(total - warmup, 1))
    return config.lr_min + (config.lr - config.lr_min) * 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def make_ema(config: TrainConfig, model: nn.Module) -> AveragedModel | None:
    """The moving average of weights and running statistics that --ema asks for."""
    if not config.ema:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)


def set_mode(model: nn.Module, freeze_bn: bool) -> None:
    """Training mode; with `freeze_bn`, batch norm uses its running statistics and leaves them."""
    model.train()
    if freeze_bn:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
