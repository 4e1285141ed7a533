"""What one GPU gives: training rates beside bare loops, bits, price of determinism, start, sharing.

    python bench/gpu.py [--only rates bits ...] [--presets ...] [--batch N] [--out gpu.json]
    python bench/gpu.py --device cpu --rehearse      (the same code at tiny sizes, without a GPU)

Needs a checkout and torch, no network. Each figure is a line of JSON in --out; a table is printed.
"ours" is `train()`: loader, augmentation, sums, logs, checks of every step, in epochs after the
first, without validation. "bare" is the plainest loop of the same network, optimiser and precision
(bench/bare_loop.py), called directly, as a CUDA graph, and compiled and captured; it mirrors faces,
and "warped" it moves them, as the preset does. "ratio" is ours to the best bare loop that does the
same to its faces. All of a preset runs in one process. After --limit-s nothing new begins.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import bare_loop
import torch
from gpu_child import child_json, start_child
from lightning_loop import lightning_rate
from train_step import CLASSES, make_shards

from fer_hpc.config import PRESETS, GanConfig, TrainConfig, preset
from fer_hpc.gan.loop import train_gan
from fer_hpc.parallel.device import configure_torch
from fer_hpc.parallel.mps import multi_process_service
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import read_rows
from fer_hpc.run.saver import Saver
from fer_hpc.training.loop import train

BIG = "resnet_improved"  # the only preset for 224 pixels
EXTRA_BATCH = {BIG: 256}  # beside the preset's own; others: 1024


class Bench:
    """Where the data lies, and where figures go."""

    def __init__(self, folder: Path, device: str, tiny: bool, out: Path) -> None:
        self.folder, self.device, self.tiny, self.out = folder, torch.device(device), tiny, out
        self.name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        small, large = (64, 32) if tiny else (14_336, 2_560)
        self.small = make_shards(folder / "small", small, 48, 1)
        self.large = make_shards(folder / "large", large, 64 if tiny else 224, 3)
        self.runs = 0
        self.until = math.inf  # of time.monotonic()

    def late(self, what: str) -> bool:
        """Whether the time is over; then `what` is left out."""
        if late := time.monotonic() > self.until:
            print(f"left out, the time is over: {what}", flush=True)
        return late

    def note(self, **figures: Any) -> None:
        line = json.dumps({"device": self.name, **figures})
        print(line, flush=True)
        with self.out.open("a") as f:
            f.write(line + "\n")

    def config(self, name: str, **fields: Any) -> TrainConfig:
        self.runs += 1
        usual = {
            "data": self.large if name == BIG else self.small,
            "run": self.folder / f"run{self.runs}",
            "device": self.device.type,
            "precision": "bf16" if self.device.type == "cuda" else "fp32",
            "tensorboard": False,
            "checkpoint_every_s": 1e6,
            "early_stop": 0,
        }
        config = preset(name, **(usual | fields))
        if self.tiny:
            config = dataclasses.replace(config, batch_size=min(16, config.batch_size))
        return config

    def train(self, config: TrainConfig | GanConfig, **more: Any) -> Path:
        """Train to the end; gives the run folder."""
        with contextlib.redirect_stderr(io.StringIO()) as output:
            if isinstance(config, GanConfig):
                train_gan(config, World())
            else:
                train(config, World(), **more)
        if "--graph off" in output.getvalue():
            print(output.getvalue(), file=sys.stderr)
        return config.run


def rate(bench: Bench, name: str, epochs: int, **fields: Any) -> dict[str, float]:
    """Images/s of training in the epochs after the first, and of whole epochs."""
    run = bench.train(bench.config(name, epochs=epochs, **fields))
    rows = read_rows(run, "timing.jsonl")
    rows = rows[1:] or rows
    whole = [r["train_s"] * r["images_per_s"] / (r["train_s"] + r["val_s"]) for r in rows]
    return {"train": max(r["images_per_s"] for r in rows), "epoch": max(whole)}


def bare_rate(bench: Bench, name: str, batch: int, kind: str, warps: bool = False) -> float:
    """Images/s of the plain loop: `eager`, `graph`, or `compile+graph`."""
    config = bench.config(name, batch_size=batch, compile=kind.startswith("compile"))
    side = (64 if bench.tiny else 224) if name == BIG else 48
    shape, n = (side, side, 3 if name == BIG else 1), 64 if bench.tiny else 4096
    step = bare_loop.bare_step(config, bench.device, shape, CLASSES, n, warps)
    if bench.device.type == "cuda" and kind != "eager":
        step = bare_loop.captured(step)
    return bare_loop.rate(step, bench.device, config.batch_size, 0.1 if bench.tiny else 0.8)


# ---- the sections --------------------------------------------------------------------------------


def rates(bench: Bench, options: argparse.Namespace) -> None:
    """Images/s of every preset at its own batch size, and at a large one, beside the bare loops."""
    for name in options.presets:
        own = options.batch or bench.config(name).batch_size
        large = [] if options.quick or bench.tiny else [EXTRA_BATCH.get(name, 1024)]
        for batch in (own, *large):
            if bench.late(f"{name} at {batch}"):
                continue
            compiled = not options.no_compile and batch == own
            configure_torch(os.cpu_count() or 1, False, bench.device)
            figures: dict[str, float] = {}
            for label, kind, warps in bare_loop.variants(bench.config(name), compiled):
                figures[label] = bare_loop.or_zero(
                    f"{label}, {name}", partial(bare_rate, bench, name, batch, kind, warps)
                )
                torch.cuda.empty_cache()
            like_ours = {k: v for k, v in figures.items() if k.endswith("warped")} or figures
            best = max(like_ours.values())
            n = (bench.tiny and 32) or (2_560 if name == BIG else 14_336)
            epochs = 2 if bench.tiny else max(3, min(40, round(0.7 * best / n) + 2))
            modes: dict[str, dict[str, Any]] = {
                "ours": {},
                "ours, --no-deterministic": {"deterministic": False},
                "ours, --graph off": {"graph": "off", "epochs": 2},
            }
            if compiled:
                modes["ours, --compile"] = {"compile": True}
            whole = {}
            for mode, fields in modes.items():
                settings = {"epochs": epochs, "batch_size": batch, **fields}
                if bench.late(f"{name} at {batch}, {mode}"):
                    continue
                try:
                    speeds = rate(bench, name, **settings)
                except Exception as error:
                    print(f"{name}, {mode}: {type(error).__name__}: {error}", file=sys.stderr)
                    continue
                figures[mode] = speeds["train"]
                whole[mode + ", with validation"] = speeds["epoch"]
                torch.cuda.empty_cache()
            ours = max((v for mode, v in figures.items() if mode.startswith("ours")), default=0)
            rounded = {key: round(value) for key, value in (figures | whole).items()}
            ratio = {
                "ratio": round(ours / max(best, 1), 2),
                "plain ratio": round(figures.get("ours", 0) / max(figures["bare graph"], 1), 2),
            }
            bench.note(section="rates", preset=name, batch=batch, **rounded, **ratio)


def bits(bench: Bench, options: argparse.Namespace) -> None:
    """Equal bytes: graphed, called directly, and stopped after an epoch and continued."""
    everything = {
        "ema": 0.99, "mixup": 0.2, "erase": 0.3, "gamma": 0.2, "contrast": 0.2, "clip": 1.0,
        "flip": True, "rotate": 10.0, "schedule": "cosine", "class_weights": 5.0,
    }  # fmt: skip
    cases: dict[str, dict[str, Any]] = {name: {} for name in options.presets if not options.quick}
    cases["fer2013, everything on"] = everything
    if not options.no_compile:
        cases["cnn_improved, --compile"] = {"compile": True}
    for case, fields in cases.items():
        name = case.split(",")[0]
        usual: dict[str, Any] = {"epochs": 2, **fields}
        if name != BIG:
            usual["batch_size"] = 256
        plain = bench.train(bench.config(name, **usual))
        direct = bench.train(bench.config(name, **usual, graph="off"))
        continued = bench.config(name, **usual)
        bench.train(continued, halt_after=1)
        bench.train(continued)
        equal = {
            "graph = direct": same(plain, direct),
            "graph = continued": same(plain, continued.run),
        }
        bench.note(section="bits", case=case, **equal)


def same(run: Path, other: Path) -> bool:
    """Whether metrics and weights are the same bytes."""
    if (run / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        return False
    a, b = (torch.load(r / "final.pt", weights_only=True)["model"] for r in (run, other))
    return all(a[key].numpy().tobytes() == b[key].numpy().tobytes() for key in a)


def start(bench: Bench, _: argparse.Namespace) -> None:
    """Seconds from process start to the end of the first step, and of the first replay."""
    for graph in ("off", "auto"):
        config = bench.config("cnn_baseline", epochs=1, graph=graph)
        times = child_json("first-step", config)
        bench.note(section="start", graph=graph, **times)


def checkpoint(bench: Bench, _: argparse.Namespace) -> None:
    """Seconds that a checkpoint holds up the loop, and what it costs in images/s."""
    held: list[float] = []
    original = Saver.save

    def timed(self: Saver, *args: Any, **more: Any) -> None:
        begin = time.perf_counter()
        original(self, *args, **more)
        if not (more.get("last") or any(args[2:])):  # the last one is waited for
            held.append(time.perf_counter() - begin)

    Saver.save = timed  # type: ignore[method-assign]
    try:
        epochs = 2 if bench.tiny else 30
        every = rate(bench, "cnn_improved", epochs, checkpoint_every_s=0.3)
    finally:
        Saver.save = original  # type: ignore[method-assign]
    none = rate(bench, "cnn_improved", epochs)
    bench.note(
        section="checkpoint",
        count=len(held),
        median_ms=round(1e3 * statistics.median(held or [0]), 2),
        longest_ms=round(1e3 * max(held, default=0), 2),
        share_of_rate=round(every["train"] / max(none["train"], 1), 3),
    )


def gan(bench: Bench, _: argparse.Namespace) -> None:
    """Pairs/s of the GAN at 64 pixels, and equal bytes with and without a graph."""
    n = 120 if bench.tiny else 4_000
    data = make_shards(bench.folder / "gan", n, 32 if bench.tiny else 64, 1)
    precision = "bf16" if bench.device.type == "cuda" else "fp32"
    usual: dict[str, Any] = {"data": data, "precision": precision, "device": bench.device.type}
    usual["tensorboard"] = False
    figures: dict[str, Any] = {}
    runs = {}
    for batch in (8, 64):
        for graph in ("auto", "off"):
            bench.runs += 1
            run = bench.folder / f"run{bench.runs}"
            fields: dict[str, Any] = {**usual, "batch_size": batch, "graph": graph, "run": run}
            fields["epochs"] = 1 if batch == 8 or bench.tiny else 3
            config = GanConfig(**fields)
            runs[graph] = bench.train(config)
            rows = read_rows(run, "timing.jsonl")
            figures[f"{batch}, graph {graph}"] = round(rows[-1]["images_per_s"])
        figures[f"{batch}, equal bytes"] = same(runs["auto"], runs["off"])
    bench.note(section="gan", **figures)


def peer(bench: Bench, _: argparse.Namespace) -> None:
    """Lightning with 8 workers at 48 pixels and at 224, batch 64."""
    for name in ("cnn_baseline", BIG):
        config = bench.config(name, batch_size=64)
        side = 48 if name != BIG else 64 if bench.tiny else 224
        shape, n = (side, side, 3 if name == BIG else 1), 640 if bench.tiny else 2_560
        images_per_s = bare_loop.or_zero(
            f"Lightning, {name}",
            partial(lightning_rate, config, shape, CLASSES, n, bench.device),
        )
        bench.note(section="peer", preset=name, batch=64, lightning=round(images_per_s))


def sharing(bench: Bench, options: argparse.Namespace) -> None:
    """Images/s of several trainings on one GPU together, in turns and with CUDA's MPS."""
    config = bench.config("cnn_baseline", epochs=2 if bench.tiny else 10)
    counts = (1, 2) if bench.tiny else (1, 4) if options.quick else (1, 2, 4, 8)
    alone: Path | None = None
    for service in (False, True):
        for count in counts:
            runs = [config.run.with_name(f"mps{service}-{count}-{k}") for k in range(count)]
            with contextlib.ExitStack() as stack:
                if service:
                    folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))
                    variables = stack.enter_context(multi_process_service(Path(folder)))
                    if not variables:
                        return
                    stack.enter_context(mock.patch.dict(os.environ, variables))
                started = [
                    start_child("share", dataclasses.replace(config, run=run)) for run in runs
                ]
                figures = [json.loads(p.communicate()[0].splitlines()[-1]) for p in started]
            alone = alone or runs[0]
            bench.note(
                section="sharing",
                mps=service,
                processes=count,
                together=round(sum(f["rate"] for f in figures)),
                equal_bytes=all(same(run, alone) for run in runs),
            )


SECTIONS = {
    "bits": bits,
    "start": start,
    "checkpoint": checkpoint,
    "gan": gan,
    "sharing": sharing,
    "peer": peer,
    "rates": rates,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--presets", nargs="+", default=[*PRESETS])
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="only the presets' own batch sizes")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--batch", type=int, help="in place of the presets' own batch sizes")
    parser.add_argument("--limit-s", type=float, default=330)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fer-bench-gpu-") as folder:
        bench = Bench(Path(folder), args.device, args.rehearse, args.out)
        for section in args.only:
            begin = time.monotonic()
            bench.until = started + args.limit_s
            if bench.late(section):
                continue
            SECTIONS[section](bench, args)
            print(f"-- {section}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
