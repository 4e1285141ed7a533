"""How time and memory grow with the number of runs, rows and tasks, and files with epochs.

    python bench/growth.py --out growth.json [--only report_runs ...] [--small]

Each figure is of a process of its own: CPU seconds (the machine may be shared) and peak memory of
the call, without start and imports; the best of --rounds. Writes FILE (JSON), FILE.md and FILE.svg.
The exponent is the slope of a straight line through the logarithms: 1 is linear, below 1 a fixed
part prevails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import growth_cases as cases
import numpy as np

EPOCHS = (2, 6, 18)
LIMIT = 1.15  # an exponent above it is worse than linear


@dataclass(frozen=True)
class Case:
    """`prepare` makes what a size needs, not measured; `work` gives the call that is measured."""

    title: str
    sizes: tuple[int, ...]
    prepare: Callable[[Path, int], None]
    work: Callable[[Path, int], Callable[[], Any]]
    folder: str = ""  # shared with other cases; "": its own


RUNS, SWEEPS, TASKS = (200, 600, 2000), (20, 60, 200), (500, 1500, 5000)
CASES = {
    "report_runs": Case("report: runs", RUNS, cases.make_runs, cases.write_report),
    "tables_of_sweeps": Case(
        f"tune --collect: sweeps of {cases.TRIALS}",
        (5, 15, 50),
        cases.make_sweeps,
        cases.tables_of_sweeps,
        "sweeps",
    ),
    "report_sweeps": Case(
        f"report: sweeps of {cases.TRIALS}",
        SWEEPS,
        cases.make_ranked_sweeps,
        cases.write_report,
        "sweeps",
    ),
    "status_of_sweeps": Case(
        f"status: sweeps of {cases.TRIALS}",
        SWEEPS,
        cases.make_sweeps,
        cases.status_of_sweeps,
        "sweeps",
    ),
    "find_single_paths": Case(
        "finding runs, each path given",
        (3000, 10_000, 30_000),
        cases.make_bare_runs,
        cases.find_single_paths,
    ),
    "table": Case(
        "preprocess, plan: rows of a table",
        (100_000, 300_000, 1_000_000),
        cases.make_table,
        cases.plan_of("table", "faces.csv"),
    ),
    "table_people": Case(
        "the same, split by person",
        (10_000, 30_000, 100_000),
        cases.make_people,
        cases.plan_of("table", "faces.csv"),
    ),
    "arrays": Case(
        "preprocess, plan: annotations",
        (200_000, 600_000, 2_000_000),
        cases.make_arrays,
        cases.plan_of("arrays", ""),
    ),
    "submit_tasks": Case(
        "jobs/sweep.py: tasks of an array", TASKS, cases.make_programs, cases.submit_tasks
    ),
    "status_of_tasks": Case(
        "status: tasks of an array", TASKS, cases.make_submitted, cases.status_of_tasks
    ),
    "grid_engine_states": Case(
        "Grid Engine: states of tasks", TASKS, cases.no_preparation, cases.grid_engine_states
    ),
}


def peak_mb() -> float:
    """The most memory that this process has had; getrusage would count its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cpu_s() -> float:
    """CPU time of this process and of those that it has waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def child(name: str, size: int, folder: Path) -> None:
    """Time one case in this process; prints a line of JSON."""
    case = CASES[name]
    work: Callable[[], Any] = case.work(folder, size)  # imports
    before, cpu, start = peak_mb(), cpu_s(), time.perf_counter()
    work()
    figures = {"cpu_s": cpu_s() - cpu, "wall_s": time.perf_counter() - start}
    print(json.dumps({**figures, "mb": peak_mb() - before, "base_mb": before}))


def measure(name: str, size: int, folder: Path, rounds: int) -> dict[str, float]:
    """The quickest of `rounds` processes."""
    results = []
    for _ in range(rounds):
        command = [sys.executable, __file__, "--child", name, str(size), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} {size}: {done.stderr[-2000:]}")
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return min(results, key=lambda figures: figures["cpu_s"])


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of a line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-6)), 1)[0])


def grow(name: str, case: Case, sizes: list[int], folder: Path, rounds: int) -> dict[str, Any]:
    """Figures of all sizes, and the exponents."""
    figures = []
    for size in sizes:
        case.prepare(folder, size)
        figures.append(measure(name, size, folder, rounds))
        print(name, size, json.dumps(figures[-1]), flush=True)
    row: dict[str, Any] = {"sizes": sizes}
    row |= {key: [f[key] for f in figures] for key in ("cpu_s", "wall_s", "mb")}
    row["exponent"] = exponent(sizes, row["cpu_s"])
    row["exponent_mb"] = exponent(sizes, row["mb"])
    if row["exponent"] > LIMIT:
        print(f"{name}: worse than linear, exponent {row['exponent']:.2f}", file=sys.stderr)
    return row


def files_of_runs(folder: Path) -> list[dict[str, int]]:
    """Files and bytes of runs of several lengths."""
    data, rows = cases.small_data(folder), []
    for epochs in EPOCHS:
        run = cases.train_small(data, folder / f"epochs{epochs}", epochs)
        files = [path for path in run.rglob("*") if path.is_file()]
        light = [path for path in files if path.suffix != ".pt"]
        size = sum(path.stat().st_size for path in light)
        rows.append({"epochs": epochs, "files": len(files), "bytes_without_weights": size})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def markdown(results: dict[str, Any]) -> str:
    head = ["case", "sizes", "CPU s", "exponent", "MB", "exponent of MB"]
    lines = [head, ["---"] * len(head)]
    for name, row in results["cases"].items():
        lines.append(
            [
                CASES[name].title,
                ", ".join(f"{size:,}" for size in row["sizes"]),
                ", ".join(f"{s:.2g}" if s < 10 else f"{s:.0f}" for s in row["cpu_s"]),
                f"{row['exponent']:.2f}",
                ", ".join(f"{m:.0f}" for m in row["mb"]),
                f"{row['exponent_mb']:.2f}" if row["mb"][-1] >= 20 else "–",
            ]
        )
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    if runs := results.get("files"):
        epochs = ", ".join(str(r["epochs"]) for r in runs)
        files = ", ".join(str(r["files"]) for r in runs)
        sizes = ", ".join(f"{r['bytes_without_weights']:,}" for r in runs)
        text += f"\nA run of {epochs} epochs has {files} files; without weights {sizes} bytes.\n"
    return text


def draw(results: dict[str, Any], path: Path) -> None:
    """Seconds and memory against size, both axes logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 5.2))
    for k, (name, row) in enumerate(results["cases"].items()):
        style = {"marker": "osD^vPX"[k % 7], "markersize": 4, "linewidth": 1.2, "color": f"C{k}"}
        label = f"{CASES[name].title} ({row['exponent']:.2f})"
        left.plot(row["sizes"], row["cpu_s"], label=label, **style)
        if row["mb"][-1] >= 20:
            right.plot(row["sizes"], row["mb"], **style)
    for axes, title in ((left, "CPU seconds"), (right, "MB above the start")):
        axes.set(xscale="log", yscale="log", title=title, xlabel="size")
        low, high = axes.get_xlim()
        bottom, top = axes.get_ylim()
        guide = np.array([low, high])
        for offset in range(-9, 3):
            axes.plot(guide, guide * 10.0**offset, color="0.88", linewidth=0.8, zorder=0)
        axes.set(xlim=(low, high), ylim=(bottom, top))
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="lower center", ncols=2, fontsize=8, frameon=False)
    rows = -(-len(results["cases"]) // 2)
    figure.tight_layout(rect=(0, 0.045 * rows, 1, 1))
    figure.savefig(path)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON; FILE.md, FILE.svg beside it")
    parser.add_argument("--only", nargs="+", choices=[*CASES, "files"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder for what is made; kept, and used again")
    parser.add_argument("--small", action="store_true", help="a tenth of the sizes")
    args = parser.parse_args()
    results: dict[str, Any] = {"cases": {}}
    if args.out.exists():  # figures of an earlier call stay
        results = json.loads(args.out.read_text())
    with contextlib.ExitStack() as stack:
        root = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, case in CASES.items():
            if args.only and name not in args.only:
                continue
            sizes = [max(10, size // 10) for size in case.sizes] if args.small else [*case.sizes]
            folder = root / (case.folder or name)
            folder.mkdir(exist_ok=True, parents=True)
            results["cases"][name] = grow(name, case, sizes, folder, args.rounds)
            args.out.write_text(json.dumps(results, indent=1) + "\n")
        if not args.only or "files" in args.only:
            results["files"] = files_of_runs(root / "files")
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(results))
    if results["cases"]:
        draw(results, args.out.with_suffix(".svg"))
    print(markdown(results))


if __name__ == "__main__":
    main()
