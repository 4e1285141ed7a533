"""What a study costs before it has run: images, hours, disk, files, critical path."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fer_hpc.config import PRESETS, UserError
from fer_hpc.config.jobs import JobConfig
from fer_hpc.study.graph import Part, is_large
from fer_hpc.study.machine import Room
from fer_hpc.study.plan import Plan, shape_of
from fer_hpc.study.rates import (
    FACES_PER_CORE_S,
    PARAMETERS,
    SCORING,
    SHARED_GPU,
    measured_rates,
    rate_of,
)
from fer_hpc.study.state import PartState, manifest_of, trials_of

TRAIN_SHARE, HELD_OUT_SHARE = 0.7, 0.15  # where the split is not known yet
BYTES_OF_COLUMNS = 600  # of a face, besides its pixels: landmarks and what else there is
SGD_BYTES, ADAM_BYTES = 32, 40  # a weight of a run: two checkpoints, best.pt and final.pt
FILES_OF_RUN, FILES_OF_TRIAL, SHARD_BYTES = 30, 15, 128 << 20
START_S = 10.0  # of a process until it works: most of it loads torch
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Cost:
    """Of one part. None: not known."""

    images: int | None
    hours: float | None
    gigabytes: float | None
    files: int
    origin: str = ""  # of the rate


def faces_of(plan: Plan) -> tuple[int | None, str]:
    """The number of faces, and where it is known from."""
    for product in plan.products:
        manifest_path = plan.out / "shards" / product / "manifest.json"
        if manifest_path.exists():
            from fer_hpc.data.manifest import find_manifest

            manifest = find_manifest(manifest_path.parent)
            if manifest:
                return sum(map(manifest.n, ("train", "val", "test"))), "the shards"
    if plan.tables["source"] == "synthetic":
        return plan.tables["count"] or None, "count in study.toml"
    path = Path(plan.tables["input"])
    if path.is_file() and path.suffix == ".csv":
        with path.open("rb") as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 22), b""))
        return max(lines - 1, 0), f"the lines of {path.name}"
    if path.is_dir():
        count = sum(
            Path(name).suffix.lower() in PICTURES for _, _, files in os.walk(path) for name in files
        )
        return count or None, f"the pictures in {path.name}"
    return None, ""


def costs_of(plan: Plan, parts: list[Part], room: Room | None, job: JobConfig) -> dict[str, Cost]:
    """The cost of each part on this machine (`room`), or on a scheduler's."""
    faces, _ = faces_of(plan)
    on_gpu = on_gpus(room, job)
    measured = measured_rates(parts)
    return {part.name: _cost(plan, part, faces, on_gpu, measured, room) for part in parts}


def on_gpus(room: Room | None, job: JobConfig) -> bool:
    """Whether trainings run on GPUs: on this machine (`room`), or as jobs."""
    return bool(room.gpus) if room else job.gpus_per_node > 0


def _cost(
    plan: Plan,
    part: Part,
    faces: int | None,
    on_gpu: bool,
    measured: dict[tuple[str, str], float],
    room: Room | None,
) -> Cost:
    manifest = manifest_of(plan, part)
    if manifest:
        faces_in = {name: manifest.n(name) for name in ("train", "val", "test")}
    else:
        shares = (("train", TRAIN_SHARE), ("val", HELD_OUT_SHARE), ("test", HELD_OUT_SHARE))
        faces_in = {name: round((faces or 0) * share) for name, share in shares}
    if part.kind == "shards":
        side, channels = shape_of(part.product)
        if not faces:
            return Cost(None, None, None, 4)
        size = faces * (side * side * channels + BYTES_OF_COLUMNS)
        cores = room.cores if room else 1
        reading = faces / (FACES_PER_CORE_S * cores) / 3600
        return Cost(faces, reading, size / 1e9, 8 + 2 * (size // SHARD_BYTES))
    if part.kind in ("doctor", "report"):
        return Cost(None, None, 0.003, 4)
    known = bool(faces or manifest)
    rate = rate_of(part, on_gpu, measured)
    if part.kind in ("val", "test"):
        images = faces_in[part.kind] if known else None
        is_known = images is not None and not part.is_gan  # a GAN's judge is trained first
        scoring = (images or 0) / rate.images_per_s / SCORING / 3600 if is_known else None
        return Cost(images, scoring, 0.002, 3, rate.origin)
    trials = trials_of(part) if part.kind == "grid" else 1
    images = faces_in["train"] * part.epochs * trials if known else None
    hours = images / rate.images_per_s / 3600 if images is not None else None
    if hours and part.kind == "grid":  # trials side by side
        if on_gpu and not is_large(part.product):
            hours /= SHARED_GPU
        elif room and not on_gpu:
            hours /= max(1, room.cores // max(part.threads, 1))
    name = "gan" if part.kind == "gan" else str(PRESETS[part.preset]["model"])
    adam = name == "gan" or PRESETS[part.preset].get("optimizer") == "adamw"
    size_gb = PARAMETERS.get(name, 25.0) * (ADAM_BYTES if adam else SGD_BYTES) / 1e3 * trials
    files = FILES_OF_TRIAL * trials if trials > 1 else FILES_OF_RUN
    return Cost(images, hours, size_gb, files, rate.origin)


def critical_path(parts: list[Part], costs: dict[str, Cost]) -> tuple[float, list[str]]:
    """The longest chain of parts that wait for each other: its hours, and its parts in order."""
    best: dict[str, tuple[float, list[str]]] = {}
    for part in parts:
        before = [best[name] for name in (*part.needs, *part.after)]
        hours, path = max(before, key=lambda chain: chain[0], default=(0.0, []))
        best[part.name] = (hours + (costs[part.name].hours or 0.0), [*path, part.name])
    return max(best.values(), key=lambda chain: chain[0])


def check_space(plan: Plan, parts: list[Part], costs: dict[str, Cost]) -> str:
    """A UserError where the disk has no room for the shards that are still to be made.

    Gives a warning where it may have none for the runs; "" where it has.
    """
    todo = [p for p in parts if p.kind == "shards" and not (p.folder / "manifest.json").exists()]
    needed = sum(costs[part.name].gigabytes or 0 for part in todo)
    place = next(p for p in (plan.out, *plan.out.parents) if p.is_dir())
    free = shutil.disk_usage(place).free / 1e9
    if todo and needed > free:
        names = ", ".join(f"{p.product} {costs[p.name].gigabytes or 0:.1f} GB" for p in todo)
        raise UserError(
            f"{plan.out}: the shards need {needed:.1f} GB ({names}), and {free:.1f} GB are free: "
            "make room, give another OUT, or smaller faces (data = ...) in study.toml"
        )
    runs = sum(
        costs[part.name].gigabytes or 0
        for part in parts
        if part.kind != "shards" and not part.folder.exists()
    )
    if needed + runs > free:
        return f"warning: the runs need about {runs:.0f} GB more, and {free:.0f} GB are free"
    return ""


# ---- text ----------------------------------------------------------------------------------------


def group_of(part: Part) -> str:
    """The line of a table that a part belongs to: its seeds are one."""
    return part.name.rpartition("-seed")[0] or part.name


def grouped(parts: Iterable[Part]) -> dict[str, list[Part]]:
    """Line -> its parts, in the order of the graph."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(group_of(part), []).append(part)
    return groups


def format_plan(
    plan: Plan,
    parts: list[Part],
    costs: dict[str, Cost],
    states: dict[str, PartState],
    room: Room | None,
    job: JobConfig,
) -> str:
    """The graph with its costs, as --dry-run prints it."""
    faces, known_from = faces_of(plan)
    source = plan.tables["source"]
    about = f"{faces:,} faces (from {known_from})" if faces else "number of faces not known yet"
    lines = [f"study {plan.out}: {source}, {about}, scale {plan.tables['scale']}"]
    width = max(map(len, grouped(parts)))
    unit = "GPU h" if on_gpus(room, job) else "hours"
    head = f"{'part':<{width}} {'n':>3} {'images':>14} {unit:>8} {'GB':>7} {'files':>6}"
    lines.append(f"{head}  {'state':<9} needs")
    for name, members in grouped(parts).items():
        total = total_of(costs[part.name] for part in members)
        needs = sorted({group_of_name(n) for part in members for n in part.needs})
        if members[0].kind in ("test", "report"):
            needs.append("all that chooses" if members[0].kind == "test" else "all, ended")
        words = sorted({states[part.name].state for part in members})
        images = f"{total.images:,}" if total.images is not None else "-"
        hours = f"{total.hours:.2f}" if total.hours is not None else "-"
        size = f"{total.gigabytes:.2f}" if total.gigabytes is not None else "-"
        lines.append(
            f"{name:<{width}} {len(members):>3} {images:>14} {hours:>8} {size:>7} "
            f"{total.files:>6}  {'/'.join(words):<9} {', '.join(needs)}".rstrip()
        )
    total = total_of(costs.values())
    images = f"{total.images or 0:,}"
    lines.append(
        f"{'all':<{width}} {len(parts):>3} {images:>14} {total.hours or 0:>8.2f} "
        f"{total.gigabytes or 0:>7.2f} {total.files:>6}"
    )
    lines += _notes(plan, parts, costs, room, job)
    return "\n".join(lines)


def _notes(
    plan: Plan,
    parts: list[Part],
    costs: dict[str, Cost],
    room: Room | None,
    job: JobConfig,
) -> list[str]:
    hours, path = critical_path(parts, costs)
    started = START_S * len(path) / 3600
    lines = [
        f"critical path: {hours + started:.2f} h, {started:.2f} of it to start processes: "
        f"{' -> '.join(path)}"
    ]
    unit = "of one GPU" if on_gpus(room, job) else "of the cores that each part takes"
    origins = sorted({cost.origin for cost in costs.values() if cost.origin})
    lines.append(f"hours {unit}; rates: {'; '.join(origins)}")
    lines.append("not estimated (-): checks, the page, and the judge of the GAN's scores")
    place = next(p for p in (plan.out, *plan.out.parents) if p.is_dir())
    lines.append(f"free at OUT: {shutil.disk_usage(place).free / 1e9:.0f} GB")
    tests = [part for part in parts if part.kind == "test"]
    if tests and not manifest_of(plan, tests[0]):
        lines.append("parts of the test split are left out where the source turns out to have none")
    if plan.left_out:
        lines.append(f"left out: {', '.join(sorted(plan.left_out))}")
    if room:
        gpus = f", {len(room.gpus)} GPU(s)" if room.gpus else ""
        lines.append(f"here: {room.cores} core(s){gpus}; parts run beside each other as they fit")
    else:
        lines.append(f"on {job.cluster}: {len(parts)} jobs and arrays that wait for each other")
    return lines


def group_of_name(name: str) -> str:
    return name.rpartition("-seed")[0] or name


def total_of(costs: Iterable[Cost]) -> Cost:
    """The sum of several; what is not known of all of them is not known."""
    listed = list(costs)

    def add(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    images = add([c.images for c in listed])
    return Cost(
        None if images is None else round(images),
        add([c.hours for c in listed]),
        add([c.gigabytes for c in listed]),
        sum(c.files for c in listed),
    )


def hours_left(
    parts: list[Part], states: dict[str, PartState], costs: dict[str, Cost], room: Room | None
) -> float:
    """About how many hours the rest takes: side by side on this machine, or as jobs, which all run
    at once."""
    rest = {}
    for part in parts:
        state, cost = states[part.name], costs[part.name]
        to_do = state.state in ("waiting", "running")
        hours = (cost.hours or 0.0) * (1 - state.share) + START_S / 3600 if to_do else 0.0
        rest[part.name] = dataclasses.replace(cost, hours=hours)
    if room is None:
        return critical_path(parts, rest)[0]
    beside = 1 if room.gpus else room.cores
    return sum(
        (rest[p.name].hours or 0.0) / (1 if p.alone else max(1, beside // max(p.threads, 1)))
        for p in parts
    )
