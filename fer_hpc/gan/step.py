"""One step of the GAN on one batch of pairs: classifier, discriminator, generator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from fer_hpc.data.step_inputs import Inputs
from fer_hpc.gan.networks import SUPERVISED_LR_SCALE, Networks
from fer_hpc.gan.pairs import Pairs
from fer_hpc.parallel.collectives import average_gradients, broadcast_buffers
from fer_hpc.parallel.device import autocast
from fer_hpc.parallel.world import World
from fer_hpc.run.state import UNIT, TrainState

# What a step adds to the epoch's sums: the pairs, and means over them in units of 1 / UNIT. The
# first three means exist in every step, the others only in adversarial ones.
SUPERVISED_SUMS = ("c_loss", "c_correct", "code")
SUMS = (
    "pairs",
    *SUPERVISED_SUMS,
    "adversarial_steps",
    "d_correct",
    "g_loss",
    "d_loss",
    "adversarial",
    "feature",
    "expression",
    "identity",
    "reconstruction",
)
PAPER_WEIGHTS = {
    "feature": 10.0,
    "expression": 20.0,
}  # in addition to weight 1 of the adversarial loss
IMPROVED_TERMS = ("feature", "expression", "identity", "reconstruction")  # GanConfig: the weights
MAX_SHIFT = 1 / 8  # of the side: faces are shifted at most so far before the classifier sees them

Means = dict[str, torch.Tensor]


def step(
    networks: Networks,
    state: TrainState,
    pairs: Pairs,
    inputs: Inputs,
    world: World,
    adversarial: bool = True,
    average: bool = False,
) -> None:
    """Update each network once; without `adversarial` (warm-up) only what learns from labels.

    The generated batch is computed once and used by all three. `average` also moves the moving
    average, by the share `inputs["ema_weight"]`. As for classifiers, a step is a function of
    tensors on the device; `inputs["images_seen"]` names it.
    """
    config, generator = networks.config, networks.generator
    mixed = autocast(config.precision, pairs.neutral.device)
    _set_supervised_lr(networks, adversarial)
    means, labels = _classifier_step(networks, pairs, mixed, world)

    with mixed:  # in the improved mode the expression's code learns its class as well
        code = generator.expression(pairs.expressive)
        if generator.class_head:
            logits = generator.class_head(code).float()
            means["code"] = functional.cross_entropy(logits, pairs.target)
    if not adversarial:
        backward_and_step(networks, "generator", means["code"], world)
        return add_to_sums(state, len(pairs.target), means, inputs["images_seen"])

    with mixed:
        encoded = generator.encode(pairs.neutral)
        fake = generator.decode(pairs.neutral, encoded, code)
    real_features = _discriminator_step(networks, pairs, fake, mixed, means, world)
    frozen = no_grad_into(networks.discriminator), no_grad_into(networks.classifier)
    with frozen[0], frozen[1], mixed:
        loss = _generator_loss(networks, pairs, fake, encoded, real_features, labels, means, world)
    backward_and_step(networks, "generator", loss, world)
    if networks.ema and average:
        networks.ema.update(inputs["ema_weight"])
    means["adversarial_steps"] = torch.ones_like(means["d_loss"])
    add_to_sums(state, len(pairs.target), means, inputs["images_seen"])


def _set_supervised_lr(networks: Networks, adversarial: bool) -> None:
    """What learns from labels is fast in the warm-up, slow later: the generator must follow."""
    lr = networks.config.lr * (1 if adversarial else SUPERVISED_LR_SCALE)
    for name, optimizer in networks.optimizers.items():
        for k, group in enumerate(optimizer.param_groups):
            if group["supervised"]:
                networks.rates[name].set(lr, k)


def _classifier_step(
    networks: Networks,
    pairs: Pairs,
    mixed: contextlib.AbstractContextManager[object],
    world: World,
) -> tuple[Means, torch.Tensor]:
    """Train the classifier on real faces; gives its means and the labels it learned."""
    with mixed:
        if networks.improved:
            faces = random_flip_shift(torch.cat([pairs.neutral, pairs.expressive]))
            labels = torch.cat([torch.full_like(pairs.target, networks.neutral), pairs.target])
        else:  # paper mode: expressive faces only, all with label 1
            faces, labels = pairs.expressive, torch.ones_like(pairs.target)
        logits = networks.classifier(faces).float()
        loss = functional.cross_entropy(logits, labels, networks.class_weights)
    backward_and_step(networks, "classifier", loss, world)
    correct = (logits.argmax(1) == labels).float().mean()
    return {"c_loss": loss, "c_correct": correct}, labels


def _discriminator_step(
    networks: Networks,
    pairs: Pairs,
    fake: torch.Tensor,
    mixed: contextlib.AbstractContextManager[object],
    means: Means,
    world: World,
) -> torch.Tensor:
    """Train the discriminator: real faces to 1, generated ones to 0; gives real faces' features."""
    target = pairs.target if networks.improved else None
    with mixed:
        real_score, real_features = networks.discriminator(pairs.expressive, target)
        fake_score, _ = networks.discriminator(fake.detach(), target)
        real_score, fake_score = real_score.float(), fake_score.float()
        loss = 0.5 * ((real_score - 1).square().mean() + fake_score.square().mean())
    backward_and_step(networks, "discriminator", loss, world)
    real_correct, fake_correct = (real_score > 0.5).float(), (fake_score <= 0.5).float()
    means["d_loss"] = loss
    means["d_correct"] = 0.5 * (real_correct.mean() + fake_correct.mean())
    return real_features.detach().float()


def _generator_loss(
    networks: Networks,
    pairs: Pairs,
    fake: torch.Tensor,
    encoded: list[torch.Tensor],
    real_features: torch.Tensor,
    labels: torch.Tensor,
    means: Means,
    world: World,
) -> torch.Tensor:
    """The generator's loss: adversarial, feature, expression, identity, reconstruction terms."""
    generator, classifier = networks.generator, networks.classifier
    score, features = networks.discriminator(fake, pairs.target if networks.improved else None)
    means["adversarial"] = (score.float() - 1).square().mean()
    broadcast_buffers(classifier, world)
    classifier.eval()  # its running statistics cover real faces only
    class_logits = classifier(random_flip_shift(fake) if networks.improved else fake).float()
    classifier.train()
    if networks.improved:
        means["feature"] = functional.l1_loss(
            channel_statistics(features.float()), channel_statistics(real_features)
        )
        means["expression"] = functional.cross_entropy(class_logits, pairs.target)
        with frozen_bn_stats(generator.down):
            fake_code = generator.encode(fake)[-1].float()
        means["identity"] = functional.l1_loss(fake_code, encoded[-1].detach().float())
        change = (fake.float() - pairs.neutral).abs().mean((1, 2, 3))
        count = pairs.same.sum().clamp(min=1)
        means["reconstruction"] = (change * pairs.same).sum() / count
        weights = {name: getattr(networks.config, f"{name}_weight") for name in IMPROVED_TERMS}
    else:
        means["feature"] = functional.l1_loss(features.float(), real_features)
        means["expression"] = functional.cross_entropy(class_logits, labels)
        weights = PAPER_WEIGHTS
    means["g_loss"] = means["adversarial"] + sum(
        weight * means[name] for name, weight in weights.items()
    )
    return means["g_loss"] + means.get("code", 0)


def random_flip_shift(faces: torch.Tensor) -> torch.Tensor:
    """Faces [B, C, S, S], each mirrored or not and shifted by up to MAX_SHIFT; the border repeats.

    Applied to the classifier's input, so that a fixed pixel pattern cannot pass for an expression.
    Integer indexing: interpolation has no deterministic gradient on GPUs.
    """
    n, _, side, _ = faces.shape
    limit, device = round(MAX_SHIFT * side), faces.device
    across, down = (
        torch.arange(side, device=device) + torch.randint(-limit, limit + 1, (n, 1), device=device)
        for _ in range(2)
    )
    across = torch.where(torch.rand(n, 1, device=device) < 0.5, side - 1 - across, across)
    y, x = (pixels.clamp(0, side - 1) for pixels in (down, across))
    rows = torch.arange(n, device=device)[:, None, None]
    return faces.permute(0, 2, 3, 1)[rows, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def backward_and_step(networks: Networks, name: str, loss: torch.Tensor, world: World) -> None:
    """One step of Adam on network `name`, its gradients averaged over the ranks."""
    loss.backward()
    average_gradients(getattr(networks, name).parameters(), world)
    networks.optimizers[name].step()
    networks.optimizers[name].zero_grad(set_to_none=True)


@contextlib.contextmanager
def no_grad_into(network: nn.Module) -> Iterator[None]:
    """Gradients pass through the network, but its weights get none."""
    network.requires_grad_(False)
    yield
    network.requires_grad_(True)


@contextlib.contextmanager
def frozen_bn_stats(network: nn.Module) -> Iterator[None]:
    """Batch norm as in training, but its running statistics do not change.

    The generator's must cover neutral faces only, which are its input at inference.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def channel_statistics(features: torch.Tensor) -> torch.Tensor:
    """Mean and deviation of each channel over the face, [B, 2C]: independent of the position."""
    deviations = (features.var((2, 3)) + 1e-5).sqrt()  # the gradient of sqrt at 0 is infinite
    return torch.cat([features.mean((2, 3)), deviations], 1)


def add_to_sums(state: TrainState, n: int, means: Means, images_seen: torch.Tensor) -> None:
    """Add a batch of n pairs to the sums, on the device; of integers the order does not matter."""
    zero = torch.zeros((), device=state.sums.device)
    values = torch.stack([means.get(name, zero).detach().double() for name in SUMS[1:]])
    units = (values.nan_to_num() * (n * UNIT)).round().long()
    state.sums += torch.cat([torch.full_like(units[:1], n), units])
    state.note_bad(values.isfinite().all(), images_seen)
