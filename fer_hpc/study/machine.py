"""What this machine has for the parts of a study, and which of them fit beside each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from fer_hpc.parallel.gpus import gpus_here, small_trainings_on
from fer_hpc.parallel.mps import multi_process_service
from fer_hpc.study.graph import Part
from fer_hpc.sweep.ray_nodes import temporary_folder

SMALL_MEMORY_GB = 2.0  # of a small training at most, in main memory


@dataclass
class Room:
    """The cores and GPUs that are taken, by part."""

    cores: int
    gpus: dict[str, float] = field(default_factory=dict)  # as CUDA_VISIBLE_DEVICES -> GB
    memory_gb: float = 0.0
    taken: dict[str, tuple[int, str, bool]] = field(default_factory=dict)  # cores, GPU, alone
    shared: dict[str, str] = field(default_factory=dict)  # environment of parts that share a GPU

    def place(self, part: Part) -> dict[str, str] | None:
        """Take the room for a part: what its environment gets, or None where it does not fit."""
        uses_gpu = bool(self.gpus) and part.kind in ("train", "gan", "val", "test")
        takes_all = part.kind in ("shards", "grid") or (part.alone and not uses_gpu)
        if takes_all:
            if self.taken:
                return None
            self.taken[part.name] = (self.cores, "", True)
            return {}
        if any(everything for _, gpu, everything in self.taken.values() if not gpu):
            return None
        cores = min(max(part.threads, 1), self.cores)
        if sum(part_cores for part_cores, _, _ in self.taken.values()) + cores > self.cores:
            return None
        if not uses_gpu:
            if len(self.taken) + 1 > max(1.0, self.memory_gb / SMALL_MEMORY_GB):
                return None
            self.taken[part.name] = (cores, "", False)
            return {}
        on = {
            gpu: [alone for _, name, alone in self.taken.values() if name == gpu]
            for gpu in self.gpus
        }
        for gpu, alone_flags in sorted(on.items(), key=lambda item: len(item[1])):  # the emptiest
            room = 1 if part.alone else small_trainings_on(self.gpus[gpu])
            if any(alone_flags) or len(alone_flags) >= room:
                continue
            self.taken[part.name] = (cores, gpu, part.alone)
            variables = {"CUDA_VISIBLE_DEVICES": gpu}
            if "CUDA_VISIBLE_DEVICES" not in os.environ:  # then `gpu` is nvidia-smi's number,
                variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # and CUDA's begin with the fastest
            if not part.alone:
                variables |= {"FER_PROCESSES_PER_GPU": str(room), **self.shared}
            return variables
        return None

    @contextlib.contextmanager
    def open(self) -> Iterator[Room]:
        """The room, while the service runs with which parts on one GPU compute at the same time."""
        if not self.gpus:
            yield self
            return
        with temporary_folder("mps-") as folder, multi_process_service(folder) as self.shared:
            yield self

    def occupy(self, part: Part, gpu: str = "") -> None:
        """Count a part that runs already, on this GPU, whether it fits or not."""
        if gpu in self.gpus:
            self.taken[part.name] = (max(part.threads, 1), gpu, part.alone)
        elif self.place(part) is None:
            self.taken[part.name] = (max(part.threads, 1), "", False)

    def leave(self, name: str) -> None:
        self.taken.pop(name, None)


def this_machine() -> Room:
    """The cores that this process may use, the memory, and the GPUs that it sees."""
    cores = len(os.sched_getaffinity(0))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Room(cores, gpus_here(), pages / 1e9)
