"""Measure a GAN run on a split: is the expression there, the person kept, the face realistic?

See judge.py for the classifier that measures, measures.py for what is computed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config import TrainConfig, UserError
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.shards import Manifest, open_split
from fer_hpc.evaluation import plots
from fer_hpc.evaluation.intervals import wilson
from fer_hpc.evaluation.openings import note_opening
from fer_hpc.evaluation.results import result_name, say_replaced, scored_data
from fer_hpc.files import remove_leftovers, write_json
from fer_hpc.gan.identity import (
    IdentityJudge,
    NotMeasured,
    check_people,
    identity_config,
    load_identity_judge,
    measure_identity,
)
from fer_hpc.gan.judge import CHUNK, Judge, judge_config, judge_rows, load_judge
from fer_hpc.gan.measures import (
    Features,
    bootstrap_counts,
    cosine_similarity,
    diversity,
    feature_distances,
    mean_with_interval,
    partner_of_another_class,
)
from fer_hpc.gan.pairs import PairLoader
from fer_hpc.gan.validate import sample_grid
from fer_hpc.gan.weights import load_generator, mode_of
from fer_hpc.models.gan import Generator
from fer_hpc.parallel.device import inference, pick_device
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import read_rows, read_run_config, read_status
from fer_hpc.training.loop import train

MIN_PAIRS = 8


class Interrupted(Exception):
    """A signal came while the judge was trained."""


def evaluate_gan(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a GAN run on a split; writes eval-SPLIT.json, grid-SPLIT.png and curves.png into it.

    Trains a judge in RUN/judge unless --judge names one. Raises UserError for data, a split or a
    judge that does not fit, before any training; Interrupted where a signal ended the training.
    """
    stored = read_run_config(config.run)
    manifest = scored_data(config, stored["data"]["fingerprint"])
    shape = tuple(stored["data"]["image_shape"])
    if manifest.image_shape != shape or list(manifest.classes) != stored["data"]["classes"]:
        raise UserError(
            f"--data {manifest.folder} holds {manifest.image_shape} faces of "
            f"{', '.join(manifest.classes)}; {config.run} was trained on {shape} faces of "
            f"{', '.join(stored['data']['classes'])}; give shards of the same shape and classes"
        )
    device = pick_device(config.device)
    generator, _, weights = load_generator(config.run, device)
    loader = _pair_loader(config, manifest, device)
    judge_run = config.judge or _trained(judge_config(config, stored), config.run, "--judge")
    torch.set_num_threads(stored["science"]["threads"])
    judge, judge_description = load_judge(judge_run, manifest, stored, device, config.plugin)
    identity, left_out = _identity_judge(config, stored, manifest, loader, device)
    neutral_rows, expressive_rows, _, _ = loader.rows(0)
    remove_leftovers(config.run)  # of an evaluation that was killed
    note_opening(config.run, config.split, ["scores"], manifest.fingerprint, stored, weights)

    print(f"{config.run}: measuring {len(expressive_rows):,} pairs of faces", file=sys.stderr)
    seen = _judge_pairs(generator, judge, identity, loader, neutral_rows, expressive_rows)
    rng = np.random.default_rng(0)
    stranger = seen.neutral[rng.permutation(len(seen.neutral))]
    people = loader.groups[neutral_rows]
    counts = bootstrap_counts(np.where(people >= 0, people, -1 - neutral_rows))
    mode = mode_of(stored["science"])
    persons: dict[str, Any] = {"left_out": left_out}
    if identity:
        persons = measure_identity(identity, loader, neutral_rows, expressive_rows, seen.persons)
    result = {
        "kind": "GAN",
        "split": config.split,
        "data": manifest.fingerprint,
        "mode": mode,
        "n": len(expressive_rows),
        "neutral_faces": len(np.unique(neutral_rows)),
        "weights": weights,
        "judge": judge_description,
        "pairs": config.pairs,
        # The paper mode's generator never learns which expression is wanted.
        "expression": {"informative": mode == "improved"}
        | _expression_scores(seen, loader.labels[expressive_rows], counts, manifest.classes),
        "identity": {  # cosine of features
            "to_neutral": mean_with_interval(
                cosine_similarity(seen.generated, seen.neutral), counts
            ),
            "to_expressive": mean_with_interval(
                cosine_similarity(seen.generated, seen.real), counts
            ),
            "to_a_stranger": mean_with_interval(
                cosine_similarity(seen.generated, stranger), counts
            ),
        },
        "identity_judge": persons,
        "distance": feature_distances(seen.real, seen.generated, seen.neutral, rng),
        "diversity": {
            "of_outputs": mean_with_interval(diversity(seen.generated), counts),
            "of_real_faces": mean_with_interval(diversity(seen.real), counts),
            "change_by_expression": mean_with_interval(seen.changes, counts),
        },
    }
    name = result_name(config, stored["data"]["fingerprint"])
    say_replaced(config.run, name, manifest.fingerprint)
    write_json(config.run / f"eval-{name}.json", result)
    _plot(config.run, name, generator, manifest, loader, result)
    return result


def _pair_loader(config: EvaluateConfig, manifest: Manifest, device: torch.device) -> PairLoader:
    """Fixed pairs: every expressive face once, at most --pairs, with a neutral face of another."""
    split, neutral = open_split(manifest, config.split), manifest.classes.index("Neutral")
    labels = split.columns["labels"]
    count = int(min(config.pairs, (labels != neutral).sum()))
    if count < MIN_PAIRS or not (labels == neutral).any():
        raise UserError(
            f"{manifest.folder}: its {config.split} split has {(labels == neutral).sum():,} "
            f"neutral and {count:,} expressive faces; wanted at least 1 and {MIN_PAIRS}; "
            "give another --split or --data"
        )
    return PairLoader(split, neutral, count, 0, device, improved=False)


def _trained(recipe: TrainConfig, gan: Path, flag: str) -> Path:
    """The run folder of a default judge, which is trained unless it is finished already."""
    if read_status(recipe.run)["state"] == "finished":
        return recipe.run
    print(
        f"{gan}: training a judge in {recipe.run}, {recipe.epochs} epochs "
        f"({flag} RUN takes a trained classifier instead)",
        file=sys.stderr,
    )
    status = train(recipe, World())
    if status["state"] != "finished":
        raise Interrupted(
            f"the judge's training was {status['why']}; the same command continues it"
        )
    return recipe.run


def _identity_judge(
    config: EvaluateConfig,
    stored: dict[str, Any],
    manifest: Manifest,
    loader: PairLoader,
    device: torch.device,
) -> tuple[IdentityJudge | None, str]:
    """The judge that tells people apart; None, and why, where there is none."""
    if config.identity_judge == "off":
        return None, "--identity-judge off"
    try:
        if config.identity_judge != "auto":
            run = Path(config.identity_judge)
            judge = load_identity_judge(run, manifest, device, config.plugin)
            check_people(loader)
            return judge, ""
        check_people(loader)
        recipe = identity_config(config, stored)
        run = _trained(recipe, config.run, "--identity-judge")
        return load_identity_judge(run, manifest, device, config.plugin), ""
    except NotMeasured as reason:
        return None, str(reason)


@dataclass(frozen=True)
class _Seen:
    """What the judge makes of n pairs: features [n, d] and logits [n, classes]."""

    generated: Features
    generated_logits: Features
    real: Features
    real_logits: Features
    neutral: Features
    neutral_logits: Features
    changes: Features  # [n] mean absolute difference of two outputs with different expressions
    persons: Features  # the identity judge's features of the outputs; none without such a judge


def _judge_pairs(
    generator: Generator,
    judge: Judge,
    identity: IdentityJudge | None,
    loader: PairLoader,
    neutral_rows: NDArray[np.int64],
    expressive_rows: NDArray[np.int64],
) -> _Seen:
    """Generate the output of each pair; show outputs, expressive and neutral faces to the judge."""
    target = loader.labels[expressive_rows]
    other_rows = expressive_rows[partner_of_another_class(target)]
    features, logits, changes, persons = [], [], [], []
    for first in range(0, len(target), CHUNK):
        part = slice(first, first + CHUNK)
        neutral = loader.faces(neutral_rows[part])
        with inference("fp32", loader.images.device):
            output = generator(neutral, loader.faces(expressive_rows[part]))
            other = generator(neutral, loader.faces(other_rows[part]))
            changes.append((output - other).abs().mean((1, 2, 3)).cpu().numpy())
        chunk_features, chunk_logits = judge(output)
        features.append(chunk_features)
        logits.append(chunk_logits)
        if identity:
            persons.append(identity.features(output)[0])
    return _Seen(
        np.concatenate(features),
        np.concatenate(logits),
        *judge_rows(judge, loader, expressive_rows),
        *judge_rows(judge, loader, neutral_rows),
        np.concatenate(changes),
        np.concatenate(persons) if persons else np.zeros((0, 0)),
    )


def _expression_scores(
    seen: _Seen,
    target: NDArray[np.int64],
    counts: NDArray[np.int64],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """How often the judge finds the wanted class in the outputs, in real and in neutral faces."""
    hits, real_hits, neutral_hits = (
        logits.argmax(1) == target
        for logits in (seen.generated_logits, seen.real_logits, seen.neutral_logits)
    )
    accuracy = mean_with_interval(hits, counts)
    balanced, real_balanced, neutral_balanced = (
        mean_with_interval(each, counts, target) for each in (hits, real_hits, neutral_hits)
    )
    by_class = {}
    for k, name in enumerate(classes):
        mine = target == k
        if mine.any():
            by_class[name] = {
                "n": int(mine.sum()),
                "accuracy": float(hits[mine].mean()),
                "accuracy_95": wilson(int(hits[mine].sum()), int(mine.sum())),
                "accuracy_of_real_faces": float(real_hits[mine].mean()),
            }
    return {
        "accuracy": accuracy["mean"],
        "accuracy_95": accuracy["interval_95"],
        "accuracy_of_real_faces": float(real_hits.mean()),
        "accuracy_of_neutral_faces": float(neutral_hits.mean()),
        "balanced_accuracy": balanced["mean"],
        "balanced_accuracy_95": balanced["interval_95"],
        "balanced_accuracy_of_real_faces": real_balanced["mean"],
        "balanced_accuracy_of_neutral_faces": neutral_balanced["mean"],
        "classes": by_class,
    }


def _plot(
    run: Path,
    name: str,
    generator: Generator,
    manifest: Manifest,
    loader: PairLoader,
    result: dict[str, Any],
) -> None:
    """Write curves.png (losses over the epochs) and grid-NAME.png (samples)."""
    if rows := read_rows(run):
        plots.gan_curves(rows, f"{run.name}, {result['mode']}", run / "curves.png")
    grid = sample_grid(generator, loader, list(manifest.classes), "fp32")
    plots.face_grid(
        grid.permute(1, 2, 0).cpu().numpy(),
        list(result["expression"]["classes"]),
        4,
        f"{run.name}, {name}",
        run / f"grid-{name}.png",
    )
