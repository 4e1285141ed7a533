"""Which split a folder, a file or a cell of a table names."""

from __future__ import annotations

import re

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "publictest": "val",
    "testpublic": "val",
    "test": "test",
    "testing": "test",
    "privatetest": "test",
    "testprivate": "test",
}


def split_of(name: str) -> str:
    """train, val or test where a name means one, in any case and punctuation; else ""."""
    return SPLIT_NAMES.get(re.sub(r"[^a-z]", "", name.lower()), "")


def named_split(part: str) -> str:
    """The same, where a name may also have a set's name around it: `val_set`, `FER2013Train`."""
    words = re.sub(r"[^a-z]|fer|set|images|class|data", "", part.lower())
    return SPLIT_NAMES.get(words, "")
