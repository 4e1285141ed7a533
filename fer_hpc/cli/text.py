"""Results as text for a terminal."""

from __future__ import annotations

from typing import Any

from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.evaluation.results import result_files

VIEWS = {"none": "", "flip": ", mean of 2 views", "ten_crop": ", mean of 10 views"}


def format_scores(config: EvaluateConfig, scores: dict[str, Any], name: str) -> str:
    """The scores of a classifier on a split, with 95 % intervals, as lines of text.

    name: that of the files, see `result_name`
    """
    unfinished = "" if scores["finished"] else " (run not finished)"
    lines = [
        f"{config.run} on {scores['split']}, n = {scores['n']:,}, "
        f"weights of epoch {scores['epoch']}{unfinished}{VIEWS[config.tta]}"
    ]
    if scores["masked"]:
        lines.append(
            f"  classes that only one side has, left out: {', '.join(scores['masked'])}; "
            f"faces dropped: {scores['dropped']:,}"
        )
    lines.append(
        f"  accuracy          {_with_interval(scores, 'accuracy')}   "
        f"majority class {scores['majority_rate']:.4f}"
    )
    lines.append(f"  balanced accuracy {_with_interval(scores, 'balanced_accuracy')}")
    lines.append(f"  macro-F1          {_with_interval(scores, 'macro_f1')}")
    lines.append(f"  loss              {scores['loss']:.4f}")
    for class_name, found in scores["classes"].items():
        recall = f"{found['recall']:.4f}  of {found['n']:,}" if found["n"] else "-       no face"
        lines.append(f"  recall {class_name:<10} {recall}")
    for pair in scores["pairs"]:
        classes = " or ".join(pair["classes"])
        lines.append(f"  {classes:<22} {_with_interval(pair, 'accuracy')}  of {pair['n']:,}")
    for dimension in ("valence", "arousal"):
        if f"{dimension}_rmse" in scores:
            rmse, ccc, sign = (scores[f"{dimension}_{key}"] for key in ("rmse", "ccc", "sign"))
            lines.append(f"  {dimension:<17} RMSE {rmse:.4f}  CCC {ccc:.4f}  sign {sign:.4f}")
    files = [path.name for path in result_files(config.run, name).values() if path.exists()]
    lines.append(f"  written: {config.run}/{', '.join(files)}")
    return "\n".join(lines)


def _with_interval(scores: dict[str, Any], key: str) -> str:
    low, high = scores[f"{key}_95"]
    return f"{scores[key]:.4f}  [{low:.4f}, {high:.4f}]"
