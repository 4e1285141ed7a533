"""Which fields a JSON file must have, and a check that it has them. Standard library only."""

from __future__ import annotations

import math
from typing import Any

from fer_hpc.config import UserError

# A type stands for a value of it; float takes integers too, but neither takes NaN or infinity. A
# dict stands for its keys, `str` for any key; [x, y] for a list of two; [x, ...] for a list of any
# length; a tuple for one of its members.
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
NAMES = {str: "text", bool: "true or false", int: "an integer", float: "a number"}


def check_shape(value: Any, wanted: Any, where: str) -> None:
    """UserError, with the field in `where`, unless a JSON value has the shape `wanted`."""
    if not _fits(value, wanted):
        name = NAMES.get(wanted, "") if isinstance(wanted, type) else ""
        name = name or ("an object" if isinstance(wanted, dict) else "another form")
        raise UserError(f"{where} is {_short(value)}; wanted {name}")
    if isinstance(wanted, dict):
        for key, part in wanted.items():
            if key is str:
                for name, inner in value.items():
                    check_shape(inner, part, f"{where}: {name}")
            elif key not in value and not (isinstance(part, tuple) and None in part):
                raise UserError(f"{where} has no {key!r}")
            else:
                check_shape(value.get(key), part, f"{where}: {key}")
    elif isinstance(wanted, list):
        parts = wanted[:1] * len(value) if wanted[-1] is ... else wanted
        for inner, part in zip(value, parts, strict=True):
            check_shape(inner, part, where)
    elif isinstance(wanted, tuple) and value is not None:
        check_shape(value, next(part for part in wanted if _fits(value, part)), where)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of the kind that is wanted; its parts are not looked at."""
    if isinstance(wanted, tuple):
        return any(_fits(value, part) for part in wanted)
    if isinstance(wanted, dict):
        return isinstance(value, dict)
    if isinstance(wanted, list):
        return isinstance(value, list) and (wanted[-1] is ... or len(value) == len(wanted))
    if wanted is None or wanted is bool or isinstance(value, bool):
        return value is None if wanted is None else isinstance(value, bool) and wanted is bool
    if wanted is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, wanted)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
