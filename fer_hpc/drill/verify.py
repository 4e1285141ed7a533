"""`fer-hpc verify A B`: two runs are equal, or where they first differ, and what is likely why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fer_hpc.config import UserError, format_flag
from fer_hpc.config.commands import VerifyConfig
from fer_hpc.files import check_shape, read_json
from fer_hpc.run import checkpoint
from fer_hpc.run.folder import (
    attempt_lineage,
    attempt_path,
    damage_of,
    list_checkpoints,
    outcome_file,
    read_rows,
    read_run_config,
    read_status,
)
from fer_hpc.run.outcome import damaged_copies

# What a start records that rounds sums differently, the most telling first.
RECORDED = {
    "world_size": "number of ranks",
    "device": "device",
    "cpu": "CPU model",
    "packages": "package versions",
    "python": "Python version",
    "code": "code of fer_hpc",
}
NO_EFFECT = ("epochs",)  # that alone makes a run longer, not other
WEIGHTS = ("final.pt", "best.pt")
CHAIN = {
    "images_seen": int,
    "since": int,
    "order": str,
    "sums": str,
    "weights": str,
    "stops": [[int, str, str], ...],
}


@dataclass
class Verdict:
    """What was compared and what differs. `equal` is None where nothing could be compared."""

    a: str
    b: str
    equal: bool | None = None
    compared: list[str] = field(default_factory=list)
    first_epoch: str = ""
    first_steps: str = ""
    first_tensor: str = ""
    causes: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def verify(config: VerifyConfig) -> Verdict:
    """Compare two run folders: metrics, common checkpoints, weights, settings and surroundings."""
    a, b = config.a, config.b
    stored = [read_run_config(run) for run in (a, b)]
    kinds = [each.get("kind", "classifier") for each in stored]
    if kinds[0] != kinds[1]:
        raise UserError(f"{a} holds a {kinds[0]} and {b} a {kinds[1]}; give two runs of one kind")
    if a.resolve() == b.resolve():
        raise UserError(f"{a} and {b} are the same folder; give two runs")
    copies = [
        f"{run / name} is missing, cut or changed: train again makes it from the attempts' files"
        for run in (a, b)
        for name in damaged_copies(run)
    ]
    verdict = Verdict(str(a), str(b), damage=damage_of(a) + damage_of(b) + copies)
    until = min(_compare_rows(verdict), _compare_chains(verdict), _compare_tensors(verdict))
    differs = bool(verdict.first_epoch or verdict.first_steps or verdict.first_tensor)
    verdict.equal = not differs if verdict.compared else None
    if differs and until == float("inf"):
        verdict.causes = ["one was trained further; what both have is equal"]
    elif differs:
        verdict.causes = [*_settings(*stored), *_surroundings(a, b, until)]
    return verdict


def _compare_rows(verdict: Verdict) -> float:
    """Compare metrics.jsonl; gives the images seen at the first epoch that differs, or infinity."""
    rows = [read_rows(Path(run)) for run in (verdict.a, verdict.b)]
    for row, other in zip(*rows, strict=False):
        names = [name for name in row if row[name] != other.get(name)]
        if names:
            values = ", ".join(f"{n} {row[n]!r} against {other.get(n)!r}" for n in names[:3])
            more = f" and {len(names) - 3} more values" if len(names) > 3 else ""
            place = f"epoch {row.get('epoch')}, which ends at {row['images_seen']:,} images"
            verdict.first_epoch = f"{place}: {values}{more}"
            verdict.compared.append("metrics")
            return float(row["images_seen"])
    common = min(map(len, rows))
    if common:
        verdict.compared.append(f"metrics of {common} epochs")
    if len(rows[0]) != len(rows[1]):
        states = [read_status(Path(run))["state"] for run in (verdict.a, verdict.b)]
        if states == ["finished", "finished"]:
            verdict.first_epoch = f"{len(rows[0])} epochs against {len(rows[1])}"
    return float("inf")


def _compare_chains(verdict: Verdict) -> float:
    """Compare chain.jsonl; gives the images seen before the first steps that differ, or infinity.

    Each entry of a row's `stops` covers the steps since the one before it.
    """
    rows = [_chain_rows(Path(run)) for run in (verdict.a, verdict.b)]
    before = max((row["since"] for both in rows for row in both), default=0)
    for row, other in zip(*rows, strict=False):
        stops, others = row["stops"], other["stops"]
        if [stop[0] for stop in stops] != [stop[0] for stop in others]:
            return float("inf")  # another batch size, which the settings name
        for (images, *hashes), (_, *others_hashes) in zip(stops, others, strict=True):
            if hashes != others_hashes:
                order = hashes[0] != others_hashes[0]
                what = "the samples or their order" if order else "losses, of equal samples,"
                verdict.first_steps = f"{what} between {before:,} and {images:,} images seen"
                return float(images)
            before = images
        if row["weights"] != other["weights"]:
            verdict.first_steps = f"weights at {before:,} images seen, after equal losses"
            return float(before)
    if min(map(len, rows)):
        verdict.compared.append(f"samples and losses of {before:,} images in their order")
    return float("inf")


def _chain_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of chain.jsonl up to the first that is damaged; none in runs of older versions."""
    rows = []
    for row in read_rows(run, "chain.jsonl"):
        try:
            check_shape(row, CHAIN, "chain.jsonl")
        except UserError:
            break
        rows.append(row)
    return rows


def _compare_tensors(verdict: Verdict) -> float:
    """Compare the files that both have, oldest first; gives images seen of the first that differs.

    That is infinity where none does.
    """
    for name, images, path, other in _pairs(Path(verdict.a), Path(verdict.b)):
        if path.read_bytes() != other.read_bytes():
            difference = _first_difference(path, other)
            if difference:
                verdict.first_tensor = f"{difference}, of {name}"
                verdict.compared.append(name)
                return float(images)
        verdict.compared.append(name)
    return float("inf")


def _pairs(a: Path, b: Path) -> Iterator[tuple[str, int, Path, Path]]:
    """(name, images seen, file of A, file of B) of what both have: checkpoints, then weights."""
    saved = [{images: path for _, images, path in list_checkpoints(run)} for run in (a, b)]
    for images in sorted(saved[0].keys() & saved[1].keys()):
        yield f"the checkpoint at {images:,} images", images, saved[0][images], saved[1][images]
    ends = [max(each, default=0) for each in saved]
    if ends[0] == ends[1]:
        for name in WEIGHTS:
            files = [outcome_file(run, name) for run in (a, b)]
            if files[0] and files[1]:
                yield name, ends[0], files[0], files[1]


def _first_difference(path: Path, other: Path) -> str:
    """The first value that two files of tensors do not have alike, or "" """
    values, others = (flat_parts(checkpoint.load(each)) for each in (path, other))
    for name, value in values.items():
        if name.startswith(("/science", "/data")):  # compared as settings
            continue
        match = others.get(name)
        if not isinstance(value, torch.Tensor) or not isinstance(match, torch.Tensor):
            if repr(value) != repr(match):
                return f"{name[1:]} is {value!r} against {match!r}"
        elif value.shape != match.shape or value.dtype != match.dtype:
            shapes = f"{list(value.shape)} {value.dtype} against {list(match.shape)} {match.dtype}"
            return f"{name[1:]} is {shapes}"
        elif value.numel() and value.numpy().tobytes() != match.numpy().tobytes():
            gap = (value.double() - match.double()).abs()
            return (
                f"{name[1:]}: {int((value != match).sum()):,} of {value.numel():,} values, "
                f"largest difference {gap.max().item():.3g}"
            )
    more = [name for name in others if name not in values]
    return f"{more[0][1:]} is in one of both" if more else ""


def flat_parts(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists by their path, in the order of the file."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {name: value}
    return {k: v for key, part in items for k, v in flat_parts(part, f"{name}/{key}").items()}


# ---- causes --------------------------------------------------------------------------------------


def _settings(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Settings that decide the numbers and differ, a line each."""
    lines = []
    if a["data"]["fingerprint"] != b["data"]["fingerprint"]:
        prints = f"{a['data']['fingerprint']} against {b['data']['fingerprint']}"
        lines.append(f"other data: fingerprint {prints}")
    science, other = a["science"], b["science"]
    for name in [*science, *(n for n in other if n not in science)]:
        values = science.get(name), other.get(name)
        if values[0] != values[1] and (
            name not in NO_EFFECT or science.get("schedule") == "cosine"
        ):
            shown = " against ".join(
                format_flag(name, v) if v is not None else "unset" for v in values
            )
            lines.append(f"another flag: {shown}")
    for what, entry in a.get("plugins", {}).items():
        if entry.get("sha256") != b.get("plugins", {}).get(what, {}).get("sha256"):
            lines.append(f"another plugin for the {what}")
    return lines


def _surroundings(a: Path, b: Path, until: float) -> list[str]:
    """What starts recorded that differs, of those before `until` images seen, a line each."""
    lines, starts = [], [_starts(run, until) for run in (a, b)]
    for key, title in RECORDED.items():
        values = [sorted({_text(start.get(key)) for start in each}) for each in starts]
        if values[0] != values[1]:
            shown = " against ".join(" and ".join(each) or "nothing" for each in values)
            lines.append(f"another {title}: {shown}")
    return lines


def _starts(run: Path, until: float) -> list[dict[str, Any]]:
    """environment.json of the starts in a run's history that trained before `until` images."""
    environments = []
    for number, _ in attempt_lineage(run):
        environment = read_json(attempt_path(run, number) / "environment.json") or {}
        parent = environment.get("parent") or {"images_seen": 0}
        if parent["images_seen"] < until:
            environments.append(environment)
    return environments


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {str(v)[:12]}" for k, v in value.items() if v)
    return str(value)


# ---- text ----------------------------------------------------------------------------------------


def format_verdict(verdict: Verdict) -> str:
    """The verdict for a terminal."""
    names = f"{verdict.a} and {verdict.b}"
    lines = [f"warning: {line}" for line in verdict.damage]
    if verdict.equal is None:
        return "\n".join([*lines, f"{names}: no epoch and no checkpoint that both have"])
    if verdict.equal:
        return "\n".join([*lines, f"{names} are equal: {', '.join(verdict.compared)}"])
    lines.append(f"{names} differ")
    if verdict.first_epoch:
        lines.append(f"  first epoch      {verdict.first_epoch}")
    if verdict.first_steps:
        lines.append(f"  first steps      {verdict.first_steps}")
    if verdict.first_tensor:
        lines.append(f"  first tensor     {verdict.first_tensor}")
    causes = verdict.causes or [
        "nothing that is recorded differs: a run with --no-deterministic, or memory or hardware "
        "that errs"
    ]
    lines.append(f"  likely cause     {causes[0]}")
    lines += [f"  also different   {cause}" for cause in causes[1:]]
    return "\n".join(lines)


def to_json(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict)
