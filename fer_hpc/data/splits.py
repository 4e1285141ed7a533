"""Which faces are for training, validation and test.

scikit-learn is loaded where it is used: worker processes do not need it.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.config.errors import counted
from fer_hpc.data.annotations import Rows
from fer_hpc.data.doubles import PICTURES, joined, shared_pictures

SEED = 42  # the source report's
NOT_STRATIFIED = "not stratified"  # begins the note that says why
TEST_SHARE, VAL_SHARE_OF_REST = 0.15, 0.1765


def resolve_rule(rows: Rows, rule: str) -> str:
    """The rule that `auto` means here; UserError for a rule that this source does not allow.

    `official`: the source's own splits; where it has no val, that is cut from its train.
    `report`: 15 % test, then 17.65 % of the rest val, stratified by class, from the train rows.
    `person`: the same shares, nobody in two splits.
    Where rows are divided here, all rows of one picture are in the same split.
    `test`: every face is in the test split.
    `auto`: official where the source has a test or val split, else person where people are known,
    else report.
    """
    official = any(s in ("val", "test") for s in rows.split)
    people = rows.columns.get("group")
    known = people is not None and bool((people >= 0).any())
    if rule == "auto":
        return "official" if official else "person" if known else "report"
    if rule == "official" and not official:
        raise UserError("--split official: the source has no splits; use --split report")
    if rule == "person" and not known:
        raise UserError(
            "--split person: the source names no persons (column group); use --split report"
        )
    return rule


def divide(rows: Rows, rule: str) -> tuple[NDArray[np.str_], str, list[str]]:
    """The split of every row ("" = left out), the rule as text, and notes for the manifest.

    `rule` is official, report, person or test.
    """
    own = np.array([s or "train" for s in rows.split])
    notes: list[str] = []
    people, pictures = _people(rows, notes), shared_pictures(rows)
    units = people if people is None or pictures is None else joined(people, pictures)
    whole = "" if pictures is None else f"{PICTURES}, "
    if rule == "test":
        return np.full(len(own), "test", dtype="<U5"), "test: every face", notes
    if rule == "official":
        text = "official"
        if "val" not in own and "train" in own:
            by_person = units is not None and _cut_people(own, units, rows.label)
            if not by_person:
                train = np.flatnonzero(own == "train")
                own[_cut(train, rows.label, VAL_SHARE_OF_REST, notes, pictures)[1]] = "val"
            how = "by person, " * by_person + whole + _stratified(notes)
            text = f"official, val cut from train (17.65 %, {how}, seed 42)"
        if people is not None:
            notes += _shared(own, people, "people are", "; --split person keeps them apart")
        if pictures is not None:
            notes += _shared(own, pictures, "pictures have faces", ", as the source divides them")
        return own, text, notes
    if rule == "person":
        assert units is not None
        split = _by_person(rows.label, units, notes)
        return split, f"70 / 15 / 15 % by person, {whole}{_stratified(notes)}, seed 42", notes
    usable = np.flatnonzero(own == "train")
    rest, test = _cut(usable, rows.label, TEST_SHARE, notes, pictures)
    train, val = _cut(rest, rows.label, VAL_SHARE_OF_REST, notes, pictures)
    split = np.full(len(own), "", dtype="<U5")  # rows of the source's own test are left out
    split[train], split[val], split[test] = "train", "val", "test"
    text = f"report: 15 % test, 17.65 % of the rest val, {whole}{_stratified(notes)}, seed 42"
    return split, text, notes


def _stratified(notes: list[str]) -> str:
    """Whether a split came out stratified, by the notes of how it was cut."""
    return (
        NOT_STRATIFIED if any(note.startswith(NOT_STRATIFIED) for note in notes) else "stratified"
    )


def _people(rows: Rows, notes: list[str]) -> NDArray[np.int64] | None:
    """The person of each row; rows without one are people of their own. None: none is known."""
    people = rows.columns.get("group")
    if people is None or not (people >= 0).any():
        return None
    unknown = people < 0
    if unknown.any():
        notes.append(
            f"{counted(int(unknown.sum()), 'face')} without a group: each counts as a person"
        )
    return np.where(unknown, people.max() + 1 + np.arange(len(people)), people)


def _cut_people(
    own: NDArray[np.str_], people: NDArray[np.int64], labels: NDArray[np.int64]
) -> bool:
    """Turn 3 of 17 folds of whole people in train into val; False where they are too few."""
    from sklearn.model_selection import StratifiedGroupKFold

    train = np.flatnonzero(own == "train")
    if len(np.unique(people[train])) < 17:
        return False
    folds = StratifiedGroupKFold(17, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer faces than folds
        parts = folds.split(train, labels[train], people[train])
        for _, (_, members) in zip(range(3), parts, strict=False):
            own[train[members]] = "val"
    return True


def _shared(own: NDArray[np.str_], key: NDArray[np.int64], what: str, more: str) -> list[str]:
    """A note for each two splits that share people or pictures."""
    notes = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = np.intersect1d(key[own == one], key[own == other])
        if len(both):
            notes.append(f"{len(both):,} {what} in both {one} and {other}{more}")
    return notes


def _by_person(
    labels: NDArray[np.int64], people: NDArray[np.int64], notes: list[str]
) -> NDArray[np.str_]:
    """20 folds of whole people with similar class shares: 3 are test, 3 val, 14 train."""
    numbers = np.unique(people)
    if len(numbers) < 3:
        raise UserError(
            f"--split person: {len(numbers)} people cannot be divided into train, val and test; "
            "use --split report"
        )
    split = np.full(len(people), "train", dtype="<U5")
    if len(numbers) < 40:
        notes.append(f"{NOT_STRATIFIED}: {len(numbers)} people are too few for it")
        few = max(1, round(TEST_SHARE * len(numbers)))
        drawn = np.random.default_rng(SEED).permutation(numbers)
        split[np.isin(people, drawn[:few])] = "test"
        split[np.isin(people, drawn[few : 2 * few])] = "val"
        return split
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(20, shuffle=True, random_state=SEED).split(split, labels, people)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer faces than folds
        for fold, (_, members) in enumerate(folds):
            split[members] = "test" if fold < 3 else "val" if fold < 6 else "train"
    return split


def _cut(
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    share: float,
    notes: list[str],
    pictures: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two parts of `rows`, the second with `share` of every class; `pictures` are not parted.

    Where a class is too small for that, the parts are drawn regardless of class.
    """
    from sklearn.model_selection import train_test_split

    if pictures is not None:  # the first row of each is drawn, the others go with it
        firsts = rows[np.unique(pictures[rows], return_index=True)[1]]
        _, drawn = _cut(firsts, labels, share, notes)
        goes = np.isin(pictures[rows], pictures[drawn])
        return rows[~goes], rows[goes]
    classes = labels[rows]
    try:
        rest, part = train_test_split(rows, test_size=share, stratify=classes, random_state=SEED)
    except ValueError as reason:
        if len(rows) < 3:
            raise UserError(
                f"{counted(len(rows), 'face')} cannot be divided into train, val and test"
            ) from None
        notes.append(f"{NOT_STRATIFIED}: {reason}")
        rest, part = train_test_split(rows, test_size=share, random_state=SEED)
    return np.sort(rest), np.sort(part)
