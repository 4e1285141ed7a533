"""Optimiser, learning rate schedules, moving average of the weights."""

from __future__ import annotations

import inspect
import math
import sys
from itertools import compress
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fer_hpc.config import TrainConfig
from fer_hpc.evaluation.metrics import higher_is_better


def without_compiler(kind: type[torch.optim.Optimizer]) -> Any:
    """`kind` with methods that do not import torch's compiler, which takes 3 s of each start.

    torch wraps them to keep the compiler out; below its wrappers they are the same.
    """
    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in methods}
    plain["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), plain)


SGD = without_compiler(torch.optim.SGD)
AdamW = without_compiler(torch.optim.AdamW)
Adam = without_compiler(torch.optim.Adam)


class LearningRate:
    """The learning rates of an optimiser's groups: exact on the host, and tensors for the step.

    A step on a GPU must not depend on a number of the host. A checkpoint holds the host's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        # What a schedule of torch changes: an optimiser of nothing.
        rates = [group["lr"] for group in optimizer.param_groups]
        self.host = SGD([{"params": [torch.zeros(())], "lr": lr} for lr in rates], 0.0)
        self._on_cpu = device.type == "cpu"
        kind = torch.float64 if self._on_cpu else torch.float32  # the fused kernels' own
        self.tensors = [torch.tensor(lr, dtype=kind, device=device) for lr in rates]
        self._place(optimizer)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_post_hook(self._load)

    @property
    def value(self) -> float:
        """That of the first group."""
        return float(self.host.param_groups[0]["lr"])

    def set(self, value: float, group: int = 0) -> None:
        """Set a group's rate, on the host and on the device."""
        self.host.param_groups[group]["lr"] = value
        self.tensors[group].fill_(value)

    def _place(self, optimizer: torch.optim.Optimizer) -> None:
        for group, tensor in zip(optimizer.param_groups, self.tensors, strict=True):
            group["lr"] = tensor
            if "capturable" in group:
                group["capturable"] = not self._on_cpu

    def _save(self, _: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        for group, host in zip(saved["param_groups"], self.host.param_groups, strict=True):
            group["lr"] = host["lr"]
            if "capturable" in group:
                group["capturable"] = False

    def _load(self, optimizer: torch.optim.Optimizer) -> None:
        for k, group in enumerate(optimizer.param_groups):
            self.set(float(group["lr"]), k)
        self._place(optimizer)


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that --optimizer names, fused: one pass over the weights a step."""
    weights = model.parameters()
    if config.optimizer == "adamw":
        return AdamW(weights, config.lr, weight_decay=config.weight_decay, fused=True)
    nesterov = config.momentum > 0
    return SGD(
        weights,
        config.lr,
        momentum=config.momentum,
        nesterov=nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )


def make_plateau(
    config: TrainConfig, lr: LearningRate
) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """Keras' ReduceLROnPlateau: it lowers after `patience` epochs without gain, torch's one later.

    A factor of 1, which torch refuses, keeps the learning rate constant.
    """
    factor, patience = config.plateau_factor, config.plateau_patience - 1
    if factor == 1:
        factor, patience = 0.5, sys.maxsize
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        lr.host,
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


class MovingAverage(AveragedModel):
    """The moving average of weights and running statistics that --ema asks for.

    torch's own asks the device for its number of updates in each of them. Integers (counters) are
    copied.
    """

    def __init__(self, model: nn.Module) -> None:
        # the device also for the number of updates: on the host, a CUDA graph would not count
        super().__init__(model, next(model.parameters()).device, use_buffers=True)
        own, its = self._tensors(self.module), self._tensors(model)
        floats = [tensor.is_floating_point() for tensor in own]
        self._floats = list(compress(own, floats)), list(compress(its, floats))
        others = [not is_float for is_float in floats]
        self._integers = list(compress(own, others)), list(compress(its, others))

    @staticmethod
    def _tensors(network: nn.Module) -> list[torch.Tensor]:
        return [t.detach() for t in (*network.parameters(), *network.buffers())]

    @torch.no_grad()
    def update(self, weight: float | torch.Tensor) -> None:
        """Move by the share `weight` towards the network; 1 copies it."""
        if isinstance(weight, torch.Tensor):
            for own, its in zip(*self._floats, strict=True):
                own.lerp_(its, weight)
        elif weight == 1:
            torch._foreach_copy_(*self._floats)
        else:
            torch._foreach_lerp_(*self._floats, weight)
        if self._integers[0]:
            torch._foreach_copy_(*self._integers)
        self.n_averaged += 1


def set_mode(model: nn.Module, freeze_bn: bool) -> None:
    """Training mode; with `freeze_bn`, batch norm uses its running statistics and leaves them."""
    model.train()
    if freeze_bn:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
