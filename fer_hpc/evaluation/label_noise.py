"""Faces whose label may be wrong, by confident learning (Northcutt et al. 2021). No torch.

A class's threshold is the mean probability that faces with this label get for it. A face that
reaches the threshold of another class, and not by a smaller probability than its own, is a
candidate. The probabilities must come from a network that was not trained on the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-6  # a face may be the only one of its class, and then equals the threshold


@dataclass(frozen=True)
class Candidates:
    """Faces, the least likely label first."""

    rows: NDArray[np.int64]  # [m]
    suggested: NDArray[np.int64]  # [m] class
    margin: NDArray[np.float64]  # [m] probability of the label minus that of the suggestion


def candidates(p: NDArray[np.float64], labels: NDArray[np.int64]) -> Candidates:
    """The candidates among faces with probabilities p [n, classes] and labels [n]."""
    classes = p.shape[1]
    p_label = p[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, p_label, minlength=classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = p >= thresholds - ROUNDING
    # One class is confident, or the largest probability decides, as in the paper.
    suggested = np.where(confident.sum(1) > 1, p.argmax(1), confident.argmax(1))
    is_candidate = confident.any(1) & (suggested != labels) & (p.argmax(1) != labels)
    rows = np.flatnonzero(is_candidate)
    margin = p_label[rows] - p[rows, suggested[rows]]
    order = np.argsort(margin, kind="stable")
    return Candidates(rows[order], suggested[rows[order]], margin[order])
