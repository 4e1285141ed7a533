"""The training loop of classifiers.

The same command on the same run folder continues the run. A run that was killed and continued ends
with the same weights and metrics as an uninterrupted one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from fer_hpc.config import TrainConfig
from fer_hpc.data.loader import TrainLoader
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.store import ImageStore
from fer_hpc.parallel.world import World
from fer_hpc.run.environment import resource_use, training_flops
from fer_hpc.run.folder import read_status
from fer_hpc.run.log import Profile
from fer_hpc.run.plugins import load_run_plugins
from fer_hpc.run.session import start_run
from fer_hpc.run.signals import STOP_HALTED
from fer_hpc.run.state import UNIT, Clock, EpochTimer, TrainState, step_seed
from fer_hpc.training.batches import stage_data, train_loader, weights_context
from fer_hpc.training.learner import Learner
from fer_hpc.training.optim import cosine_lr, set_lr
from fer_hpc.training.resolve import resolve_config
from fer_hpc.training.setup import load_initial_weights, make_learner, warm_up_ddp
from fer_hpc.training.step import SUMS, step
from fer_hpc.training.validate import is_stalled, keep_best, train_metrics, validate


def train(config: TrainConfig, world: World, halt_after: int = 0) -> dict[str, Any]:
    """Train to the end, or until a signal asks to stop.

    Gives the run's status, {"state": "finished" | "interrupted", "why": ..., ...}. With
    `halt_after` epochs (0: never) it stops there, saved like any interrupted run; the next start
    goes on. Raises UserError for what the user can change, Superseded where another start has
    taken the run over, PeerLost where another rank has died.
    """
    load_run_plugins(config.run, config.plugin)  # on every rank
    manifest = read_manifest(config.data)
    with start_run(config, world, partial(resolve_config, manifest=manifest)) as run:
        # Data.
        config, device = run.config, run.device
        data = stage_data(manifest, config, world)
        loader = train_loader(config, data, device, world)
        val = ImageStore(open_split(data, "val"), device, world.processes_per_gpu)
        clock = Clock(config.batch_size, loader.n, config.epochs)

        # Network, from the newest checkpoint or from its initial weights.
        learner = make_learner(config, data, device, world)
        warm_up_ddp(learner, loader, world)
        state = TrainState.fresh(learner.parts(), SUMS, device)
        run.restore(state)
        note = "" if run.parent else load_initial_weights(learner, data.classes)
        run.begin(
            state,
            clock,
            config.model,
            weights_context(config, data),
            partial(bad_step_text, loader),
            note,
        )
        flops = image_flops(learner, val) if run.attempt else 0.0
        if not run.parent:
            run.log.sample(loader.batch(0).images)

        # Loop: one step per iteration; an epoch ends where its last image has been seen.
        timer = EpochTimer(state.images_seen)

        def end_epoch() -> int:
            """Validate, keep the best weights, lower the learning rate, log."""
            nonlocal timer
            train_s = timer.elapsed_s()
            epoch, lr = clock.epoch(state.images_seen), learner.optimizer.param_groups[0]["lr"]
            values = train_metrics(state, world)
            val_values, counts = validate(learner, state, val, world)
            values |= val_values
            best = keep_best(learner, state, values, epoch)
            if config.schedule == "plateau":
                learner.plateau.step(values[config.plateau_on])
            row = {"epoch": epoch, "images_seen": state.images_seen, "lr": lr, **values}
            row |= {"grad_norm": timer.grad_norm, "best": best}
            timing = timer.timing(state.images_seen, train_s)
            use = resource_use(device, timing["images_per_s"] / world.size * flops)
            run.log.confusion(counts, state.images_seen)
            run.log.epoch(row, timing | use)
            timer = EpochTimer(state.images_seen)
            return STOP_HALTED if halt_after and epoch >= halt_after else 0

        progress = partial(progress_text, state)
        with Profile(run.attempt.path if config.profile and run.attempt else None) as profile:
            while state.images_seen < clock.total and not is_stalled(
                state, config.early_stop, clock.epoch(state.images_seen)
            ):
                ends_epoch = clock.ends_epoch(state.images_seen)
                with timer.data():
                    batch = loader.batch(state.images_seen)
                    norm = learner.normalizer(loader, state.images_seen)
                torch.manual_seed(step_seed(config.seed, state.images_seen, world.rank))
                if config.schedule == "cosine":
                    set_lr(learner.optimizer, cosine_lr(config, state.images_seen, loader.n))
                timer.grad_norm = step(learner, state, batch, norm, world.size, ends_epoch)
                state.images_seen += config.batch_size
                profile.step()
                if run.after_step(state, progress, end_epoch if ends_epoch else None):
                    break

        # End: the last checkpoint, from which more epochs may follow, final.pt and best.pt.
        stalled = is_stalled(state, config.early_stop, clock.epoch(state.images_seen))
        why = f"no gain in {config.best_on} for {config.early_stop} epochs" if stalled else ""
        run.finish(state, partial(results, learner, state), why)
    return read_status(config.run)


def progress_text(state: TrainState) -> str:
    """The epoch's mean loss so far."""
    images, _, loss, *_ = state.sums.tolist()
    return f"loss {loss / UNIT / max(images, 1):.4f}"


def image_flops(learner: Learner, images: ImageStore) -> float:
    """Floating-point operations of training on one image."""
    one = images.gather(np.zeros(1, np.int64)).images
    return training_flops(
        learner.model, one.double() if learner.config.precision == "fp64" else one
    )


def bad_step_text(loader: TrainLoader, images_seen: int) -> str:
    """The message for a loss that is not finite; it names images of that batch."""
    split, rows = loader.images.split, loader.rows(images_seen)
    first, second = int(rows[0]), int(rows[1 % len(rows)])
    return (
        f"loss is not a finite number at {images_seen:,} images seen, in the batch of "
        f"{split.describe_row(first)}, {split.describe_row(second)}, ...; the last good checkpoint "
        "is kept: use a smaller --lr or --clip 1 in another --run folder, or look at those images"
    )


def results(
    learner: Learner, state: TrainState
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What a finished run leaves: the files of weights, and the best epoch's values."""
    files = {"final.pt": state.final_weights(learner.scored), "best.pt": state.best}
    return files, {name: value for name, value in state.best.items() if name != "model"}
