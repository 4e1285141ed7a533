"""What a GAN's run makes of a split: does the expression arrive, does the person stay, do the faces look like faces.

The judge is a classifier that the GAN never met: another network and another seed than the one in its training, trained on
the same train split of real faces. Its features, not Inception's (nothing is downloaded), carry the distances.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fer_hpc.config import UserError, preset
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.shards import Manifest, open_split, read_manifest
from fer_hpc.evaluation import plots
from fer_hpc.evaluation.intervals import wilson
from fer_hpc.evaluation.results import result_name
from fer_hpc.files import read_json, sha256, write_json
from fer_hpc.gan.networks import CLASSIFIER_MODEL
from fer_hpc.gan.pairs import PairLoader
from fer_hpc.gan.transfer import load_generator
from fer_hpc.gan.validate import sample_grid
from fer_hpc.models.gan import Generator
from fer_hpc.models.registry import build_network
from fer_hpc.parallel.device import pick_device
from fer_hpc.parallel.world import World
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import data_folder, outcome_file, read_rows, read_run_config, read_status
from fer_hpc.training.loop import train

JUDGE_IMAGES, JUDGE_EPOCHS, JUDGE_SEED = (
    100_000,
    (3, 60),
    1000,
)  # it sees so many images, within so few and many epochs
RESAMPLES, DISTANCE_RESAMPLES = 1000, 100  # of the bootstrap; a Frechet distance takes a while
CHUNK = 64
LEAST_PAIRS = 8
Features = NDArray[np.float64]
Judge = Callable[
    [torch.Tensor], tuple[Features, Features]
]  # faces [B, C, H, W] in [-1, 1] -> features, logits


class Interrupted(Exception):
    """A signal came while the judge was trained."""


def evaluate_gan(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a GAN's run on a split and write eval-SPLIT.json, grid-SPLIT.png and curves.png into it."""
    stored = read_run_config(config.run)
    manifest = read_manifest(config.data or data_folder(config.run))
    shape = tuple(stored["data"]["image_shape"])
    if manifest.image_shape != shape or list(manifest.classes) != stored["data"]["classes"]:
        known = f"{shape}, {', '.join(stored['data']['classes'])}"
        raise UserError(
            f"--data {manifest.folder} holds other faces than {config.run} was trained on ({known})"
        )
    device = pick_device(config.device)
    generator, _, weights = load_generator(config.run, device)
    judge_run = config.judge or _train_judge(config, stored)
    torch.set_num_threads(stored["science"]["threads"])
    judge, judged = _judge(judge_run, manifest, stored, device)
    loader = _pairs(config, manifest, device)
    neutral_rows, expressive_rows, _, _ = loader.rows(0)
    target = loader.labels[expressive_rows]

    made, guessed, changes = [], [], []
    others = expressive_rows[_of_another_class(target)]  # another expression for the same person
    for first in range(0, len(target), CHUNK):
        cut = slice(first, first + CHUNK)
        neutral = loader.faces(neutral_rows[cut])
        with torch.inference_mode():
            faces = generator(neutral, loader.faces(expressive_rows[cut]))
            changes.append(
                (faces - generator(neutral, loader.faces(others[cut])))
                .abs()
                .mean((1, 2, 3))
                .cpu()
                .numpy()
            )
        features, logits = judge(faces)
        made.append(features)
        guessed.append(logits)
    outputs, logits = np.concatenate(made), np.concatenate(guessed)
    real, real_logits = _seen(judge, loader, expressive_rows)
    before, before_logits = _seen(judge, loader, neutral_rows)
    rng = np.random.default_rng(0)
    stranger = before[rng.permutation(len(before))]

    hits, real_hits, before_hits = (
        found.argmax(1) == target for found in (logits, real_logits, before_logits)
    )
    groups = loader.groups[neutral_rows]
    drawn = _resamples(np.where(groups >= 0, groups, -1 - neutral_rows))
    arrives, balanced = _with_interval(hits, drawn), _with_interval(hits, drawn, target)
    result = {
        "kind": "GAN",
        "split": config.split,
        "data": manifest.fingerprint,
        "mode": stored["science"]["mode"],
        "n": len(target),
        "neutral_faces": len(np.unique(neutral_rows)),
        "weights": weights,
        "judge": judged,
        "pairs": config.pairs,
        "expression": {
            "informative": stored["science"]["mode"]
            == "improved",  # the report's GAN is not told which expression
            "accuracy": arrives["mean"],
            "accuracy_95": arrives["interval_95"],
            "accuracy_of_real_faces": float(real_hits.mean()),
            "accuracy_of_neutral_faces": float(before_hits.mean()),
            "balanced_accuracy": balanced["mean"],
            "balanced_accuracy_95": balanced["interval_95"],
            "balanced_accuracy_of_real_faces": _with_interval(real_hits, drawn, target)["mean"],
            "balanced_accuracy_of_neutral_faces": _with_interval(before_hits, drawn, target)[
                "mean"
            ],
            "classes": {
                name: {
                    "n": int((target == k).sum()),
                    "accuracy": float(hits[target == k].mean()),
                    "accuracy_95": wilson(int(hits[target == k].sum()), int((target == k).sum())),
                    "accuracy_of_real_faces": float(real_hits[target == k].mean()),
                }
                for k, name in enumerate(manifest.classes)
                if (target == k).any()
            },
        },
        "identity": {  # cosine of features
            "to_neutral": _with_interval(_cosine(outputs, before), drawn),
            "to_expressive": _with_interval(_cosine(outputs, real), drawn),
            "to_a_stranger": _with_interval(_cosine(outputs, stranger), drawn),
        },
        "distance": _distances(real, outputs, before, rng),
        "diversity": {
            "of_outputs": _with_interval(_spread(outputs), drawn),
            "of_real_faces": _with_interval(_spread(real), drawn),
            "change_by_expression": _with_interval(np.concatenate(changes), drawn),
        },
    }
    name = result_name(config, stored["data"]["fingerprint"])
    write_json(config.run / f"eval-{name}.json", result)
    _draw(config.run, name, generator, manifest, loader, result)
    return result


def _pairs(config: EvaluateConfig, manifest: Manifest, device: torch.device) -> PairLoader:
    """Fixed pairs: every expressive face of the split once, at most `--pairs`, with a neutral face of somebody else."""
    split, neutral = open_split(manifest, config.split), manifest.classes.index("Neutral")
    labels = split.columns["labels"]
    count = int(min(config.pairs, (labels != neutral).sum()))
    if count < LEAST_PAIRS or not (labels == neutral).any():
        raise UserError(
            f"{manifest.folder}: its {config.split} split has {(labels == neutral).sum():,} neutral and {count:,} expressive "
            f"faces; wanted at least 1 and {LEAST_PAIRS}"
        )
    return PairLoader(split, neutral, count, 0, device, improved=False)


def _train_judge(config: EvaluateConfig, stored: dict[str, Any]) -> Path:
    """A resnet_small in RUN/judge; where it is finished already, that."""
    run, science, n = config.run / "judge", stored["science"], stored["data"]["train"]
    epochs, batch_size = (
        min(max(-(-JUDGE_IMAGES // n), JUDGE_EPOCHS[0]), JUDGE_EPOCHS[1]),
        min(128, n),
    )
    ema = min(
        0.998, max(0.0, 1 - 20 * batch_size / (epochs * n))
    )  # over the last twentieth of the steps
    recipe = preset(
        "fer2013",
        data=data_folder(config.run),
        run=run,
        epochs=epochs,
        seed=JUDGE_SEED,
        ema=ema,
        threads=science["threads"],
        device=config.device,
        batch_size=batch_size,
    )
    if read_status(run)["state"] != "finished":
        status = train(recipe, World())
        if status["state"] != "finished":
            raise Interrupted(
                f"the judge's training was {status['why']}; the same command goes on from there"
            )
    return run


def _judge(
    run: Path, manifest: Manifest, gan: dict[str, Any], device: torch.device
) -> tuple[Judge, dict[str, Any]]:
    """The judge, and what to say of it."""
    stored, best = read_run_config(run), outcome_file(run, "best.pt")
    if stored.get("kind", "classifier") != "classifier" or best is None:
        raise UserError(f"--judge {run}: wanted the finished run of a classifier")
    side, _, channels = shape = tuple(stored["data"]["image_shape"])
    if channels != manifest.image_shape[2] or stored["data"]["classes"] != list(manifest.classes):
        raise UserError(
            f"--judge {run} was trained on other classes than the GAN, or on gray where that makes colour"
        )
    if stored["science"]["model"] == CLASSIFIER_MODEL and gan["science"]["mode"] == "improved":
        raise UserError(
            f"--judge {run} is a {CLASSIFIER_MODEL}, as the GAN's own classifier and code are; give another network"
        )
    if (read := read_json(data_folder(run) / "manifest.json")) and read.get("generated"):
        raise UserError(
            f"--judge {run} was trained on faces that a GAN made; give one that was trained on real ones"
        )
    saved = checkpoint.load(best)
    model = build_network(stored["science"], len(manifest.classes), shape)
    model.load_state_dict(saved["model"])
    model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    kept: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))

    def look(faces: torch.Tensor) -> tuple[Features, Features]:
        kept.clear()
        with torch.inference_mode():
            if faces.shape[-1] != side:  # of the judge's faces
                faces = functional.interpolate(faces, (side, side), mode="bilinear", antialias=True)
            logits = model((faces + 1) / 2)[:, : len(manifest.classes)]
        return kept[0].double().cpu().numpy(), logits.double().cpu().numpy()

    about = {
        "model": stored["science"]["model"],
        "seed": stored["science"]["seed"],
        "sha256": sha256(best),
        "trained_on": stored["data"]["fingerprint"],
        "val_accuracy": saved["val_accuracy"],
        "features": last.in_features,
        "image_shape": list(shape),
    }
    return look, about


def _seen(judge: Judge, loader: PairLoader, rows: NDArray[np.int64]) -> tuple[Features, Features]:
    parts = [
        judge(loader.faces(rows[first : first + CHUNK])) for first in range(0, len(rows), CHUNK)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


# ---- measures ----------------------------------------------------------------------------------------------------------


def _cosine(a: Features, b: Features) -> Features:
    return np.asarray(
        (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    )


def _of_another_class(target: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each place of `target` the next one, in a circle, of another class; where there is no other, the next one."""
    here = np.arange(len(target))
    found = np.roll(here, -1)
    for shift in range(2, len(target)):
        same = target[found] == target
        if not same.any():
            break
        found[same] = np.roll(here, -shift)[same]
    return found


def _spread(features: Features) -> Features:
    """Cosine distance of each face to another, far away in the list."""
    return 1 - _cosine(features, np.roll(features, max(1, len(features) // 2), 0))


def _resamples(people: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each row counts in each resample of a bootstrap over people [RESAMPLES, n]: all pairs of one neutral person are
    drawn together, else intervals are too narrow."""
    _, whose = np.unique(people, return_inverse=True)
    n = int(whose.max()) + 1
    rng = np.random.default_rng(0)
    return np.stack(
        [np.bincount(rng.integers(0, n, n), minlength=n)[whose] for _ in range(RESAMPLES)]
    )


def _with_interval(
    values: NDArray[Any], drawn: NDArray[np.int64], target: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Mean, over the classes' means where `target` is given, and its 95 % percentile bootstrap interval."""
    parts = (
        [np.ones(len(values), bool)] if target is None else [target == k for k in np.unique(target)]
    )
    mean = np.mean([values[part].mean() for part in parts])
    with np.errstate(invalid="ignore"):  # a class that a resample lacks does not count in it
        means = np.nanmean(
            [drawn[:, part] @ values[part].astype(float) / drawn[:, part].sum(1) for part in parts],
            0,
        )
    low, high = np.percentile(means, (2.5, 97.5))
    return {"mean": float(mean), "interval_95": [float(low), float(high)]}


def _distances(
    real: Features, made: Features, neutral: Features, rng: np.random.Generator
) -> dict[str, Any]:
    """Frechet (Heusel et al. 2017) and kernel distance (Binkowski et al. 2018) of real expressive faces to made ones; to the
    neutral faces these were made of; and to other real ones, which says how small they can be.

    Frechet distances fall as 1/n with the number of faces, so all three are measured alike: of one half of the real faces to
    what belongs to the other half, and the mean of both ways. The interval is that value and 1.96 standard deviations of
    the bootstrap, whose own values are larger: a face that is drawn twice is nearer to itself than any two are.
    """
    one, two = np.array_split(rng.permutation(len(real)), 2)
    one = one[: len(two)]
    found: dict[str, Any] = {"n": len(two)}
    for name, measure in (("frechet", frechet), ("kernel", kernel)):

        def both_ways(
            other: Features, a: NDArray[np.int64], b: NDArray[np.int64], measure: Any = measure
        ) -> float:
            return 0.5 * float(measure(real[a], other[b]) + measure(real[b], other[a]))

        resampled = [
            both_ways(made, rng.choice(one, len(one)), rng.choice(two, len(two)))
            for _ in range(DISTANCE_RESAMPLES)
        ]
        value, width = both_ways(made, one, two), 1.96 * float(np.std(resampled, ddof=1))
        found[name] = {
            "value": value,
            "bootstrap_95": [value - width, value + width],
            "of_neutral_faces": both_ways(neutral, one, two),
            "real_halves": measure(real[one], real[two]),
        }
    return found


def frechet(a: Features, b: Features) -> float:
    """Frechet distance of two Gaussians fitted to features [n, d].

    With R'R and S'S the covariances, the trace of the root of their product is the sum of the singular values of R S'.
    """
    means = np.square(a.mean(0) - b.mean(0)).sum()
    first, second = (np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1) for x in (a, b))
    cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(means + np.square(first).sum() + np.square(second).sum() - 2 * cross)


def kernel(a: Features, b: Features) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3."""

    def off_diagonal(x: Features) -> float:
        k = (x @ x.T / x.shape[1] + 1) ** 3
        return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)))

    return off_diagonal(a) + off_diagonal(b) - 2 * float(((a @ b.T / a.shape[1] + 1) ** 3).mean())


def _draw(
    run: Path,
    name: str,
    generator: Generator,
    manifest: Manifest,
    loader: PairLoader,
    result: dict[str, Any],
) -> None:
    if rows := read_rows(run):
        plots.gan_curves(rows, f"{run.name}, {result['mode']}", run / "curves.png")
    grid = (
        sample_grid(generator, loader, list(manifest.classes), "fp32")
        .permute(1, 2, 0)
        .cpu()
        .numpy()
    )
    plots.face_grid(
        grid,
        list(result["expression"]["classes"]),
        4,
        f"{run.name}, {name}",
        run / f"grid-{name}.png",
    )


def format_gan_scores(run: Path, r: dict[str, Any]) -> str:
    """The result in lines."""
    e, i, d, v = (r[key] for key in ("expression", "identity", "distance", "diversity"))

    def interval(x: dict[str, Any]) -> str:
        low, high = x["interval_95"]
        return f"{x['mean']:.4f}  [{low:.4f}, {high:.4f}]"

    judge = f"judged by {r['judge']['model']} (val accuracy {r['judge']['val_accuracy']:.4f})"
    lines = [
        f"{run} on {r['split']}, {r['n']:,} pairs of {r['neutral_faces']:,} neutral faces, {judge}"
    ]
    note = "" if e["informative"] else "   (uninformative: paper mode)"
    low, high = e["accuracy_95"]
    real = f"real faces {e['accuracy_of_real_faces']:.4f}, neutral ones {e['accuracy_of_neutral_faces']:.4f}"
    lines.append(
        f"  expression arrives {e['accuracy']:.4f}  [{low:.4f}, {high:.4f}]   {real}{note}"
    )
    means = [e[f"balanced_accuracy_of_{which}_faces"] for which in ("real", "neutral")]
    real = f"real faces {means[0]:.4f}, neutral ones {means[1]:.4f}"
    low, high = e["balanced_accuracy_95"]
    lines.append(
        f"  mean over classes  {e['balanced_accuracy']:.4f}  [{low:.4f}, {high:.4f}]   {real}"
    )
    for name, c in e["classes"].items():
        lines.append(
            f"    {name:<10} {c['accuracy']:.4f}   real faces {c['accuracy_of_real_faces']:.4f}   of {c['n']:,}"
        )
    titles = {
        "to_neutral": "the neutral face",
        "to_expressive": "the expressive one",
        "to_a_stranger": "a stranger",
    }
    lines += [f"  like {title:<18}  cosine {interval(i[key])}" for key, title in titles.items()]
    for key in ("frechet", "kernel"):
        low, high = d[key]["bootstrap_95"]
        others = f"neutral faces {d[key]['of_neutral_faces']:.4g}, other real ones {d[key]['real_halves']:.4g}"
        lines.append(
            f"  {key:<8} distance  {d[key]['value']:.4g}  [{low:.4g}, {high:.4g}]   {others}"
        )
    lines.append(
        f"  diversity {interval(v['of_outputs'])}   of real faces {v['of_real_faces']['mean']:.4f}"
    )
    lines.append(f"  change by expression {interval(v['change_by_expression'])}")
    if v["of_outputs"]["mean"] < 0.05 * v["of_real_faces"]["mean"]:
        lines.append(
            "  the outputs hardly differ from each other: this GAN has not learnt yet, or has collapsed"
        )
    return "\n".join(lines)
