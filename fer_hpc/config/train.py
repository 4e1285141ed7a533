"""What a run is: one frozen dataclass, the presets, their checks and their identity. Standard library only.

Every field is marked `science` (it decides the numbers; compared on resume and hashed) or `runtime` (where and how the
run happens; free to change between starts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.errors import UserError
from fer_hpc.config.fields import check_range, runtime, science

Metric = Literal["train_loss", "train_accuracy", "val_loss", "val_accuracy"]


@dataclass(frozen=True)
class TrainConfig:
    """Train a facial-expression classifier. The same command on the same --run continues it."""

    data: Path = runtime()  # folder of shards, made by fer_hpc.preprocess
    run: Path = runtime()  # run folder; created, or continued where it stopped
    model: str = science("cnn_improved")  # network, one of fer_hpc.models.MODELS
    pretrained: bool = science(
        False
    )  # timm models: start from timm's own weights (its cache or hub)
    loss: str = science("cross_entropy")  # built in, or a name that a plugin registers
    seed: int = science(0)  # of sample order, augmentation, initial weights and dropout
    epochs: int = science(
        100
    )  # passes over the training split; may grow on resume (not with cosine)
    batch_size: int = science(64)  # images per step, over all ranks and accumulation
    optimizer: Literal["sgd", "adamw"] = science("sgd")  # sgd has Nesterov's momentum
    lr: float = science(0.001)  # learning rate at the start
    momentum: float = science(0.9)  # of sgd
    weight_decay: float = science(0.0)  # on all weights: L2 with sgd, decoupled with adamw
    schedule: Literal["plateau", "cosine"] = science("plateau")  # of the learning rate
    warmup_epochs: float = science(0.0)  # cosine: epochs in which it rises from 0 to --lr
    plateau_on: Metric = science(
        "train_loss"
    )  # plateau: metric whose stall lowers the learning rate
    plateau_factor: float = science(
        0.5
    )  # plateau: the learning rate is multiplied by this; 1 keeps it constant
    plateau_patience: int = science(10)  # plateau: epochs without gain before that
    lr_min: float = science(1e-5)  # the learning rate never falls below
    best_on: Metric = science("val_accuracy")  # metric that chooses the best weights
    early_stop: int = science(0)  # stop after so many epochs without gain in --best-on; 0: never
    label_smoothing: float = science(0.0)  # share of the target that all classes get alike
    class_weights: float = science(
        0.0
    )  # weigh classes by N / (K n_c), at most by this; 0: all alike
    balanced: bool = science(False)  # draw every class equally often
    va_weight: float = science(
        0.0
    )  # weight of the valence/arousal head's squared error; 0: no such head
    ema: float = science(
        0.0
    )  # share kept per step by a moving average of the weights, which is what is scored; 0: none
    clip: float = science(0.0)  # largest gradient norm; 0: unlimited
    accumulate: int = science(1)  # parts that a rank's share of a batch is cut into, to save memory
    flip: bool = science(False)  # mirror half of the training images
    rotate: float = science(0.0)  # turn by up to so many degrees either way
    shift: float = science(0.0)  # move by up to this share of the side, each way
    scale: float = science(0.0)  # enlarge or shrink by up to this share: 0.2 is 0.8 to 1.2 times
    erase: float = science(0.0)  # share of images in which a rectangle is grayed out
    brightness: float = science(0.0)  # add up to this share of the range, either way
    contrast: float = science(0.0)  # stretch around mid-gray by up to this share
    gamma: float = science(0.0)  # bend the tone curve: exponent 1 / (1 + gamma) to 1 + gamma
    mixup: float = science(
        0.0
    )  # blend each image and label with another's, share drawn from Beta(mixup, mixup)
    shard_window: int = science(
        0
    )  # 0: shuffle all images at once; k: k shards at a time, for sets larger than memory
    freeze_bn: bool = science(
        False
    )  # leave batch norm's running statistics as they are, and use them
    sync_bn: bool = science(False)  # batch norm over all ranks' images; needs GPUs
    compile: bool = science(False)  # torch.compile the network; another rounding
    deterministic: bool = science(
        False
    )  # only operations that give the same bits every time, also on GPUs
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = science(
        "auto"
    )  # auto: bf16 where hardware multiplies it
    threads: int = science(
        0
    )  # CPU threads of arithmetic per process; 0: the cores this process may use
    init_hash: str = science("")  # SHA-256 of the file that --init-from means; filled in by itself
    plugin_hash: str = science("")  # SHA-256 of the plugins that --model and --loss need; filled in
    plugin: tuple[Path, ...] = runtime(())  # Python files that register networks or losses
    init_from: Path | None = runtime(
        None
    )  # weights to begin with: a run folder, a .pt of ours, or a Keras .h5
    device: Literal["auto", "cpu", "cuda"] = runtime("auto")  # auto: cuda where there is one
    checkpoint_every_s: float = runtime(
        0.0
    )  # seconds between checkpoints; 0: 60, or so that they take 1 % of the time
    tensorboard: bool = runtime(True)  # write event files under RUN/tb
    profile: bool = runtime(
        False
    )  # write a torch profiler trace of a few steps into the attempt's folder
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
            ("momentum", 0, 1),
            ("weight_decay", 0, math.inf),
            ("plateau_patience", 1, math.inf),
            ("plateau_factor", 0, 1),
            ("lr_min", 0, math.inf),
            ("checkpoint_every_s", 0, math.inf),
            ("warmup_epochs", 0, math.inf),
            ("early_stop", 0, math.inf),
            ("label_smoothing", 0, 0.999),
            ("class_weights", 0, math.inf),
            ("va_weight", 0, math.inf),
            ("ema", 0, 0.999999),
            ("clip", 0, math.inf),
            ("accumulate", 1, math.inf),
            ("rotate", 0, 180),
            ("shift", 0, 1),
            ("scale", 0, 0.95),
            ("erase", 0, 1),
            ("brightness", 0, 1),
            ("contrast", 0, 1),
            ("gamma", 0, 10),
            ("mixup", 0, 100),
            ("shard_window", 0, math.inf),
            ("hang_factor", 0, math.inf),
            ("hang_floor_s", 1, math.inf),
        ):
            check_range(self, name, low, high)
        if self.balanced and self.class_weights:
            raise UserError(
                "--balanced and --class-weights both even out the classes; give one of them"
            )
        if self.balanced and self.shard_window:
            raise UserError(
                "--balanced draws from all shards at once; it cannot go with --shard-window"
            )
        if self.warmup_epochs and self.schedule != "cosine":
            raise UserError("--warmup-epochs belongs to --schedule cosine")


def check_divides(batch_size: int, ranks: int, accumulate: int) -> None:
    """A UserError unless every rank's share of the batch falls into `accumulate` equal parts."""
    pieces = ranks * accumulate
    if batch_size % pieces:
        lower = batch_size // pieces * pieces
        near = f"{lower} or {lower + pieces}" if lower else f"{pieces}"
        parts = f"world size {ranks}" + (
            f" times --accumulate {accumulate}" if accumulate > 1 else ""
        )
        raise UserError(f"--batch-size {batch_size} does not divide by {parts}; use {near}")
