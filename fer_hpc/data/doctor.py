"""Is this data fit to train on: python -m fer_hpc.doctor DIR [--json] [--sheet PNG] [--fix OUT].

Verifies what the manifest states (files, sizes, checksums, counts) and audits the faces: exact
duplicates, equal images with different labels, blank images; images, nearly equal images and
people in two splits.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import EXIT_FINDINGS, EXIT_FINISHED, UserError
from fer_hpc.config.commands import DoctorConfig
from fer_hpc.config.errors import counted
from fer_hpc.data import shards
from fer_hpc.data.audit import Finding, Place, audit
from fer_hpc.data.pictures import signature, signed
from fer_hpc.data.shards import SPLITS, Manifest, Split, open_split, read_manifest
from fer_hpc.data.suspects import suspects
from fer_hpc.files import (
    check_output,
    read_record,
    remove_leftovers,
    sha256,
    write_bytes,
    write_json,
    write_text,
)
from fer_hpc.run.folder import check_outside_runs

SHOWN = 5  # examples of each finding
SHEET_COLUMNS, FACE_SIDE, TITLE = 4, 96, 18  # pairs in a row; pixels


def doctor(config: DoctorConfig) -> int:
    """Print what is wrong; 0 if nothing is, EXIT_FINDINGS otherwise.

    With `fix`, write a clean copy; with `sheet`, a picture of the pairs that were found.
    """
    if config.out:
        check_output(config.out, '\n "damage": [')
    if config.sheet:
        check_output(config.sheet, signature("doctor"), "--sheet")
    manifest = read_manifest(config.folder)
    damage = verify(manifest)
    splits = {} if damage else {s: open_split(manifest, s) for s in SPLITS if manifest.n(s)}
    findings = audit(manifest, splits) if splits else []
    if config.suspects and splits:
        findings.append(suspects(config.suspects, manifest, splits))
    as_json = _as_json(manifest, damage, findings)
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(config.out, as_json)
    if config.json:
        print(json.dumps(as_json, indent=1))
    else:
        _print(manifest, damage, findings)
    if damage and (config.fix or config.sheet):
        flag = "--fix" if config.fix else "--sheet"
        raise UserError(f"{flag}: {config.folder} is damaged; copy or make those shards again")
    if config.sheet:
        _write_sheet(config.sheet, splits, findings)
    if config.fix:
        _write_clean(manifest, findings, config)
    return EXIT_FINDINGS if damage or any(f.count for f in findings) else EXIT_FINISHED


def _as_json(manifest: Manifest, damage: list[str], findings: list[Finding]) -> dict[str, Any]:
    entries = {}
    for f in findings:
        pairs = [[dataclasses.asdict(place) for place in pair] for pair in f.pairs]
        entries[f.what] = {"count": f.count, "examples": f.examples(SHOWN), "pairs": pairs}
    return {
        "folder": str(manifest.folder),
        "fingerprint": manifest.fingerprint,
        "faces": {s: manifest.n(s) for s in SPLITS},
        "damage": damage,
        "findings": entries,
    }


def _print(manifest: Manifest, damage: list[str], findings: list[Finding]) -> None:
    faces = ", ".join(f"{s} {manifest.n(s):,}" for s in SPLITS if manifest.n(s))
    state = "damaged:" if damage else "every shard has the checksum in the manifest"
    print(f"{manifest.folder}: {faces} faces; {state}")
    for line in damage:
        print(f"  {line}")
    for f in findings:
        print(f"  {f.count:>8,}  {f.what}")
        for example in f.examples(SHOWN):
            print(f"              {example}")


def verify(manifest: Manifest) -> list[str]:
    """What differs from the manifest, a line each; empty if nothing does."""
    wrong: list[str] = []
    for split, entry in manifest.content["splits"].items():
        lines = [_shard_damage(manifest.folder / s["file"], s) for s in entry["shards"]]
        wrong += filter(None, lines)
        if entry["n"] and not any(lines):
            try:
                open_split(manifest, split)
            except UserError as error:
                wrong.append(str(error))
    return wrong


def _shard_damage(path: Path, entry: dict[str, Any]) -> str:
    """What is wrong with one file, or ""."""
    if not path.exists():
        return f"{path.name}: missing"
    if path.stat().st_size != entry["bytes"]:
        size, wanted = path.stat().st_size, entry["bytes"]
        return f"{path.name}: {size:,} bytes, the manifest states {wanted:,}"
    same = sha256(path) == entry["sha256"]
    return "" if same else f"{path.name}: its checksum differs from that in the manifest"


def _write_sheet(path: Path, splits: dict[str, Split], findings: list[Finding]) -> None:
    """A picture of all findings with pairs or texts: both faces, or a face and what is said of it,
    side by side, each face under its id."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--sheet {path}: a PNG is written; give a name that ends in .png")
    width = SHEET_COLUMNS * (2 * FACE_SIDE + TITLE)
    strips: list[NDArray[np.uint8]] = []
    for finding in (f for f in findings if f.pairs or f.texts):
        shown = len(finding.pairs or finding.places)
        some = f" (the first {shown})" if shown < finding.count else ""
        strips.append(_titled(f"{finding.count:,} {finding.what}{some}", width))
        sides = [[_tile(place, splits) for place in pair] for pair in finding.pairs]
        alone = zip(finding.places, finding.texts, strict=False)
        sides += [[_tile(place, splits), _panel(text)] for place, text in alone]
        tiles = [np.concatenate(both, 1) for both in sides]
        tiles = [np.pad(tile, ((0, 0), (0, TITLE), (0, 0))) for tile in tiles]
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % SHEET_COLUMNS)
        for i in range(0, len(tiles), SHEET_COLUMNS):
            strips.append(np.concatenate(tiles[i : i + SHEET_COLUMNS], 1))
    if not strips:
        strips = [_titled("no pairs were found", width)]
    png = cv2.imencode(".png", np.concatenate(strips))[1].tobytes()
    write_bytes(path, signed(png, "doctor"))
    words = counted(sum(len(f.pairs) for f in findings), "pair")
    if singles := sum(len(f.texts) for f in findings):
        words += f", {counted(singles, 'suspect')}"
    print(f"{path}: {words}", file=sys.stderr)


def _tile(place: Place, splits: dict[str, Split]) -> NDArray[np.uint8]:
    """A face in BGR under its split, id and class: [FACE_SIDE + 2 TITLE, FACE_SIDE, 3]."""
    split = splits[place.split]
    shard = int(np.searchsorted(split.starts, place.row, side="right")) - 1
    face = split.images[shard][place.file_row]
    face = cv2.resize(face, (FACE_SIDE, FACE_SIDE), interpolation=cv2.INTER_NEAREST)
    face = face[..., ::-1] if face.ndim == 3 else face[..., None].repeat(3, 2)
    titles = [f"{place.split} {place.source_id[-10:]}", place.label]
    return np.concatenate([*(_titled(title, FACE_SIDE) for title in titles), face])


def _panel(lines: list[str]) -> NDArray[np.uint8]:
    """Lines of text in a field of the size of a tile."""
    strips = [_titled("", FACE_SIDE)] * 2 + [_titled(line, FACE_SIDE) for line in lines]
    field = np.concatenate(strips)
    return np.pad(field, ((0, FACE_SIDE + 2 * TITLE - len(field)), (0, 0), (0, 0)))


def _titled(text: str, width: int) -> NDArray[np.uint8]:
    strip = np.zeros((TITLE, width, 3), np.uint8)
    font, white = cv2.FONT_HERSHEY_SIMPLEX, (255, 255, 255)
    cv2.putText(strip, text, (2, TITLE - 5), font, 0.38, white, 1, cv2.LINE_AA)
    return strip


def _write_clean(manifest: Manifest, findings: list[Finding], config: DoctorConfig) -> None:
    """A copy of the data without the rows that findings drop, and dropped.csv with the reasons."""
    assert config.fix
    out, plan = config.fix, f"fixed {manifest.fingerprint}"
    if config.suspects:
        plan += f", suspects {sha256(config.suspects)[:16]}"
    stored = read_record(out / "manifest.json", {})
    if stored and stored.get("plan") == plan:
        print(f"{out}: the clean copy is there, nothing to do", file=sys.stderr)
        return
    if stored:
        raise UserError(f"--fix {out}: there is a data set already; give another folder")
    check_outside_runs(out, "--fix")
    shards.check_folder(out, "--fix")
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    reason: dict[tuple[str, int], str] = {}
    for finding in findings:
        for place in finding.rows:
            reason.setdefault(place, finding.what)
    dropped: list[tuple[str, str, str]] = []
    entries = {
        name: _write_clean_split(manifest, name, reason, out, dropped)
        for name in manifest.content["splits"]
    }
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("split", "source_id", "reason"), *dropped])
    write_text(out / "dropped.csv", text.getvalue())
    note = (
        f"doctor --fix dropped {counted(len(dropped), 'row')} of data {manifest.fingerprint}; "
        "dropped.csv lists the reasons"
    )
    notes = [*manifest.content["notes"], note]
    shards.write_manifest(
        out, {**manifest.content, "splits": entries, "notes": notes, "plan": plan}
    )
    left = ", ".join(f"{s} {e['n']:,}" for s, e in entries.items())
    print(
        f"{out}: clean copy, {counted(len(dropped), 'row')} dropped (dropped.csv lists why): "
        f"{left}",
        file=sys.stderr,
    )


def _write_clean_split(
    manifest: Manifest,
    name: str,
    reason: dict[tuple[str, int], str],
    out: Path,
    dropped: list[tuple[str, str, str]],
) -> dict[str, Any]:
    """Copy one split without the rows that have a reason; gives its entry in the manifest."""
    start, kept_entries, counts = 0, [], np.zeros(len(manifest.classes), int)
    for shard in manifest.content["splits"][name]["shards"]:
        columns, extra = shards.read_shard(manifest.folder / shard["file"])
        keep = np.array([(name, start + i) not in reason for i in range(shard["n"])], bool)
        for i in np.flatnonzero(~keep).tolist():
            dropped.append((name, columns["source_id"][i].decode(), reason[name, start + i]))
        start += shard["n"]
        columns, extra = ({k: v[keep] for k, v in c.items()} for c in (columns, extra))
        kept_entries.append(shards.write_shard(out / shard["file"], columns, extra))
        counts += np.bincount(columns["labels"], minlength=len(counts))
    class_counts = dict(zip(manifest.classes, counts.tolist(), strict=True))
    return {"n": int(counts.sum()), "class_counts": class_counts, "shards": kept_entries}
