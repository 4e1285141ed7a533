"""Commands that go on where their terminal or pipe has gone. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe, the terminal of a closed window or session
_has_gone = False


def is_output_gone() -> bool:
    """Whether the reader of standard output or error was found gone by `outlive_reader`."""
    return _has_gone


class _Output(io.FileIO):
    """A descriptor that writes to /dev/null from the moment when its reader has gone."""

    def write(self, data: Any) -> int:
        global _has_gone
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
        _has_gone = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return len(data)


@contextlib.contextmanager
def outlive_reader() -> Iterator[None]:
    """Let what is printed in the block go nowhere once its reader has gone: a pager, `head`, ssh.

    A training of days must not end because of that; its metrics are in its folder.
    """
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in before.items():
        if type(stream) is not io.TextIOWrapper:  # a notebook's, or absent
            continue
        stream.flush()
        raw = _Output(stream.fileno(), "w", closefd=False)
        lasting = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, lasting)
    try:
        yield
    finally:
        for name, stream in before.items():
            if stream is not None:
                getattr(sys, name).flush()
            setattr(sys, name, stream)
