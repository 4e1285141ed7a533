"""What the model of scaling_model.py says about 1 to 64 NVIDIA H200, for every preset.

A prediction: fer_hpc was run on one H200, never on several. All that goes into it is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import scaling_model as model
from scaling_model import Bucket, Card, Compute, Link

GPUS = (1, 2, 4, 8, 16, 32, 64)
NODE = 8  # GPUs
ENOUGH = 0.8  # efficiency
FORWARD = 1 / 3  # of a step; the backward pass has the rest

# Assumed, not measured: NCCL inside a node (a part of NVLink's 450 GB/s in each direction), and one
# network link from each node, of which nine tenths are used.
INNER = Link(300e9, 2e-6, 20e-6)
OUTER = {
    "400 Gb/s": Link(0.9 * 400e9 / 8, 5e-6, 30e-6),
    "100 Gb/s": Link(0.9 * 100e9 / 8, 5e-6, 30e-6),
    "25 Gb/s": Link(0.9 * 25e9 / 8, 25e-6, 50e-6),
}


@dataclass(frozen=True)
class Rates:
    """Images/s on one H200 (torch 2.11, bf16, one run each), which docs/benchmarks.md has.

    `own` is a training step at the preset's batch with its CUDA graph, `no_graph` without: several
    ranks have no graph. `line` are two batch sizes and rates of a plain loop that the GPU, not the
    host, limits: they give the slope; `own` gives the height.
    """

    own: float
    no_graph: float
    line: tuple[tuple[int, float], tuple[int, float]]
    note: str = ""


H200 = {
    "cnn_baseline": Rates(58_512, 10_046, ((64, 63_967), (1024, 113_591))),
    "cnn_improved": Rates(
        82_133,
        41_025,
        ((256, 90_772), (1024, 107_000)),
        "only batch 256 was timed; the rate at 1024 is 18 % higher, as cnn_baseline's is",
    ),
    "resnet_baseline": Rates(22_967, 9_059, ((64, 32_587), (1024, 70_252))),
    "resnet_improved": Rates(2_342, 1_206, ((64, 2_817), (256, 3_164))),
    "vgg": Rates(
        15_800,
        10_687,
        ((64, 18_890), (1024, 53_490)),
        "timed once, at batch 64 without a graph; the rest is taken from fer2013 by the number of "
        "multiplications (504 and 213 million an image)",
    ),
    "fer2013": Rates(
        60_489,
        14_423,
        ((128, 72_919), (1024, 126_582)),
        "with its graph it was timed as a plain loop with deterministic kernels",
    ),
}
LARGE = {"resnet_improved": 256}  # images a GPU for the table of large batches; others 1024


def card(rates: Rates, batch: int) -> Card:
    """The times of a step, from rates."""
    (b1, r1), (b2, r2) = rates.line
    image_s = (b2 / r2 - b1 / r1) / (b2 - b1)
    fixed_s = max(0.0, b1 / r1 - b1 * image_s)
    scale = batch / rates.own / (fixed_s + batch * image_s)
    return Card(batch / rates.no_graph, fixed_s * scale, image_s * scale)


@cache
def gradients(name: str) -> tuple[tuple[float, int], ...]:
    """(share of the backward pass after which it is ready, values) of each gradient of a preset.

    The last layer comes first. Shares are those of the multiplications, on any hardware.
    """
    import torch
    from torch import nn

    from fer_hpc.config import PRESETS, fields_of, preset
    from fer_hpc.models.registry import build_network

    torch.manual_seed(0)
    science = fields_of(preset(name, data=Path(), run=Path()), "science")
    side, channels = (224, 3) if PRESETS[name]["model"] == "resnet_improved" else (48, 1)
    network = build_network(science, 8, (side, side, channels)).eval()
    layers: list[tuple[float, list[int]]] = []  # multiplications and sizes, in forward order

    def seen(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if own:
            places = output[0].numel() / output.shape[1] if output.dim() == 4 else 1
            work = own[0].numel() * places if own[0].dim() > 1 else 0
            layers.append((work, [p.numel() for p in reversed(own)]))

    for module in network.modules():
        module.register_forward_hook(seen)
    with torch.no_grad():
        network(torch.zeros(1, channels, side, side))
    done, total, buckets = 0.0, sum(work for work, _ in layers), []
    for work, sizes in reversed(layers):
        done += work
        buckets += [(done / total, size) for size in sizes]
    assert sum(s for _, s in buckets) == sum(p.numel() for p in network.parameters())
    return tuple(buckets)


@dataclass(frozen=True)
class Setting:
    """How a run is started. What fer_hpc does not have is called so in `in_words`."""

    images: int  # a GPU and step
    graph: bool = False  # also with several ranks
    value_bytes: int = 4  # on the way; buckets are filled with 4
    bucket: int = model.BUCKET
    accumulate: int = 1  # parts of `images` images, the last of which exchanges

    def step_s(self, name: str, gpus: int, outer: Link, batch: int) -> float:
        """Seconds of a step of `gpus` ranks; `batch` is the preset's own."""
        part_s = card(H200[name], batch).step_s(self.images, self.graph or gpus == 1)
        compute = Compute(FORWARD * part_s, (1 - FORWARD) * part_s)
        sizes = [(ready, 4 * count) for ready, count in gradients(name)]
        buckets: Sequence[Bucket] = [
            Bucket(b.ready, b.size * self.value_bytes / 4)
            for b in model.make_buckets(sizes, cap=self.bucket)
        ]
        exchange = partial(model.nodes_s, ranks=gpus, inner=INNER, outer=outer, node=NODE)
        last = model.step_s(compute, buckets, lambda size: exchange(size) if gpus > 1 else 0.0)
        return (self.accumulate - 1) * part_s + last

    def rate(self, name: str, gpus: int, outer: Link, batch: int) -> float:
        """Images/s of all GPUs."""
        step = self.step_s(name, gpus, outer, batch)
        return gpus * self.images * self.accumulate / step


def reaches(rates: dict[int, float], one: float) -> int:
    """The largest number of GPUs up to which each gives at least .8 of what one alone gives."""
    good = 1
    for gpus in sorted(rates):
        if rates[gpus] < ENOUGH * gpus * one:
            break
        good = gpus
    return good


CHANGES: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("as it is", True, {}),
    ("4 times the batch, --accumulate 4", True, {"accumulate": 4}),
    ("bf16 gradients", False, {"value_bytes": 2}),
    ("buckets of 4 MiB", False, {"bucket": 4 << 20}),
    ("buckets of 100 MiB", False, {"bucket": 100 << 20}),
)


def preset_rows(name: str, batch: int) -> dict[str, Any]:
    """All that the table says about one preset."""
    fast, large = OUTER["400 Gb/s"], LARGE.get(name, 1024)
    one, chip = Setting(batch).rate(name, 1, fast, batch), card(H200[name], batch)
    fixed: dict[str, dict[int, float]] = {}
    for title, graph in (("without graph", False), ("with graph", True)):
        fixed[title] = {
            n: Setting(batch // n, graph).rate(name, n, fast, batch) for n in GPUS if batch % n == 0
        }
    weak = Setting(large)
    alone = weak.rate(name, 1, fast, batch)
    efficiency = {
        net: {n: weak.rate(name, n, link, batch) / n / alone for n in GPUS}
        for net, link in OUTER.items()
    }
    changes = [
        {
            "change": what,
            "in the code": known,
            **{
                f"{net}, {n} GPUs": dataclasses.replace(weak, **fields).rate(name, n, link, batch)
                / n
                / alone
                for net, link in OUTER.items()
                for n in (16, 64)
            },
        }
        for what, known, fields in CHANGES
    ]
    return {
        "preset": name,
        "batch": batch,
        "gradient_mb": sum(count for _, count in gradients(name)) * 4 / 1e6,
        "buckets_mb": [
            b.size / 1e6 for b in model.make_buckets([(r, 4 * c) for r, c in gradients(name)])
        ],
        "host_ms": 1e3 * chip.host_s,
        "gpu_ms": 1e3 * chip.step_s(batch, True),
        "images_from_which_the_gpu_decides": chip.images_at_host(),
        "same_batch": fixed,
        "same_batch_reaches": {title: reaches(rates, one) for title, rates in fixed.items()},
        "large_batch": large,
        "large_batch_efficiency": efficiency,
        "large_batch_reaches": {
            net: reaches({n: e * n * alone for n, e in row.items()}, alone)
            for net, row in efficiency.items()
        },
        "changes": changes,
        "note": H200[name].note,
    }


def table() -> list[dict[str, Any]]:
    from fer_hpc.config import PRESETS

    return [preset_rows(name, recipe["batch_size"]) for name, recipe in PRESETS.items()]
