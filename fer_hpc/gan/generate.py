"""More faces of rare classes, made by a GAN: python -m fer_hpc.generate --data DIR --run GAN --out DIR.

Only train faces go in, only the train split grows, and the GAN itself must have been trained on the same train split: val and
test stay what they were, and nothing of them can leak. Made faces have `synthetic` 1 and both parents in their source_id.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config import UserError, unknown_name_error
from fer_hpc.config.commands import GenerateConfig
from fer_hpc.data.shards import (
    COLUMNS,
    Manifest,
    image_hash,
    open_split,
    read_manifest,
    read_shard,
    write_manifest,
    write_shard,
)
from fer_hpc.files import read_json
from fer_hpc.gan.pairs import OTHERS, PairLoader
from fer_hpc.gan.transfer import load_generator
from fer_hpc.models.gan import Generator
from fer_hpc.parallel.device import pick_device
from fer_hpc.run.folder import data_folder, read_run_config

CHUNK = 64
LEAST_CHANGE = 1.0  # of 255, of the neutral faces; less is no expression
LEAST_DEVIATION = 5.0  # of 255, of a face's pixels; less is blank


def generate(config: GenerateConfig) -> str:
    """Write the larger set to `config.out`; gives what was done, in words. Run again, it says that it is there."""
    manifest = read_manifest(config.data)
    own = _trained_on(config, manifest)
    counts = dict(zip(manifest.classes, manifest.class_counts("train"), strict=True))
    missing = _missing(config, counts)
    device = pick_device(config.device)
    generator, _, gan = load_generator(config.run, device)
    plan = f"{manifest.fingerprint} and {gan[:16]}, seed {config.seed}: {missing}"
    found = read_json(config.out / "manifest.json")
    added = ", ".join(f"{n:,} {name}" for name, n in missing.items())
    if found and found.get("plan") == plan:
        return f"{config.out}: {added} faces are there, nothing to do"
    content, train = manifest.content, manifest.content["splits"]["train"]
    files = [entry["file"] for part in content["splits"].values() for entry in part["shards"]]
    new = f"train-{len(train['shards']):05d}.h5"
    config.out.mkdir(parents=True, exist_ok=True)
    strangers = [
        path.name
        for path in config.out.iterdir()
        if path.name not in (*files, new) and path.name[0] != "."
    ]
    if strangers:
        raise UserError(
            f"--out {config.out} holds other things ({', '.join(sorted(strangers)[:3])}); give a new folder"
        )
    for name in files:
        _linked(manifest.folder / name, config.out / name)
    made, extra, change = _made(config, manifest, own, missing, generator, gan[:8], device)
    if change < LEAST_CHANGE:
        raise UserError(
            f"--run {config.run}: it gives the neutral faces back (changed by {change:.1f} of 255); train it longer"
        )
    if (deviation := float(made["images"].std((1, 2, 3)).mean())) < LEAST_DEVIATION:
        raise UserError(
            f"--run {config.run}: its faces are nearly blank (their pixels deviate by {deviation:.1f} of 255); train it longer"
        )
    entry = write_shard(config.out / new, made, extra)
    larger = {
        "n": train["n"] + entry["n"],
        "shards": [*train["shards"], entry],
        "class_counts": {
            name: n + missing.get(name, 0) for name, n in train["class_counts"].items()
        },
    }
    note = f"{added} train faces made by the GAN of weights {gan[:16]}, which saw the same train split only"
    notes = {
        "plan": plan,
        "notes": [*content["notes"], note],
        "generated": {"gan": gan, "classes": missing},
    }
    write_manifest(
        config.out, {**content, **notes, "splits": {**content["splits"], "train": larger}}
    )
    return f"{config.out}: {added} faces added to the train split, now {larger['n']:,}"


def _trained_on(config: GenerateConfig, manifest: Manifest) -> Manifest:
    """The GAN's own data: the same faces, divided alike, of whatever size; a UserError otherwise."""
    stored = read_run_config(config.run)
    if stored.get("kind") != "GAN":
        raise UserError(f"--run {config.run} holds a classifier; give a run of fer_hpc.train_gan")
    own = read_manifest(data_folder(config.run))
    if own.fingerprint != stored["data"]["fingerprint"]:
        raise UserError(
            f"{own.folder} is not what --run {config.run} was trained on any more (its fingerprint has changed)"
        )
    for what, of in (("faces", "source"), ("division", "split_rule")):
        if own.content[of] != manifest.content[of]:
            raise UserError(
                f"--run {config.run} was trained on other {what} than --data {manifest.folder} ({own.content[of]}, not "
                f"{manifest.content[of]}): it may have seen val or test; train a GAN on the same source and --split"
            )
    channels = own.image_shape[2], manifest.image_shape[2]
    if (
        channels[0] != channels[1]
        or own.classes != manifest.classes
        or own.n("train") != manifest.n("train")
    ):
        raise UserError(
            f"--run {config.run} was trained on {own.n('train'):,} train faces of {channels[0]} channel(s) with classes "
            f"{', '.join(own.classes)}; --data {manifest.folder} has {manifest.n('train'):,} of {channels[1]}, "
            f"{', '.join(manifest.classes)}: preprocess both from the same source"
        )
    return own


def _missing(config: GenerateConfig, counts: dict[str, int]) -> dict[str, int]:
    """How many faces each class shall get."""
    fill = config.fill or round(sum(counts.values()) / len(counts) / 2)
    for name in config.classes:
        if name not in counts:
            raise unknown_name_error("class", name, [name for name in counts if name != "Neutral"])
        if name == "Neutral":
            raise UserError(
                "--classes Neutral: the GAN makes expressive faces of neutral ones; name other classes"
            )
        if not counts[name]:
            raise UserError(
                f"--classes {name}: the train split has no face of that class to take the expression from"
            )
    chosen = [
        name
        for name in counts
        if name in config.classes or (not config.classes and name != "Neutral")
    ]
    missing = {name: fill - counts[name] for name in chosen if 0 < counts[name] < fill}
    if not missing:
        there = ", ".join(f"{name} {counts[name]:,}" for name in chosen)
        raise UserError(f"no class has fewer than {fill:,} train faces ({there}); raise --fill")
    return missing


def _linked(source: Path, target: Path) -> None:
    """The same file under another name, where the file system can; else a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _made(
    config: GenerateConfig,
    manifest: Manifest,
    own: Manifest,
    missing: dict[str, int],
    generator: Generator,
    gan: str,
    device: torch.device,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], float]:
    """A shard's columns of made faces, its extra columns, for which nothing is known, and how far the faces are from the
    neutral ones (mean absolute difference, of 255)."""
    split = open_split(own, "train")
    loader = PairLoader(split, own.classes.index("Neutral"), 1, config.seed, device, improved=False)
    labels, groups, ids, rng = (
        loader.labels,
        loader.groups,
        split.columns["source_id"],
        np.random.default_rng(config.seed),
    )
    faces = np.concatenate(
        [
            _drawn(rng, np.flatnonzero(labels == own.classes.index(name)), count)
            for name, count in missing.items()
        ]
    )
    people = _drawn(rng, loader.pools[0], len(faces))
    for _ in range(OTHERS):  # another person, where people are known
        clash = (groups[people] == groups[faces]) & (groups[people] >= 0)
        people[clash] = rng.choice(loader.pools[0], clash.sum())
    side = manifest.image_shape[0]
    images, change = _run(generator, loader, people, faces)
    if own.image_shape[0] != side:
        how = cv2.INTER_AREA if own.image_shape[0] > side else cv2.INTER_LINEAR
        images = np.stack(
            [cv2.resize(i, (side, side), interpolation=how).reshape(side, side, -1) for i in images]
        )
    made: dict[str, NDArray[Any]] = {
        name: np.full((len(images), *shape), np.nan if kind.startswith("float") else -1, kind)
        for name, (kind, shape) in COLUMNS.items()
        if name not in ("image_hash", "synthetic")
    }
    made |= {
        "images": images,
        "labels": labels[faces],
        "group": groups[people],
        "synthetic": np.ones(len(images), np.uint8),
        "image_hash": np.array([image_hash(image) for image in images], "S32"),
        "source_id": np.array(
            [
                f"gan {gan}: {ids[p].decode()} + {ids[f].decode()}"
                for p, f in zip(people, faces, strict=True)
            ],
            dtype=object,
        ),
    }
    _, extra = read_shard(
        manifest.folder / manifest.content["splits"]["train"]["shards"][0]["file"]
    )
    return made, {name: _unknown(values, len(images)) for name, values in extra.items()}, change


def _drawn(rng: np.random.Generator, pool: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of the pool, all of it before any twice."""
    rounds = [rng.permutation(pool) for _ in range(-(-count // len(pool)))]
    return np.concatenate(rounds)[:count]


@torch.inference_mode()
def _run(
    generator: Generator,
    loader: PairLoader,
    neutral: NDArray[np.int64],
    expressive: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], float]:
    """What the generator makes of pairs of rows, [N, H, W, C], and its mean absolute difference to the neutral faces."""
    made, changes = [], 0.0
    for first in range(0, len(neutral), CHUNK):
        cut = slice(first, first + CHUNK)
        before = loader.faces(neutral[cut])
        output = generator(before, loader.faces(expressive[cut]))
        changes += float((output - before).abs().mean((1, 2, 3)).sum())
        made.append(
            output.permute(0, 2, 3, 1)
            .add(1)
            .mul(127.5)
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
            .cpu()
            .numpy()
        )
    return np.concatenate(made), 127.5 * changes / len(neutral)


def _unknown(like: NDArray[Any], n: int) -> NDArray[Any]:
    """`n` values that mean nothing is known: NaN, -1, or no text."""
    if like.dtype.kind in "OSU":
        return np.full(n, "", dtype=object)
    return np.full(n, np.nan if like.dtype.kind == "f" else -1, like.dtype)
