"""Batch norm's statistics, taken from training images instead of a running average.

A running average that moves by 1 % a step (Keras' default) lags behind the weights for hundreds of
steps. In a short run its validation then says little about the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fer_hpc.data.loader import EVAL_CHUNK
from fer_hpc.data.step_inputs import Block, Inputs
from fer_hpc.data.store import ImageStore
from fer_hpc.data.stream import PixelStream
from fer_hpc.parallel.device import autocast
from fer_hpc.parallel.graph import StepRunner

SPLIT_DIVISOR = 8  # at most the eighth part of a split, but one chunk


def usual_batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norm layers of torch and timm, of which it is known how they use their buffers."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and type(module).__module__.startswith(("torch.", "timm."))
    ]


@contextlib.contextmanager
def counted_together(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Within the body, one forward pass in training, the layers do not count it; then all do.

    On a GPU one kernel for all counters takes the place of one for each. For networks that call
    each layer once a pass. Layers that use their counter count for themselves: those without a
    momentum, and those with a forward of their own, as SyncBatchNorm.
    """
    counters = {}
    for norm in norms:
        counter, usual = norm.num_batches_tracked, type(norm).forward is _BatchNorm.forward
        counts = norm.training and norm.track_running_stats and norm.momentum is not None
        if usual and counts and counter is not None:
            counters[norm] = counter
            norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, counter in counters.items():
            norm.num_batches_tracked = counter
    if counters:
        torch._foreach_add_(list(counters.values()), 1)


class BatchNormEstimator:
    """Sets the running statistics of `model` to those of a fixed set of training images.

    `count` images in chunks of EVAL_CHUNK, drawn by the seed, without augmentation or dropout: mean
    of the chunks' means and variances, layer by layer as at inference. `count` 0 does nothing. The
    weights do not change, and training does not read these statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageStore,
        count: int,
        seed: int,
        precision: str,
        graph: bool = False,
    ) -> None:
        self.model, self.images, self._precision = model, images, precision
        self.norms = [
            m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
        ]
        # of a small split less: an epoch of it is short
        chunks = -(-min(count, len(images.split) // SPLIT_DIVISOR) // EVAL_CHUNK) if count else 0
        if not self.norms or not chunks:
            self.norms, chunks = [], 1
        order = np.random.default_rng(seed).permutation(len(images.split))
        rows = np.resize(order, chunks * EVAL_CHUNK).reshape(chunks, EVAL_CHUNK)
        self._block = Block({"rows": rows}).to(images.device)
        self._pixels = PixelStream(images)
        self._runner = StepRunner(self._forward, self._buffers, images.device, graph)

    def _buffers(self) -> list[torch.Tensor]:
        return [buffer for norm in self.norms for buffer in norm.buffers()]

    def _forward(self, inputs: Inputs, _: object) -> None:
        images = self.images.gather(inputs).images
        with autocast(self._precision, images.device):
            self.model(images.double() if self._precision == "fp64" else images)

    @torch.no_grad()
    def estimate(self) -> None:
        """Replace the statistics; leaves the model in evaluation mode."""
        if not self.norms:
            return
        counters = [norm.get_buffer("num_batches_tracked") for norm in self.norms]
        before, momenta = [c.clone() for c in counters], [norm.momentum for norm in self.norms]
        names = ("running_mean", "running_var")
        statistics = [norm.get_buffer(name) for norm in self.norms for name in names]
        totals = [torch.zeros_like(s) for s in statistics]
        self.model.eval()
        for norm in self.norms:
            norm.train()
            norm.momentum = 1.0  # the statistics are those of the newest chunk
        for k in range(len(self._block)):
            self._runner.run(self._block, k, streamed=self._pixels.at(self._block, k))
            torch._foreach_add_(totals, statistics)
        torch._foreach_div_(totals, float(len(self._block)))
        torch._foreach_copy_(statistics, totals)
        torch._foreach_copy_(counters, before)
        for norm, momentum in zip(self.norms, momenta, strict=True):
            norm.momentum = momentum
        self.model.eval()
