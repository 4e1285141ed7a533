"""Rows of one picture: a face that a source lists twice, and which rows a split must not part."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from fer_hpc.config import UserError
from fer_hpc.data.annotations import TWO_LABELS, Rows, first_reject

TWICE = "duplicate face"
PICTURES = "pictures whole"  # in the rule of a split that parts no picture
NO_PICTURE = 0


def without_doubles(rows: Rows, is_whole: bool) -> Rows:
    """The rows without faces that occur twice; they become rejects.

    Of a face with two labels no label is known: all its rows go, unless labels are distributions.
    Else the first row of each split stays. `is_whole`: no box cuts the pictures, so that all rows
    of a picture are one face.
    """
    key = rows.picture if is_whole else rows.face
    if key is None or rows.picture is None:
        return rows
    known = rows.picture != NO_PICTURE
    _, first, face = np.unique(key, return_index=True, return_inverse=True)
    splits, split = np.unique(rows.split, return_inverse=True)
    is_first = np.zeros(len(key), bool)
    is_first[np.unique(face * len(splits) + split, return_index=True)[1]] = True
    reason = np.where(known & ~is_first, TWICE, "").astype(object)
    if "targets" not in rows.columns:
        differs = known & (rows.label != rows.label[first][face])
        reason[np.isin(face, face[differs])] = TWO_LABELS
    left = np.flatnonzero(reason == "").tolist()
    if len(left) == len(key):
        return rows
    which = np.flatnonzero(reason != "").tolist()
    rejects = [*rows.rejects, *((rows.source_id[i], str(reason[i])) for i in which)]
    if not len(left):
        raise UserError(f"no usable faces{first_reject(rejects)}")
    return dataclasses.replace(
        rows,
        source_id=[rows.source_id[i] for i in left],
        label=rows.label[left],
        split=[rows.split[i] for i in left],
        columns={name: np.asarray(values)[left] for name, values in rows.columns.items()},
        locators=[rows.locators[i] for i in left],
        picture=rows.picture[left],
        face=None if rows.face is None else rows.face[left],
        rejects=rejects,
    )


def shared_pictures(rows: Rows) -> NDArray[np.int64] | None:
    """The picture of each row, as the number of its first row; None where none has two rows."""
    if rows.picture is None:
        return None
    _, first, picture = np.unique(rows.picture, return_index=True, return_inverse=True)
    alone = rows.picture == NO_PICTURE
    number = np.where(alone, np.arange(len(alone)), first[picture])  # not of the order of hashes
    return number if len(np.unique(number)) < len(number) else None


def joined(people: NDArray[np.int64], pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sets of rows with the same number that share neither a person nor a picture with others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, one = np.unique(people, return_inverse=True)
    _, other = np.unique(pictures, return_inverse=True)
    n, first = len(people), int(one.max()) + 1
    size = first + int(other.max()) + 1
    edges = coo_array((np.ones(n, bool), (one, first + other)), shape=(size, size))
    return np.asarray(connected_components(edges, directed=False)[1][one], np.int64)
