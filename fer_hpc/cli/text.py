"""Results as text for a terminal."""

from __future__ import annotations

from typing import Any

from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.evaluation.results import (
    ROBUSTNESS,
    empty_classes,
    extra_files,
    result_files,
    wanted_extras,
)
from fer_hpc.files import read_stored

WEAK_NETWORK = (
    "the network is not better than to name the most frequent class every time: its suggestions "
    "mean little"
)
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
    if without := empty_classes(scores["classes"]):
        lines.append(f"    {without}")
    lines.append(f"  loss              {scores['loss']:.4f}")
    lines += _more_scores(scores)
    for class_name, class_scores in scores["classes"].items():
        recall = (
            f"{class_scores['recall']:.4f}  of {class_scores['n']:,}"
            if class_scores["n"]
            else "-       no face"
        )
        lines.append(f"  recall {class_name:<10} {recall}")
    both = [p for p in scores["pairs"] if all(scores["classes"][c]["n"] for c in p["classes"])]
    if both:
        lines.append("  accuracy among similar expressions alone, of faces of either:")
    for pair in both:
        classes = " or ".join(pair["classes"])
        lines.append(f"    {classes:<20} {_with_interval(pair, 'accuracy')}  of {pair['n']:,}")
    for dimension in ("valence", "arousal"):
        if f"{dimension}_rmse" in scores:
            rmse, ccc, sign = (scores[f"{dimension}_{key}"] for key in ("rmse", "ccc", "sign"))
            lines.append(f"  {dimension:<17} RMSE {rmse:.4f}  CCC {ccc:.4f}  sign {sign:.4f}")
    lines += format_groups(scores.get("groups") or {}, in_full=bool(config.by))
    files = [path.name for path in result_files(config.run, name).values() if path.exists()]
    for extra in wanted_extras(config):
        lines += format_extra(config, name, extra)
    if config.robust:
        files += [f"robust-{name}.{kind}" for kind in ("json", "csv", "png")]
        files.append(f"robust-{name}-sheet.png")
    if config.gallery:
        files += [f"gallery-{name}.{kind}" for kind in ("json", "png")]
        pictures = (f"gallery-{name}-pairs.png", f"label-noise-{name}.png")
        files += [file for file in pictures if (config.run / file).exists()]
        files.append(f"label-noise-{name}.csv")
    lines.append(f"  written: {config.run}/{', '.join(files)}")
    return "\n".join(lines)


def format_extra(config: EvaluateConfig, name: str, extra: str) -> list[str]:
    """The lines about a robustness card or a gallery; an error of DAMAGE where it is damaged."""
    content = read_stored(extra_files(config.run, name)[extra])
    if extra == ROBUSTNESS:
        return _robustness(content)
    noise = content["label_noise"]
    seen = "; the network was trained on these faces" if noise["seen_in_training"] else ""
    what = f"{noise['candidates']:,} candidates to look at; the network's own errors are among them"
    lines = [f"  labels that may be wrong: {what}{seen}"]
    if noise.get("beats_majority") is False:
        lines.append(f"    {WEAK_NETWORK}")
    return lines


def _more_scores(scores: dict[str, Any]) -> list[str]:
    """Top-2, kappa, calibration and seven classes; nothing for results of older versions."""
    if "calibration" not in scores:
        return []
    lines = [f"  top-2 accuracy    {_with_interval(scores, 'top_2')}"]
    if scores["kappa"] is not None:
        lines.append(f"  Cohen's kappa     {_with_interval(scores, 'kappa')}")
    calibration = scores["calibration"]
    for key, name in (
        ("before", "as trained"),
        ("after", f"T = {calibration['temperature'] or 1:.3f}"),
    ):
        if calibration[key]:
            part = calibration[key]
            lines.append(
                f"  calibration error {_with_interval(part, 'ece')}   NLL {part['nll']:.4f}  "
                f"Brier {part['brier']:.4f}  {name} "
                f"(a calibrated one: {part['ece_of_calibrated']:.4f})"
            )
    if calibration["note"]:
        lines.append(f"    temperature: {calibration['note']}")
    seven = scores.get("affectnet_7")
    if seven:
        lines.append(
            f"  without {seven['left_out']:<9} {_with_interval(seven, 'accuracy')}   "
            f"balanced {_with_interval(seven, 'balanced_accuracy')}  of {seven['n']:,}"
        )
    return lines


def _robustness(card: dict[str, Any]) -> list[str]:
    """The robustness card in a few lines."""
    mean, clean = card["mean"], card["clean"]["accuracy"]
    lines = [
        f"  under disturbance {_with_interval(mean, 'accuracy')}   clean {clean:.4f}, "
        f"{card['n']:,} of {card['of']:,} faces"
    ]
    for kind in card["disturbances"].values():
        levels = " ".join(f"{level['accuracy']:.3f}" for level in kind["levels"])
        lines.append(f"    {kind['title']:<15} {levels}")
    return lines + format_groups(card["pose"] or {}, in_full=True)


def format_groups(groups: dict[str, Any], in_full: bool) -> list[str]:
    """The gap of every column that was scored by; `in_full` a line for each group as well."""
    lines = []
    for column, table in groups.items():
        for row in table["groups"] if in_full else ():
            few = "" if row["enough"] else f"  fewer than {table['min_n']}: not in the gap"
            lines.append(
                f"  {column + ' ' + row['name']:<17} {_with_interval(row, 'accuracy')}   "
                f"balanced {row['balanced_accuracy']:.4f}  of {row['n']:,}{few}"
            )
        gap = table["gap"]["balanced_accuracy"]
        unknown = f"; unknown for {table['unknown']:,} faces" if table["unknown"] else ""
        if gap:
            low, high = gap["gap_95"]
            lines.append(
                f"  by {column}: balanced accuracy of {gap['best']} minus {gap['worst']} "
                f"{gap['gap']:.4f}  [{low:+.4f}, {high:+.4f}]: {gap['verdict']}{unknown}"
            )
        else:
            few = f"fewer than two groups of {table['min_n']} faces"
            lines.append(f"  by {column}: no gap measured, {few}{unknown}")
    return lines


def _with_interval(scores: dict[str, Any], key: str) -> str:
    low, high = scores[f"{key}_95"]
    return f"{scores[key]:.4f}  [{low:.4f}, {high:.4f}]"
