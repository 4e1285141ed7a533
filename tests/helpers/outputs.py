"""Files of a user that a command must not replace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess


def assert_kept(
    fer: Callable[..., CompletedProcess[str]], path: Path, *args: object, content: bytes = b"mine\n"
) -> None:
    """The command refuses to write, names `path`, and leaves its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    done = fer(*args)
    assert done.returncode == 2, done.stdout
    assert f"{path} " in done.stderr
    assert "would be replaced: give another --" in done.stderr or "may be replaced" in done.stderr
    assert path.read_bytes() == content
    path.unlink()
