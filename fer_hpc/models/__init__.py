"""Networks: numbers in, tensors out. No configuration, no files."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fer_hpc.models.cnn import cnn_baseline, cnn_improved

# name -> constructor(classes, channels, size)
MODELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn_baseline": cnn_baseline,
    "cnn_improved": cnn_improved,
}
