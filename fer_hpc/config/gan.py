"""Configuration of a GAN run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.fields import check_range, runtime, science


@dataclass(frozen=True)
class GanConfig:
    """Train the expression-transfer GAN: a neutral face and another person's expression in, the neutral person with that
    expression out. The same command on the same --run continues it."""

    data: Path = (
        runtime()
    )  # folder of shards of 32, 64, 128 or 256 pixels, made by fer_hpc.preprocess
    run: Path = runtime()  # run folder; created, or continued where it stopped
    mode: Literal["improved", "paper"] = science(
        "improved"
    )  # paper: the report's losses and their weights
    seed: int = science(0)  # of pairs, initial weights and dropout
    epochs: int = science(50)  # passes over the expressive training faces; may grow on resume
    batch_size: int = science(8)  # pairs per step, over all ranks
    lr: float = science(
        2e-4
    )  # of Adam; improved: times 4 for the discriminator, times 5 for what labels teach during --warmup
    warmup: float = science(
        0.5
    )  # improved: share of the first epoch in which only the expressions of real faces are learnt
    feature_weight: float = science(
        5.0
    )  # improved: of matching the discriminator's features, pooled over the face
    expression_weight: float = science(2.0)  # improved: of the classifier's cross-entropy
    identity_weight: float = science(0.5)  # improved: of keeping the neutral face's code
    reconstruction_weight: float = science(
        2.0
    )  # improved: of giving the neutral face back where it is both inputs
    ema: float = science(
        0.999
    )  # improved: share kept per step by a moving average of the generator; 0: none
    balanced: bool = science(True)  # improved: draw every expression equally often
    precision: Literal["auto", "fp32", "bf16"] = science(
        "auto"
    )  # auto: bf16 where hardware multiplies it
    threads: int = science(
        0
    )  # CPU threads of arithmetic per process; 0: the cores this process may use
    deterministic: bool = science(
        False
    )  # only operations that give the same bits every time, also on GPUs
    device: Literal["auto", "cpu", "cuda"] = runtime("auto")  # auto: cuda where there is one
    checkpoint_every_s: float = runtime(
        0.0
    )  # seconds between checkpoints; 0: 60, or so that they take 1 % of the time
    tensorboard: bool = runtime(True)  # write event files under RUN/tb
    hang_factor: float = runtime(
        20.0
    )  # end the process when a step takes so many times the usual; 0: never
    hang_floor_s: float = runtime(300.0)  # but not before so many seconds
    stage: Path | None = runtime(
        None
    )  # node-local folder that the shards are first copied to and verified in

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 1, math.inf),
            ("batch_size", 1, math.inf),
            ("seed", 0, 2**63 - 1),
            ("threads", 0, 4096),
            ("lr", 0, math.inf),
            ("feature_weight", 0, math.inf),
            ("expression_weight", 0, math.inf),
            ("ema", 0, 0.999999),
            ("identity_weight", 0, math.inf),
            ("reconstruction_weight", 0, math.inf),
            ("checkpoint_every_s", 0, math.inf),
            ("hang_factor", 0, math.inf),
            ("hang_floor_s", 1, math.inf),
            ("warmup", 0, 0.9),
        ):
            check_range(self, name, low, high)
