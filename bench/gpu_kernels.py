"""The kernels of a training step on a GPU: deterministic beside not, the largest difference first.

    python bench/gpu_kernels.py [--presets fer2013 ...] [--compile]

Profiles 20 replayed steps of `train()` on noise and prints microseconds a step.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gpu import Bench
from torch.profiler import ProfilerActivity, profile

from fer_hpc.config import PRESETS
from fer_hpc.training import loop

FIRST, STEPS = 100, 20


def kernel_times(bench: Bench, name: str, **fields: Any) -> Counter[str]:
    """Microseconds a step by kernel."""
    profiler = profile(activities=[ProfilerActivity.CUDA])
    original, calls = loop.StepRunner.run, 0

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == FIRST:
            torch.cuda.synchronize()
            profiler.start()
        result = original(self, *args, **more)
        if calls == FIRST + STEPS - 1:
            torch.cuda.synchronize()
            profiler.stop()
        return result

    loop.StepRunner.run = watched  # type: ignore[method-assign]
    try:
        bench.train(bench.config(name, epochs=4, **fields))
    finally:
        loop.StepRunner.run = original  # type: ignore[method-assign]
    times: Counter[str] = Counter()
    for event in profiler.events() or ():
        times[event.name] += event.device_time / STEPS
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=[*PRESETS])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rows", type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fer-bench-gpu-") as folder:
        bench = Bench(Path(folder), "cuda", False, Path(folder) / "out")
        for name in args.presets:
            usual = {"compile": args.compile, "batch_size": min(256, bench.config(name).batch_size)}
            with_it, without = (
                kernel_times(bench, name, deterministic=d, **usual) for d in (True, False)
            )
            totals = f"{with_it.total():.0f} deterministic, {without.total():.0f} not"
            print(f"{name}, batch {usual['batch_size']}: {totals} (us a step)")
            extra = Counter({k: with_it[k] - without[k] for k in with_it | without})
            for kernel, more in [*extra.most_common(args.rows), *extra.most_common()[-3:]]:
                print(f"  {more:+8.1f}  {with_it[kernel]:8.1f}  {kernel[:100]}")


if __name__ == "__main__":
    main()
