"""The code of a job, kept from edits: a copy by content hash that each of its starts uses.

A job may wait for days and start several times. An edit of the checkout meanwhile would change it.
The copies are in RUNS/.code, one for each version of the code; a file for each job says which.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from fer_hpc.files import write_json
from fer_hpc.run.version import COPY_VERSION, code_version

PACKAGE = Path(__file__).parents[1]


def code_root(results: Path) -> Path:
    """The folder of the copies: on the storage of the runs, which every node sees."""
    return Path(os.environ.get("FER_RUNS") or results.absolute().parent) / ".code"


def keep_code(root: Path) -> Path:
    """The folder with the copy of this package: under `root`, or this one where it is a copy."""
    if (PACKAGE / COPY_VERSION).exists():
        return PACKAGE.parent
    files = {f"fer_hpc/{p.relative_to(PACKAGE)}": p for p in _sources(PACKAGE)}
    contents = {name: path.read_bytes() for name, path in sorted(files.items())}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    copy = root / digest.hexdigest()[:16]
    if copy.exists():
        return copy
    temporary = root / f".{copy.name}.{os.getpid()}.tmp"
    for name, content in contents.items():
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_json(temporary / "fer_hpc" / COPY_VERSION, code_version())
    try:
        temporary.rename(copy)
    except OSError:  # another job was first
        shutil.rmtree(temporary, ignore_errors=True)
    return copy


def _sources(folder: Path) -> list[Path]:
    """All files but what Python and editors leave beside them."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.parent.name != "__pycache__")
    return [p for p in files if not p.name.startswith(".") and not p.name.endswith("~")]


def pointer(root: Path, scheduler: str, job: str) -> Path:
    """The file in which launch.sh finds the copy of a job that starts again."""
    return root / "starts" / f"{scheduler}-{job}"


def write_pointer(path: Path, copy: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(f"{copy}\n")
    temporary.replace(path)
