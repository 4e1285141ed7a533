"""The end of preprocess: rejects.csv and the manifest, from the parts that all tasks wrote."""

from __future__ import annotations

import collections
import csv
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.data import faces, shards
from fer_hpc.data.plan import Plan, Shard
from fer_hpc.data.sources import SourceSpec
from fer_hpc.files import read_json, write_bytes


def missing_parts(out: Path, plan: Plan) -> list[Shard]:
    """The shards that other tasks have still to write."""
    return [s for s in plan.shards if not (out / "parts" / f"{s.name}.json").exists()]


def finish(config: PreprocessConfig, spec: SourceSpec, plan: Plan) -> None:
    """Merge the parts: rejects.csv and, if not too many were rejected, the manifest."""
    parts = {s.name: read_json(config.out / "parts" / f"{s.name}.json") for s in plan.shards}
    rejects = [("", *r) for r in plan.rows.rejects]
    rejects += [(s.split, *r) for s in plan.shards for r in parts[s.name]["rejects"]]
    reasons = dict(collections.Counter(reason for *_, reason in rejects))
    _write_rejects(config.out / "rejects.csv", rejects)
    empty_boxes = sum(part["empty_boxes"] for part in parts.values())
    _check_shares(config, plan, reasons, empty_boxes)
    entries = {}
    for name in shards.SPLITS:
        members = [parts[s.name] for s in plan.shards if s.split == name]
        if members:
            entries[name] = _merged(members, plan.classes)
    source: dict[str, Any] = {
        "kind": config.source,
        "fingerprint": plan.rows.fingerprint,
        "rows": len(plan.rows.source_id) + len(plan.rows.rejects),
    }
    if spec.origin:
        source["plugin"] = {"path": spec.origin.path, "sha256": spec.origin.sha256}
    manifest = {
        "format": shards.FORMAT,
        "plan": plan.hash,
        "image_shape": [config.size, config.size, config.channels],
        "classes": list(plan.classes),
        "splits": entries,
        "split_rule": plan.split_rule,
        "notes": plan.notes,
        "source": source,
        "faces": faces.RECIPE,
        "empty_boxes": empty_boxes,
        "rejects": {"n": len(rejects), "reasons": reasons},
    }
    if plan.rows.class_map:
        manifest["class_map"] = plan.rows.class_map.class_of
    shards.write_manifest(config.out, manifest)


def _merged(parts: list[dict[str, Any]], classes: tuple[str, ...]) -> dict[str, Any]:
    """A split's entry in the manifest."""
    counts = [
        sum(column)
        for column in itertools.zip_longest(*(p["class_counts"] for p in parts), fillvalue=0)
    ]
    counts += [0] * (len(classes) - len(counts))
    return {
        "n": sum(part["entry"]["n"] for part in parts),
        "class_counts": dict(zip(classes, counts, strict=False)),
        "shards": [part["entry"] for part in parts],
    }


def _write_rejects(path: Path, rejects: list[tuple[str, str, str]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([("split", "source_id", "reason"), *rejects])
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _check_shares(
    config: PreprocessConfig, plan: Plan, reasons: Mapping[str, int], empty_boxes: int
) -> None:
    """UserError where more faces than --max-rejects are unusable or have an empty box.

    Labels that the form itself calls no class, as AffectNet's "none", do not count.
    """
    class_map = plan.rows.class_map
    unused = sum(reasons.get(r, 0) for r in (class_map.unused.values() if class_map else ()))
    total = len(plan.rows.source_id) + len(plan.rows.rejects) - unused
    bad = sum(reasons.values()) - unused
    if bad > config.max_rejects * total:
        worst = max(reasons, key=lambda reason: reasons[reason])
        raise UserError(
            f"{bad:,} of {total:,} faces are unusable, over --max-rejects {config.max_rejects}; "
            f"most often: {worst!r}; {config.out / 'rejects.csv'} lists them all: repair or "
            "remove them, or raise --max-rejects"
        )
    if empty_boxes > config.max_rejects * total:
        raise UserError(
            f"{empty_boxes:,} of {total:,} faces have a box or landmarks outside their picture, "
            f"over --max-rejects {config.max_rejects}: the whole picture would be taken for the "
            "face; give x_min, y_min, x_max, y_max in pixels, or raise --max-rejects"
        )


def summary(out: Path) -> str:
    """What a folder of shards holds, on one line."""
    manifest = shards.read_manifest(out)
    counts = ", ".join(f"{s} {manifest.n(s):,}" for s in shards.SPLITS if manifest.n(s))
    rejected = manifest.content["rejects"]["n"]
    whole = manifest.content["empty_boxes"]
    return (
        f"{counts} faces (split {manifest.content['split_rule']})"
        + (f", {rejected:,} rejected (see {out / 'rejects.csv'})" if rejected else "")
        + (f", {whole:,} with an empty box: cut from the whole picture" if whole else "")
    )
