"""Set-up of a training: network, optimiser, ranks, initial weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fer_hpc.config import GanConfig, TrainConfig, UserError, fields_of
from fer_hpc.data.loader import TrainLoader
from fer_hpc.data.shards import Manifest
from fer_hpc.models.registry import build_network, has_unused_parameters, is_built_in
from fer_hpc.models.timm_models import PREFIX
from fer_hpc.parallel.world import World
from fer_hpc.run.outcome import weights_file
from fer_hpc.training import weights
from fer_hpc.training.batch_norm import BatchNormEstimator, usual_batch_norms
from fer_hpc.training.learner import Learner
from fer_hpc.training.losses import LossNormalizer, loss_spec
from fer_hpc.training.objective import make_objective
from fer_hpc.training.optim import (
    LearningRate,
    MovingAverage,
    make_optimizer,
    make_plateau,
    set_mode,
)
from fer_hpc.training.step import accumulate_gradients


def make_learner(
    config: TrainConfig, manifest: Manifest, device: torch.device, world: World
) -> Learner:
    """The learner at image 0, on `device`; the seed decides the initial weights."""
    torch.manual_seed(config.seed)
    about = fields_of(config, "science"), len(manifest.classes), manifest.image_shape
    model = build_network(*about)
    if config.sync_bn:
        model = with_synced_batch_norm(model, config.model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.precision == "fp64":
        model = model.double()
    is_partly_used = (
        world.size > 1 and not is_built_in(config.model) and has_unused_parameters(*about)
    )
    optimizer = make_optimizer(config, model)
    lr = LearningRate(optimizer, device)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    scaler.scale(torch.zeros(1, device=device))  # it makes its own tensors when first used
    return Learner(
        config,
        model,
        wrap_ddp(model, config.compile, world, device, is_partly_used),
        make_objective(config, manifest, device),
        optimizer,
        lr,
        make_plateau(config, lr),
        scaler,
        MovingAverage(model) if config.ema else None,
        world.size,
    )


def with_synced_batch_norm(model: nn.Module, name: str) -> nn.Module:
    """The network `--model NAME` with batch norm over the images of all ranks."""
    if name.startswith(PREFIX):  # torch's would drop the activations in timm's layers
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(model)
        return converted
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def wrap_ddp(
    model: nn.Module, compiled: bool, world: World, device: torch.device, unused: bool = False
) -> nn.Module:
    """The network to call: compiled if wanted, averaging gradients if there are several ranks.

    Running statistics are not copied from rank 0 before each step, which is DDP's default: no
    training step reads them, and rank 0's alone are validated and saved (`broadcast_buffers`).
    `unused`: some parameters get no gradient, and DDP must not wait for them.
    """
    if world.size == 1:  # the learner compiles forward pass and loss together
        return model
    net: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    # No static_graph: it fails with no_sync (--accumulate), and saves the search for unused
    # parameters, which is off where all are used.
    known = inspect.signature(DistributedDataParallel).parameters
    flag = "forward_sync_buffers"  # the older name gives a warning where this one exists
    options: dict[str, Any] = {flag if flag in known else "broadcast_buffers": reads_buffers(model)}
    options |= {"gradient_as_bucket_view": True, "find_unused_parameters": unused}
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(net, devices, **options)


def reads_buffers(model: nn.Module) -> bool:
    """Whether a training step may read a number that a buffer keeps: any but batch norm's may."""
    known = set(usual_batch_norms(model))
    return any(
        buffer.is_floating_point()
        for module in model.modules()
        if module not in known
        for buffer in module.buffers(recurse=False)
    )


def warm_up_ddp(learner: Learner, loader: TrainLoader, world: World) -> None:
    """Two discarded passes, so that every start of several ranks adds gradients in the same order.

    DDP arranges its buckets anew after its first step; from three ranks on, a resumed run would
    add up in another order than the undisturbed one.
    """
    if world.size == 1:
        return
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    norm = LossNormalizer(float(loader.batch_size))
    set_mode(learner.net, learner.config.freeze_bn)
    for _ in range(2):
        accumulate_gradients(learner, loader.batch(0), norm)
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
        path = weights_file(config.init_from)
        note = weights.init_from(learner.model, path, classes)
    elif config.pretrained:
        note = weights.load_pretrained(learner.model, config.model)
    else:
        return ""
    if learner.ema:
        learner.ema.module.load_state_dict(learner.model.state_dict())
    return note


def uses_graph(config: TrainConfig | GanConfig, device: torch.device, world: World) -> bool:
    """Whether steps are to be repeated as a CUDA graph: one process on a GPU, unless --graph off.

    UserError for --graph on elsewhere.
    """
    possible = device.type == "cuda" and world.size == 1
    if config.graph == "on" and not possible:
        place = f"{world.size} ranks" if world.size > 1 else "a CPU"
        raise UserError(f"--graph on needs one process on a GPU, this is {place}; use --graph auto")
    return possible and config.graph != "off"


def recorded_code_note(config: TrainConfig) -> str:
    """A line on what a CUDA graph means for a plugin's code; "" where no plugin is used."""
    spec = loss_spec(config.loss)
    names = [] if is_built_in(config.model) else [config.model]
    names += [config.loss] if spec and spec.origin else []
    names = [name for name in names if not name.startswith(PREFIX)]
    if not names:
        return ""
    return (
        f"the step is recorded once and repeated: the Python code of {' and '.join(names)} runs "
        "only while it is recorded (docs/extending.md); --graph off runs it in each step"
    )


def batch_norm_estimator(learner: Learner, loader: TrainLoader, graph: bool) -> BatchNormEstimator:
    """Batch norm's statistics of the scored network as --bn-images wants them."""
    config = learner.config
    count = 0 if config.freeze_bn else config.bn_images
    return BatchNormEstimator(
        learner.scored, loader.images, count, config.seed, config.precision, graph
    )
