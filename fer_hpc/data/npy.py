"""Arrays in .npy files that anyone may have written: nothing is unpickled, nothing large is made.

numpy reads a header with Python's tokenizer and parser, whose errors are of many kinds.
"""

from __future__ import annotations

import io
import struct
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BAD_ARRAY = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RecursionError,
    KeyError,
    AttributeError,
    IndexError,
    SystemError,  # text with characters that there are not
    struct.error,
    tokenize.TokenError,
)


def small_array(data: bytes) -> NDArray[Any]:
    """The array in the bytes of a small .npy file; raises one of BAD_ARRAY."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0}
    shape, _, dtype = read.get(version, np.lib.format.read_array_header_2_0)(stream)
    if dtype.hasobject or dtype.kind not in "biufUS" or min(shape, default=0) < 0:
        raise ValueError("not an array of numbers or text")
    count = 1
    for side in shape:
        count *= side
    if count * dtype.itemsize > len(data) - stream.tell():
        raise ValueError("cut off")
    return np.frombuffer(data, dtype, count, stream.tell()).reshape(shape)


def mapped_array(path: Path) -> NDArray[Any]:
    """A mapped array of numbers of any size; raises one of BAD_ARRAY."""
    array = np.lib.format.open_memmap(path, mode="r")
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ValueError("not an array of numbers")
    return array
