"""A small file system of its own that runs full, where this process may mount one."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from fer_hpc.config import EXIT_FINISHED
from fer_hpc.drill.case import Case, Failed
from fer_hpc.drill.places import set_up, size_to_cut
from fer_hpc.drill.trap import Trap

MS_REMOUNT, MNT_DETACH = 32, 2
ENOUGH = 2**30
LEAST = 16 * 2**10


def small_disk(case: Case) -> None:
    """The folder of the work is a file system that is too small; then it gets room."""
    wanted = sum(p.stat().st_size for p in case.reference.rglob("*") if p.is_file())
    size = case.random.randint(LEAST, max(wanted, 2 * LEAST))
    set_up(case)
    if not _mounted(case, size):
        limit = size_to_cut(case)
        case.detail = f"no right to mount: no file may have more than {limit:,} bytes"
        case.strike({0: Trap("begin", "limit", limit)})
        return
    case.detail = f"a disk of {size // 1024:,} KB, then enlarged"
    start = case.begin()
    case.ended(start, orderly=True)
    case.struck = start.code != EXIT_FINISHED or "No space" in start.text()
    if _mount(case.work, ENOUGH, MS_REMOUNT):
        raise Failed("the small disk could not be enlarged")


def _mounted(case: Case, size: int) -> bool:
    """Have the folder of the work on a small disk, with what is in it; False without the right."""
    content = case.folder / "before"
    if case.work.exists():
        case.work.rename(content)
        size += sum(p.stat().st_size + 4096 for p in content.rglob("*") if p.is_file())
    case.work.mkdir()
    mounted = _mount(case.work, size) == 0
    if mounted:
        case.undo.append(lambda: _unmount(case.work))
    for path in content.glob("*") if content.exists() else ():
        _copy(path, case.work / path.name)
    if not mounted and not any(case.work.iterdir()):
        case.work.rmdir()
    return mounted


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copy2(path, target)


def _mount(folder: Path, size: int, flags: int = 0) -> int:
    """Mount a tmpfs of `size` bytes; 0, or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size},mode=755".encode()
    done = libc.mount(b"drill", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), options)
    return ctypes.get_errno() if done else 0


def release(folder: Path) -> None:
    """Unmount what a drill that was killed has left mounted on a folder; its files are dropped."""
    if folder.is_mount():
        ctypes.CDLL(None).umount2(os.fsencode(folder), MNT_DETACH)


def _unmount(folder: Path) -> None:
    """Unmount, and keep the files for those who look at a fault that was not survived."""
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept, symlinks=True)
    ctypes.CDLL(None).umount2(os.fsencode(folder), MNT_DETACH)
    shutil.copytree(kept, folder, dirs_exist_ok=True, symlinks=True)
    shutil.rmtree(kept)
