"""95 % intervals of shares and of means. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def wilson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, middle = correct / n, (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * p * (1 - p) + z * z / 4)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of a mean; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    from scipy.special import stdtrit  # a tenth of a command's start, and few need it

    half = float(stdtrit(n - 1, 0.5 + level / 2) * np.std(values, ddof=1) / np.sqrt(n))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def clip_interval(
    interval: tuple[float, float], bounds: tuple[float, float]
) -> tuple[float, float]:
    """The part of an interval that lies within `bounds`, the values that are possible."""
    low, high = bounds
    return min(max(interval[0], low), high), min(max(interval[1], low), high)


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval of the class means of `values` [resamples, classes]."""
    low, high = np.nanpercentile(np.nanmean(values, axis=1), (2.5, 97.5))
    return float(low), float(high)
