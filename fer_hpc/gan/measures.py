"""What the evaluation of a GAN computes: similarity, distances between sets of faces, intervals."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000  # of the bootstrap over people
DISTANCE_RESAMPLES = 100  # of the bootstrap of distances, each of which takes up to a second
PROGRESS_EVERY_S = 10.0

Features = NDArray[np.float64]  # [faces, features]


def cosine_similarity(a: Features, b: Features) -> Features:
    """Cosine of the angle between the rows of `a` and those of `b`, both [n, d]; gives [n]."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / np.maximum(norms, 1e-12))


def diversity(features: Features) -> Features:
    """Cosine distance of each face to another one, half of the list away; [n]."""
    return 1 - cosine_similarity(features, np.roll(features, max(1, len(features) // 2), 0))


def partner_of_another_class(target: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each position in `target` [n], the next position (cyclic) that holds another class.

    Where there is only one class, the next position.
    """
    positions = np.arange(len(target))
    partner = np.roll(positions, -1)
    for shift in range(2, len(target)):
        same = target[partner] == target
        if not same.any():
            break
        partner[same] = np.roll(positions, -shift)[same]
    return partner


def bootstrap_counts(people: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each row counts in each bootstrap resample, [RESAMPLES, n].

    People are resampled, not rows: all pairs with one neutral person are drawn together. Intervals
    would be too narrow otherwise.
    """
    _, person = np.unique(people, return_inverse=True)
    n = int(person.max()) + 1
    rng = np.random.default_rng(0)
    return np.stack(
        [np.bincount(rng.integers(0, n, n), minlength=n)[person] for _ in range(RESAMPLES)]
    )


def mean_with_interval(
    values: NDArray[Any], counts: NDArray[np.int64], target: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """{"mean", "interval_95"} of `values` [n]; with `target`, the mean of the classes' means.

    The interval is the percentile bootstrap of `counts` (see `bootstrap_counts`).
    """
    if target is None:
        groups = [np.ones(len(values), bool)]
    else:
        groups = [target == k for k in np.unique(target)]
    mean = np.mean([values[group].mean() for group in groups])
    with np.errstate(invalid="ignore"):  # a class without a face in a resample does not count there
        resampled = np.nanmean(
            [
                counts[:, group] @ values[group].astype(float) / counts[:, group].sum(1)
                for group in groups
            ],
            0,
        )
    low, high = np.percentile(resampled, (2.5, 97.5))
    return {"mean": float(mean), "interval_95": [float(low), float(high)]}


def feature_distances(
    real: Features, generated: Features, neutral: Features, rng: np.random.Generator
) -> dict[str, Any]:
    """Frechet and kernel distance of real expressive faces to generated ones, with references.

    The references are the distance to the neutral inputs, and the distance between real faces,
    below which no generator can be expected to come. Rows of the three inputs [n, d] are pairs.

    Frechet distances fall as 1/n with the number of faces, so all are measured with one sample
    size: one half of the real faces against the other half's rows, averaged over both directions.
    The interval is the value plus or minus 1.96 standard deviations of the bootstrap. The values
    of the bootstrap itself are too large: a face that is drawn twice is closer to itself than two
    faces are to each other.
    """
    one, two = np.array_split(rng.permutation(len(real)), 2)
    one = one[: len(two)]
    distances: dict[str, Any] = {"n": len(two)}
    for name, measure in (("frechet", frechet_distance), ("kernel", kernel_distance)):

        def both_ways(
            other: Features, a: NDArray[np.int64], b: NDArray[np.int64], measure: Any = measure
        ) -> float:
            return 0.5 * float(measure(real[a], other[b]) + measure(real[b], other[a]))

        resampled = []
        reported = time.monotonic()
        for k in range(DISTANCE_RESAMPLES):
            resampled.append(
                both_ways(generated, rng.choice(one, len(one)), rng.choice(two, len(two)))
            )
            if time.monotonic() - reported > PROGRESS_EVERY_S:
                reported = time.monotonic()
                print(f"{name} distance, resample {k + 1} of {DISTANCE_RESAMPLES}", file=sys.stderr)
        value, width = both_ways(generated, one, two), 1.96 * float(np.std(resampled, ddof=1))
        distances[name] = {
            "value": value,
            "bootstrap_95": [value - width, value + width],
            "of_neutral_faces": both_ways(neutral, one, two),
            "real_halves": measure(real[one], real[two]),
        }
    return distances


def frechet_distance(a: Features, b: Features) -> float:
    """Frechet distance of two Gaussians fitted to features [n, d] (Heusel et al. 2017).

    With the covariances R'R and S'S, the trace of the square root of their product is the sum of
    the singular values of R S'.
    """
    means = np.square(a.mean(0) - b.mean(0)).sum()
    first, second = (np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1) for x in (a, b))
    cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(means + np.square(first).sum() + np.square(second).sum() - 2 * cross)


def kernel_distance(a: Features, b: Features) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018.
    """

    def mean_off_diagonal(x: Features) -> float:
        k = (x @ x.T / x.shape[1] + 1) ** 3
        return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)))

    between = float(((a @ b.T / a.shape[1] + 1) ** 3).mean())
    return mean_off_diagonal(a) + mean_off_diagonal(b) - 2 * between
