"""The training loop of classifiers.

The same command on the same run folder continues the run. A run that was killed and continued ends
with the same weights and metrics as an uninterrupted one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config import TrainConfig, fields_of
from fer_hpc.config.errors import counted
from fer_hpc.data.loader import TrainLoader
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.data.step_inputs import Inputs, blocks_ahead
from fer_hpc.data.store import ImageStore
from fer_hpc.data.stream import PixelStream
from fer_hpc.evaluation.metrics import confusion, log_softmax
from fer_hpc.evaluation.score import Scorer
from fer_hpc.models.registry import build_network, model_spec
from fer_hpc.parallel.graph import StepRunner
from fer_hpc.parallel.world import World
from fer_hpc.run.environment import resource_use, training_flops
from fer_hpc.run.folder import read_status
from fer_hpc.run.log import Profile, RunLog
from fer_hpc.run.plugins import load_run_plugins
from fer_hpc.run.session import start_run
from fer_hpc.run.signals import STOP_HALTED
from fer_hpc.run.state import UNIT, Clock, EpochTimer, TrainState, step_seed
from fer_hpc.training.batches import (
    check_data,
    stage_data,
    step_block,
    train_loader,
    weights_context,
)
from fer_hpc.training.learner import Learner
from fer_hpc.training.optim import cosine_lr, set_mode
from fer_hpc.training.projector import show_faces
from fer_hpc.training.resolve import resolve_config
from fer_hpc.training.setup import (
    batch_norm_estimator,
    load_initial_weights,
    make_learner,
    recorded_code_note,
    uses_graph,
    warm_up_ddp,
)
from fer_hpc.training.step import step
from fer_hpc.training.sums import SUMS
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
            check_data(data, config, world),
            note,
            {"parameters": sum(p.numel() for p in learner.model.parameters() if p.requires_grad)},
        )
        flops = image_flops(learner, val) if run.attempt else 0.0
        if not run.parent:
            run.log.sample(loader.batch(0).images)
        graph = uses_graph(config, device, world)
        if graph and (note := recorded_code_note(config)):
            run.log.say(note)
        scorer = Scorer(learner.scored, val, config.precision, world, graph=graph)
        batch_norm = batch_norm_estimator(learner, loader, graph)

        # Loop: one step per iteration; an epoch ends where its last image has been seen.
        timer = EpochTimer(state.images_seen)

        def one_step(inputs: Inputs, variant: tuple[bool, bool]) -> None:
            step(learner, state, loader.make(inputs), inputs, *variant)
            state.chain.add(inputs, state.sums)

        def end_epoch() -> int:
            """Validate, keep the best weights, lower the learning rate, log."""
            nonlocal timer
            chain = state.chain_row(world, clock)
            values = train_metrics(state, world)
            train_s, epoch = timer.elapsed_s(), clock.epoch(state.images_seen)
            val_values, logits = validate(learner, state, scorer, batch_norm, world)
            values |= val_values
            best = keep_best(learner, state, values, epoch)
            lr = last_lr(learner, state.images_seen, loader.n)
            if config.schedule == "plateau":
                learner.plateau.step(values[config.plateau_on])
                learner.lr.set(learner.lr.value)
            row = {"epoch": epoch, "images_seen": state.images_seen, "lr": lr, **values}
            row |= {"grad_norm": learner.grad_norm.item(), "best": best}
            timing = timer.timing(state.images_seen, train_s)
            use = resource_use(device, timing["images_per_s"] / world.size * flops)
            show_val(run.log, logits, val.split.columns["labels"], data.classes, state.images_seen)
            run.log.epoch(row, timing | use, chain)
            set_mode(learner.net, config.freeze_bn)
            timer = EpochTimer(state.images_seen)
            return STOP_HALTED if halt_after and epoch >= halt_after else 0

        set_mode(learner.net, config.freeze_bn)
        runner = StepRunner(one_step, state.tensors, device, graph, config.graph == "on")
        pixels = PixelStream(loader.images)
        make_block = partial(step_block, config, loader)
        with (
            Profile(run.attempt.path if config.profile and run.attempt else None) as profile,
            blocks_ahead(
                make_block, device, state.images_seen, config.batch_size, clock.total
            ) as blocks,
        ):
            while state.images_seen < clock.total and not is_stalled(
                state, config.early_stop, clock.epoch(state.images_seen)
            ):
                first, ends_epoch = state.images_seen == 0, clock.ends_epoch(state.images_seen)
                with timer.data():
                    block, k = blocks.at(state.images_seen)
                    streamed = pixels.at(block, k)
                seed = step_seed(config.seed, state.images_seen, world.rank)
                usual = not (first or ends_epoch)
                runner.run(block, k, seed, (first, ends_epoch), usual, streamed)
                state.images_seen += config.batch_size
                profile.step()
                if run.after_step(
                    state, progress_text, step_means, end_epoch if ends_epoch else None
                ):
                    break

        if config.projector_faces and run.attempt and state.images_seen >= clock.total:
            about = (val.split, list(data.classes), config.projector_faces, state.images_seen)
            show_faces(run.log, learner.scored, *about)

        # End: the last checkpoint, from which more epochs may follow, final.pt and best.pt.
        stalled = is_stalled(state, config.early_stop, clock.epoch(state.images_seen))
        epochs = counted(config.early_stop, "epoch")
        why = f"no gain in {config.best_on} for {epochs}" if stalled else ""
        run.finish(state, partial(results, learner, state), why)
    return read_status(config.run)


def last_lr(learner: Learner, images_seen: int, epoch_images: int) -> float:
    """The learning rate of the step that ended at `images_seen` images."""
    config = learner.config
    if config.schedule == "cosine":
        learner.lr.set(cosine_lr(config, images_seen - config.batch_size, epoch_images))
    return learner.lr.value


def progress_text(sums: list[int]) -> str:
    """The epoch's mean loss so far."""
    images, _, loss, *_ = sums
    return f"loss {loss / UNIT / max(images, 1):.4f}"


def step_means(sums: list[int]) -> dict[str, float]:
    """Step-wise scalars of sums over images."""
    images, correct, loss, *_ = sums
    return {
        "loss/train, steps": loss / UNIT / images,
        "accuracy/train, steps": correct / images,
    }


def show_val(
    log: RunLog, logits: NDArray[Any], labels: NDArray[Any], classes: Sequence[str], images: int
) -> None:
    """Confusion matrix and precision-recall curves in TensorBoard."""
    log.confusion(confusion(labels, logits.argmax(1), len(classes)), images)
    if log.shows_now(images):
        log.precision_recall(np.exp(log_softmax(logits)), labels, list(classes), images)


def image_flops(learner: Learner, images: ImageStore) -> float:
    """Floating-point operations of training on one image."""
    height, width, channels = images.parts[0].shape[1:]
    if model_spec(learner.config.model).origin is None:
        network = copy.deepcopy(learner.model)
    else:  # a plugin's may keep its activations, and then it has no copy
        science = fields_of(learner.config, "science")
        with torch.random.fork_rng(devices=[]):
            network = build_network(science, learner.objective.classes, (height, width, channels))
    network = network.cpu()  # a GPU may take another form of a convolution
    one = torch.zeros(1, channels, height, width, dtype=next(network.parameters()).dtype)
    return training_flops(network, one)


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
    """What a finished run leaves: the files of weights, and the best epoch's values.

    best.pt stays the same where more epochs bring no better one: scores name its hash.
    """
    science = {k: v for k, v in fields_of(learner.config, "science").items() if k != "epochs"}
    best = {**state.best, "science": science}
    files = {"final.pt": state.final_weights(learner.scored), "best.pt": best}
    return files, {name: value for name, value in state.best.items() if name != "model"}
