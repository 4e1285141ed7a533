"""manifest.json of a folder of shards. Standard library only."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_hpc.config import UserError
from fer_hpc.files import check_output, check_shape, is_own, read_stored, write_json

FORMAT = 1
SPLITS = ("train", "val", "test")
SHARD = {"file": str, "n": int, "bytes": int, "sha256": str}
CONTENT = {  # what every reader may rely on
    "image_shape": [int, int, int],
    "classes": [str, ...],
    "fingerprint": str,
    "faces": {},
    "source": {"kind": str},
    "split_rule": str,
    "notes": [str, ...],
    "splits": {str: {"n": int, "class_counts": {str: int}, "shards": [SHARD, ...]}},
}
UNSTATED = {  # where an older version or another program left a key out
    "faces": {},
    "source": {"kind": "unknown"},
    "split_rule": "unknown",
    "notes": [],
}
FILE_NAME = r"\w[\w.-]{0,200}"  # no folder, nothing hidden
MAX_COUNT = 1 << 53


OWN = {  # files of a folder of shards, and what each of them has in it
    "parts/*.json": '"fallbacks"',
    "manifest.json": '"split_rule"',
    "rejects.csv": "split,source_id,reason",
    "dropped.csv": "split,source_id,reason",
    "*.h5": "image_hash",
}


def check_folder(out: Path, flag: str = "--out") -> None:
    """UserError where shards would replace files that are none of theirs.

    One file of theirs shows that a folder is: others in it may be damaged, and are written again.
    """
    files = {path: marker for pattern, marker in OWN.items() for path in out.glob(pattern)}
    if not any(is_own(path, marker) for path, marker in files.items()):
        for path, marker in files.items():
            check_output(path, marker, flag)


def fingerprint(manifest: dict[str, Any]) -> str:
    """Identity of the images, labels and splits, 16 hexadecimal digits; independent of paths."""
    shards = {
        split: [s["sha256"] for s in entry["shards"]] for split, entry in manifest["splits"].items()
    }
    text = json.dumps(
        [manifest["format"], manifest["image_shape"], manifest["classes"], shards], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the data's fingerprint."""
    write_json(folder / "manifest.json", {**manifest, "fingerprint": fingerprint(manifest)})


@dataclass(frozen=True)
class Manifest:
    """A folder of shards: what its manifest.json contains."""

    folder: Path
    image_shape: tuple[int, int, int]  # H, W, C
    classes: tuple[str, ...]
    fingerprint: str
    content: dict[str, Any]  # the whole file

    def n(self, split: str) -> int:
        """Faces of a split; 0 where there is no such split."""
        return int(self.content["splits"][split]["n"]) if split in self.content["splits"] else 0

    @property
    def has_targets(self) -> bool:
        """Whether its labels are distributions over the classes."""
        return bool(self.content.get("labels") == "distribution")

    def class_counts(self, split: str) -> list[int]:
        """Faces of each class in a split."""
        return [int(self.content["splits"][split]["class_counts"][c]) for c in self.classes]


def find_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder of shards, or None where it has none.

    A UserError where it is damaged, of another version, or not what it states to be. It is checked
    here, so that others may use its names as those of files in this folder.
    """
    path = folder / "manifest.json"
    content = read_stored(path)
    if content is None:
        return None
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{path} is not a manifest of shards: it has no format; preprocess again")
    if content["format"] != FORMAT:
        raise UserError(
            f"{folder}: shard format {content['format']}, this version reads {FORMAT}; "
            "preprocess again"
        )
    content = UNSTATED | {key: value for key, value in content.items() if value is not None}
    try:
        check_shape(content, CONTENT, path.name)
        _check_names(content)
    except UserError as error:
        raise UserError(f"{path} is not a manifest of shards: {error}; preprocess again") from None
    height, width, channels = content["image_shape"]
    return Manifest(
        folder,
        (height, width, channels),
        tuple(content["classes"]),
        content["fingerprint"],
        content,
    )


def _check_names(content: dict[str, Any]) -> None:
    """A UserError where splits, shards or classes contradict each other, or the fingerprint."""
    classes = content["classes"]
    if not classes or len(set(classes)) < len(classes) or min(content["image_shape"]) < 1:
        raise UserError("its image_shape or its classes are impossible")
    names: set[str] = set()
    for split, entry in content["splits"].items():
        if split not in SPLITS:
            raise UserError(f"it has a split {split!r}, wanted {', '.join(SPLITS)}")
        if set(entry["class_counts"]) != set(content["classes"]):
            raise UserError(f"the class counts of {split} are not those of its classes")
        counts = [entry["n"], *entry["class_counts"].values()]
        counts += [shard[key] for shard in entry["shards"] for key in ("n", "bytes")]
        if min(counts) < 0 or max(counts) > MAX_COUNT:
            raise UserError(f"a count of {split} is impossible")
        if sum(shard["n"] for shard in entry["shards"]) != entry["n"]:
            raise UserError(f"the shards of {split} do not have its {entry['n']:,} faces")
        for shard in entry["shards"]:
            if not re.fullmatch(FILE_NAME, shard["file"]) or shard["file"] in names:
                raise UserError(f"its shard {shard['file']!r} is not the name of a file of its own")
            if not re.fullmatch("[0-9a-f]{64}", shard["sha256"]):
                raise UserError(f"the checksum of {shard['file']} is not one")
            names.add(shard["file"])
    digest = content["fingerprint"]
    if digest != fingerprint(content):
        raise UserError(f"its fingerprint {digest[:40]!r} does not belong to its content")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards; UserError where there is none or it cannot be read."""
    manifest = find_manifest(folder)
    if manifest is None:
        absent = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder}: not a folder of shards: it "
            f"{'has no manifest.json' if folder.is_dir() else absent}; "
            "make one with fer-hpc preprocess"
        )
    return manifest
