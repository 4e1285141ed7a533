"""The GAN's networks, their optimisers and the moving average of the generator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fer_hpc.config import GanConfig
from fer_hpc.data.shards import Manifest
from fer_hpc.models.gan import Discriminator, Generator, paper_classifier
from fer_hpc.models.resnet import resnet_baseline
from fer_hpc.run.state import Stateful
from fer_hpc.training.optim import Adam, LearningRate, MovingAverage

# Network of the improved mode's classifier and of the expression's code; no judge may be one.
CLASSIFIER_MODEL = "resnet_baseline"
# Times the generator's learning rate. Two time scales: Heusel et al. 2017; spectral norm slows
# learning. What learns from labels is fast until the adversarial steps begin.
DISCRIMINATOR_LR_SCALE = 4.0
SUPERVISED_LR_SCALE = 5.0
EMA_EVERY = 4  # steps between two updates of the moving average, which passes over all weights
BN_MOMENTUM = 0.1  # Keras' .01 lags too far behind a classifier that guides while it learns


@dataclass
class Networks:
    """The three networks of a run and what updates them; `class_weights` are the classifier's."""

    config: GanConfig
    generator: Generator
    discriminator: Discriminator
    classifier: nn.Module
    ema: MovingAverage | None
    optimizers: dict[str, torch.optim.Optimizer]  # by network
    rates: dict[str, LearningRate]  # by network
    neutral: int  # class number
    class_weights: torch.Tensor | None

    @property
    def improved(self) -> bool:
        return self.config.mode == "improved"

    @property
    def scored(self) -> Generator:
        """The generator that is validated and kept: the moving average where there is one."""
        return self.generator if self.ema is None else self.ema.module  # type: ignore[return-value]

    def train(self) -> None:
        """All three in training mode, which validation ends."""
        for network in (self.generator, self.discriminator, self.classifier):
            network.train()

    def parts(self) -> dict[str, Stateful | None]:
        """What a checkpoint holds of it, by name."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "classifier": self.classifier,
            "ema": self.ema,
            **{f"{name}_adam": optimizer for name, optimizer in self.optimizers.items()},
        }


def make_networks(config: GanConfig, manifest: Manifest, device: torch.device) -> Networks:
    """The networks at image 0, on `device`; the seed decides the initial weights."""
    torch.manual_seed(config.seed)
    size, _, channels = manifest.image_shape
    improved, classes = config.mode == "improved", len(manifest.classes)

    def placed(network: nn.Module) -> Any:
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    generator = placed(Generator(channels, size, classes if improved else 0))
    discriminator = placed(Discriminator(channels, classes if improved else 0, spectral=improved))
    if improved:
        classifier = placed(resnet_baseline(classes, channels, size))
    else:
        classifier = placed(paper_classifier(channels))
    supervised: list[nn.Parameter] = []
    if improved:
        learns_labels = nn.ModuleList([classifier, generator.expression, generator.class_head])
        supervised = list(learns_labels.parameters())
        for module in learns_labels.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BN_MOMENTUM
    lr = config.lr
    optimizers = {
        "generator": _adam(generator, lr, supervised),
        "discriminator": _adam(
            discriminator, (DISCRIMINATOR_LR_SCALE if improved else 1) * lr, supervised
        ),
        "classifier": _adam(classifier, lr, supervised),
    }
    rates = {name: LearningRate(optimizer, device) for name, optimizer in optimizers.items()}
    ema = MovingAverage(generator) if improved and config.ema else None
    neutral, class_weights = manifest.classes.index("Neutral"), None
    if improved:
        class_weights = torch.ones(classes, device=device)
        class_weights[neutral] = 1 / (classes - 1)  # half of what the classifier sees is neutral
    return Networks(
        config, generator, discriminator, classifier, ema, optimizers, rates, neutral, class_weights
    )


def _adam(
    network: nn.Module, lr: float, supervised: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Adam in two groups: the report's betas for adversarial weights, Adam's own for supervised."""
    ids = {id(parameter) for parameter in supervised}
    groups: list[dict[str, Any]] = []
    for is_supervised, betas in ((False, (0.5, 0.999)), (True, (0.9, 0.999))):
        if members := [p for p in network.parameters() if (id(p) in ids) == is_supervised]:
            groups.append({"params": members, "betas": betas, "supervised": is_supervised})
    optimizer: torch.optim.Optimizer = Adam(groups, lr, fused=True)
    optimizer.register_load_state_dict_pre_hook(_read_old_groups)
    return optimizer


def _read_old_groups(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any] | None:
    """Checkpoints of version 0.1 name the key `supervised` of a group `taught`."""
    groups = [
        {("supervised" if key == "taught" else key): value for key, value in group.items()}
        for group in saved["param_groups"]
    ]
    return {**saved, "param_groups": groups}


def average_due(config: GanConfig, images_seen: int) -> bool:
    """Whether the step after `images_seen` pairs moves the moving average, if it is adversarial."""
    return images_seen // config.batch_size % EMA_EVERY == 0


def ema_weight(config: GanConfig, images_seen: int, first_adversarial: int) -> float:
    """The share by which that step moves the average towards the generator.

    It follows fast at first: after n steps it keeps (1 + n) / (10 + n) a step until that reaches
    --ema; else the average of a short training would be its initial weights. The first move, of the
    adversarial steps after `first_adversarial` pairs, copies.
    """
    step, first_step = images_seen // config.batch_size, -(-first_adversarial // config.batch_size)
    moves = -(-step // EMA_EVERY) - -(-first_step // EMA_EVERY)  # before this step
    if moves <= 0:
        return 1.0
    n = EMA_EVERY * moves
    return float(1 - min(config.ema, (1 + n) / (10 + n)) ** EMA_EVERY)
