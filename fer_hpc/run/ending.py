"""How an exception ends a start: its state in status.json, and what advice helps."""

from __future__ import annotations

import contextlib
import traceback

import torch

from fer_hpc.config import GanConfig, TrainConfig, UserError
from fer_hpc.config.plugins import mistake_of_plugin
from fer_hpc.files import write_text
from fer_hpc.parallel.collectives import PeerLost
from fer_hpc.parallel.world import World
from fer_hpc.run.attempts import Attempt, Superseded


class RankError(UserError):
    """A mistake that this rank alone may have met, so that each rank prints its own."""


def end_state(error: BaseException) -> tuple[str, str]:
    """(state, why) of a start that `error` ended."""
    if isinstance(error, Superseded):
        return "superseded", str(error)
    if isinstance(error, PeerLost):
        return "interrupted", str(error)
    kind = UserError if isinstance(error, UserError) else type(error)
    return "failed", f"{kind.__name__}: {error}"


def reported_error(
    error: BaseException,
    config: TrainConfig | GanConfig,
    world: World,
    attempt: Attempt | None,
) -> BaseException:
    """`error`, or the UserError that stands for it: of exhausted memory, of a plugin's mistake.

    The author of a plugin finds the traceback in the folder of the attempt.
    """
    if is_out_of_memory(error):
        return RankError(memory_advice(config, world))
    if "Expected to have finished reduction in the prior iteration" in str(error):  # of DDP
        return RankError(
            "the network leaves some of its parameters unused in some training steps, and several "
            "processes cannot average their gradients: train with one process, or let `forward` "
            "use the same parameters in every step"
        )
    mistake = mistake_of_plugin(error)
    if mistake is None:
        return error
    pointer = ""
    if attempt:
        path = attempt.path / "traceback.txt"
        with contextlib.suppress(OSError):
            write_text(path, "".join(traceback.format_exception(error)))
            pointer = f"; {path} has the traceback"
    return RankError(
        f"{mistake}{pointer}. The same command goes on from the newest checkpoint; a changed "
        "plugin file is another experiment, in another --run folder"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of a GPU or the CPU was exhausted."""
    known = MemoryError | torch.OutOfMemoryError
    return isinstance(error, known) or "DefaultCPUAllocator: can't allocate" in str(error)


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
