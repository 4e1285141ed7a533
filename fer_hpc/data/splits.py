"""Which face trains, which selects, which is the exam.

scikit-learn is loaded where it is used: worker processes import this module and need none of it.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.data.annotations import Rows

SEED = 42  # the source report's
TEST_SHARE, VAL_SHARE_OF_REST = 0.15, 0.1765


def resolve_rule(rows: Rows, rule: str) -> str:
    """The rule that `auto` stands for here; UserError for a rule that the source cannot give.

    `official`: what the source says; where it has no val, that is cut from its train (stratified).
    `report`: 15 % test, then 17.65 % of the rest val, stratified by class, out of the source's train rows.
    `person`: the same shares, nobody in two splits.
    `auto`: official where the source brings a test or val split, else person where people are known, else report.
    """
    official = any(s in ("val", "test") for s in rows.split)
    people = rows.columns.get("group")
    known = people is not None and len(people) > 0 and bool((people >= 0).all())
    if rule == "auto":
        return "official" if official else "person" if known else "report"
    if rule == "official" and not official:
        raise UserError(
            "--split official: the source says nothing about splits; use --split report"
        )
    if rule == "person" and not known:
        raise UserError(
            "--split person: the source does not say who is who (column group); use --split report"
        )
    return rule


def divide(rows: Rows, rule: str) -> tuple[NDArray[np.str_], str, list[str]]:
    """The split of every row by a settled rule ("" = left out), the rule in words, and notes for the manifest."""
    said = np.array([s or "train" for s in rows.split])
    notes: list[str] = []
    if rule == "official":
        if "val" not in said:
            train = np.flatnonzero(said == "train")
            said[_cut(train, rows.label, VAL_SHARE_OF_REST, notes)[1]] = "val"
            return said, "official, val cut from train (17.65 %, stratified, seed 42)", notes
        return said, "official", notes
    if rule == "person":
        return (
            _by_person(rows.label, rows.columns["group"], notes),
            "70 / 15 / 15 % by person, stratified, seed 42",
            notes,
        )
    usable = np.flatnonzero(said == "train")
    rest, test = _cut(usable, rows.label, TEST_SHARE, notes)
    train, val = _cut(rest, rows.label, VAL_SHARE_OF_REST, notes)
    split = np.full(len(said), "", dtype="<U5")  # rows of the source's own test are left out
    split[train], split[val], split[test] = "train", "val", "test"
    return split, "report: 15 % test, 17.65 % of the rest val, stratified, seed 42", notes


def _by_person(
    labels: NDArray[np.int64], people: NDArray[np.int64], notes: list[str]
) -> NDArray[np.str_]:
    """20 folds of whole people with like class shares: 3 make the test, 3 val, 14 train."""
    numbers = np.unique(people)
    if len(numbers) < 3:
        raise UserError(
            f"--split person: {len(numbers)} people cannot be divided into train, val and test; use --split report"
        )
    split = np.full(len(people), "train", dtype="<U5")
    if len(numbers) < 40:
        notes.append(f"not stratified: {len(numbers)} people are too few for it")
        few = max(1, round(TEST_SHARE * len(numbers)))
        drawn = np.random.default_rng(SEED).permutation(numbers)
        split[np.isin(people, drawn[:few])], split[np.isin(people, drawn[few : 2 * few])] = (
            "test",
            "val",
        )
        return split
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(20, shuffle=True, random_state=SEED).split(split, labels, people)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer faces than folds
        for fold, (_, members) in enumerate(folds):
            split[members] = "test" if fold < 3 else "val" if fold < 6 else "train"
    return split


def _cut(
    rows: NDArray[np.int64], labels: NDArray[np.int64], share: float, notes: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two parts of `rows`, the second with `share` of every class; at random where a class is too small for that."""
    from sklearn.model_selection import train_test_split

    try:
        kept, taken = train_test_split(
            rows, test_size=share, stratify=labels[rows], random_state=SEED
        )
    except ValueError as reason:
        if len(rows) < 3:
            raise UserError(
                f"{len(rows)} faces cannot be divided into train, val and test"
            ) from None
        notes.append(f"not stratified: {reason}")
        kept, taken = train_test_split(rows, test_size=share, random_state=SEED)
    return np.sort(kept), np.sort(taken)
