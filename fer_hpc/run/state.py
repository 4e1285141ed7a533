"""What a run counts and keeps: its clock, and one registry of everything that a step changes."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from fer_hpc.parallel.collectives import sum_over_ranks
from fer_hpc.parallel.world import World
from fer_hpc.run.chain import Chain, weights_digest

NO_BAD_STEP = 2**62  # value of `bad_step` while every loss was finite
UNIT = (
    2.0**32
)  # losses are summed in whole units of 1 / UNIT: integers add up to the same in any order


@dataclass(frozen=True)
class Clock:
    """A run's time is counted in images seen; every batch is full."""

    batch_size: int  # images a step, over all ranks
    epoch_images: int  # images an epoch
    epochs: int

    @property
    def total(self) -> int:
        """Images after which the run is finished."""
        return -(-self.epochs * self.epoch_images // self.batch_size) * self.batch_size

    def epoch(self, images_seen: int) -> int:
        """Number of finished epochs."""
        return images_seen // self.epoch_images

    def ends_epoch(self, images_seen: int) -> bool:
        """Whether the step that begins after `images_seen` images finishes an epoch."""
        return self.epoch(images_seen + self.batch_size) > self.epoch(images_seen)


@dataclass
class EpochTimer:
    """What this start has seen of the epoch so far: its times."""

    images_seen: int
    start: float = field(default_factory=time.monotonic)
    data_s: float = 0.0

    @contextlib.contextmanager
    def data(self) -> Iterator[None]:
        """Count the time of the body as waiting for data."""
        start = time.monotonic()
        yield
        self.data_s += time.monotonic() - start

    def elapsed_s(self) -> float:
        return time.monotonic() - self.start

    def timing(self, images_seen: int, train_s: float) -> dict[str, float]:
        """The epoch's row of timing.jsonl, called after validation; training took `train_s`."""
        return {
            "train_s": train_s,
            "val_s": self.elapsed_s() - train_s,
            "images_per_s": (images_seen - self.images_seen) / train_s,
            "data_share": self.data_s / train_s,
        }


def step_seed(seed: int, images_seen: int, rank: int) -> int:
    """Seed of the random numbers inside the networks (dropout) for one step."""
    digest = hashlib.blake2b(f"{seed} {images_seen} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Stateful(Protocol):
    """Anything with torch's way of saving: networks, optimisers, schedules, scalers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass
class TrainState:
    """All that a step changes. What is registered in `parts` is saved and loaded under its name.

    `sums` [k] int64 counts the epoch so far on this rank, losses in units of 1 / UNIT; a
    checkpoint holds the sum over the ranks.
    `bad_step` int64 is the number of images seen before this rank's first step with a loss that was
    not finite, else NO_BAD_STEP. `best` describes the best epoch so far, with its weights. `chain`
    is a hash over all steps so far.
    """

    parts: Mapping[str, Stateful]
    sums: torch.Tensor
    bad_step: torch.Tensor
    chain: Chain
    images_seen: int = 0
    best: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def fresh(parts: Mapping[str, Stateful | None], sums: int, device: torch.device) -> TrainState:
        """The state at image 0, with `sums` counters; parts that are None do not exist."""
        present = {name: part for name, part in parts.items() if part is not None}
        bad_step = torch.full((), NO_BAD_STEP, dtype=torch.int64, device=device)
        counted = torch.zeros(sums, dtype=torch.int64, device=device)
        return TrainState(present, counted, bad_step, Chain(sums, device))

    def note_bad(self, finite: torch.Tensor, images_seen: torch.Tensor) -> None:
        """Note the step that began after `images_seen` images as bad unless it is `finite` (a bool
        on the device)."""
        # a finite step counts as one after all bad ones
        self.bad_step.clamp_(max=torch.add(images_seen, finite, alpha=NO_BAD_STEP))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Everything on the device that a step changes."""
        yield from (self.sums, self.bad_step, *self.chain.tensors())
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                yield from part.parameters()
                yield from part.buffers()
            elif isinstance(part, torch.optim.Optimizer):
                held = [*part.state.values(), *part.param_groups]
                yield from (v for values in held for v in values.values() if torch.is_tensor(v))
            elif isinstance(part, torch.amp.GradScaler) and part.is_enabled():
                yield from (part._scale, part._growth_tracker)  # type: ignore[misc]

    def state_dict(self, world: World) -> dict[str, Any]:
        """What a checkpoint holds; called on all ranks together, whose sums it adds up.

        The tensors are the training's own, which the next step changes.
        """
        return {
            **{name: part.state_dict() for name, part in self.parts.items()},
            "sums": sum_over_ranks(self.sums, world),
            "chain": self.chain.state_dict(world),
            "images_seen": self.images_seen,
            "best": self.best,
        }

    def load_state_dict(self, saved: dict[str, Any], rank: int) -> None:
        """Restore `state_dict`'s content; the sums and the chain so far become rank 0's."""
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.sums.copy_(saved["sums"] if rank == 0 else torch.zeros_like(self.sums))
        self.images_seen, self.best = saved["images_seen"], saved.get("best", {})
        self.chain.load_state_dict(saved.get("chain"), self.images_seen, rank)

    def chain_row(self, world: World, clock: Clock) -> dict[str, Any]:
        """The epoch's row of chain.jsonl; on all ranks together."""
        networks = [part for part in self.parts.values() if isinstance(part, nn.Module)]
        weights = weights_digest(networks) if world.rank == 0 else ""
        return self.chain.row(
            world, self.images_seen, clock.batch_size, clock.epoch_images, weights
        )

    def final_weights(self, network: nn.Module) -> dict[str, Any]:
        """The content of final.pt: the weights of `network` on the CPU, and the clock."""
        weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
        return {"images_seen": self.images_seen, "model": weights}
