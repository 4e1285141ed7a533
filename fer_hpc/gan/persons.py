"""Which person is it? What features of an identity judge say about faces. No torch.

Open-set: the judge need not know the people. A face is compared with pictures of a gallery, one of
its own person and those of strangers, by the cosine of the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_hpc.gan.measures import (
    Features,
    bootstrap_counts,
    cosine_similarity,
    mean_with_interval,
)

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Faces:
    """Faces [n]: what the judge makes of them, who they are, which rows."""

    features: Features  # [n, d]
    people: Rows
    rows: Rows  # of the split; of a generated face, that of its neutral face

    def __getitem__(self, index: NDArray[Any]) -> Faces:
        return Faces(self.features[index], self.people[index], self.rows[index])

    def __len__(self) -> int:
        return len(self.rows)


def recognise(faces: Faces, gallery: Faces, without_itself: bool = False) -> dict[str, Any] | None:
    """How well the persons of `faces` are recognised among those of `gallery`.

    `nearer`: share of pairs of an own and a stranger's picture in which the own one is nearer, the
    area under the ROC curve of each face, averaged. `rank_1`: share of faces whose nearest picture
    is of their person; `rank_1_by_chance`. Intervals are over the persons of `faces`.
    `without_itself`: a picture of the same row is no part of the gallery.
    Faces without an own picture, or without a stranger's, do not count; None where fewer than two
    persons are left.
    """
    similarity = _unit(faces.features) @ _unit(gallery.features).T
    everything = np.ones(len(gallery), bool)
    scores = []  # position, nearer, rank 1, by chance
    for k in range(len(faces)):
        is_other = gallery.rows != faces.rows[k] if without_itself else everything
        own = is_other & (gallery.people == faces.people[k])
        others = is_other & ~own
        if not own.any() or not others.any():
            continue
        mine, theirs = similarity[k, own], np.sort(similarity[k, others])
        below = [np.searchsorted(theirs, mine, side).mean() for side in ("left", "right")]
        is_first = mine.max() > theirs[-1]
        scores.append((k, sum(below) / 2 / len(theirs), is_first, own.sum() / is_other.sum()))
    if not scores:
        return None
    positions, nearer, first, chance = (np.array(values) for values in zip(*scores, strict=True))
    people = faces.people[positions]
    if len(np.unique(people)) < 2:
        return None
    counts = bootstrap_counts(people)
    return {
        "n": len(positions),
        "people": len(np.unique(people)),
        "nearer": mean_with_interval(nearer, counts),
        "rank_1": mean_with_interval(first, counts),
        "rank_1_by_chance": float(chance.mean()),
    }


def identity_scores(
    outputs: Faces, neutral: Faces, donors: Faces, pictures: Faces, is_neutral: NDArray[np.bool_]
) -> dict[str, Any]:
    """Is the neutral face's person kept in `outputs` [n], made of `neutral` and `donors` [n]?

    `pictures` [m] are the real faces of the split, `is_neutral` [m] which of them are neutral. All
    persons are known. Each part is None where it cannot be measured:

    - `quality`: real faces among the other real faces, how good the judge is;
    - `among_neutral`: among the neutral faces, `outputs` and the references `real_faces` (other
      pictures of the same people, with an expression), `strangers` (the faces that gave the
      expression, taken for the neutral person) and `unchanged` (1 by definition);
    - `among_others`: among all real faces but the output's own neutral face, `outputs` and
      `unchanged`;
    - `to_donor`: share of outputs nearer to their neutral face than to the face that gave the
      expression; `cosine` of outputs to both.
    """
    gallery, expressive = pictures[is_neutral], pictures[~is_neutral]
    impostors = Faces(donors.features, neutral.people, donors.rows)
    once = np.unique(neutral.rows, return_index=True)[1]
    counts = bootstrap_counts(outputs.people)
    to_neutral = cosine_similarity(outputs.features, neutral.features)
    to_donor = cosine_similarity(outputs.features, donors.features)
    return {
        "n": len(outputs),
        "people": len(np.unique(outputs.people)),
        "pictures": len(pictures),
        "neutral_pictures": len(gallery),
        "neutral_people": len(np.unique(gallery.people)),
        "quality": recognise(pictures, pictures, without_itself=True),
        "among_neutral": {
            "outputs": recognise(outputs, gallery),
            "real_faces": recognise(expressive, gallery),
            "strangers": recognise(impostors, gallery),
            "unchanged": recognise(neutral[once], gallery),
        },
        "among_others": {
            "outputs": recognise(outputs, pictures, without_itself=True),
            "unchanged": recognise(neutral[once], pictures, without_itself=True),
        },
        "to_donor": mean_with_interval(to_neutral > to_donor, counts),
        "cosine": {
            "to_neutral": mean_with_interval(to_neutral, counts),
            "to_donor": mean_with_interval(to_donor, counts),
        },
    }


def _unit(features: Features) -> Features:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12))
