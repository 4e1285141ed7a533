"""Train a classifier: python -m fer_hpc.train PRESET --data DIR --run RUN.

The same command on the same run folder continues it; killed at any moment, it ends with the same weights and metrics
as if it had been left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fer_hpc.config import TrainConfig, UserError, fields_of, non_default_fields
from fer_hpc.data.augment import Augmentation
from fer_hpc.data.loader import TrainLoader
from fer_hpc.data.shards import Manifest, open_split, read_manifest
from fer_hpc.data.store import ImageStore, affect_of
from fer_hpc.evaluation.metrics import (
    confusion,
    higher_is_better,
    loss_and_accuracy,
    smoothed_loss,
    valence_arousal,
)
from fer_hpc.evaluation.score import predict, split_outputs
from fer_hpc.files import to_jsonl, write_bytes
from fer_hpc.models.registry import build_network
from fer_hpc.parallel.collectives import (
    Agreement,
    broadcast_buffers,
    detect_lost_peers,
    gather_json,
    min_over_ranks,
    on_rank_0,
    process_group,
    sum_over_ranks,
)
from fer_hpc.parallel.device import autocast, pick_device, set_determinism
from fer_hpc.parallel.process import keep_freed_memory
from fer_hpc.parallel.world import World
from fer_hpc.run import checkpoint
from fer_hpc.run.attempts import Attempt
from fer_hpc.run.environment import (
    describe_environment,
    rank_location,
    resource_use,
    training_flops,
)
from fer_hpc.run.folder import read_rows, read_status
from fer_hpc.run.log import Profile, RunLog
from fer_hpc.run.session import (
    STOP_HALTED,
    Saver,
    Superseded,
    checkpoint_write_error,
    claim_run,
    restore,
    step_seed,
    stop_reason,
    stop_signals,
)
from fer_hpc.run.watchdog import Watchdog
from fer_hpc.training import weights
from fer_hpc.training.objective import LossNormalizer, Objective, class_weights
from fer_hpc.training.optim import cosine_lr, make_ema, make_optimizer, make_plateau, set_mode
from fer_hpc.training.resolve import resolve_config, stage_data

MAX_MEAN_LOSS = 1024  # a mean loss above it counts as that: sums over an epoch of 2 million images stay within 64 bits
NO_BAD_STEP = 2**62  # images_seen of a step that did not happen


@dataclass
class State:
    """All that a step changes; what a checkpoint holds."""

    model: nn.Module
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    sums: (
        torch.Tensor
    )  # of the epoch so far: images, correct, loss, objective, in whole units (they add up exactly)
    broken_at: torch.Tensor  # images seen before this rank's first step whose loss was not finite
    classes: int
    images_seen: int = 0
    best: dict[str, Any] = field(
        default_factory=dict
    )  # value, epoch, images_seen and model of the best epoch

    @property
    def scored(self) -> nn.Module:
        """The network that is validated and kept: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def to_dict(self, world: World) -> dict[str, Any]:
        """What a checkpoint holds; called on all ranks together, whose sums it adds up."""
        parts = ("model", "optimizer", "plateau", "scaler", *(("ema",) if self.ema else ()))
        saved = {name: getattr(self, name).state_dict() for name in parts}
        return {
            **saved,
            "sums": sum_over_ranks(self.sums, world).cpu(),
            "images_seen": self.images_seen,
            "best": self.best,
        }

    def load(self, saved: dict[str, Any], rank: int) -> None:
        for name in ("model", "optimizer", "plateau", "scaler", *(("ema",) if self.ema else ())):
            getattr(self, name).load_state_dict(saved[name])
        self.sums.copy_(saved["sums"] if rank == 0 else torch.zeros_like(self.sums))
        self.images_seen, self.best = saved["images_seen"], saved["best"]


def train(config: TrainConfig, world: World, halt_after: int = 0) -> dict[str, Any]:
    """Train to the end, or until a signal asks to stop; gives the run's status ({"state": "finished" | "interrupted"}).

    `halt_after` epochs (0: never) it stops as well, saved like any interrupted run; the next start goes on from there.

    Raises UserError for what the user can mend, Superseded where another start has taken the run over, PeerLost where
    another rank has died.
    """
    # Setup: which run this is, and rank 0's right to write it.
    manifest = read_manifest(config.data)
    device = pick_device(config.device, world.local_rank)
    keep_freed_memory()
    given = config
    with contextlib.ExitStack() as closing:
        closing.enter_context(process_group(world))
        signals = closing.enter_context(stop_signals())
        config, attempt = closing.enter_context(
            claim_run(config, lambda: resolve_config(given, manifest, device, world), world)
        )
        closing.enter_context(detect_lost_peers(world))
        torch.set_num_threads(config.threads)
        set_determinism(config, device)

        # Data.
        here = stage_data(manifest, config, world)
        hung = lambda why: attempt.end("interrupted", why) if attempt else None  # noqa: E731
        watch = closing.enter_context(
            Watchdog(config.hang_factor, config.hang_floor_s, world.rank, hung)
        )
        loader = train_loader(config, here, device, world)
        val = ImageStore(open_split(here, "val"), device)
        total = (
            -(-config.epochs * loader.n // config.batch_size) * config.batch_size
        )  # images; every batch is full

        # Model, and where it stood.
        state = _fresh_state(config, manifest, device)
        objective = _objective(config, manifest, device)
        net = wrap_ddp(state, config, world, device)
        _warm_up_ddp(net, state, config, loader, objective, world)
        parent = restore(state, config.run, world)
        taken = (
            ""
            if parent or not config.init_hash
            else load_initial_weights(state, config, manifest.classes)
        )
        log = RunLog(attempt, config.tensorboard, state.images_seen, total, loader.n)
        ranks = gather_json(rank_location(world, device), world)
        if attempt:
            attempt.began(
                describe_environment(world, device)
                | {"ranks": ranks, "data": str(config.data.absolute())},
                parent,
            )
        saver, about = (
            Saver(attempt, log, config.checkpoint_every_s, world.job),
            _about(config, manifest),
        )
        where = (
            f", from image {state.images_seen:,} of {total:,}" if parent else taken and f", {taken}"
        )
        number = attempt.number if attempt else 0
        log.say(
            f"{config.run}: {config.model}, {config.precision} on {world.size} x {device.type}, attempt {number}{where}"
        )
        flops = (
            training_flops(
                state.model, _to_precision(val.gather(np.zeros(1, np.int64)).images, config)
            )
            if attempt
            else 0.0
        )
        log.hparams(
            {"batch_size": config.batch_size, "lr": config.lr, "seed": config.seed}
            | non_default_fields(config)
        )
        if not parent:
            log.sample(loader.batch(0).images)

        # Loop: one step a turn; an epoch ends where its last image has been seen.
        agreement, stop = Agreement(world, 4), 0
        epoch = _Epoch(time.monotonic(), state.images_seen)
        profile = closing.enter_context(
            Profile(attempt.path if config.profile and attempt else None)
        )
        while state.images_seen < total and not _stalled(state, config, loader.n):
            ends_epoch = (
                state.images_seen + config.batch_size
            ) // loader.n > state.images_seen // loader.n
            began = time.monotonic()
            batch = loader.batch(state.images_seen)
            mass = LossNormalizer(
                *loader.loss_normalizer(state.images_seen, objective.weights_on_host)
            )
            epoch.data_s += time.monotonic() - began
            torch.manual_seed(step_seed(config.seed, state.images_seen, world.rank))
            if config.schedule == "cosine":
                _set_lr(state.optimizer, cosine_lr(config, state.images_seen, loader.n))
            set_mode(net, config.freeze_bn)
            parts = batch.parts(config.accumulate)
            for k, part in enumerate(parts):
                with (
                    sync_gradients(net, last=k == len(parts) - 1),
                    autocast(config.precision, device),
                ):
                    outputs = net(_to_precision(part.images, config))
                    loss, *sums = objective(_to_full_precision(outputs), part, mass)
                    state.scaler.scale(
                        loss * world.size
                    ).backward()  # DDP divides by the number of ranks
                _add_to_sums(state, outputs, part.labels, sums)
            epoch.grad_norm = _clip(state, config, wanted=ends_epoch)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            if state.ema:
                state.ema.update_parameters(state.model)
            state.images_seen += config.batch_size
            profile.step()
            watch.step(state.images_seen)

            broken = (device.type == "cpu" or log.due()) and bool(
                state.broken_at < NO_BAD_STEP
            )  # asking a GPU makes it wait
            if log.due() and not broken:
                images, _, loss, *_ = state.sums.tolist()
                log.progress(state.images_seen, f"loss {loss / 2.0**32 / max(images, 1):.4f}")
            taken_over = attempt is not None and attempt.superseded()
            asked = max(signals, default=saver.end_is_near(watch.longest_s))
            stop, save, lost, alarm = agreement.exchange([asked, saver.due(), taken_over, broken])
            if alarm or ends_epoch:
                _stop_if_broken(state, loader, world)
            if ends_epoch:
                with watch.phase("validation"):
                    row, timing = _end_epoch(state, config, loader.n, val, epoch, log, world)
                log.epoch(
                    row, timing | resource_use(device, timing["images_per_s"] / world.size * flops)
                )
                epoch = _Epoch(time.monotonic(), state.images_seen)
                if halt_after and row["epoch"] >= halt_after:
                    stop = stop or STOP_HALTED
            if lost:
                raise Superseded(
                    f"{config.run}: another start has taken this run over; this one stops"
                )
            if stop:
                break
            if save and state.images_seen < total:
                _stop_if_broken(state, loader, world)
                with watch.phase("saving"):
                    saver.save(state.images_seen, state.to_dict(world) | about)

        # Close: a last checkpoint, from which more epochs may follow, and the weights for everyone else.
        agreement.close()
        _stop_if_broken(state, loader, world)
        saver.save(state.images_seen, state.to_dict(world) | about, last=True)
        if attempt:
            _end(attempt, state, total, config, loader.n, about, stop)
        log.close()
        if world.size > 1:
            torch.distributed.barrier()  # nobody leaves while rank 0 still writes: a launcher would stop it
    return read_status(config.run)


# ---- setup -----------------------------------------------------------------------------------------------------------


def train_loader(
    config: TrainConfig, manifest: Manifest, device: torch.device, world: World = World()
) -> TrainLoader:  # noqa: B008
    """The configuration's batches; a set that cannot stay in memory in its present order gets a hint."""
    chosen = {f.name: getattr(config, f.name) for f in dataclasses.fields(Augmentation)}
    loader = TrainLoader(
        open_split(manifest, "train"),
        config.batch_size,
        config.seed,
        Augmentation(**chosen),
        device,
        config.shard_window,
        config.balanced,
        bool(config.va_weight),
        world.rank,
        world.size,
    )
    size = sum(part.nbytes for part in loader.images.split.images)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory and not config.shard_window and world.rank == 0:
        print(
            f"warning: {size / 1e9:.0f} GB of images in {memory / 1e9:.0f} GB of memory are read from storage again and "
            "again; --shard-window 8 reads shards in turn (another order, hence another experiment)",
            file=sys.stderr,
        )
    return loader


def _fresh_state(config: TrainConfig, manifest: Manifest, device: torch.device) -> State:
    """The state at image 0."""
    torch.manual_seed(config.seed)
    model = build_network(fields_of(config, "science"), len(manifest.classes), manifest.image_shape)
    if config.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.precision == "fp64":
        model = model.double()
    optimizer = make_optimizer(config, model)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    sums = torch.zeros(4, dtype=torch.int64, device=device)
    broken_at = torch.full((), NO_BAD_STEP, dtype=torch.int64, device=device)
    ema = make_ema(config, model)
    return State(
        model,
        ema,
        optimizer,
        make_plateau(config, optimizer),
        scaler,
        sums,
        broken_at,
        len(manifest.classes),
    )


def load_initial_weights(state: State, config: TrainConfig, classes: tuple[str, ...]) -> str:
    """Start from the weights that --init-from means; gives a line on what was taken."""
    if not config.init_from:
        raise UserError(
            f"{config.run} has no checkpoint yet and begins with other weights: give its --init-from again"
        )
    taken = weights.init_from(state.model, weights.weights_file(config.init_from), classes)
    if state.ema:
        state.ema.module.load_state_dict(state.model.state_dict())
    return taken


def _objective(config: TrainConfig, manifest: Manifest, device: torch.device) -> Objective:
    weighted = (
        class_weights(manifest.class_counts("train"), config.class_weights)
        if config.class_weights
        else None
    )
    on_device = None if weighted is None else torch.from_numpy(weighted).to(device)
    return Objective(
        len(manifest.classes), config.label_smoothing, on_device, weighted, config.va_weight
    )


def wrap_ddp(state: State, config: TrainConfig, world: World, device: torch.device) -> nn.Module:
    """The network to call: compiled if wanted, and averaging gradients over the ranks if there are several."""
    net: nn.Module = torch.compile(state.model) if config.compile else state.model  # type: ignore[assignment]
    if world.size == 1:
        return net
    return DistributedDataParallel(
        net, device_ids=[device.index] if device.type == "cuda" else None
    )


def _warm_up_ddp(
    net: nn.Module,
    state: State,
    config: TrainConfig,
    loader: TrainLoader,
    objective: Objective,
    world: World,
) -> None:
    """Two discarded forward and backward passes, so that every start of several ranks sums gradients in the same order.

    DDP arranges its buckets anew after its first step; from three ranks on, a resumed run would else add up in another
    order than the undisturbed one.
    """
    if world.size == 1:
        return
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    batch, mass = (
        loader.batch(0),
        LossNormalizer(*loader.loss_normalizer(0, objective.weights_on_host)),
    )
    for _ in range(2):
        set_mode(net, config.freeze_bn)
        for k, part in enumerate(parts := batch.parts(config.accumulate)):
            with (
                sync_gradients(net, last=k == len(parts) - 1),
                autocast(config.precision, batch.images.device),
            ):
                outputs = net(_to_precision(part.images, config))
                objective(_to_full_precision(outputs), part, mass)[0].backward()
    state.optimizer.zero_grad(set_to_none=True)
    state.model.load_state_dict(before)


# ---- in the loop -----------------------------------------------------------------------------------------------------


def sync_gradients(net: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients are averaged over the ranks in the backward pass of a step's last part only."""
    return (
        contextlib.nullcontext()
        if last or not isinstance(net, DistributedDataParallel)
        else net.no_sync()
    )


def _to_precision(images: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    return images.double() if config.precision == "fp64" else images


def _to_full_precision(outputs: torch.Tensor) -> torch.Tensor:
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _add_to_sums(
    state: State, outputs: torch.Tensor, labels: torch.Tensor, sums: list[torch.Tensor]
) -> None:
    """Count a part of a batch; stays on the device. Whole numbers, so that no order of additions changes the result."""
    loss, objective = sums
    n = torch.full_like(state.broken_at, len(labels))
    classes = int(state.classes)
    correct = (outputs.detach()[:, :classes].argmax(1) == labels).sum()
    most = float(MAX_MEAN_LOSS * len(labels))
    units = [
        (value.double().nan_to_num().clamp(-most, most) * 2.0**32).round().long()
        for value in (loss, objective)
    ]
    state.sums += torch.stack([n, correct, *units])
    broken = ~(loss.isfinite() & objective.isfinite())
    state.broken_at.clamp_(max=torch.where(broken, state.images_seen, NO_BAD_STEP))


def _clip(state: State, config: TrainConfig, wanted: bool) -> float | None:
    """Limit the gradient's norm if the recipe says so; gives the norm where it is `wanted` for the log."""
    if not (config.clip or wanted):
        return None
    state.scaler.unscale_(state.optimizer)
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if config.clip:
        nn.utils.clip_grads_with_norm_(state.model.parameters(), config.clip, norm)
    return norm.item() if wanted else None


def _stop_if_broken(state: State, loader: TrainLoader, world: World) -> None:
    """UserError on all ranks where any rank's loss was not a number, before anything broken is saved."""
    images_seen = int(min_over_ranks(state.broken_at, world))
    if images_seen < NO_BAD_STEP:
        split, rows = loader.images.split, loader.rows(images_seen)
        raise UserError(
            f"loss is not a finite number at {images_seen:,} images seen, in the batch of {split.describe_row(int(rows[0]))}, "
            f"{split.describe_row(int(rows[1 % len(rows)]))}, ...; the last good checkpoint is kept: use a smaller --lr or --clip 1 "
            "in another --run folder, or look at those images"
        )


def _stalled(state: State, config: TrainConfig, epoch_images: int) -> bool:
    """Whether --early-stop epochs have passed since the best one."""
    since = state.images_seen // epoch_images - state.best.get("epoch", 0)
    return bool(config.early_stop and state.best and since >= config.early_stop)


@dataclass
class _Epoch:
    """What this start has seen of the epoch so far, for the timing row."""

    began: float
    images_seen: int
    data_s: float = 0.0
    grad_norm: float | None = None


def _end_epoch(
    state: State,
    config: TrainConfig,
    epoch_images: int,
    val: ImageStore,
    seen: _Epoch,
    log: RunLog,
    world: World,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Validate, remember the best weights, adjust the learning rate; gives the epoch's metrics and timing rows."""
    images, correct, *units = sum_over_ranks(state.sums, world).tolist()
    state.sums.zero_()
    train_s, trained = time.monotonic() - seen.began, state.images_seen - seen.images_seen
    broadcast_buffers(state.scored, world)
    outputs, affect = split_outputs(
        predict(state.scored, val, config.precision, world), state.classes
    )
    labels = val.split.columns["labels"]

    def score() -> dict[
        str, float
    ]:  # rank 0's numbers count: the last bit may differ between kinds of processors
        val_loss, val_accuracy = loss_and_accuracy(outputs, labels)
        if not math.isfinite(val_loss):
            raise UserError(
                f"the loss on val is not a finite number at {state.images_seen:,} images seen; the last good checkpoint is "
                "kept: use a smaller --lr or --clip 1 in another --run folder"
            )
        values = {
            "train_loss": units[0] / 2.0**32 / images,
            "train_objective": units[1] / 2.0**32 / images,
            "train_accuracy": correct / images,
            "val_loss": val_loss,
            "val_objective": smoothed_loss(outputs, labels, config.label_smoothing),
            "val_accuracy": val_accuracy,
        }
        return values | (
            {} if affect is None else valence_arousal(affect, affect_of(val.split), "val_")
        )

    values = on_rank_0(world, score)
    log.confusion(confusion(labels, outputs.argmax(1), state.classes), state.images_seen)
    value = values[config.best_on] * (1 if higher_is_better(config.best_on) else -1)
    lr = state.optimizer.param_groups[0]["lr"]
    epoch = state.images_seen // epoch_images
    improved = not state.best or value > state.best["value"]
    if improved:
        copied = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in state.scored.state_dict().items()
        }
        state.best = {
            "value": value,
            "epoch": epoch,
            "images_seen": state.images_seen,
            **values,
            "model": copied,
        }
    if config.schedule == "plateau":
        state.plateau.step(values[config.plateau_on])
    row = {
        "epoch": epoch,
        "images_seen": state.images_seen,
        "lr": lr,
        **values,
        "grad_norm": seen.grad_norm,
        "best": improved,
    }
    timing = {
        "train_s": train_s,
        "val_s": time.monotonic() - seen.began - train_s,
        "images_per_s": trained / train_s,
        "data_share": seen.data_s / train_s,
    }
    return row, timing


# ---- close -----------------------------------------------------------------------------------------------------------


def _about(config: TrainConfig, manifest: Manifest) -> dict[str, Any]:
    """What a file of weights must say to be used elsewhere."""
    return {
        "science": fields_of(config, "science"),
        "data": {
            "fingerprint": manifest.fingerprint,
            "classes": list(manifest.classes),
            "image_shape": list(manifest.image_shape),
            "faces": manifest.content["faces"],
        },
    }


def _end(
    attempt: Attempt,
    state: State,
    total: int,
    config: TrainConfig,
    epoch_images: int,
    about: dict[str, Any],
    stop: int,
) -> None:
    """Publish what a finished run leaves, or note who stopped it."""
    stalled = _stalled(state, config, epoch_images)
    if state.images_seen < total and not stalled:
        attempt.end("interrupted", stop_reason(stop), images_seen=state.images_seen)
        return
    final = {name: tensor.cpu() for name, tensor in state.scored.state_dict().items()}
    try:
        checkpoint.save(
            attempt.path / "final.pt", {**about, "images_seen": state.images_seen, "model": final}
        )
        checkpoint.save(attempt.path / "best.pt", {**about, **state.best})
        for name in ("final.pt", "best.pt"):
            attempt.publish(name)
        if attempt.is_newest():
            write_bytes(attempt.run / "metrics.jsonl", to_jsonl(read_rows(attempt.run)))
    except OSError as error:
        raise checkpoint_write_error(attempt.run, state.images_seen, error) from None
    why = f"no gain in {config.best_on} for {config.early_stop} epochs" if stalled else ""
    best = {k: v for k, v in state.best.items() if k != "model"}
    attempt.end("finished", why, images_seen=state.images_seen, best=best)
