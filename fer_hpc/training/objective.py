"""What training minimises: a loss over a global batch, and the valence/arousal head's error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import nll_loss

from fer_hpc.config import TrainConfig
from fer_hpc.data.shards import Manifest
from fer_hpc.data.store import Batch
from fer_hpc.parallel.device import one_hot
from fer_hpc.training.losses import Loss, LossNormalizer, loss_spec


def class_weights(counts: list[int], cap: float) -> NDArray[np.float64]:
    """w_c = N / (K n_c), at most `cap`; 0 for a class without images."""
    n = np.array(counts, dtype=np.float64)
    weights = n.sum() / (np.count_nonzero(n) * np.maximum(n, 1))
    return np.where(n > 0, np.minimum(weights, cap), 0.0)


@dataclass(frozen=True)
class Objective:
    """The recipe's objective over a global batch, of which a rank sees a part.

    A target is a distribution over classes: one class, two with mixup, or that of the shards.
    `weights` [classes] or None weighs an image by its target's classes; sums are divided by the
    weights of the *global* batch, so parts and ranks add up to its mean. `loss` replaces the
    cross-entropy.
    """

    classes: int
    smoothing: float = 0.0
    weights: torch.Tensor | None = None
    va_weight: float = 0.0
    loss: Loss | None = None

    def __call__(
        self, outputs: torch.Tensor, batch: Batch, norm: LossNormalizer
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(objective, sum of plain cross-entropies, sum of the recipe's loss) of a part of a batch.

        outputs [b, classes (+ 2)] in float32 or float64.
        """
        norm = norm.cast(outputs.dtype)
        logits = outputs[:, : self.classes]
        log_p = logits.log_softmax(1)  # [b, K]
        plain, weights = self._plain(log_p, batch)
        plain_sum = plain.sum()
        if self.loss is not None:
            total = self.loss(logits, batch, norm)
            recipe_sum = total.detach() * norm.weight_sum
        else:
            recipe = plain
            if self.smoothing:
                recipe = (1 - self.smoothing) * plain - self.smoothing * log_p.mean(1)
            if weights is not None:
                recipe = recipe * weights
            recipe_sum = plain_sum if recipe is plain else recipe.sum()
            total = recipe_sum / norm.weight_sum
        if self.va_weight and batch.affect is not None:
            known = batch.affect.isfinite()
            predicted = outputs[:, self.classes :].tanh()
            error = (predicted - batch.affect.nan_to_num().to(outputs.dtype)).square()
            total = total + self.va_weight * (error * known).sum() / norm.affect_count
        return total, plain_sum.detach(), recipe_sum.detach()

    def _plain(self, log_p: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Cross-entropies [b], and the images' class weights [b] where there are any."""
        weights = None if self.weights is None else self.weights.to(log_p.dtype)
        mixed = batch.weights is not None and batch.other_labels is not None
        if batch.targets is None and not mixed:
            plain = nll_loss(log_p, batch.labels, reduction="none")
            return plain, None if weights is None else weights.index_select(0, batch.labels)
        target = self._target(batch.labels, batch.targets, log_p.dtype)
        if batch.weights is not None and batch.other_labels is not None:
            kept = batch.weights.to(log_p.dtype)[:, None]
            other = self._target(batch.other_labels, batch.other_targets, log_p.dtype)
            target = kept * target + (1 - kept) * other
        return -(target * log_p).sum(1), None if weights is None else target @ weights

    def _target(
        self, labels: torch.Tensor, targets: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """The distributions [b, classes] to learn: the labels', where there are no others."""
        return one_hot(labels, self.classes, dtype) if targets is None else targets.to(dtype)


def make_objective(config: TrainConfig, manifest: Manifest, device: torch.device) -> Objective:
    """The objective of a configuration; class weights come from the train split's counts."""
    weights = None
    if config.class_weights:
        by_class = class_weights(manifest.class_counts("train"), config.class_weights)
        weights = torch.from_numpy(by_class).to(device)
    spec = loss_spec(config.loss)
    return Objective(
        len(manifest.classes),
        config.label_smoothing,
        weights,
        config.va_weight,
        spec.loss if spec else None,
    )
