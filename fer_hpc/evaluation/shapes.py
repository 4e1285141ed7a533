"""The fields of eval-NAME.json, for `check_shape`. Standard library only."""

from __future__ import annotations

PAIR = [float, float]
PAIR_OF_CLASSES = {"classes": [str, str], "accuracy": float, "accuracy_95": PAIR}
SCORES = {
    "split": str,
    "data": str,
    "weights": str,
    "epoch": int,
    "finished": bool,
    "n": int,
    "loss": float,
    "accuracy": float,
    "accuracy_95": PAIR,
    "balanced_accuracy": float,
    "balanced_accuracy_95": PAIR,
    "macro_f1": float,
    "macro_f1_95": PAIR,
    "majority_rate": float,
    "classes": {str: {"n": int, "recall": (float, None)}},
    "pairs": ([PAIR_OF_CLASSES, ...], None),  # not in results of older versions
    "confusion": [[int, ...], ...],
}
