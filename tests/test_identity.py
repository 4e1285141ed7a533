"""Is the person kept? The identity judge's figures on planted features, and its training faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.gan import identity
from fer_hpc.gan.identity import (
    MAX_FACES_EACH,
    MIN_FACES,
    NotMeasured,
    choose_faces,
    load_identity_judge,
    make_shards,
)
from fer_hpc.gan.persons import Faces, identity_scores, recognise
from fer_hpc.gan.text import _identity_lines

CPU = torch.device("cpu")


def at(degrees: list[float], people: list[int]) -> Faces:
    """Faces whose features have these directions in a plane; row k is k."""
    angles = np.radians(degrees)
    features = (
        np.stack([np.cos(angles), np.sin(angles)], 1) * np.arange(1, len(people) + 1)[:, None]
    )
    return Faces(features, np.array(people), np.arange(len(people)))


def test_shares_are_those_of_planted_directions() -> None:
    """Person 0 lies at 0 degrees, person 1 at 90, person 2 at 45, between them."""
    gallery = at([0, 90, 45], [0, 1, 2])
    found = recognise(at([10, 60, 45, 90], [0, 1, 2, 0]), gallery)
    assert found
    # Face 2 is nearer to person 2 (15 degrees) than to its own (30): one stranger of two.
    # Face 4 is person 0 with the features of person 1: no stranger is further away.
    assert found["nearer"]["mean"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert found["rank_1"]["mean"] == pytest.approx(2 / 4)
    assert found["rank_1_by_chance"] == pytest.approx(1 / 3)
    assert (found["n"], found["people"]) == (4, 3)
    low, high = found["nearer"]["interval_95"]
    assert 0 <= low < found["nearer"]["mean"] < high <= 1


def test_a_tie_counts_half_and_a_face_is_not_its_own_evidence() -> None:
    gallery = at([0, 0, 90, 90], [0, 1, 0, 1])
    assert (found := recognise(gallery, gallery))
    assert found["nearer"]["mean"] == pytest.approx(0.5)
    assert (found := recognise(gallery, gallery, without_itself=True))
    assert found["nearer"]["mean"] == pytest.approx(0.25), "own: 90 degrees; strangers: 0, 90"
    assert found["rank_1"]["mean"] == 0
    assert found["rank_1_by_chance"] == pytest.approx(1 / 3)


def test_random_features_are_at_chance_and_people_without_a_second_picture_do_not_count() -> None:
    rng = np.random.default_rng(1000)  # its standard deviation is .012
    people = np.repeat(np.arange(100), 4)
    faces = Faces(rng.normal(size=(400, 16)), people, np.arange(400))
    found = recognise(faces, faces, without_itself=True)
    assert found
    assert found["nearer"]["mean"] == pytest.approx(0.5, abs=0.03)
    low, high = found["nearer"]["interval_95"]
    assert low < 0.5 < high
    alone = Faces(faces.features, np.arange(400), faces.rows)
    assert recognise(alone, alone, without_itself=True) is None
    assert recognise(faces[people == 0], faces) is None, "one person has no interval"


@pytest.mark.parametrize(("copies", "keeps"), [("neutral", 1.0), ("donor", 0.0)])
def test_outputs_that_copy_a_face_are_told_by_the_references(copies: str, keeps: float) -> None:
    """100 people with a neutral and an expressive face each; outputs are one of the inputs."""
    rng = np.random.default_rng(1)
    who = rng.normal(size=(100, 24))
    people = np.tile(np.arange(100), 2)
    pictures = Faces(
        np.concatenate([who, who]) + 0.3 * rng.normal(size=(200, 24)), people, np.arange(200)
    )
    neutral = pictures[np.arange(100)]
    donors = pictures[100 + np.roll(np.arange(100), 1)]
    made = neutral if copies == "neutral" else donors
    outputs = Faces(made.features, neutral.people, neutral.rows)
    found = identity_scores(outputs, neutral, donors, pictures, np.arange(200) < 100)
    among, others = found["among_neutral"], found["among_others"]
    assert among["outputs"]["rank_1"]["mean"] == pytest.approx(keeps, abs=0.02)
    assert others["outputs"]["rank_1"]["mean"] == pytest.approx(keeps, abs=0.05)
    assert found["to_donor"]["mean"] == keeps
    assert found["cosine"]["to_neutral" if keeps else "to_donor"]["mean"] == pytest.approx(1)
    assert among["unchanged"]["rank_1"]["mean"] == among["unchanged"]["nearer"]["mean"] == 1
    assert among["real_faces"]["rank_1"]["mean"] > 0.95
    assert among["strangers"]["nearer"]["mean"] == pytest.approx(0.5, abs=0.06)
    assert found["quality"]["nearer"]["mean"] > 0.98
    assert (found["neutral_pictures"], found["pictures"]) == (100, 200)
    lines = _identity_lines(found | {"judge": {"persons": 9}, "people_of_its_training": 0})
    assert "none of them in this split" in lines[0]
    assert not any("warning" in line for line in lines)
    weak = {**found["quality"], "nearer": {"mean": 0.6, "interval_95": [0.5, 0.7]}}
    lines = _identity_lines(
        found | {"judge": {"persons": 9}, "people_of_its_training": None, "quality": weak}
    )
    assert "hardly tells real faces apart" in lines[-1]


def test_people_with_few_faces_are_left_out_and_some_of_each_held_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = np.concatenate(
        [np.full(MIN_FACES - 1, 5), np.full(MIN_FACES, 6), np.full(100, 7), np.full(9, -1)]
    )
    chosen, people = choose_faces(groups)
    assert people == 3
    by_person = {person: (train, val) for person, train, val in chosen}
    assert by_person.keys() == {6, 7}
    assert [len(part) for part in by_person[6]] == [MIN_FACES - 1, 1]
    assert [len(part) for part in by_person[7]] == [MAX_FACES_EACH - 6, 6]
    for person, (train, val) in by_person.items():
        assert not set(train) & set(val)
        assert (groups[np.concatenate([train, val])] == person).all()
    assert str(choose_faces(groups)) == str((chosen, people)), "the same every time"
    monkeypatch.setattr(identity, "MAX_FACES", 33)
    assert len(choose_faces(np.repeat(np.arange(50), 6))[0]) == 5


def test_the_training_faces_are_those_of_the_train_split(faces: Path, tmp_path: Path) -> None:
    manifest = read_manifest(faces)
    make_shards(manifest, tmp_path / "faces")
    made = read_manifest(tmp_path / "faces")
    original = open_split(manifest, "train")
    pixels = dict(zip(original.columns["source_id"].tolist(), original.images[0], strict=True))
    person = dict(
        zip(original.columns["source_id"].tolist(), original.columns["group"], strict=True)
    )
    names: list[bytes] = []
    for part in ("train", "val"):
        split = open_split(made, part)
        names += split.columns["source_id"].tolist()
        for k, name in enumerate(split.columns["source_id"].tolist()):
            assert (split.images[0][k] == pixels[name]).all()
            assert made.classes[split.columns["labels"][k]] == f"person {person[name]}"
    assert len(set(names)) == len(names) > 0.9 * len(original)
    assert made.content["persons"] == [int(name.split()[1]) for name in made.classes]
    assert made.content["source"]["of"] == manifest.fingerprint


def test_a_set_that_does_not_say_who_is_on_a_face_is_not_measured(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_split(read_manifest(faces), "train")

    def with_groups(groups: NDArray[Any]) -> None:
        split.columns["group"] = groups
        monkeypatch.setattr(identity, "open_split", lambda *_: split)
        make_shards(read_manifest(faces), tmp_path / "never")

    with pytest.raises(NotMeasured, match="does not say who"):
        with_groups(np.full(len(split), -1))
    with pytest.raises(NotMeasured, match=f"has 2 persons with {MIN_FACES}"):
        with_groups(np.arange(len(split)) % 2)
    assert not (tmp_path / "never").exists()


def test_a_judge_of_expressions_is_refused(finished_run: Path, faces: Path) -> None:
    with pytest.raises(UserError, match="was trained on expressions"):
        load_identity_judge(finished_run, read_manifest(faces), CPU)
