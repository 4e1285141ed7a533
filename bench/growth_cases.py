"""The cases of bench/growth.py: what is prepared for a size, and the call that is measured."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SEEDS, GRID = (0, 1, 2), [(batch, lr) for batch in (64, 128, 256) for lr in (0.001, 0.005, 0.01)]
TRIALS = len(SEEDS) * len(GRID)
CLASS_NAMES = "Neutral,Happiness,Sadness,Surprise"


def fer(verb: str, *args: object) -> None:
    command = [sys.executable, "-m", "fer_hpc", verb, *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")


def silent(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call without what it prints."""

    def quiet() -> Any:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return call()

    return quiet


# ---- runs ----------------------------------------------------------------------------------------


def small_data(folder: Path) -> Path:
    """256 drawn faces."""
    out = folder.parent / "data"
    if not out.exists():
        fer("preprocess", "--source", "synthetic", "--count", 256, "--out", out, "--workers", 2)
    return out


def train_small(data: Path, run: Path, epochs: int) -> Path:
    fer("train", "resnet_baseline", "--data", data, "--run", run, "--epochs", epochs)
    return run


def template(folder: Path) -> Path:
    """A finished and scored run that is copied, without its weights."""
    run = folder.parent / "template"
    if not run.exists():
        fresh = train_small(small_data(folder), folder.parent / "fresh", 3)
        fer("evaluate", fresh, "--split", "val")
        fer("evaluate", fresh, "--split", "test")
        shutil.copytree(fresh, run, ignore=shutil.ignore_patterns("*.pt", "tb"))
    return run


def copy_run(source: Path, run: Path, k: int, **science: Any) -> None:
    """A copy of a run, with science fields and accuracies of its own; other files are links."""
    if run.exists():
        return
    shutil.copytree(source, run, copy_function=os.link)
    config = json.loads((run / "config.json").read_text())
    config["science"] |= science
    config["id"] = f"{k:08x}"
    replace(run / "config.json", json.dumps(config))
    for path in [run / "metrics.jsonl", *run.glob("attempts/*/metrics.jsonl")]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["val_accuracy"] = 0.3 + (k * 7919 % 1000) / 2000
        replace(path, "".join(json.dumps(row) + "\n" for row in rows))


def replace(path: Path, text: str) -> None:
    """Write a file anew; the one that its name was a link to stays."""
    path.unlink()
    path.write_text(text)


def make_runs(folder: Path, count: int) -> None:
    source = template(folder)
    for k in range(count):
        science = {"seed": k % 5, "lr": 0.001 * (1 + k // 5)}
        copy_run(source, folder / "runs" / f"run{k:05d}", k, **science)


def make_sweeps(folder: Path, count: int) -> None:
    """Sweeps of 27 finished trials."""
    source = template(folder)
    config = json.loads((source / "config.json").read_text())
    for s in range(count):
        out = folder / "sweeps" / f"sweep{s:04d}"
        trials: dict[str, Any] = {}
        for k in range(TRIALS):
            (batch, lr), seed = GRID[k // 3], SEEDS[k % 3]
            name = f"b{batch}-lr{lr:g}-seed{seed}-{s:04x}{k:04x}"
            trials[name] = {"batch_size": batch, "lr": lr, "seed": seed}
            copy_run(source, out / "trials" / name, s * TRIALS + k, **trials[name])
        science = {k: v for k, v in config["science"].items() if k not in trials[name]}
        shared = {
            "preset": "resnet_baseline",
            "metric": "val_accuracy",
            "science": science,
            "fingerprint": config["data"]["fingerprint"],
            "runtime": {"init_from": None, "plugin": []},
            "data": config["data"]["path"],
        }
        if not (out / "sweep.json").exists():
            (out / "sweep.json").write_text(json.dumps(shared | {"trials": trials}))


def first(folder: Path, count: int) -> tuple[Path, ...]:
    return tuple(sorted(folder.iterdir())[:count])


def write_report(folder: Path, size: int) -> Callable[[], Any]:
    from fer_hpc.config.commands import ReportConfig
    from fer_hpc.evaluation import plots, plots_many
    from fer_hpc.report.report import report

    assert plots and plots_many
    runs, sweeps = folder / "runs", folder / "sweeps"
    paths = first(sweeps if sweeps.exists() else runs, size)
    config = ReportConfig(paths, folder / f"page{size}")
    return silent(lambda: report(config))


def tables_of_sweeps(folder: Path, size: int) -> Callable[[], Any]:
    from fer_hpc.evaluation import plots
    from fer_hpc.sweep.tables import collect

    assert plots
    outs = first(folder / "sweeps", size)
    return silent(lambda: [collect(out) for out in outs])


def make_ranked_sweeps(folder: Path, count: int) -> None:
    """Sweeps that have their tables, which are copies of the first one's."""
    make_sweeps(folder, count)
    from fer_hpc.sweep.tables import collect

    outs = first(folder / "sweeps", count)
    if not (outs[0] / "summary.json").exists():
        silent(lambda: collect(outs[0]))()
    for out in outs[1:]:
        for name in ("summary.json", "best.json", "results.csv", "heatmap.png"):
            shutil.copyfile(outs[0] / name, out / name)


def status_of_sweeps(folder: Path, size: int) -> Callable[[], Any]:
    from fer_hpc.cluster.status import format_status, job_status

    outs = first(folder / "sweeps", size)
    return silent(lambda: format_status(job_status(outs)))


def find_single_paths(folder: Path, size: int) -> Callable[[], Any]:
    from fer_hpc.run.folder import find_runs

    paths = first(folder / "runs", size)
    return lambda: find_runs(paths)


def make_bare_runs(folder: Path, count: int) -> None:
    """Folders that only look like runs."""
    for k in range(count):
        run = folder / "runs" / f"run{k:05d}"
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").touch()


# ---- data ----------------------------------------------------------------------------------------


def make_table(folder: Path, count: int, people: bool = False) -> None:
    """A CSV of `count` boxes in count / 100 pictures, which planning does not open."""
    pictures, classes = max(1, count // 100), CLASS_NAMES.split(",")
    (folder / "p").mkdir(parents=True, exist_ok=True)
    for k in range(pictures):
        (folder / "p" / f"{k:06d}.png").touch()
    with (folder / "faces.csv").open("w") as f:
        f.write("path,label,x_min,y_min,x_max,y_max" + ",person" * people + "\n")
        for k in range(count):
            x, y = k // pictures * 40, k % 977
            person = f",S{k % max(20, count // 50):06d}" if people else ""
            box = f"{x},{y},{x + 40},{y + 40}"
            f.write(f"p/{k % pictures:06d}.png,{classes[k * 7 % 4]},{box}{person}\n")


def make_people(folder: Path, count: int) -> None:
    make_table(folder, count, people=True)


def make_arrays(folder: Path, count: int) -> None:
    """Labels of `count` faces, and as many empty pictures of 8x8 in a sparse file."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "y_train.npy", np.arange(count) * 7 % 4)
    shape = (count, 8, 8)
    np.lib.format.open_memmap(folder / "X_train.npy", "w+", np.uint8, shape).flush()


def plan_of(source: str, file: str) -> Callable[[Path, int], Callable[[], Any]]:
    """Listing a source and dividing its rows: what preprocess does before it opens a picture."""

    def work(folder: Path, size: int) -> Callable[[], Any]:
        import sklearn.model_selection

        from fer_hpc.config.commands import PreprocessConfig
        from fer_hpc.data.plan import make_plan
        from fer_hpc.data.sources import open_source, source_spec

        assert sklearn.model_selection
        names = CLASS_NAMES if source == "arrays" else ""
        out = folder / "out"
        config = PreprocessConfig(source, out, input=folder / file, size=8, classes=names)
        spec = source_spec(source)

        def call() -> None:
            with open_source(spec, config) as opened:
                plan = make_plan(config, spec, opened)
                assert sum(len(shard.rows) for shard in plan.shards) == size

        return silent(call)

    return work


# ---- tasks ---------------------------------------------------------------------------------------

SBATCH = """#!/bin/sh
case "$1" in --help) exit 0;; esac
echo "Submitted batch job 4711"
"""
SQUEUE = """#!/bin/sh
exit 0
"""
SACCT = """#!/bin/sh
case "$*" in *MaxRSS*) exit 0;; esac
"""


def make_programs(folder: Path, count: int) -> None:
    """Programs with the names of Slurm's, so that submitting ends where a cluster would begin."""
    programs = folder / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f"echo '4711_{k}|COMPLETED|0:0|2026-01-01T00:00:00|x'" for k in range(count))
    texts = {"sbatch": SBATCH, "squeue": SQUEUE, "srun": SQUEUE, "scontrol": SQUEUE}
    for name, text in (texts | {"sacct": SACCT + rows + "\n"}).items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    small_data(folder)


def sweep_command(folder: Path, size: int) -> list[str]:
    seeds = ",".join(map(str, range(size // 5)))
    lrs = ",".join(f"{0.001 * (k + 1):g}" for k in range(5))
    places = ["--data", str(small_data(folder)), "--out", str(folder / f"sweep{size}")]
    return ["resnet_baseline", *places, "--batch-sizes", "64", "--lrs", lrs, "--seeds", seeds]


def submit_tasks(folder: Path, size: int) -> Callable[[], Any]:
    """jobs/sweep.py: planning, the list of commands, sbatch, a record for each task."""
    from fer_hpc.cli import jobs
    from fer_hpc.cluster import pipeline
    from fer_hpc.sweep import grid

    assert pipeline and grid
    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    args = [*sweep_command(folder, size), "--gpus-per-node", "0"]
    return silent(lambda: jobs.sweep(args))


def make_submitted(folder: Path, count: int) -> None:
    make_programs(folder, count)
    call = "import sys, growth_cases as g; from pathlib import Path; "
    call += "g.submit_tasks(Path(sys.argv[1]), int(sys.argv[2]))()"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}"}
    subprocess.run([sys.executable, "-c", call, str(folder), str(count)], check=True, env=env)


def status_of_tasks(folder: Path, size: int) -> Callable[[], Any]:
    """fer-hpc status of the sweep's folder: a record for each task, asked of the scheduler."""
    from fer_hpc.cluster.status import job_status

    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    return silent(lambda: job_status((folder / f"sweep{size}",)))


def grid_engine_states(_: Path, size: int) -> Callable[[], Any]:
    """The states of Grid Engine's tasks, from what qstat would print."""
    from fer_hpc.cluster import sge

    rows = "".join(
        f"<job_list><JB_job_number>4711</JB_job_number><state>r</state><tasks>{k + 1}</tasks>"
        "</job_list>"
        for k in range(size)
    )
    printed = f"<job_info><queue_info>{rows}</queue_info></job_info>"
    sge.output_of = lambda *_: printed  # type: ignore[assignment]
    jobs = [f"4711.{k + 1}" for k in range(size)]

    def call() -> None:
        assert len(sge.GridEngine().states(jobs)) == size

    return call


def no_preparation(_: Path, __: int) -> None:
    pass
