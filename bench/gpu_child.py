"""One training in a process of its own, for bench/gpu.py: times of its first steps, or its rate.

python bench/gpu_child.py first-step|share FIELDS BEGAN
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from fer_hpc.config import TrainConfig
from fer_hpc.parallel.world import World
from fer_hpc.run.folder import read_rows
from fer_hpc.training import loop

STEPS = ("first_step_s", "second_step_s", "third_step_s")


def start_child(what: str, config: TrainConfig) -> subprocess.Popen[str]:
    """This file as a process; its last line is JSON."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    command = [sys.executable, __file__, what, json.dumps(fields, default=str), str(time.time())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def child_json(what: str, config: TrainConfig) -> dict[str, Any]:
    output = start_child(what, config).communicate()[0]
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    what, text, began = sys.argv[1], sys.argv[2], float(sys.argv[3])
    config = TrainConfig(**{k: v for k, v in json.loads(text).items() if v != [] and v != "None"})
    times: dict[str, float] = {"imported_s": round(time.time() - began, 2)}
    original, calls = loop.StepRunner.run, 0

    def timed(self: Any, *args: Any, **more: Any) -> Any:
        nonlocal calls
        result = original(self, *args, **more)
        if calls < len(STEPS):
            if config.device == "cuda":
                torch.cuda.synchronize()
            times[STEPS[calls]] = round(time.time() - began, 2)
        calls += 1
        return result

    if what == "first-step":
        loop.StepRunner.run = timed  # type: ignore[method-assign]
    loop.train(config, World())
    rows = read_rows(config.run, "timing.jsonl")[1:]
    rate = statistics.median(r["images_per_s"] for r in rows) if rows else 0.0
    print(json.dumps(times if what == "first-step" else {"rate": rate}))


if __name__ == "__main__":
    main()
