"""Files that commands write: their hashes, and a user's that they must not replace."""

from __future__ import annotations

import hashlib
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


def hashes(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.suffix in (".h5", ".json") and p.name[0] != "."  # trainings note checksums there
    }
