"""What file names say about persons and sequences: frames of one belong in one split."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NameCode:
    """File names of a public data set that hold the person, and maybe the expression."""

    form: str
    pattern: re.Pattern[str]  # with a group `person`, maybe a group `code`
    classes: dict[str, str]  # code -> class name; {}: the names hold no expression


_CODES = {"AN": "Anger", "DI": "Disgust", "HA": "Happiness", "NE": "Neutral", "SA": "Sadness"}
_CODES |= {"SU": "Surprise"}
NAME_CODES = (
    NameCode("CK+", re.compile(r"(?P<person>S\d{3})_\d{3}_\d{8}"), {}),
    NameCode(
        "JAFFE",
        re.compile(r"(?P<person>[A-Z]{2})\.(?P<code>AN|DI|FE|HA|NE|SA|SU)\d?\.\d+"),
        _CODES | {"FE": "Fear"},
    ),
    NameCode(
        "KDEF",
        re.compile(r"[AB](?P<person>[FM]\d{2})(?P<code>AF|AN|DI|HA|NE|SA|SU)(?:S|HL|HR|FL|FR)"),
        _CODES | {"AF": "Fear"},
    ),
)


def stem(name: str) -> str:
    """A file's name without folders and suffix."""
    return name.rpartition("/")[2].rpartition(".")[0]


def persons(names: Sequence[str]) -> tuple[str, list[str]]:
    """(form, person of each file) where all names are of one coded form; else ("", [])."""
    for code in NAME_CODES:
        people = [match["person"] for n in names if (match := code.pattern.fullmatch(stem(n)))]
        if len(people) == len(names):
            return code.form, people
    return "", []


def sequence_note(names: Sequence[str]) -> str:
    """A hint where file names look like frames of sequences; "" where they do not.

    Names that differ only in their last number are one sequence, if what is before that number has
    a number of its own (`clip12_003.png`, `12/003.png`).
    """
    counts = collections.Counter(re.sub(r"\d+$", "", stem_with_folders(n)) for n in names)
    frames = {key: n for key, n in counts.items() if n > 1 and re.search(r"\d", _last(key))}
    covered = sum(frames.values())
    if len(frames) < 3 or covered < 0.6 * len(names) or covered / len(frames) > 0.2 * len(names):
        return ""
    example, n = next(iter(frames.items()))
    return (
        f"file names look like frames of {len(frames):,} sequences ({n} of {example}...): frames "
        "of one may lie in two splits; give --columns with a column group"
    )


def stem_with_folders(name: str) -> str:
    return name.rpartition(".")[0] or name


def _last(prefix: str) -> str:
    """The part of a sequence's prefix that may number it: of the file, or its own folder."""
    folder, _, file = prefix.rpartition("/")
    return file or folder.rpartition("/")[2]
