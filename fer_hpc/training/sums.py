"""What a training step adds to the sums of its epoch: integers, so that no order changes them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fer_hpc.run.state import UNIT

SUMS = 4  # images, correct, plain loss, recipe's loss; losses in units of 1 / UNIT
MAX_MEAN_LOSS = 1024  # a larger mean counts as this: sums over 2 million images stay within 64 bits


class PartSums(NamedTuple):
    """What one part of a batch adds; tensors on the device."""

    counts: torch.Tensor  # [SUMS] int64
    finite: torch.Tensor  # bool: whether both losses are


def part_sums(
    logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor, recipe: torch.Tensor
) -> PartSums:
    """Count the images of a part with `logits` [b, classes] and `labels` [b].

    `loss` is the sum of their plain cross-entropies, `recipe` of what the recipe minimises. Both
    take the same path together: on a GPU each operation on a number is a kernel.
    """
    losses = torch.stack([loss, recipe]).double()
    limit = float(MAX_MEAN_LOSS * len(labels))
    units = (losses.nan_to_num().clamp(-limit, limit) * UNIT).round().long()
    correct = (logits.argmax(1) == labels).sum()
    counts = torch.stack([torch.full_like(correct, len(labels)), correct, *units])
    return PartSums(counts, (losses - losses == 0).all())
