"""What training minimises: cross-entropy, smoothed and weighted as the recipe says, and the valence/arousal head's error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import one_hot

from fer_hpc.data.store import Batch


def class_weights(counts: list[int], cap: float) -> NDArray[np.float64]:
    """w_c = N / (K n_c), at most `cap`; 0 for a class without images."""
    n = np.array(counts, dtype=np.float64)
    return np.where(n > 0, np.minimum(n.sum() / (np.count_nonzero(n) * np.maximum(n, 1)), cap), 0.0)


@dataclass(frozen=True)
class Objective:
    """The recipe's objective over a global batch, of which a rank sees a part.

    A target is a distribution over classes: one class, or two with mixup. `weights` [classes] or None weighs an image by
    its target's class; sums are divided by the weights of the *global* batch, so parts and ranks add up to its mean.
    """

    classes: int
    smoothing: float = 0.0
    weights: torch.Tensor | None = None
    weights_on_host: NDArray[np.float64] | None = None
    va_weight: float = 0.0

    def __call__(
        self, outputs: torch.Tensor, batch: Batch, mass: LossNormalizer
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(objective, sum of plain cross-entropies, sum of smoothed and weighted ones) of a part of a global batch.

        outputs [b, classes (+ 2)] in float32 or float64.
        """
        log_p = outputs[:, : self.classes].log_softmax(1)  # [b, K]
        target = one_hot(batch.labels, self.classes).to(log_p.dtype)
        if batch.weights is not None and batch.other_labels is not None:
            kept = batch.weights.to(log_p.dtype)[:, None]
            target = kept * target + (1 - kept) * one_hot(batch.other_labels, self.classes)
        loss = -(target * log_p).sum(1)  # [b]
        smoothed = (
            (1 - self.smoothing) * loss - self.smoothing * log_p.mean(1) if self.smoothing else loss
        )
        if self.weights is not None:
            smoothed = smoothed * (target @ self.weights.to(log_p.dtype))
        total = smoothed.sum() / mass.images
        if self.va_weight and batch.affect is not None:
            known = batch.affect.isfinite()
            error = (
                outputs[:, self.classes :].tanh() - batch.affect.nan_to_num().to(outputs.dtype)
            ).square()
            total = total + self.va_weight * (error * known).sum() / max(mass.affect, 1.0)
        return total, loss.detach().sum(), smoothed.detach().sum()


@dataclass(frozen=True)
class LossNormalizer:
    """What a global batch weighs: its images by class weight, and its known valence and arousal values."""

    images: float
    affect: float = 0.0
