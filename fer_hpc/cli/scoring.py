"""What the verbs that score do. Heavy modules are imported where they are used."""

from __future__ import annotations

from typing import Any

from fer_hpc.cli import text
from fer_hpc.config import EXIT_FINISHED, EXIT_RUN_AGAIN, UserError
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.manifest import find_manifest
from fer_hpc.evaluation.results import read_scores, result_files, result_name
from fer_hpc.files import sha256
from fer_hpc.run.folder import data_folder, outcome_file, read_run_config, read_status


def evaluate(config: EvaluateConfig) -> int:
    stored = read_run_config(config.run)  # raises the error before torch is loaded
    name = result_name(config, stored["data"]["fingerprint"])
    if stored.get("kind") == "GAN":
        return _evaluate_gan(config, name)
    scores = _stored_scores(config, name)
    if scores:
        print(f"{config.run}: {config.split} was scored with these weights before, nothing to do")
    else:
        from fer_hpc.evaluation.score import evaluate
        from fer_hpc.parallel.world import World

        world = World.detect()
        scores = evaluate(config, world)
        if world.rank:
            return EXIT_FINISHED
    print(text.format_scores(config, scores, name))
    return EXIT_FINISHED


def _evaluate_gan(config: EvaluateConfig, name: str) -> int:
    if config.tta != "none":
        raise UserError(f"--tta {config.tta} is for classifiers; {config.run} holds a GAN")
    from fer_hpc.gan.evaluate import Interrupted, evaluate_gan, format_gan_scores
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
        found = read_scores(result_files(config.run, name)["scores"])
    except UserError:  # absent or damaged: it is computed again
        return None
    weights = outcome_file(config.run, "best.pt")
    if not weights or read_status(config.run)["state"] != "finished":
        return None
    manifest = find_manifest(config.data or data_folder(config.run))
    if not manifest or found["data"] != manifest.fingerprint:
        return None
    return found if "pairs" in found and found["weights"] == sha256(weights) else None
