"""Is this data fit to train on: python -m fer_hpc.doctor DIR [--json] [--fix OUT].

Verifies what the manifest says (files, sizes, checksums, counts) and audits what is in the images: exact duplicates,
equal images with different labels, blank images, images and people that two splits share.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, UserError
from fer_hpc.config.commands import DoctorConfig
from fer_hpc.data import shards
from fer_hpc.data.shards import SPLITS, Manifest, Split, open_split, read_manifest
from fer_hpc.files import read_json, sha256, write_bytes

SHOWN = 5  # examples of each finding


@dataclass(frozen=True)
class Finding:
    """One kind of trouble: how often, which rows, and what --fix drops because of it."""

    what: str
    count: int
    rows: list[tuple[str, int]]  # (split, row) that --fix drops
    examples: list[str]


def doctor(config: DoctorConfig) -> int:
    """Print what is wrong; 0 if nothing is, EXIT_FINDINGS otherwise. With `fix`, write a clean copy."""
    manifest = read_manifest(config.folder)
    damage = verify(manifest)
    findings = (
        [] if damage else audit({s: open_split(manifest, s) for s in SPLITS if manifest.n(s)})
    )
    if config.json:
        found = {f.what: {"count": f.count, "examples": f.examples} for f in findings}
        counts = {s: manifest.n(s) for s in SPLITS}
        print(
            json.dumps(
                {
                    "folder": str(config.folder),
                    "faces": counts,
                    "damage": damage,
                    "findings": found,
                },
                indent=1,
            )
        )
    else:
        faces = ", ".join(f"{s} {manifest.n(s):,}" for s in SPLITS if manifest.n(s))
        print(
            f"{config.folder}: {faces} faces; "
            + ("damaged:" if damage else "every shard is as its checksum says")
        )
        for line in damage:
            print(f"  {line}")
        for f in findings:
            print(
                f"  {f.count:>8,}  {f.what}"
                + (f"   e.g. {'; '.join(f.examples)}" if f.examples else "")
            )
    if config.fix:
        if damage:
            raise UserError(
                f"--fix: {config.folder} is damaged, which no copy can mend; copy or make those shards again"
            )
        _write_clean(manifest, findings, config.fix)
    return EXIT_FINDINGS if damage or any(f.count for f in findings) else EXIT_FINISHED


def verify(manifest: Manifest) -> list[str]:
    """What differs from the manifest, a line each; empty if nothing does."""
    wrong: list[str] = []
    if manifest.fingerprint != shards.fingerprint(manifest.content):
        wrong.append("manifest.json: its fingerprint is not that of its content")
    for split, entry in manifest.content["splits"].items():
        if entry["n"] != sum(s["n"] for s in entry["shards"]) or entry["n"] != sum(
            entry["class_counts"].values()
        ):
            wrong.append(f"manifest.json: the counts of {split} do not add up")
        bad = [
            line for s in entry["shards"] if (line := _shard_damage(manifest.folder / s["file"], s))
        ]
        wrong += bad
        if not bad:
            columns = open_split(manifest, split).columns
            counts = np.bincount(columns["labels"], minlength=len(manifest.classes)).tolist()
            if any(
                len(v) != entry["n"] for v in columns.values()
            ) or counts != manifest.class_counts(split):
                wrong.append(
                    f"{split}: rows or labels in the shards are not as the manifest counts them"
                )
    return wrong


def _shard_damage(path: Path, entry: dict[str, Any]) -> str:
    if not path.exists():
        return f"{path.name}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path.name}: {path.stat().st_size:,} bytes, the manifest says {entry['bytes']:,}"
    return (
        ""
        if sha256(path) == entry["sha256"]
        else f"{path.name}: its checksum is not the manifest's"
    )


def audit(splits: dict[str, Split]) -> list[Finding]:
    """Everything that makes a score look better than it is, or a label meaningless."""
    names = [name for name, split in splits.items() for _ in range(len(split))]
    rows = np.concatenate([np.arange(len(split)) for split in splits.values()])
    columns = {
        c: np.concatenate([s.columns[c] for s in splits.values()])
        for c in ("image_hash", "labels", "group", "source_id")
    }
    part = np.array([list(splits).index(n) for n in names])  # 0, 1, 2 in the order train, val, test
    _, image = np.unique(columns["image_hash"], return_inverse=True)  # equal pictures, equal number

    def finding(what: str, dropped: NDArray[np.bool_], count: int | None = None) -> Finding:
        places = np.flatnonzero(dropped)
        examples = [f"{names[i]} {columns['source_id'][i].decode()}" for i in places[:SHOWN]]
        return Finding(
            what,
            len(places) if count is None else count,
            [(names[i], int(rows[i])) for i in places],
            examples,
        )

    low, high = (np.full(image.max() + 1, fill) for fill in (np.iinfo(np.int64).max, -1))
    np.minimum.at(low, image, columns["labels"])
    np.maximum.at(high, image, columns["labels"])
    conflicting = low != high  # per picture
    found = [
        finding(
            "blank images (all pixels alike)", np.concatenate([_blank(s) for s in splits.values()])
        ),
        finding(
            "groups of equal images with different labels",
            conflicting[image],
            int(conflicting.sum()),
        ),
    ]
    for i, name in enumerate(splits):
        mine = part == i
        first = np.zeros(len(image), bool)
        first[np.flatnonzero(mine)[np.unique(image[mine], return_index=True)[1]]] = True
        found.append(finding(f"{name} images that repeat an earlier one of {name}", mine & ~first))
    found += _shared(splits, part, image, "images", finding)
    if (columns["group"] < 0).all():  # nobody is known: no finding, rather than a reassuring 0
        return found
    return found + _shared(splits, part, columns["group"], "people", finding)


def _shared(
    splits: dict[str, Split], part: NDArray[Any], key: NDArray[Any], what: str, finding: Any
) -> list[Finding]:
    """Keys (>= 0) that two splits share. The earlier split gives its rows up: what is scored stays as it is."""
    found = []
    for i, early in enumerate(splits):
        for j, late in list(enumerate(splits))[i + 1 :]:
            common = np.intersect1d(key[(part == i) & (key >= 0)], key[(part == j) & (key >= 0)])
            give_up = (part == i) & np.isin(key, common)
            count = (
                int(((part == j) & np.isin(key, common)).sum()) if what == "images" else len(common)
            )
            noun = (
                f"{late} images that are also in {early}"
                if what == "images"
                else f"people in both {early} and {late}"
            )
            found.append(finding(noun, give_up, count))
    return found


def _blank(split: Split) -> NDArray[np.bool_]:
    return np.concatenate(
        [
            part.reshape(len(part), -1).min(1) == part.reshape(len(part), -1).max(1)
            for part in split.images
        ]
    )


def _write_clean(manifest: Manifest, findings: list[Finding], out: Path) -> None:
    """A copy of the data without the rows that findings drop, and dropped.csv with every row's reason."""
    plan = f"fixed {manifest.fingerprint}"
    found = read_json(out / "manifest.json")
    if found and found.get("plan") == plan:
        print(f"{out}: the clean copy is there, nothing to do", file=sys.stderr)
        return
    if found:
        raise UserError(f"--fix {out}: there is a data set already; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    reason: dict[tuple[str, int], str] = {}
    for f in findings:
        for place in f.rows:
            reason.setdefault(place, f.what)
    dropped, entries = [], {}
    for name, entry in manifest.content["splits"].items():
        start, kept_entries, counts = 0, [], np.zeros(len(manifest.classes), int)
        for shard in entry["shards"]:
            columns, extra = shards.read_shard(manifest.folder / shard["file"])
            keep = np.array([(name, start + i) not in reason for i in range(shard["n"])], bool)
            dropped += [
                (name, columns["source_id"][i].decode(), reason[name, start + i])
                for i in np.flatnonzero(~keep).tolist()
            ]
            start += shard["n"]
            columns, extra = ({k: v[keep] for k, v in c.items()} for c in (columns, extra))
            kept_entries.append(shards.write_shard(out / shard["file"], columns, extra))
            counts += np.bincount(columns["labels"], minlength=len(counts))
        class_counts = dict(zip(manifest.classes, counts.tolist(), strict=True))
        entries[name] = {
            "n": int(counts.sum()),
            "class_counts": class_counts,
            "shards": kept_entries,
        }
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("split", "source_id", "reason"), *dropped])
    write_bytes(out / "dropped.csv", text.getvalue().encode())
    note = f"doctor --fix dropped {len(dropped):,} rows of data {manifest.fingerprint}; dropped.csv says why"
    content = {
        **manifest.content,
        "splits": entries,
        "notes": [*manifest.content["notes"], note],
        "plan": plan,
    }
    shards.write_manifest(out, content)
    left = ", ".join(f"{s} {e['n']:,}" for s, e in entries.items())
    print(
        f"{out}: clean copy, {len(dropped):,} rows dropped (dropped.csv says why): {left}",
        file=sys.stderr,
    )
