"""The version of the code that runs. Standard library only."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from fer_hpc import __version__
from fer_hpc.files import read_json

COPY_VERSION = "copied.json"  # in a job's copy of this package: the version of the original


def code_version() -> dict[str, str]:
    """Version, and in a git checkout the commit and a hash of what differs from it."""
    folder = Path(__file__).parents[1]
    copied = read_json(folder / COPY_VERSION)
    if isinstance(copied, dict):
        return copied
    version = {"version": __version__}
    try:
        git = ["git", "-C", str(folder)]
        # Installed below somebody else's checkout, the commit would be theirs.
        tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        diff = subprocess.run(
            [*git, "diff", "HEAD", "--", "."], capture_output=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return version
    return {
        **version,
        "commit": commit.stdout.strip(),
        "diff": hashlib.sha256(diff).hexdigest()[:12] if diff else "",
    }
