"""The end of preprocess: rejects.csv and the manifest, from the parts that all tasks wrote."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fer_hpc.config import UserError
from fer_hpc.config.commands import PreprocessConfig
from fer_hpc.config.errors import counted, one_line
from fer_hpc.data import faces, shards
from fer_hpc.data.finder import box_rule
from fer_hpc.data.plan import Plan, Shard, read_part
from fer_hpc.data.sources import SourceSpec
from fer_hpc.data.tally import Tally
from fer_hpc.files import check_shape, write_text

OUTSIDE = "box or landmarks outside the picture"
SUMMARY = {
    "rejects": {"n": int},
    "empty_boxes": int,
    "account": ({"ignored": {"n": int}}, None),
}
NO_BOX = "no landmarks or box, although others have them"


def missing_parts(out: Path, plan: Plan) -> list[Shard]:
    """The shards that other tasks have still to write."""
    return [s for s in plan.shards if read_part(out, s, plan) is None]


def finish(config: PreprocessConfig, spec: SourceSpec, plan: Plan) -> None:
    """Merge the parts: rejects.csv and, if not too much was left out, the manifest."""
    parts = {s.name: part for s in plan.shards if (part := read_part(config.out, s, plan))}
    rejects = [("", *r) for r in plan.rows.rejects]
    rejects += [(s.split, *r) for s in plan.shards for r in parts[s.name]["rejects"]]
    _write_rejects(config.out / "rejects.csv", rejects)
    rejected = Tally()
    for _, source_id, reason in rejects:
        rejected.add(reason, source_id)
    entries = {}
    for name in shards.SPLITS:
        members = [parts[s.name] for s in plan.shards if s.split == name]
        if members:
            entries[name] = _merged(members, plan.classes)
    face_count = sum(entry["n"] for entry in entries.values())
    fallbacks = _fallbacks(parts.values(), face_count)
    ignored = plan.rows.ignored
    _check_limits(config, plan, rejected, fallbacks)
    _check_classes(config, plan, entries)
    total = len(plan.rows.source_id) + len(plan.rows.rejects) + ignored.total - _left_out(plan)
    if total != face_count + rejected.total + ignored.total:
        raise AssertionError(f"{total} found, {face_count} + {rejected.total} + {ignored.total}")
    source: dict[str, Any] = {
        "kind": config.source,
        "fingerprint": plan.rows.fingerprint,
        "rows": len(plan.rows.source_id) + len(plan.rows.rejects),
    }
    if spec.origin:
        source["plugin"] = {"path": spec.origin.path, "sha256": spec.origin.sha256}
    class_map = plan.rows.class_map
    manifest = {
        "format": shards.FORMAT,
        "plan": plan.hash,
        "image_shape": [config.size, config.size, config.channels],
        "classes": list(plan.classes),
        "splits": entries,
        "split_rule": plan.split_rule,
        "notes": plan.notes,
        "source": source,
        "faces": faces.RECIPE | {"box": box_rule(config.crop)},
        "empty_boxes": fallbacks.kinds[OUTSIDE].n if OUTSIDE in fallbacks.kinds else 0,
        "rejects": {
            "n": len(rejects),
            "reasons": {reason: kind.n for reason, kind in rejected.kinds.items()},
        },
        "account": {
            "found": total,
            "taken": face_count,
            "rejected": rejected.as_json(),
            "ignored": ignored.as_json(),
            "fallbacks": fallbacks.as_json(),
            "classes_from": class_map.source if class_map else "the source",
        },
    }
    if "targets" in plan.rows.columns:
        manifest["labels"] = "distribution"
    if class_map:
        manifest["class_map"] = class_map.class_of
    shards.write_manifest(config.out, manifest)


def _left_out(plan: Plan) -> int:
    """Rows that no split takes; they are counted as ignored."""
    return len(plan.rows.source_id) - sum(len(shard.rows) for shard in plan.shards)


def _fallbacks(parts: Iterable[dict[str, Any]], face_count: int) -> Tally:
    """Faces that are whole pictures although others are cut; none where all are whole."""
    fallbacks = Tally()
    for part in parts:
        for kind, what in (("outside", OUTSIDE), ("no_box", NO_BOX)):
            n, example = part["fallbacks"][kind]
            fallbacks.add(what, example, n)
    if NO_BOX in fallbacks.kinds and fallbacks.kinds[NO_BOX].n == face_count:
        del fallbacks.kinds[NO_BOX]
    return fallbacks


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
    write_text(path, text.getvalue())


def _unused(plan: Plan, rejected: Tally) -> int:
    """Rejects with labels that the form itself calls no class, as AffectNet's "none"."""
    class_map = plan.rows.class_map
    reasons = class_map.unused.values() if class_map else ()
    return sum(kind.n for reason, kind in rejected.kinds.items() if reason in reasons)


def _check_limits(config: PreprocessConfig, plan: Plan, rejected: Tally, fallbacks: Tally) -> None:
    """UserError where more than --max-rejects is unusable, ignored, or a whole picture.

    Labels that the form itself calls no class do not count.
    """
    unused, ignored = _unused(plan, rejected), plan.rows.ignored
    total = len(plan.rows.source_id) + len(plan.rows.rejects) - unused + ignored.limited
    bad = rejected.total - unused
    limit = 0 if config.strict else config.max_rejects
    flag = "--strict" if config.strict else f"--max-rejects {config.max_rejects}"
    if bad + ignored.limited + fallbacks.total <= limit * total:
        return
    if fallbacks.total > max(bad, ignored.limited):
        reason, kind = fallbacks.worst()[0]
        raise UserError(
            f"{fallbacks.total:,} of {total:,} faces: {reason} (for example {kind.example}), over "
            f"{flag}: the whole picture would be taken for the face; give x_min, y_min, x_max, "
            "y_max in pixels, or raise --max-rejects"
        )
    if ignored.limited > bad:
        reason, kind = next(r for r in ignored.worst() if r[1].limited)
        raise UserError(
            f"{ignored.limited:,} of {total:,} pictures are ignored, over {flag}; most often: "
            f"{reason} (for example {kind.example}): convert, label or remove them, or raise "
            "--max-rejects"
        )
    worst, _ = next((r for r in rejected.worst()), ("", None))
    raise UserError(
        f"{bad:,} of {total:,} faces are unusable, over {flag}; "
        f"most often: {worst!r}; {config.out / 'rejects.csv'} lists them all: repair or "
        "remove them, or raise --max-rejects"
    )


def check_strict(config: PreprocessConfig, plan: Plan) -> None:
    """UserError for anything in the input that is ignored, with --strict: before it is read."""
    if config.strict and plan.rows.ignored.total:
        reason, kind = plan.rows.ignored.worst()[0]
        amount = counted(plan.rows.ignored.total, "thing")
        raise UserError(
            f"--strict: {amount} in {config.input} would be ignored; most often: "
            f"{kind.n:,} {reason}, for example {kind.example}"
        )


def _check_classes(config: PreprocessConfig, plan: Plan, entries: dict[str, Any]) -> None:
    """UserError where every face, or every one of a class, is rejected."""
    if not sum(entry["n"] for entry in entries.values()):
        raise UserError(
            f"no face of {config.input or config.source} is usable; "
            f"{config.out / 'rejects.csv'} has the reasons: repair them"
        )
    planned = np.concatenate([plan.rows.label[shard.rows] for shard in plan.shards])
    counts = np.bincount(planned, minlength=len(plan.classes)).tolist()
    for name, n in zip(plan.classes, counts, strict=True):
        left = sum(entry["class_counts"][name] for entry in entries.values())
        if n and not left and config.max_rejects < 1:
            raise UserError(
                f"all {n:,} faces of {name} are rejected; {config.out / 'rejects.csv'} has the "
                "reasons; repair them, or accept that with --max-rejects 1"
            )


def describe(out: Path) -> list[str]:
    """The account of a folder of shards: what was found, and what became of it."""
    account = shards.read_manifest(out).content["account"]
    parts = {name: account[name] for name in ("rejected", "ignored")}
    total = " + ".join(f"{name} {part['n']:,}" for name, part in parts.items())
    lines = [f"found {account['found']:,} = taken {account['taken']:,} + {total}"]
    for name, part in (parts | {"whole picture": account["fallbacks"]}).items():
        for reason, kind in part["reasons"].items():
            example = one_line(str(kind["example"]))
            lines.append(f"  {name}: {kind['n']:,} {reason}, for example {example}")
    return lines


def summary(out: Path) -> str:
    """What a folder of shards holds, on one line."""
    manifest = shards.read_manifest(out)
    counts = ", ".join(f"{s} {manifest.n(s):,}" for s in shards.SPLITS if manifest.n(s))
    content = manifest.content
    check_shape(content, SUMMARY, str(out / "manifest.json"))
    rejected, whole = content["rejects"]["n"], content["empty_boxes"]
    ignored = (content.get("account") or {"ignored": {"n": 0}})["ignored"]["n"]
    return (
        f"{counts} faces (split {content['split_rule']})"
        + (f", {rejected:,} rejected (see {out / 'rejects.csv'})" if rejected else "")
        + (f", {ignored:,} ignored" if ignored else "")
        + (f", {whole:,} with an empty box: cut from the whole picture" if whole else "")
    )
