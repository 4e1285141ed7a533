"""How an exception ends a start: its state in status.json, and what advice helps."""

from __future__ import annotations

import torch

from fer_hpc.config import GanConfig, TrainConfig
from fer_hpc.parallel.collectives import PeerLost
from fer_hpc.parallel.world import World
from fer_hpc.run.attempts import Superseded


def end_state(error: BaseException) -> tuple[str, str]:
    """(state, why) of a start that `error` ended."""
    if isinstance(error, Superseded):
        return "superseded", str(error)
    if isinstance(error, PeerLost):
        return "interrupted", str(error)
    return "failed", f"{type(error).__name__}: {error}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of a GPU or the CPU was exhausted; a thread that cannot start counts."""
    texts = ("DefaultCPUAllocator: can't allocate", "can't start new thread")
    known = MemoryError | torch.OutOfMemoryError
    return isinstance(error, known) or any(text in str(error) for text in texts)


def memory_advice(config: TrainConfig | GanConfig, world: World) -> str:
    per_rank = config.batch_size // world.size
    share = f" ({per_rank} images on each of {world.size} ranks)" if world.size > 1 else ""
    instead = "--precision bf16"
    if isinstance(config, TrainConfig):
        instead = "--accumulate N, which cuts it into N parts"
    return (
        f"out of memory with --batch-size {config.batch_size}{share}: "
        f"take a smaller one, or {instead}"
    )
