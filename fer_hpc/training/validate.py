"""What happens where an epoch ends: validation, the best weights, the learning rate's plateau."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.data.shards import Split
from fer_hpc.data.store import Batch, affect_of
from fer_hpc.evaluation.metrics import (
    higher_is_better,
    loss_and_accuracy,
    smoothed_loss,
    valence_arousal,
)
from fer_hpc.evaluation.score import Scorer, split_outputs
from fer_hpc.parallel.collectives import broadcast_buffers, on_rank_0, sum_over_ranks
from fer_hpc.parallel.world import World
from fer_hpc.run.state import UNIT, TrainState
from fer_hpc.training.batch_norm import BatchNormEstimator
from fer_hpc.training.learner import Learner
from fer_hpc.training.losses import LossNormalizer


def train_metrics(state: TrainState, world: World) -> dict[str, float]:
    """The epoch's means over all ranks; sets the sums back to zero."""
    images, correct, loss, recipe = sum_over_ranks(state.sums, world).tolist()
    state.sums.zero_()
    return {
        "train_loss": loss / UNIT / images,
        "train_objective": recipe / UNIT / images,
        "train_accuracy": correct / images,
    }


def validate(
    learner: Learner,
    state: TrainState,
    scorer: Scorer,
    batch_norm: BatchNormEstimator,
    world: World,
) -> tuple[dict[str, float], NDArray[Any]]:
    """Metrics of the scored network on val, the same on every rank, and its logits.

    Rank 0's numbers count: the last bit may differ between kinds of processors. UserError where
    the loss on val is not finite.
    """
    classes = learner.objective.classes
    batch_norm.estimate()
    broadcast_buffers(learner.scored, world)
    logits, affect = split_outputs(scorer.outputs(), classes)
    val = scorer.images.split
    labels = val.columns["labels"]

    def score() -> dict[str, float]:
        loss, accuracy = loss_and_accuracy(logits, labels, val.targets)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss on val is not a finite number at {state.images_seen:,} images seen; "
                "the last good checkpoint is kept: use a smaller --lr or --clip 1 in another "
                "--run folder"
            )
        values = {
            "val_loss": loss,
            "val_objective": _objective_on_val(learner, logits, val),
            "val_accuracy": accuracy,
        }
        if affect is not None:
            values |= valence_arousal(affect, affect_of(val), "val_")
        return values

    return on_rank_0(world, score), logits


def _objective_on_val(learner: Learner, logits: NDArray[Any], val: Split) -> float:
    """The recipe's loss without class weights and mixup; a plugin's loss as it is."""
    labels, shares = val.columns["labels"], val.targets
    if learner.objective.loss is None:
        return smoothed_loss(logits, labels, learner.config.label_smoothing, shares)
    truth = torch.from_numpy(np.asarray(labels))
    targets = None if shares is None else torch.from_numpy(shares)
    rows = torch.arange(len(labels))
    batch = Batch(torch.empty(len(labels), 0), truth, rows, targets=targets)
    with torch.no_grad():
        norm = LossNormalizer(float(len(labels)))
        return float(learner.objective.loss(torch.from_numpy(logits).double(), batch, norm))


def keep_best(learner: Learner, state: TrainState, values: dict[str, float], epoch: int) -> bool:
    """Remember the weights if this epoch is the best so far by --best-on; gives whether it is."""
    metric = learner.config.best_on
    value = values[metric] * (1 if higher_is_better(metric) else -1)
    if state.best and value <= state.best["value"]:
        return False
    weights = {  # where they are; the next checkpoint takes them to main memory
        name: tensor.detach().clone() for name, tensor in learner.scored.state_dict().items()
    }
    about = {"value": value, "epoch": epoch, "images_seen": state.images_seen}
    state.best = {**about, **values, "model": weights}
    return True


def is_stalled(state: TrainState, early_stop: int, epoch: int) -> bool:
    """Whether `early_stop` epochs (0: never) have passed since the best one."""
    return bool(early_stop and state.best and epoch - state.best["epoch"] >= early_stop)
