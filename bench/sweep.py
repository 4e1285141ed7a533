"""The cost of Ray, and the memory that the trials of one machine share.

    python bench/sweep.py --data SHARDS [--epochs N --trials K]

The same trials, one at a time and with the same threads: in one process, and under fer_hpc.tune.
Both run at the same time, each on a core of its own (at least two), so that both see the same
machine. Each is timed as a command, from the start of its process to its end.
Then two trials at a time under Ray, whose memory is read: the shards are mapped, so that all trials
share one copy in the page cache.
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
from fer_hpc.sweep.grid import Trial, grid


def read_mappings(data: Path) -> dict[str, float]:
    """The mappings of the shards in `data` by all processes: how many, MB, and MB not shared."""
    mappings, private_kb, total_kb = 0, 0, 0
    for path in Path("/proc").glob("[0-9]*/smaps"):
        try:
            lines = path.read_text().splitlines()
        except OSError:  # the process has ended, or belongs to somebody else
            continue
        of_shards = False
        for line in lines:
            first = line.split(" ", 1)[0]
            if "-" in first and ":" not in first:  # the head of a mapping: its addresses
                of_shards = line.endswith(".h5") and str(data) in line
                mappings += of_shards
            elif of_shards and line.startswith("Private"):
                private_kb += int(line.split()[1])
            elif of_shards and line.startswith("Rss"):
                total_kb += int(line.split()[1])
    return {"mappings": mappings, "private_mb": private_kb / 1e3, "total_mb": total_kb / 1e3}


def watch_mappings(samples: list[dict[str, float]], data: Path, ended: threading.Event) -> None:
    """Append a sample every second."""
    while not ended.wait(1.0):
        samples.append(read_mappings(data))


def sweep_flags(args: argparse.Namespace) -> list[str]:
    seeds = [str(seed) for seed in range(args.trials)]
    recipe = ["--batch-sizes", "128", "--lrs", "0.01", "--epochs", str(args.epochs)]
    data = ["--data", str(args.data), "--no-tensorboard"]
    return ["cnn_improved", *data, *recipe, "--seeds", *seeds]


def trials_of(out: Path, flags: list[str]) -> list[Trial]:
    sweep, _, base = configure("tune", [*flags, "--out", str(out)])
    return grid(sweep, base)


def train_here(out: Path, flags: list[str]) -> None:
    """Train the trials one after another in this process."""
    from fer_hpc.parallel.world import World
    from fer_hpc.training.loop import train

    for trial in trials_of(out, flags):
        train(trial.config, World())


def timed(command: list[str]) -> float:
    """Seconds that a command takes."""
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Run the trials in one process and under Ray; print times, shares and whether bits agree."""
    flags = sweep_flags(args)
    in_one = [sys.executable, __file__, *sys.argv[1:], "--plain", str(folder / "plain")]
    with ThreadPoolExecutor(2) as pool:
        both = (
            pool.submit(timed, in_one),
            pool.submit(timed, tune_command(folder / "ray", flags, 1)),
        )
        plain_s, ray_s = (one.result() for one in both)
    print(
        f"{args.trials} trials one after another: in one process {plain_s:.1f} s "
        f"({plain_s / args.trials:.0f} s each), under Ray {ray_s:.1f} s: "
        f"{ray_s / plain_s:.3f} of it (bound 1.10)"
    )
    trials = trials_of(folder / "plain", flags)
    for name, wall_s in (("plain", plain_s), ("ray", ray_s)):
        runs = [folder / name / "trials" / trial.name for trial in trials]
        rows = [row for run in runs for row in read_rows(run, "timing.jsonl")]
        busy_s = sum(row["train_s"] + row["val_s"] for row in rows)
        print(
            f"  {name:<6}{busy_s:.1f} s of training and validation, "
            f"{wall_s - busy_s:.1f} s of everything else"
        )
    weights = [
        {(folder / name / "trials" / t.name / "final.pt").read_bytes() for name in ("plain", "ray")}
        for t in trials
    ]
    print(f"weights bit-identical: {all(len(different) == 1 for different in weights)}")


def tune_command(out: Path, flags: list[str], at_once: int) -> list[str]:
    where = ["--out", str(out), "--at-once", str(at_once)]
    return [sys.executable, "-m", "fer_hpc.tune", *flags, *where]


def measure_memory(folder: Path, args: argparse.Namespace) -> None:
    """Run two trials at a time under Ray and print the memory of their mapped shards."""
    samples: list[dict[str, float]] = []
    ended = threading.Event()
    watcher = threading.Thread(target=watch_mappings, args=(samples, args.data.absolute(), ended))
    watcher.start()
    timed(tune_command(folder / "two", sweep_flags(args), min(2, len(os.sched_getaffinity(0)))))
    ended.set()
    watcher.join()
    peak = max(samples, key=lambda s: (s["mappings"], s["total_mb"]))
    print(
        f"two at a time: {peak['mappings']:.0f} mappings of the shards, {peak['total_mb']:.1f} MB "
        f"in all of them, {peak['private_mb']:.1f} MB of it not shared"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--epochs", type=int, default=4, help="of each trial")
    parser.add_argument("--trials", type=int, default=3, help="how many")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)  # folder of the one process
    args = parser.parse_args()
    if args.plain:
        train_here(args.plain, sweep_flags(args))
        return
    folder = Path(tempfile.mkdtemp(prefix="fer-bench-sweep-"))
    try:
        compare(folder, args)
        measure_memory(folder, args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
