"""Results as text for a terminal."""

from __future__ import annotations

from typing import Any

from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.evaluation.results import result_files, result_name
from fer_hpc.run.folder import read_run_config


def format_scores(config: EvaluateConfig, r: dict[str, Any]) -> str:
    low, high = r["accuracy_95"]
    views = {"none": "", "flip": ", mean of 2 views", "ten_crop": ", mean of 10 views"}[config.tta]
    unfinished = "" if r["finished"] else " (run not finished)"
    lines = [
        f"{config.run} on {r['split']}, n = {r['n']:,}, weights of epoch {r['epoch']}{unfinished}{views}"
    ]
    if r["masked"]:
        lines.append(
            f"  classes that only one side knows, left out: {', '.join(r['masked'])}; faces dropped: {r['dropped']:,}"
        )
    lines.append(
        f"  accuracy          {r['accuracy']:.4f}  [{low:.4f}, {high:.4f}]   majority class {r['majority_rate']:.4f}"
    )
    for key, title in (("balanced_accuracy", "balanced accuracy"), ("macro_f1", "macro-F1")):
        lines.append(
            f"  {title:<17} {r[key]:.4f}  [{r[key + '_95'][0]:.4f}, {r[key + '_95'][1]:.4f}]"
        )
    lines.append(f"  loss              {r['loss']:.4f}")
    for name, c in r["classes"].items():
        lines.append(
            f"  recall {name:<10} "
            + (f"{c['recall']:.4f}  of {c['n']:,}" if c["n"] else "-       no face")
        )
    for pair in r["pairs"]:
        low, high = pair["accuracy_95"]
        lines.append(
            f"  {' or '.join(pair['classes']):<22} {pair['accuracy']:.4f}  [{low:.4f}, {high:.4f}]  of {pair['n']:,}"
        )
    for dimension in ("valence", "arousal"):
        if f"{dimension}_rmse" in r:
            scores = (r[f"{dimension}_{key}"] for key in ("rmse", "ccc", "sign"))
            lines.append("  {:<17} RMSE {:.4f}  CCC {:.4f}  sign {:.4f}".format(dimension, *scores))
    name = result_name(config, read_run_config(config.run)["data"]["fingerprint"])
    files = [path for path in result_files(config.run, name).values() if path.exists()]
    lines += [f"  written: {config.run}/" + ", ".join(path.name for path in files)]
    return "\n".join(lines)
