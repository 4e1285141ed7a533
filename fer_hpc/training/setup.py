"""Set-up of a training: network, optimiser, ranks, initial weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fer_hpc.config import TrainConfig, UserError, fields_of
from fer_hpc.data.loader import TrainLoader
from fer_hpc.data.shards import Manifest
from fer_hpc.models.registry import build_network
from fer_hpc.parallel.world import World
from fer_hpc.training import weights
from fer_hpc.training.learner import Learner
from fer_hpc.training.objective import make_objective
from fer_hpc.training.optim import make_ema, make_optimizer, make_plateau
from fer_hpc.training.step import accumulate_gradients


def make_learner(
    config: TrainConfig, manifest: Manifest, device: torch.device, world: World
) -> Learner:
    """The learner at image 0, on `device`; the seed decides the initial weights."""
    torch.manual_seed(config.seed)
    model = build_network(fields_of(config, "science"), len(manifest.classes), manifest.image_shape)
    if config.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.precision == "fp64":
        model = model.double()
    optimizer = make_optimizer(config, model)
    return Learner(
        config,
        model,
        wrap_ddp(model, config.compile, world, device),
        make_objective(config, manifest, device),
        optimizer,
        make_plateau(config, optimizer),
        torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        make_ema(config, model),
    )


def wrap_ddp(model: nn.Module, compiled: bool, world: World, device: torch.device) -> nn.Module:
    """The network to call: compiled if wanted, averaging gradients if there are several ranks."""
    net: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    if world.size == 1:
        return net
    return DistributedDataParallel(net, [device.index] if device.type == "cuda" else None)


def warm_up_ddp(learner: Learner, loader: TrainLoader, world: World) -> None:
    """Two discarded passes, so that every start of several ranks adds gradients in the same order.

    DDP arranges its buckets anew after its first step; from three ranks on, a resumed run would
    add up in another order than the undisturbed one.
    """
    if world.size == 1:
        return
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    for _ in range(2):
        accumulate_gradients(learner, loader.batch(0), learner.normalizer(loader, 0), world.size)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.model.load_state_dict(before)


def load_initial_weights(learner: Learner, classes: tuple[str, ...]) -> str:
    """Start from the weights that --init-from or --pretrained mean; gives a line on what was used.

    An empty line where the network starts from random weights.
    """
    config = learner.config
    if config.init_hash and not config.init_from:
        raise UserError(
            f"{config.run} has no checkpoint yet and starts from other weights: "
            "give its --init-from again"
        )
    if config.init_from:
        path = weights.weights_file(config.init_from)
        note = weights.init_from(learner.model, path, classes)
    elif config.pretrained:
        note = weights.load_pretrained(learner.model, config.model)
    else:
        return ""
    if learner.ema:
        learner.ema.module.load_state_dict(learner.model.state_dict())
    return note
