"""What happens where an epoch of the GAN ends: its means, validation on fixed pairs, samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fer_hpc.gan.networks import Networks
from fer_hpc.gan.pairs import PairLoader
from fer_hpc.gan.step import SUMS, SUPERVISED_SUMS
from fer_hpc.models.gan import Generator
from fer_hpc.parallel.collectives import broadcast_buffers, on_rank_0, sum_over_ranks
from fer_hpc.parallel.device import autocast
from fer_hpc.parallel.world import World
from fer_hpc.run.state import UNIT, TrainState

VAL_PAIRS = 512  # at most
CHUNK = 64  # pairs at a time


def train_metrics(state: TrainState, world: World) -> dict[str, float]:
    """The epoch's means over all ranks; sets the sums back to zero."""
    pairs, *sums = sum_over_ranks(state.sums, world).tolist()
    state.sums.zero_()
    means = {name: value / UNIT / pairs for name, value in zip(SUMS[1:], sums, strict=True)}
    adversarial_share = means.pop("adversarial_steps")
    return {
        f"train_{name}": value if name in SUPERVISED_SUMS else value / adversarial_share
        for name, value in means.items()
    }


def step_means(sums: list[int]) -> dict[str, float]:
    """Step-wise scalars of sums over pairs: losses of classifier, generator and discriminator."""
    pairs, *rest = sums
    means = {name: value / UNIT / pairs for name, value in zip(SUMS[1:], rest, strict=True)}
    scalars = {"c_loss/train, steps": means["c_loss"]}
    if share := means["adversarial_steps"]:
        scalars |= {f"{name}/train, steps": means[name] / share for name in ("g_loss", "d_loss")}
    return scalars


def progress_text(counts: list[int]) -> str:
    """The epoch's mean losses so far: generator, discriminator, classifier."""
    pairs, *sums = counts
    means = {name: value / UNIT / max(pairs, 1) for name, value in zip(SUMS[1:], sums, strict=True)}
    text = f"C {means['c_loss']:.3f}"
    if share := means["adversarial_steps"]:
        text = f"G {means['g_loss'] / share:.3f}  D {means['d_loss'] / share:.4f}  {text}"
    return text


def epoch_text(row: dict[str, Any]) -> str:
    """An epoch's metrics as one line."""
    return (
        f"G {row['train_g_loss']:.3f}  "
        f"D {row['train_d_loss']:.4f} accuracy {row['train_d_correct']:.3f}  "
        f"C {row['train_c_loss']:.3f} accuracy {row['train_c_correct']:.3f}  "
        f"val expression {row['val_expression']:.3f} "
        f"reconstruction {row['val_reconstruction']:.3f}"
    )


def validate(networks: Networks, val: PairLoader, world: World) -> dict[str, float]:
    """Metrics on fixed pairs of val, the same on every rank (rank 0's numbers count).

    `val_expression` is the share of outputs that the training's own classifier takes for the wanted
    expression (an independent judge is part of evaluate); `val_reconstruction` is the mean absolute
    change, of 2, of a neutral face that is both inputs.
    """
    for network in (networks.scored, networks.classifier):
        broadcast_buffers(network, world)
    metrics: dict[str, float] = on_rank_0(world, lambda: _scores(networks, val))
    return metrics


@torch.inference_mode()
def _scores(networks: Networks, val: PairLoader) -> dict[str, float]:
    generator, classifier, device = networks.scored, networks.classifier, val.images.device
    generator.eval()
    classifier.eval()
    hits = torch.zeros((), dtype=torch.int64, device=device)
    change = torch.zeros((), dtype=torch.float64, device=device)
    neutral_rows, expressive_rows = val.pools
    every = max(1, val.n // VAL_PAIRS)
    rows = expressive_rows[: VAL_PAIRS * every : every]
    for first in range(0, len(rows), CHUNK):
        mine = rows[first : first + CHUNK]
        places = np.arange(first, first + len(mine)) % len(neutral_rows)
        neutral = val.faces(neutral_rows[places])
        with autocast(networks.config.precision, device):
            outputs = generator(neutral, val.faces(mine))
            guessed = classifier(outputs)
            unchanged = generator(neutral, neutral)
        labels = val.labels[mine] if networks.improved else np.ones_like(mine)
        hits += (guessed.argmax(1) == torch.from_numpy(labels).to(device)).sum()
        change += (unchanged.float() - neutral).abs().mean((1, 2, 3)).double().sum()
    sums = {"val_expression": int(hits), "val_reconstruction": float(change)}
    return {name: value / len(rows) for name, value in sums.items()}


@torch.inference_mode()
def sample_grid(
    generator: Generator, val: PairLoader, classes: list[str], precision: str, people: int = 4
) -> torch.Tensor:
    """A picture [C, H, W] in [0, 1]: a row for each expression of val, `people` triples in each.

    A triple is neutral face, expressive face, output.
    """
    generator.eval()
    neutral_rows, expressive_rows = val.pools
    strips = []
    for k in range(len(classes)):
        rows = expressive_rows[val.labels[expressive_rows] == k]
        if not len(rows):
            continue
        expressive = val.faces(rows[np.arange(people) % len(rows)])
        neutral = val.faces(neutral_rows[np.arange(people) % len(neutral_rows)])
        with autocast(precision, val.images.device):
            outputs = generator(neutral, expressive).float()
        triples = [torch.cat([neutral[i], expressive[i], outputs[i]], 2) for i in range(people)]
        strips.append(torch.cat(triples, 2))
    return (torch.cat(strips, 1) + 1) / 2
