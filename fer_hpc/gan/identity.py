"""The identity judge of a GAN: a network that was trained to tell people apart.

The expression judge's features separate expressions, not people. This one is a classifier of the
persons of the train split, trained by the usual loop on shards made for it in RUN/identity-faces.
It measures people that it has not seen by its features (see persons.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fer_hpc.config import TrainConfig, UserError, preset
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.manifest import FORMAT, Manifest, find_manifest, read_manifest, write_manifest
from fer_hpc.data.shards import COLUMNS, Split, image_hash, open_split, write_shard
from fer_hpc.gan.judge import Judge, judge_rows, load_features, training_of
from fer_hpc.gan.measures import Features
from fer_hpc.gan.pairs import PairLoader
from fer_hpc.gan.persons import Faces, identity_scores
from fer_hpc.run.folder import (
    IDENTITY_RUN,
    data_folder,
    find_run_config,
    outcome_file,
    read_run_config,
)

MIN_FACES = 4  # of a person that the judge is trained on; one in HELD_OUT of them is for its val
MAX_FACES_EACH = 30
HELD_OUT = 5
MIN_PEOPLE = 8
MAX_FACES = 12_000  # of all persons
MAX_SIDE = 48  # pixels
MAX_PICTURES = 4_000  # real faces of the measured split
IDENTITY_SEED = 2000

Rows = NDArray[np.int64]


class NotMeasured(Exception):
    """Why the people cannot be told apart here."""


class Person(NamedTuple):
    """A person's faces, as rows of the train split."""

    number: int
    train: Rows
    val: Rows


@dataclass(frozen=True)
class IdentityJudge:
    """A network that tells people apart; `about` describes it in the result file."""

    features: Judge
    about: dict[str, Any]
    people: frozenset[int] | None  # persons of the measured data that it was trained on


def identity_config(config: EvaluateConfig, stored: dict[str, Any]) -> TrainConfig:
    """The training of the identity judge in RUN/identity; makes its shards where they are missing.

    Raises NotMeasured where the train split does not say who is on enough of its faces.
    """
    run = config.run / IDENTITY_RUN
    shards = config.run / f"{IDENTITY_RUN}-faces"
    if find_run_config(run) is None and find_manifest(shards) is None:
        make_shards(_training_faces(config.run, stored), shards)
    faces = read_manifest(shards).n("train")
    recipe = training_of(config, stored, run, faces)
    return preset(
        "fer2013",
        **recipe | {"data": shards, "seed": IDENTITY_SEED, "tensorboard": False},
    )


def _training_faces(run: Path, stored: dict[str, Any]) -> Manifest:
    try:
        manifest = read_manifest(data_folder(run))
    except UserError as error:
        raise NotMeasured(f"the training faces are needed for its judge: {error}") from None
    if manifest.fingerprint != stored["data"]["fingerprint"]:
        raise NotMeasured(f"{manifest.folder} has changed since the training")
    return manifest


def choose_faces(groups: Rows) -> tuple[list[Person], int]:
    """The persons that the judge is trained on, and how many persons there are.

    `groups` [n] are the persons of the rows, -1 where not known. Persons with fewer than MIN_FACES
    faces are left out, and those beyond MAX_FACES faces in all, drawn at random.
    """
    rng = np.random.default_rng(IDENTITY_SEED)
    people, counts = np.unique(groups[groups >= 0], return_counts=True)
    persons, total = [], 0
    for person in rng.permutation(people[counts >= MIN_FACES]):
        rows = rng.permutation(np.flatnonzero(groups == person))[:MAX_FACES_EACH]
        total += len(rows)
        if total > MAX_FACES:
            break
        held_out = max(1, len(rows) // HELD_OUT)
        train, val = np.sort(rows[held_out:]), np.sort(rows[:held_out])
        persons.append(Person(int(person), train, val))
    return persons, len(people)


def make_shards(manifest: Manifest, folder: Path) -> None:
    """Shards of the train split's faces with persons as classes, at most MAX_SIDE pixels."""
    split = open_split(manifest, "train")
    persons, people = choose_faces(split.columns["group"])
    if len(persons) < MIN_PEOPLE:
        raise NotMeasured(
            "the train split does not say who is on a face"
            if not people
            else f"the train split has {len(persons)} persons with {MIN_FACES} faces or more, "
            f"its judge needs {MIN_PEOPLE}"
        )
    names = [f"person {person.number}" for person in persons]
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, Any] = {}
    for name in ("train", "val"):
        of_each = [person.train if name == "train" else person.val for person in persons]
        rows = np.concatenate(of_each)
        labels = np.repeat(np.arange(len(persons)), [len(each) for each in of_each])
        columns = _columns(split, rows, labels)
        counts = np.bincount(labels, minlength=len(names)).tolist()
        splits[name] = {
            "n": len(rows),
            "class_counts": dict(zip(names, counts, strict=True)),
            "shards": [write_shard(folder / f"{name}-00000.h5", columns, {})],
        }
    content = {
        "format": FORMAT,
        "image_shape": list(columns["images"].shape[1:]),
        "classes": names,
        "splits": splits,
        "source": {"kind": "persons", "of": manifest.fingerprint},
        "split_rule": f"of each person, one face in {HELD_OUT} is val",
        "notes": [f"classes are persons, faces those of the train split of {manifest.folder}"],
        "faces": manifest.content["faces"],
        "persons": [person.number for person in persons],
    }
    write_manifest(folder, content)


def _columns(split: Split, rows: Rows, labels: Rows) -> dict[str, NDArray[Any]]:
    """The columns of a shard of some rows of a split, with other labels."""
    shards = np.searchsorted(split.starts, rows, side="right") - 1
    faces = [split.images[k][row - split.starts[k]] for k, row in zip(shards, rows, strict=True)]
    side, _, channels = faces[0].shape
    if side > MAX_SIDE:
        size = MAX_SIDE, MAX_SIDE
        faces = [cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in faces]
    images = np.stack([face.reshape(*face.shape[:2], channels) for face in faces])
    n = len(images)
    columns: dict[str, NDArray[Any]] = {
        name: np.full((n, *shape), np.nan if kind.startswith("float") else -1, kind)
        for name, (kind, shape) in COLUMNS.items()
        if name not in ("image_hash", "synthetic")
    }
    return columns | {
        "images": images,
        "labels": labels.astype(np.int64),
        "group": split.columns["group"][rows],
        "synthetic": split.columns["synthetic"][rows],
        "image_hash": np.array([image_hash(image) for image in images], "S32"),
        "source_id": np.array([split.columns["source_id"][k].decode() for k in rows], object),
    }


def load_identity_judge(
    run: Path, manifest: Manifest, device: torch.device, plugins: Sequence[Path] = ()
) -> IdentityJudge:
    """The judge of a run whose classes are persons.

    Raises UserError where the run is not finished, or was trained on expressions.
    """
    stored = read_run_config(run)
    if stored.get("kind", "classifier") != "classifier" or outcome_file(run, "best.pt") is None:
        raise UserError(f"--identity-judge {run}: wanted the finished run of a classifier")
    channels = stored["data"]["image_shape"][2]
    if channels != manifest.image_shape[2]:
        raise UserError(
            f"--identity-judge {run} takes faces of {channels} channel(s), the GAN has "
            f"{manifest.image_shape[2]}; give a judge of the same"
        )
    if set(stored["data"]["classes"]) & set(manifest.classes):
        raise UserError(
            f"--identity-judge {run} was trained on expressions "
            f"({', '.join(stored['data']['classes'][:3])}, ...); give a run whose classes are "
            "persons, or auto"
        )
    judge, about = load_features(run, device, plugins, len(stored["data"]["classes"]))
    of = find_manifest(data_folder(run))
    is_same = of is not None and of.content["source"].get("of") == manifest.fingerprint
    people = frozenset(of.content.get("persons") or ()) if of and is_same else None
    return IdentityJudge(judge, about | {"persons": len(stored["data"]["classes"])}, people)


def check_people(loader: PairLoader) -> None:
    """NotMeasured unless pairs of at least two known persons are in the measured split."""
    neutral, expressive, _, _ = loader.rows(0)
    people = loader.groups[neutral[(loader.groups[expressive] >= 0)]]
    if len(np.unique(people[people >= 0])) < 2:
        raise NotMeasured(
            "the measured split does not say who is on a face"
            if (loader.groups < 0).all()
            else "the measured split has fewer than two known persons with a neutral face"
        )


def measure_identity(
    judge: IdentityJudge,
    loader: PairLoader,
    neutral_rows: Rows,
    expressive_rows: Rows,
    outputs: Features,
) -> dict[str, Any]:
    """The field `identity_judge` of the result; `outputs` are the judge's features of the outputs.

    Pairs whose two persons are not both known are left out.
    """
    people = loader.groups
    known = (people[neutral_rows] >= 0) & (people[expressive_rows] >= 0)
    neutral_rows, expressive_rows = neutral_rows[known], expressive_rows[known]
    rows = _pictures(people, neutral_rows, expressive_rows)
    features, _ = judge_rows(judge.features, loader, rows)
    pictures = Faces(features, people[rows], rows)
    neutral, donors = (pictures[np.searchsorted(rows, r)] for r in (neutral_rows, expressive_rows))
    output_faces = Faces(outputs[known], neutral.people, neutral.rows)
    seen = None
    if judge.people is not None:
        seen = len(judge.people & set(pictures.people.tolist()))
    scores = identity_scores(
        output_faces, neutral, donors, pictures, np.isin(rows, loader.pools[0])
    )
    return {"judge": judge.about, "people_of_its_training": seen, **scores}


def _pictures(people: Rows, neutral_rows: Rows, expressive_rows: Rows) -> Rows:
    """The rows of the pairs, and others with known persons at random up to MAX_PICTURES."""
    rows = np.unique(np.concatenate([neutral_rows, expressive_rows]))
    others = np.setdiff1d(np.flatnonzero(people >= 0), rows)
    room = max(0, MAX_PICTURES - len(rows))
    if len(others) > room:
        others = np.random.default_rng(0).choice(others, room, replace=False)
    return np.sort(np.concatenate([rows, others]))
