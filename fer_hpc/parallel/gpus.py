"""The GPUs of this machine, and how many small trainings share one."""

from __future__ import annotations

import os
from pathlib import Path

from fer_hpc.parallel.process import output_of

PER_GPU = 4  # small trainings on one GPU: one alone waits for the host
SMALL_GPU_GB = 6.0  # of a small training at most
LARGE_SIDE = 96  # pixels from which a training keeps a GPU busy alone


def may_have_gpus() -> bool:
    """Whether this machine has GPUs that processes here may use, as far as a look tells."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return bool(visible.strip())
    return any(Path("/dev").glob("nvidia[0-9]*"))


def gpus_here() -> dict[str, float]:
    """Index or UUID of each GPU that processes here may use -> its memory in GB."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not may_have_gpus():
        return {}
    query = ("--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
    memory_by_gpu: dict[str, float] = {}
    for line in output_of("nvidia-smi", *query).splitlines():
        index, uuid, mebibytes = (part.strip() for part in line.split(",")[:3])
        wanted = visible.split(",") if visible else [index]
        name = next((w for w in wanted if w.strip() in (index, uuid)), None)
        if name is not None and mebibytes.isdigit():
            memory_by_gpu[name.strip()] = int(mebibytes) * 1024**2 / 1e9
    return memory_by_gpu


def small_trainings_on(memory_gb: float) -> int:
    """How many small trainings share a GPU of so much memory."""
    return min(PER_GPU, int(memory_gb / SMALL_GPU_GB) or 1)
