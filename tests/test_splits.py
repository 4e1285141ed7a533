from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fer_hpc.config import UserError
from fer_hpc.data.annotations import Rows
from fer_hpc.data.splits import divide, resolve_rule
from fer_hpc.data.synthetic.faces import CLASS_COUNTS

# The source report's Table 1: train / val / test of each class.
TABLE_1 = [
    (52410, 11233, 11231),
    (94086, 20166, 20162),
    (17821, 3819, 3819),
    (9862, 2114, 2114),
    (4464, 957, 957),
    (2662, 571, 570),
    (17417, 3733, 3732),
    (2625, 562, 563),
]


def rows_of(label: np.ndarray, split: list[str] | None = None, **columns: np.ndarray) -> Rows:
    return Rows([str(i) for i in range(len(label))], label, split or [""] * len(label), columns)


def test_report_split_gives_table_1_to_within_one() -> None:
    label = np.random.default_rng(0).permutation(np.repeat(np.arange(8), CLASS_COUNTS))
    split, _, notes = divide(rows_of(label), "report")
    for k, wanted in enumerate(TABLE_1):
        got = [int(((label == k) & (split == name)).sum()) for name in ("train", "val", "test")]
        assert all(abs(g - w) <= 1 for g, w in zip(got, wanted, strict=True)), (k, got, wanted)
    assert not notes


def test_official_split_is_the_sources_own_and_val_comes_out_of_train() -> None:
    label = np.tile(np.arange(4), 50)
    rows = rows_of(label, ["train"] * 160 + ["test"] * 40)
    assert resolve_rule(rows, "auto") == "official"
    split, _, _ = divide(rows, "official")
    assert (split[160:] == "test").all()
    assert (split[:160] == "val").sum() == 29  # 17.65 % of 160, rounded up


def test_known_people_are_kept_apart() -> None:
    rng = np.random.default_rng(0)
    people = rng.integers(0, 60, 600)
    rows = rows_of(rng.integers(0, 4, 600), group=people)
    assert resolve_rule(rows, "auto") == "person"
    split, _, _ = divide(rows, "person")
    assert all(len(set(split[people == p])) == 1 for p in range(60))
    assert 50 < (split == "test").sum() < 130


def test_a_class_too_small_to_stratify_is_noted_not_fatal() -> None:
    split, how, notes = divide(rows_of(np.array([0] * 40 + [1])), "report")
    assert set(split) == {"train", "val", "test"}
    assert "not stratified" in notes[0]
    assert "rest val, not stratified, seed" in how
    _, how, notes = divide(rows_of(np.array([0] * 40 + [1] * 40)), "report")
    assert not notes and "rest val, stratified, seed" in how


def test_rules_that_need_what_is_absent_say_so() -> None:
    with pytest.raises(UserError, match="--split report"):
        resolve_rule(rows_of(np.zeros(10, int)), "official")
    with pytest.raises(UserError, match="names no persons"):
        resolve_rule(rows_of(np.zeros(10, int)), "person")


def test_faces_of_one_picture_are_in_one_split() -> None:
    rng = np.random.default_rng(0)
    picture = rng.permutation(np.repeat(np.arange(1, 301), 2))
    label = rng.integers(0, 4, 600)
    for rule, columns in (("report", {}), ("person", {"group": rng.integers(0, 400, 600)})):
        rows = dataclasses.replace(rows_of(label, **columns), picture=picture, face=np.arange(600))
        split, how, _ = divide(rows, rule)
        assert all(len(set(split[picture == p])) == 1 for p in range(1, 301))
        assert "pictures whole" in how
        again = dataclasses.replace(rows, picture=picture * -7919)  # other hashes
        assert (divide(again, rule)[0] == split).all()
    rows = dataclasses.replace(rows_of(label, ["train"] * 500 + ["test"] * 100), picture=picture)
    split, how, notes = divide(rows, "official")
    own = np.flatnonzero(split != "test")
    assert all(len(set(split[own][picture[own] == p])) < 2 for p in range(1, 301))
    assert [note for note in notes if "pictures have faces in both train and test" in note]
    plain, how, _ = divide(rows_of(label), "report")
    alone = dataclasses.replace(rows_of(label), picture=np.arange(1, 601))
    assert (divide(alone, "report")[0] == plain).all() and "pictures" not in how
