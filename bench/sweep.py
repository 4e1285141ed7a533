"""What Ray costs, and what trials on one machine share: python bench/sweep.py --data SHARDS [--epochs N --trials K]

The same trials, at one at a time and with the same threads: one after another in one process, and under fer_hpc.tune, both at
the same time, each on a core of its own (two at least), so that both see the same machine. Each is timed as a command, from
the start of its process to the end.
Then two at a time under Ray, whose memory is looked at: the shards are mapped, so all trials share one copy in the page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fer_hpc.cli.parse import configure
from fer_hpc.run.folder import read_rows
from fer_hpc.sweep.grid import grid


def mapped(out: list[dict[str, float]], data: Path, ended: threading.Event) -> None:
    """Note, every second, how many processes map the training shard, and how much of it is theirs alone (MB)."""
    while not ended.wait(1.0):
        sharers, alone, total = 0, 0.0, 0.0
        for path in Path("/proc").glob("[0-9]*/smaps"):
            try:
                text = path.read_text()
            except OSError:
                continue
            here = False
            for line in text.splitlines():
                if "-" in line.split(" ", 1)[0] and ":" not in line.split(" ", 1)[0]:
                    here = line.endswith(".h5") and str(data) in line
                    sharers += here
                elif here and line.startswith("Private"):
                    alone += int(line.split()[1]) / 1e3
                elif here and line.startswith("Rss"):
                    total += int(line.split()[1]) / 1e3
        out.append({"sharers": sharers, "private_mb": alone, "rss_mb": total})


def flags_of(given: argparse.Namespace) -> list[str]:
    return [
        "cnn_improved",
        "--data",
        str(given.data),
        "--batch-sizes",
        "128",
        "--lrs",
        "0.01",
        "--epochs",
        str(given.epochs),
        "--seeds",
        *map(str, range(given.trials)),
        "--no-tensorboard",
    ]


def plain(out: Path, flags: list[str]) -> None:
    """The trials one after another in this process."""
    from fer_hpc.parallel.world import World
    from fer_hpc.training.loop import train

    sweep, _, base = configure("tune", [*flags, "--out", str(out)])
    for trial in grid(sweep, base):
        train(trial.config, World())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)  # the one process: its folder
    given = parser.parse_args()
    if given.plain:
        return plain(given.plain, flags_of(given))
    folder = Path(tempfile.mkdtemp(prefix="fer-bench-sweep-"))
    flags = flags_of(given)

    def alone() -> float:
        began = time.monotonic()
        subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--plain", str(folder / "plain")],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.monotonic() - began

    def under_ray(name: str, at_once: int) -> float:
        began = time.monotonic()
        call = [
            sys.executable,
            "-m",
            "fer_hpc.tune",
            *flags,
            "--out",
            str(folder / name),
            "--at-once",
            str(at_once),
        ]
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began

    try:
        sweep, _, base = configure("tune", [*flags, "--out", str(folder / "plain")])
        trials = grid(sweep, base)
        with ThreadPoolExecutor(2) as pool:
            both = pool.submit(alone), pool.submit(under_ray, "ray", 1)
            plain_s, ray_s = (one.result() for one in both)
        print(
            f"{given.trials} trials one after another: in one process {plain_s:.1f} s ({plain_s / given.trials:.0f} s each), "
            f"under Ray {ray_s:.1f} s: {ray_s / plain_s:.3f} of it (bound 1.10)"
        )
        for name, wall_s in (("plain", plain_s), ("ray", ray_s)):
            runs = [folder / name / "trials" / trial.name for trial in trials]
            busy_s = sum(
                row["train_s"] + row["val_s"]
                for run in runs
                for row in read_rows(run, "timing.jsonl")
            )
            print(
                f"  {name:<6}{busy_s:.1f} s of training and validation, {wall_s - busy_s:.1f} s of all else"
            )
        same = [
            (folder / "ray" / "trials" / t.name / "final.pt").read_bytes()
            == (t.config.run / "final.pt").read_bytes()
            for t in trials
        ]
        print(f"weights bit-identical: {all(same)}")
        seen: list[dict[str, float]] = []
        ended = threading.Event()
        watcher = threading.Thread(target=mapped, args=(seen, given.data.absolute(), ended))
        watcher.start()
        under_ray("two", min(2, len(os.sched_getaffinity(0))))
        ended.set()
        watcher.join()
        most = max(seen, key=lambda s: (s["sharers"], s["rss_mb"]))
        print(
            f"two at a time: {most['sharers']:.0f} mappings of the shards, {most['rss_mb']:.1f} MB in all their views, "
            f"{most['private_mb']:.1f} MB of it not shared"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
