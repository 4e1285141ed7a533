"""Configuration of a GAN run. The types of the fields are read, so they are not postponed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.fields import check_fields, required, runtime, science

GAN_SIDES = (32, 64, 128, 256)  # pixels of the faces that its networks take


@dataclass(frozen=True)
class GanConfig:
    """Train the GAN for expression transfer. The same command on the same --run continues it.

    It takes a neutral face and another person's expression, and gives the neutral face with it.
    """

    data: Path = required("folder of shards of 32, 64, 128 or 256 pixels", group="data")
    run: Path = required("run folder; created, or continued where it stopped", group="run")
    balanced: bool = science(True, "improved: draw every expression equally often", group="data")
    stage: Path | None = runtime(
        None, "node-local folder to copy the shards to and verify them in; default: no copy"
    )

    mode: Literal["improved", "paper"] = science(
        "improved", "paper: networks and losses of the AffectNet report", group="model"
    )
    feature_weight: float = science(
        5.0, "improved: weight of the loss on the discriminator's features", low=0
    )
    expression_weight: float = science(
        2.0, "improved: weight of the loss of the expression classifier", low=0
    )
    identity_weight: float = science(
        0.5, "improved: weight of the loss that keeps the neutral face's identity", low=0
    )
    reconstruction_weight: float = science(
        2.0, "improved: weight of reconstructing a neutral face that is both inputs", low=0
    )
    ema: float = science(
        0.999,
        "improved: decay per step of the generator's moving average; 0: none",
        low=0,
        high=0.999999,
    )

    epochs: int = science(
        50, "passes over the expressive train faces; may be raised later", low=1, group="optimiser"
    )
    batch_size: int = science(8, "pairs per step, over all ranks", low=1)
    lr: float = science(
        2e-4,
        "learning rate of Adam; improved: x 4 for the discriminator, x 5 for supervised parts",
        low=0,
    )
    warmup: float = science(
        0.5,
        "improved: share of epoch 1 that trains only the classifier and expression encoder",
        low=0,
        high=0.9,
    )

    precision: Literal["auto", "fp32", "bf16"] = science(
        "auto", "auto: bf16 where the hardware supports it, else fp32", group="precision"
    )
    device: Literal["auto", "cpu", "cuda"] = runtime(
        "auto", "auto: cuda if there is a GPU, else cpu"
    )
    backend: Literal["auto", "gloo"] = runtime(
        "auto", "between ranks; auto: NCCL on GPUs; gloo: slower, lets ranks share a GPU"
    )
    graph: Literal["auto", "on", "off"] = runtime(
        "auto", "repeat the step as a CUDA graph; auto: with one process on a GPU"
    )
    deterministic: bool | None = science(
        None,
        "use only operations that give the same bits every time; default: on GPUs",
        same_as=False,
    )
    threads: int = science(
        0, "CPU threads per process; 0: the cores this process may use", low=0, high=4096
    )

    seed: int = science(
        0, "seed of pairs, initial weights and dropout", low=0, high=2**63 - 1, group="run"
    )
    checkpoint_every_s: float = runtime(
        0.0,
        "seconds between checkpoints; 0: 60, longer where saving would take over 1 % of the time",
        low=0,
    )
    tensorboard: bool = runtime(True, "write event files under RUN/tb")
    elastic: bool = runtime(
        False,
        "after losing ranks, go on with those left; the next start takes all again",
    )
    hang_factor: float = runtime(
        20.0, "end the process when a step takes this many times the usual; 0: never", low=0
    )
    hang_floor_s: float = runtime(300.0, "--hang-factor: smallest limit, seconds", low=1)

    def __post_init__(self) -> None:
        check_fields(self)
