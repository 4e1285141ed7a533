"""What the verbs that score and compare do. Heavy modules are imported where they are used."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from fer_hpc.cli import text
from fer_hpc.config import EXIT_FINISHED, EXIT_RUN_AGAIN, UserError, flag_name
from fer_hpc.config.commands import CompareConfig, EvaluateConfig
from fer_hpc.data.manifest import find_manifest
from fer_hpc.evaluation.results import (
    ROBUSTNESS,
    extra_files,
    is_current,
    read_scores,
    result_files,
    result_name,
    wanted_extras,
)
from fer_hpc.files import DAMAGE, read_json, sha256
from fer_hpc.run.folder import data_folder, outcome_file, read_run_config, read_status
from fer_hpc.run.outcome import check_history


def evaluate(config: EvaluateConfig) -> int:
    stored = read_run_config(config.run)  # raises the error before torch is loaded
    check_history(config.run)
    name = result_name(config, stored["data"]["fingerprint"])
    if stored.get("kind") == "GAN":
        return _evaluate_gan(config, name)
    from fer_hpc.parallel.world import World

    scores, world = _stored_scores(config, name), None
    if scores:
        missing = _missing_extras(config, name, scores)
        rest = "" if missing else ", nothing to do"
        print(f"{config.run}: {config.split} was scored with these weights before{rest}")
        if missing:
            from fer_hpc.evaluation.score import add_extras

            if World.detect().rank:
                return EXIT_FINISHED  # one process does this
            add_extras(config, missing)
    else:
        from fer_hpc.evaluation.score import evaluate

        world = World.detect()
        scores = evaluate(config, world)
        if world.rank:
            return EXIT_FINISHED
    print(text.format_scores(config, scores, name))
    return EXIT_FINISHED


def _evaluate_gan(config: EvaluateConfig, name: str) -> int:
    for flag in ("robust", "gallery", "by"):
        if getattr(config, flag):
            raise UserError(f"{flag_name(flag)} is for classifiers; {config.run} holds a GAN")
    if config.tta != "none":
        raise UserError(f"--tta {config.tta} is for classifiers; {config.run} holds a GAN")
    from fer_hpc.gan.evaluate import Interrupted, evaluate_gan
    from fer_hpc.gan.text import format_gan_scores
    from fer_hpc.parallel.world import World

    if World.detect().rank:
        return EXIT_FINISHED  # one process evaluates
    try:
        print(format_gan_scores(config.run, evaluate_gan(config)))
        print(f"  written: {config.run}/eval-{name}.json, grid-{name}.png, curves.png")
    except Interrupted as error:
        print(error)
        return EXIT_RUN_AGAIN
    return EXIT_FINISHED


def _stored_scores(config: EvaluateConfig, name: str) -> dict[str, Any] | None:
    """The scores of this split if they are stored already, from the same weights and data."""
    try:
        saved_scores = read_scores(result_files(config.run, name)["scores"])
    except UserError:  # absent or damaged: it is computed again
        return None
    weights = outcome_file(config.run, "best.pt")
    if not weights or read_status(config.run)["state"] != "finished":
        return None
    manifest = find_manifest(config.data or data_folder(config.run))
    if not manifest or saved_scores["data"] != manifest.fingerprint:
        return None
    if "calibration" not in saved_scores or saved_scores["weights"] != sha256(weights):
        return None
    from fer_hpc.evaluation.calibration import FITTED_HERE, stored_temperature
    from fer_hpc.evaluation.predictions import read_predictions, recalibrate

    try:
        tables = saved_scores.get("groups") or {}
        if any(tables.get(column, {}).get("min_n") != config.min_group for column in config.by):
            return None
        is_fitted_here = saved_scores["calibration"]["note"] == FITTED_HERE
        if is_fitted_here and stored_temperature(config.run, saved_scores["weights"])[0] is None:
            return None  # calibration.json is gone or damaged
        if config.gallery:
            read_predictions(config.run, name)  # the gallery is made of them
        scores = recalibrate(config.run, name, saved_scores)
        text.format_scores(replace(config, robust=False, gallery=False), scores, name)
        return scores
    except DAMAGE:  # the predictions are damaged, or a field of the scores
        return None


def _missing_extras(config: EvaluateConfig, name: str, scores: dict[str, Any]) -> list[str]:
    """What the command asks for beside the scores and is not there yet."""
    files = extra_files(config.run, name)
    about = scores["data"], scores["weights"]
    missing = [extra for extra in wanted_extras(config) if not is_current(files[extra], *about)]
    for extra in [each for each in wanted_extras(config) if each not in missing]:
        try:
            text.format_extra(config, name, extra)
            card = read_json(files[extra]) if extra == ROBUSTNESS and config.robust_faces else None
            if card and card["n"] != min(config.robust_faces, card["of"]):
                missing.append(extra)
        except DAMAGE:  # made again
            missing.append(extra)
    return missing


def compare(config: CompareConfig) -> int:
    from fer_hpc.evaluation.compare import compare, format_comparison

    comparison = compare(config)
    print(json.dumps(comparison, indent=1) if config.json else format_comparison(comparison))
    return EXIT_FINISHED
