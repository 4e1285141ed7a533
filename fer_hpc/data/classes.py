"""Which class each label in the data means: known names, a form's own numbers, or --classes."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fer_hpc.config import CLASSES, UserError
from fer_hpc.config.errors import counted
from fer_hpc.data.tables import separator_of

ALIASES = {
    "neutral": "Neutral",
    "happy": "Happiness",
    "sad": "Sadness",
    "surprised": "Surprise",
    "fearful": "Fear",
    "afraid": "Fear",
    "disgusted": "Disgust",
    "angry": "Anger",
    **{name.lower(): name for name in CLASSES},
}
# Words of a header above the labels in a CSV file of classes.
_HEADER = re.compile(r"label|number|name|key|^id$|index|code|folder|value|class|expression|emotion")
_SHOWN = 8  # labels in a message
_LONGEST_FLAG = 600  # characters that one may want to copy


@dataclass(frozen=True)
class Numbering:
    """What numbers mean in a form of data that defines them, counted from 0."""

    owner: str  # whose numbers they are, for messages
    names: tuple[str, ...]
    unused: Mapping[int, str] = field(default_factory=dict)  # numbers that are no class, and why
    refusal: str = "label {label}, wanted 0 to {last}"  # the reason for any other number


@dataclass(frozen=True)
class ClassMap:
    """The classes of a data set, and the class of each label that occurs in it."""

    classes: tuple[str, ...]  # names in the order of the stored labels
    class_of: dict[str, str]  # label in the data -> class name
    unused: dict[str, str] = field(default_factory=dict)  # label -> why it is no class
    refusal: str = "class {label} is not of this data set"
    source: str = ""  # where the meaning comes from, for messages

    def label(self, text: str) -> int | str:
        """The index of a label's class, or the reason why it has none."""
        name = self.class_of.get(text)
        if name is not None and name in self.classes:
            return self.classes.index(name)
        refusal = self.refusal.format(label=(name or text)[:20], last=len(self.classes) - 1)
        return self.unused.get(text, refusal)

    def describe(self) -> str:
        """One line for the user: what was read as what."""
        pairs = [f"{k} = {v}" for k, v in self.class_of.items()]
        shown = ", ".join(pairs[:60]) + (", ..." if len(pairs) > 60 else "")
        return f"classes ({self.source}): {shown}"


def label_key(text: str) -> str:
    """A label as the data states it, in one form: `2`, `02` and `2.0` are the same number."""
    text = text.strip()
    try:
        return str(int(float(text))) if float(text).is_integer() else text
    except (ValueError, OverflowError):
        return text


@dataclass(frozen=True)
class StatedClasses:
    """The meaning of --classes: class names in the order of the data's numbers, or a table."""

    names: tuple[str, ...] = ()
    table: dict[str, str] = field(default_factory=dict)  # label in lower case -> class name
    order: str = ""  # whose numbers they are, where --classes says that

    def __bool__(self) -> bool:
        return bool(self.names or self.table)


NO_CLASSES = StatedClasses()

# Orders of classes that --classes takes by name: whose numbers or columns they are.
ORDERS = {
    "affectnet": CLASSES,
    "fer2013": ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral"),
    "ferplus": (
        "Neutral",
        "Happiness",
        "Surprise",
        "Sadness",
        "Anger",
        "Disgust",
        "Fear",
        "Contempt",
    ),
    "ckplus": (
        "Neutral",
        "Anger",
        "Contempt",
        "Disgust",
        "Fear",
        "Happiness",
        "Sadness",
        "Surprise",
    ),
    "rafdb": ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral"),
}
ORDERS["expw"] = ORDERS["fer2013"]
_COUNTED_FROM_1 = {"rafdb"}


def read_stated(text: str) -> StatedClasses:
    """Parse --classes: `smile,frown,plain`, the path of a CSV with two columns, or whose numbers
    the data has (a key of ORDERS).

    Names of the eight expressions are written as there ("neutral" is Neutral, and where all are
    among the eight, "happy" is Happiness); any other name stays as it is.
    """
    if not text.strip():
        return StatedClasses()
    is_file = _is_file(text)
    if "," in text and not is_file:
        names = canonical_names([name.strip() for name in text.split(",")])
        _check_names(names)
        if len(set(names)) < len(names):
            raise UserError(f"--classes {text}: a name occurs twice; a CSV file can merge classes")
        return StatedClasses(names=tuple(names))
    path = Path(text)
    if text.lower() in ORDERS and not is_file:
        return StatedClasses(names=ORDERS[text.lower()], order=text.lower())
    if not is_file:
        raise UserError(
            f"--classes {text[:200]}: neither names with commas between (smile,frown,plain), nor a "
            "CSV file of two columns (label in the data, class name), nor whose numbers they are "
            f"({', '.join(ORDERS)})"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            separator = separator_of(f.readline())
            f.seek(0)
            table = csv.reader(f, delimiter=separator, skipinitialspace=True)
            lines = [line for line in table if any(line)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path}: not a CSV file in UTF-8 ({error})") from None
    first, *others = [label_key(line[0]).lower() for line in lines] or [""]
    if _HEADER.search(first) or (not _is_number(first) and others and all(map(_is_number, others))):
        del lines[0]
    wrong = [line for line in lines if len(line) != 2]
    if wrong or not lines:
        problem = f"a line has {len(wrong[0])} columns" if wrong else "it has no line"
        raise UserError(f"--classes {path}: {problem}; wanted two: label in the data, class name")
    keys = [label_key(line[0]).lower() for line in lines]
    twice = [k for k in keys if keys.count(k) > 1]
    if twice:
        raise UserError(f"--classes {path}: {twice[0]!r} occurs twice")
    names = canonical_names([line[1].strip() for line in lines])
    _check_names(names)
    return StatedClasses(table=dict(zip(keys, names, strict=True)))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than names of files are
        return False


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < 2:
        raise UserError(f"--classes: {len(set(names))} class; wanted at least two")
    for name in names:
        if not name or not name.isprintable() or "/" in name:
            raise UserError(f"--classes: {name!r} is not a name; wanted letters, digits, spaces")


def canonical_names(names: list[str]) -> list[str]:
    """Class names as written elsewhere: of the eight expressions where all are among them."""
    known = all(name.lower() in ALIASES for name in names)
    own = {name.lower(): name for name in CLASSES}
    return [ALIASES[n.lower()] if known else own.get(n.lower(), n) for n in names]


def map_classes(
    labels: Mapping[str, int],
    stated: StatedClasses,
    place: str,
    numbering: Numbering | None = None,
    classes: tuple[str, ...] = (),
) -> ClassMap:
    """The classes of the `labels` (label: number of faces) that occur in the data.

    With --classes as it states; else a form's own `numbering`, and the names of expressions.
    `classes` are those of a form that has a fixed list. Raises UserError, with the flag to write,
    for a label that has no class.
    """
    if stated:
        return _stated_map(labels, stated, place, numbering)
    numbers = [k for k in labels if _is_number(k)]
    if numbers and not numbering:
        why = "a number means another class in every data set"
        raise _unknown_labels(labels, place, numbers, why)
    class_of = {str(i): name for i, name in enumerate(numbering.names)} if numbering else {}
    by_name = {k: name for k in labels if (name := expression(k))}
    unknown = [k for k in labels if not _is_number(k) and k not in by_name]
    few = numbering and sum(labels[k] for k in unknown) < sum(labels[k] for k in numbers)
    if unknown and not few:  # a few among numbers are rejected one by one
        why = f"not named after an expression ({', '.join(CLASSES)})"
        raise _unknown_labels(labels, place, unknown, why)
    class_of |= by_name
    return ClassMap(
        classes or tuple(c for c in CLASSES if c in class_of.values()),
        class_of,
        _reasons(numbering),
        numbering.refusal if numbering else ClassMap.refusal,
        f"{numbering.owner}'s numbers" if numbering and numbers else "by name",
    )


def expression(text: str) -> str | None:
    """The canonical name of an expression in a label."""
    return next((ALIASES[c] for c in _candidates(text) if c in ALIASES), None)


def _reasons(numbering: Numbering | None) -> dict[str, str]:
    unused = numbering.unused if numbering else {}
    return {str(k): f"label {k} ({why})" for k, why in unused.items()}


def _stated_map(
    labels: Mapping[str, int], stated: StatedClasses, place: str, numbering: Numbering | None
) -> ClassMap:
    table = stated.table or _table_of_names(labels, stated.names, place, numbering, stated.order)
    skipped = {k: why for k, why in _reasons(numbering).items() if k not in table}
    class_of, missing = {}, []
    for text in labels:
        name = next((table[c] for c in _candidates(text) if c in table), None)
        if name is not None:
            class_of[text] = name
        elif text not in skipped:
            missing.append(f"{text[:30]!r} ({counted(labels[text], 'face')})")
    if missing:
        raise UserError(
            f"--classes has no class for {', '.join(missing[:_SHOWN])} of {place}; "
            "name all labels, in the order of their numbers or in a CSV file (label,class name)"
        )
    classes = stated.names or tuple(dict.fromkeys(table.values()))
    if set(classes) <= set(CLASSES):
        classes = tuple(c for c in CLASSES if c in classes)
    source = f"--classes {stated.order}".strip()
    return ClassMap(classes, class_of, skipped, source=source)


def _table_of_names(
    labels: Mapping[str, int],
    names: tuple[str, ...],
    place: str,
    numbering: Numbering | None,
    order: str,
) -> dict[str, str]:
    """Names in the order of the data's numbers as a table by number and by name."""
    numbers = sorted(int(k) for k in labels if _is_number(k) and k not in _reasons(numbering))
    first = 1 if order in _COUNTED_FROM_1 else 0
    if order and numbers and not first <= numbers[0] <= numbers[-1] < first + len(names):
        raise UserError(
            f"--classes {order}: its numbers are {first} to {first + len(names) - 1}, {place} has "
            f"{numbers[0]} to {numbers[-1]}"
        )
    if numbers and not order and not numbering and numbers[0] > 0:  # counted from 0 or from 1?
        if numbers[-1] < len(names):
            raise UserError(
                f"--classes: {len(names)} names for the numbers {numbers[0]} to {numbers[-1]} of "
                f"{place} do not tell which is first; write a CSV file (number,class name)"
            )
        first = 1
    by_name = {name.lower(): name for name in names}
    by_name |= {alias: name for alias, name in ALIASES.items() if name in names}
    return by_name | {str(first + i): name for i, name in enumerate(names)}


def _candidates(text: str) -> list[str]:
    """A label in lower case, as given and without a number before it (`2 fear`)."""
    lower = text.strip().lower()
    return [lower, re.sub(r"^[\d\s._-]+", "", lower)]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,18}", text) is not None


def _unknown_labels(labels: Mapping[str, int], place: str, which: list[str], why: str) -> UserError:
    """The error for labels without a class; it shows the flag to write."""
    numbers = sorted((k for k in labels if _is_number(k)), key=int)
    names = [c for k in labels if not _is_number(k) and (c := _candidates(k)[-1] or k)]
    wanted = [f"NAME_OF_{k}" for k in numbers] + sorted(dict.fromkeys(names))
    flag = f"--classes {shlex.quote(','.join(wanted))}"
    if len(flag) > _LONGEST_FLAG:
        flag = "--classes FILE.csv (label in the data,class name)"
    shown = ", ".join(repr(k[:30]) for k in which[:_SHOWN])
    more = f" and {len(which) - _SHOWN} more" if len(which) > _SHOWN else ""
    return UserError(
        f"{place}: {shown}{more}: {why}; state what the labels mean: {flag}; or rename them"
    )
