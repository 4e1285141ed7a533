"""A site's own folder of batch scripts, for a package that was installed without its checkout.

The package has slurm/, sge/ and jobs/ as site_files: links to the checkout's, or in an installed
package the files themselves.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from pathlib import Path

from fer_hpc import __version__
from fer_hpc.config import UserError
from fer_hpc.files import read_json, write_bytes, write_json

SITE_FILES = Path(__file__).parents[1] / "site_files"
FOLDERS = ("slurm", "sge", "jobs")
RECORD = ".fer-hpc-init.json"  # in SITE: the SHA-256 of each file as init last offered it
PYTHON_LINE = "    fer_python=(python3)\n"  # in env.sh: the interpreter where nothing names one


def init(site: Path) -> list[str]:
    """Write the scripts of this version into `site`; gives what was done, in lines of text.

    A file that is not as an earlier init wrote it is kept, and the new version written beside it
    as NAME.new, once. Raises UserError, before anything is written, if `site` is the checkout of
    this package, or if a NAME.new was edited that a newer one would replace.
    """
    launch = site / "slurm" / "launch.sh"
    if launch.exists() and launch.samefile(SITE_FILES / "slurm" / "launch.sh"):
        raise UserError(
            f"{site} is the checkout of this package: its slurm/, sge/ and jobs/ can be used as "
            "they are; for a copy of your own, give another folder"
        )
    shipped, offered = _shipped(), _offered(site)
    groups: dict[str, list[str]] = {"new": [], "updated": [], "unchanged": [], "kept": []}
    writes: dict[str, str] = {}  # file to write -> file of the package
    for name, content in shipped.items():
        group = _group(site / name, _hash(content), offered.get(name))
        groups[group].append(name)
        if group in ("new", "updated"):
            writes[name] = name
        elif group == "kept" and offered.get(name) != _hash(content):
            _check_replaceable(site / f"{name}.new", _hash(content), offered.get(name))
            writes[f"{name}.new"] = name
    for target, name in writes.items():
        (site / target).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(site / target, shipped[name])
        (site / target).chmod((SITE_FILES / name).stat().st_mode & 0o777 | 0o200)
    hashes = {name: _hash(content) for name, content in shipped.items()}
    write_json(site / RECORD, {"version": __version__, "offered": hashes})
    dropped = [name for name in offered if name not in shipped and (site / name).exists()]
    return [*_account(site, groups, writes, dropped), *_next_steps(site)]


def _shipped() -> dict[str, bytes]:
    """File -> content of this version; env.sh with the interpreter that runs now."""
    paths = [p for folder in FOLDERS for p in sorted((SITE_FILES / folder).glob("*.*"))]
    files = {p.relative_to(SITE_FILES).as_posix(): p.read_bytes() for p in paths}
    if not files:
        raise UserError(f"{SITE_FILES} has no files: install fer_hpc again")
    python = PYTHON_LINE.replace("python3", shlex.quote(sys.executable))
    files["slurm/env.sh"] = files["slurm/env.sh"].replace(PYTHON_LINE.encode(), python.encode())
    return files


def _offered(site: Path) -> dict[str, str]:
    """File -> SHA-256 of the version that init last wrote or put beside it. Without the record
    every file that differs counts as edited."""
    record = read_json(site / RECORD)
    hashes = record.get("offered") if isinstance(record, dict) else None
    return hashes if isinstance(hashes, dict) else {}


def _group(path: Path, new: str, offered: str | None) -> str:
    if not path.exists():
        return "new"
    present = _hash(path.read_bytes())
    if present == new:
        return "unchanged"
    return "updated" if present == offered else "kept"


def _check_replaceable(path: Path, new: str, offered: str | None) -> None:
    if path.exists() and _hash(path.read_bytes()) not in (new, offered):
        raise UserError(
            f"{path} was edited, and a newer version would replace it: rename or remove it, "
            "then run init again"
        )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _account(
    site: Path, groups: dict[str, list[str]], writes: dict[str, str], dropped: list[str]
) -> list[str]:
    counts = ", ".join(f"{len(names)} {group}" for group, names in groups.items() if names)
    lines = [f"{site}: fer_hpc {__version__}, {counts}"]
    if groups["updated"] or groups["unchanged"] or groups["kept"]:
        lines += [f"  new:      {name}" for name in groups["new"]]
    lines += [f"  updated:  {name}" for name in groups["updated"]]
    for name in groups["kept"]:
        beside = f"; the new version is {name}.new" if f"{name}.new" in writes else ""
        lines.append(f"  kept:     {name}, which was edited{beside}")
    return lines + [f"  unused:   {name}, no longer part of fer_hpc" for name in dropped]


def _next_steps(site: Path) -> list[str]:
    def path(name: str) -> str:
        return shlex.quote(str(site / name))

    job = f'python {path("jobs/train.py")} cnn_improved --data "$FER_DATA" --run "$FER_RUNS/first"'
    return [
        "next:",
        f"  edit {path('slurm/env.sh')}: modules, where faces and runs are, the interpreter",
        f"    (now {sys.executable})",
        f"  . {path('slurm/env.sh')}    # in each shell that submits",
        f"  sbatch {path('slurm/train_cnn.sh')}    # or, with Grid Engine:",
        f"  qsub {path('sge/train_cnn.sh')}    # or, from Python, with either:",
        f"  {job}",
    ]
