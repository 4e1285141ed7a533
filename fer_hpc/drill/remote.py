"""Traps in processes that the drill does not fork: those of jobs, and Ray's workers.

The drill writes orders into a folder that FER_DRILL names in their environment. A job's interpreter
is a script that calls `main`, which sets the trap and runs the command; Ray's workers set it
when they import the drill's network. A trap of a rank strikes once, however often that rank starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import time
from dataclasses import asdict
from pathlib import Path

from fer_hpc.drill.trap import Armed, Probe, Trap
from fer_hpc.files import read_json, write_json

VARIABLE = "FER_DRILL"
HOLD_S = 180.0  # after which a held process goes on, whatever the drill does
RANK_VARIABLES = ("RANK", "SLURM_PROCID")
NOT_STRUCK = ("begin", "end")  # what launch.sh asks before and after the command


class Orders:
    """A folder of orders, and of marks that the struck processes leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def write(cls, folder: Path, work: Path, traps: dict[int, Trap]) -> Orders:
        """Orders for the processes that write into `work`; a trap for each rank that is struck."""
        folder.mkdir(parents=True)
        listed = {str(rank): asdict(trap) for rank, trap in traps.items()}
        write_json(folder / "orders.json", {"work": str(work), "traps": listed})
        return cls(folder)

    def read(self, rank: int) -> tuple[Path, Trap | None]:
        """(folder of the command, the trap of a rank)."""
        record = read_json(self.folder / "orders.json") or {"work": "/", "traps": {}}
        trap = record["traps"].get(str(rank))
        return Path(record["work"]), Trap(**trap) if trap else None

    def strike(self, rank: int, images: int) -> bool:
        """Note that the trap of a rank strikes; False where it has struck before."""
        try:
            with (self.folder / f"struck-{rank}").open("x") as file:
                json.dump({"images": images}, file)
        except FileExistsError:
            return False
        return True

    def struck(self) -> dict[int, tuple[int, float]]:
        """(images seen, seconds since 1970) of every strike, by rank."""
        strikes = {}
        for path in self.folder.glob("struck-*"):
            images = (read_json(path) or {"images": 0})["images"]
            strikes[int(path.name.partition("-")[2])] = images, path.stat().st_mtime
        return strikes

    def release(self) -> None:
        """Let the held processes go on; the strike counts from now."""
        (self.folder / "go").touch()
        for path in self.folder.glob("struck-*"):
            path.touch()

    def passed(self) -> float | None:
        """When rank 0 was again where it had been struck, seconds since 1970."""
        path = self.folder / "passed"
        return path.stat().st_mtime if path.exists() else None

    def processes(self) -> list[int]:
        """Living processes, seen from this machine, that have these orders."""
        mark, pids = f"{VARIABLE}={self.folder}".encode(), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        pids.append(int(entry.name))
        return pids


class _Marks(Probe):
    """What an armed process knows of its steps; notes when it is where it was struck before."""

    def __init__(self, orders: Orders, rank: int) -> None:
        self.orders, self.images = orders, 0
        struck = orders.struck().get(rank) if rank == 0 else None
        self.target = struck[0] if struck else 0

    def step(self, images_seen: int) -> None:
        self.images = images_seen
        if self.target and images_seen >= self.target:
            self.target = 0
            (self.orders.folder / "passed").touch()

    def strike(self) -> None:
        """The mark is made by Orders.strike."""


class _Posted(Armed):
    """A trap that strikes a rank once over all of its starts."""

    def __init__(self, orders: Orders, rank: int) -> None:
        folder, trap = orders.read(rank)
        self.orders, self.rank = orders, rank
        self.marks = _Marks(orders, rank)
        super().__init__(None if rank in orders.struck() else trap, folder, self.marks)

    def set(self) -> None:
        if (
            self.trap
            and self.trap.what in ("limit", "tear")
            and not self.orders.strike(self.rank, 0)
        ):
            self.trap = None
        super().set()

    def _strike(self, path: str) -> None:
        again = self.struck and self.trap is not None and self.trap.what == "error"
        if not again and not self.orders.strike(self.rank, self.marks.images):
            self.struck, self.trap = True, None
            return
        if self.trap and self.trap.what == "hold":
            self.struck = True
            deadline = time.monotonic() + HOLD_S
            while not (self.orders.folder / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            return
        super()._strike(path)


_armed: list[_Posted] = []  # one for a process


def arm() -> None:
    """Set the trap that the orders hold for this process; nothing where it has none."""
    folder = os.environ.get(VARIABLE)
    if folder and not _armed and Path(folder).is_dir():
        rank = next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), 0)
        _armed.append(_Posted(Orders(Path(folder)), rank))
        _armed[0].set()


def main() -> None:
    """In place of an interpreter, with `-m fer_hpc VERB ...`: the command, with its trap set."""
    args = sys.argv[1:]
    if args[:2] != ["-m", "fer_hpc"]:
        os.execv(sys.executable, [sys.executable, *args])
    if args[2] not in NOT_STRUCK:
        arm()
    sys.argv = ["fer-hpc", *args[2:]]
    runpy.run_module("fer_hpc", run_name="__main__", alter_sys=True)
