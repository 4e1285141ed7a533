"""Configuration of a training of a classifier. Standard library only.

The types of the fields are read by the command line and the checks, so they are not postponed
(no `from __future__ import annotations` here).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_hpc.config.errors import UserError
from fer_hpc.config.fields import check_fields, required, runtime, science

Metric = Literal["train_loss", "train_accuracy", "val_loss", "val_accuracy"]


@dataclass(frozen=True)
class TrainConfig:
    """Train a facial-expression classifier. The same command on the same --run continues it."""

    data: Path = required("folder of shards, made by fer-hpc preprocess", group="data")
    run: Path = required("run folder; created, or continued where it stopped", group="run")

    balanced: bool = science(False, "draw every class equally often", group="data")
    shard_window: int = science(
        0, "shards shuffled at a time, for data larger than memory; 0: all", low=0
    )
    stage: Path | None = runtime(
        None, "node-local folder to copy the shards to and verify them in; default: no copy"
    )

    model: str = science("cnn_improved", "network: built in, or from a plugin", group="model")
    pretrained: bool = science(False, "timm networks: start from timm's own weights")
    init_from: Path | None = runtime(
        None,
        "initial weights: a run folder, .pt, .pth, .safetensors or Keras .h5; default: random",
        file=True,
    )
    plugin: tuple[Path, ...] = runtime(
        (), "Python files that register networks or losses", repeat=True, file=True
    )
    loss: str = science("cross_entropy", "loss: built in, or from a plugin")
    label_smoothing: float = science(
        0.0, "share of the target that is spread over all classes", low=0, high=0.999
    )
    class_weights: float = science(
        0.0, "upper limit of class weights N / (classes x n of the class); 0: all weights 1", low=0
    )
    va_weight: float = science(
        0.0, "weight of the loss of valence and arousal (squared error); 0: not trained", low=0
    )
    freeze_bn: bool = science(
        False, "batch norm: use the running statistics and do not update them"
    )
    bn_images: int = science(
        0,
        "training images that batch norm's statistics come from at validation; 0: running averages",
        low=0,
    )
    sync_bn: bool = science(False, "batch norm over the images of all ranks; needs GPUs")

    optimizer: Literal["sgd", "adamw"] = science(
        "sgd", "sgd: with Nesterov momentum; adamw: decoupled weight decay", group="optimiser"
    )
    batch_size: int = science(64, "images per step, over all ranks and parts", low=1)
    accumulate: int = science(
        1, "split a rank's share of a batch into this many parts, to save memory", low=1
    )
    lr: float = science(0.001, "initial learning rate", low=0)
    momentum: float = science(0.9, "sgd: momentum", low=0, high=1)
    weight_decay: float = science(0.0, "weight decay; sgd: as an L2 term of the loss", low=0)
    clip: float = science(0.0, "largest norm of the gradient; 0: unlimited", low=0)
    ema: float = science(
        0.0,
        "decay per step of the moving average of the weights, which is scored; 0: none",
        low=0,
        high=0.999999,
    )

    epochs: int = science(
        100,
        "passes over the train split; may be raised later, not with cosine",
        low=1,
        group="schedule",
    )
    schedule: Literal["plateau", "cosine"] = science(
        "plateau", "of the learning rate; plateau: falls when --plateau-on stops improving"
    )
    warmup_epochs: float = science(
        0.0, "cosine: epochs in which the learning rate rises from 0 to --lr", low=0
    )
    plateau_on: Metric = science("train_loss", "plateau: metric that must improve")
    plateau_factor: float = science(
        0.5, "plateau: the learning rate is multiplied by this; 1: constant", low=0, high=1
    )
    plateau_patience: int = science(
        10, "plateau: epochs without improvement before the learning rate falls", low=1
    )
    lr_min: float = science(1e-5, "smallest learning rate", low=0)
    best_on: Metric = science("val_accuracy", "metric that selects the best weights")
    early_stop: int = science(
        0, "stop after this many epochs without improvement of --best-on; 0: never", low=0
    )

    flip: bool = science(False, "mirror half of the training images", group="augmentation")
    rotate: float = science(0.0, "largest rotation in either direction, degrees", low=0, high=180)
    shift: float = science(0.0, "largest shift in each direction, share of the side", low=0, high=1)
    scale: float = science(0.0, "largest change of size; 0.2: 0.8 to 1.2 times", low=0, high=0.95)
    erase: float = science(
        0.0, "share of images in which a rectangle is replaced by gray", low=0, high=1
    )
    brightness: float = science(
        0.0, "largest change of brightness, up or down, share of the range", low=0, high=1
    )
    contrast: float = science(0.0, "largest change of contrast, up or down, share", low=0, high=1)
    gamma: float = science(
        0.0, "tone curve with an exponent from 1 / (1 + gamma) to 1 + gamma", low=0, high=10
    )
    mixup: float = science(
        0.0, "blend pairs of images with a share from Beta(mixup, mixup); 0: never", low=0, high=100
    )

    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "fp64"] = science(
        "auto", "auto: bf16 where the hardware supports it, else fp32", group="precision"
    )
    device: Literal["auto", "cpu", "cuda"] = runtime(
        "auto", "auto: cuda if there is a GPU, else cpu"
    )
    backend: Literal["auto", "gloo"] = runtime(
        "auto", "between ranks; auto: NCCL on GPUs; gloo: slower, lets ranks share a GPU"
    )
    compile: bool = science(False, "use torch.compile; the results round differently")
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
        0,
        "seed of sample order, augmentation, initial weights and dropout",
        low=0,
        high=2**63 - 1,
        group="run",
    )
    checkpoint_every_s: float = runtime(
        0.0,
        "seconds between checkpoints; 0: 60, longer where saving would take over 1 % of the time",
        low=0,
    )
    tensorboard: bool = runtime(True, "write event files under RUN/tb")
    projector_faces: int = runtime(
        0, "val faces to show in TensorBoard's projector at the end; 1,000 take some 2 MB", low=0
    )
    profile: bool = runtime(False, "write a torch profiler trace of a few steps")
    elastic: bool = runtime(
        False,
        "after losing ranks, go on with those left; the next start takes all again",
    )
    hang_factor: float = runtime(
        20.0, "end the process when a step takes this many times the usual; 0: never", low=0
    )
    hang_floor_s: float = runtime(300.0, "--hang-factor: smallest limit, seconds", low=1)
    init_hash: str = science("", "SHA-256 of the file that --init-from means", hidden=True)
    plugin_hash: str = science("", "SHA-256 of the plugins of --model and --loss", hidden=True)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.balanced and self.class_weights:
            raise UserError(
                "--balanced and --class-weights both balance the classes; give one of them"
            )
        if self.balanced and self.shard_window:
            raise UserError(
                "--balanced draws from all shards and cannot be combined with --shard-window"
            )
        if self.warmup_epochs and self.schedule != "cosine":
            raise UserError("--warmup-epochs needs --schedule cosine")


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


def ranks_that_fit(batch_size: int, accumulate: int, ranks: int, per_node: int = 1) -> int:
    """The largest number of ranks up to `ranks`, in whole nodes, among which a batch divides.

    0 where there is none.
    """
    counts = range(ranks // per_node * per_node, 0, -per_node)
    return next((n for n in counts if batch_size % (n * accumulate) == 0), 0)
