"""What a run is: one frozen dataclass, the presets, their checks and their identity. Standard library only.

Every field is marked `science` (it decides the numbers; compared on resume and hashed) or `runtime` (where and how the
run happens; free to change between starts).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

SCHEMA = 1  # raise it when the meaning of a science field changes

# Canonical class names, in AffectNet's order. A data set's classes are a subset of these, in this order.
CLASSES = ("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger", "Contempt")

# Exit codes of every command. 75 is sysexits' EX_TEMPFAIL: the same command will go on where this one stopped.
EXIT_FINISHED, EXIT_CRASHED, EXIT_USER_ERROR, EXIT_FINDINGS, EXIT_TAKEN_OVER, EXIT_RUN_AGAIN = 0, 1, 2, 3, 4, 75


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; printed as one message, never as a traceback."""


def science(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"kind": "science"})


def runtime(default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"kind": "runtime"})


Metric = Literal["train_loss", "train_accuracy", "val_loss", "val_accuracy"]


@dataclass(frozen=True)
class TrainConfig:
    """Train a facial-expression classifier. The same command on the same --run continues it."""

    data: Path = runtime()  # folder of shards, made by fer_hpc.preprocess
    run: Path = runtime()  # run folder; created, or continued where it stopped
    model: str = science("cnn_improved")  # network, one of fer_hpc.models.MODELS
    seed: int = science(0)  # of sample order, augmentation, initial weights and dropout
    epochs: int = science(100)  # passes over the training split; may grow on resume (not with cosine)
    batch_size: int = science(64)  # images per step, over all ranks and accumulation
    optimizer: Literal["sgd", "adamw"] = science("sgd")  # sgd has Nesterov's momentum
    lr: float = science(0.001)  # learning rate at the start
    momentum: float = science(0.9)  # of sgd
    weight_decay: float = science(0.0)  # on all weights: L2 with sgd, decoupled with adamw
    schedule: Literal["plateau", "cosine"] = science("plateau")  # of the learning rate
    warmup_epochs: float = science(0.0)  # cosine: epochs in which it rises from 0 to --lr
    plateau_on: Metric = science("train_loss")  # plateau: metric whose stall lowers the learning rate
    plateau_factor: float = science(0.5)  # plateau: the learning rate is multiplied by this; 1 keeps it constant
    plateau_patience: int = science(10)  # plateau: epochs without gain before that
    lr_min: float = science(1e-5)  # the learning rate never falls below
    best_on: Metric = science("val_accuracy")  # metric that chooses the best weights
    early_stop: int = science(0)  # stop after so many epochs without gain in --best-on; 0: never
    label_smoothing: float = science(0.0)  # share of the target that all classes get alike
    class_weights: float = science(0.0)  # weigh classes by N / (K n_c), at most by this; 0: all alike
    balanced: bool = science(False)  # draw every class equally often
    va_weight: float = science(0.0)  # weight of the valence/arousal head's squared error; 0: no such head
    ema: float = science(0.0)  # share kept per step by a moving average of the weights, which is what is scored; 0: none
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
    mixup: float = science(0.0)  # blend each image and label with another's, share drawn from Beta(mixup, mixup)
    shard_window: int = science(0)  # 0: shuffle all images at once; k: k shards at a time, for sets larger than memory
    freeze_bn: bool = science(False)  # leave batch norm's running statistics as they are, and use them
    sync_bn: bool = science(False)  # batch norm over all ranks' images; needs GPUs
    compile: bool = science(False)  # torch.compile the network; another rounding
    deterministic: bool = science(False)  # only operations that give the same bits every time, also on GPUs
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = science("auto")  # auto: bf16 where hardware multiplies it
    threads: int = science(0)  # CPU threads of arithmetic per process; 0: the cores this process may use
    init_hash: str = science("")  # SHA-256 of the file that --init-from means; filled in by itself
    init_from: Path | None = runtime(None)  # weights to begin with: a run folder, a .pt of ours, or a Keras .h5
    device: Literal["auto", "cpu", "cuda"] = runtime("auto")  # auto: cuda where there is one
    checkpoint_every_s: float = runtime(0.0)  # seconds between checkpoints; 0: 60, or so that they take 1 % of the time
    tensorboard: bool = runtime(True)  # write event files under RUN/tb
    profile: bool = runtime(False)  # write a torch profiler trace of a few steps into the attempt's folder
    hang_factor: float = runtime(20.0)  # end the process when a step takes so many times the usual; 0: never
    hang_floor_s: float = runtime(300.0)  # but not before so many seconds
    stage: Path | None = runtime(None)  # node-local folder that the shards are first copied to and verified in

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 1, math.inf), ("batch_size", 1, math.inf), ("seed", 0, 2**63 - 1), ("threads", 0, 4096),
            ("lr", 0, math.inf), ("momentum", 0, 1), ("weight_decay", 0, math.inf), ("plateau_patience", 1, math.inf),
            ("plateau_factor", 0, 1), ("lr_min", 0, math.inf), ("checkpoint_every_s", 0, math.inf),
            ("warmup_epochs", 0, math.inf), ("early_stop", 0, math.inf), ("label_smoothing", 0, 0.999),
            ("class_weights", 0, math.inf), ("va_weight", 0, math.inf), ("ema", 0, 0.999999), ("clip", 0, math.inf),
            ("accumulate", 1, math.inf), ("rotate", 0, 180), ("shift", 0, 1), ("scale", 0, 0.95), ("erase", 0, 1),
            ("brightness", 0, 1), ("contrast", 0, 1), ("gamma", 0, 10), ("mixup", 0, 100), ("shard_window", 0, math.inf),
            ("hang_factor", 0, math.inf), ("hang_floor_s", 1, math.inf),
        ):  # fmt: skip
            _check_range(self, name, low, high)
        if self.balanced and self.class_weights:
            raise UserError("--balanced and --class-weights both even out the classes; give one of them")
        if self.balanced and self.shard_window:
            raise UserError("--balanced draws from all shards at once; it cannot go with --shard-window")
        if self.warmup_epochs and self.schedule != "cosine":
            raise UserError("--warmup-epochs belongs to --schedule cosine")


@dataclass(frozen=True)
class GanConfig:
    """Train the expression-transfer GAN: a neutral face and another person's expression in, the neutral person with that
    expression out. The same command on the same --run continues it."""

    data: Path = runtime()  # folder of shards of 32, 64, 128 or 256 pixels, made by fer_hpc.preprocess
    run: Path = runtime()  # run folder; created, or continued where it stopped
    mode: Literal["mended", "paper"] = science("mended")  # paper: the report's losses and their weights
    seed: int = science(0)  # of pairs, initial weights and dropout
    epochs: int = science(50)  # passes over the expressive training faces; may grow on resume
    batch_size: int = science(8)  # pairs per step, over all ranks
    lr: float = science(2e-4)  # of Adam; mended: times 4 for the discriminator, times 5 for what labels teach during --warmup
    warmup: float = science(0.5)  # mended: share of the first epoch in which only the expressions of real faces are learnt
    feature_weight: float = science(5.0)  # mended: of matching the discriminator's features, pooled over the face
    expression_weight: float = science(2.0)  # mended: of the classifier's cross-entropy
    identity_weight: float = science(0.5)  # mended: of keeping the neutral face's code
    reconstruction_weight: float = science(2.0)  # mended: of giving the neutral face back where it is both inputs
    ema: float = science(0.999)  # mended: share kept per step by a moving average of the generator; 0: none
    balanced: bool = science(True)  # mended: draw every expression equally often
    precision: Literal["auto", "fp32", "bf16"] = science("auto")  # auto: bf16 where hardware multiplies it
    threads: int = science(0)  # CPU threads of arithmetic per process; 0: the cores this process may use
    deterministic: bool = science(False)  # only operations that give the same bits every time, also on GPUs
    device: Literal["auto", "cpu", "cuda"] = runtime("auto")  # auto: cuda where there is one
    checkpoint_every_s: float = runtime(0.0)  # seconds between checkpoints; 0: 60, or so that they take 1 % of the time
    tensorboard: bool = runtime(True)  # write event files under RUN/tb
    hang_factor: float = runtime(20.0)  # end the process when a step takes so many times the usual; 0: never
    hang_floor_s: float = runtime(300.0)  # but not before so many seconds
    stage: Path | None = runtime(None)  # node-local folder that the shards are first copied to and verified in

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 1, math.inf), ("batch_size", 1, math.inf), ("seed", 0, 2**63 - 1), ("threads", 0, 4096),
            ("lr", 0, math.inf), ("feature_weight", 0, math.inf), ("expression_weight", 0, math.inf), ("ema", 0, 0.999999),
            ("identity_weight", 0, math.inf), ("reconstruction_weight", 0, math.inf), ("checkpoint_every_s", 0, math.inf),
            ("hang_factor", 0, math.inf), ("hang_floor_s", 1, math.inf), ("warmup", 0, 0.9),
        ):  # fmt: skip
            _check_range(self, name, low, high)


RunConfig = TrainConfig | GanConfig


def _check_range(config: object, name: str, low: float, high: float) -> None:
    value = getattr(config, name)
    if not low <= value <= high:  # also false for NaN
        wanted = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise UserError(f"{flag(name)} {value}: wanted a number {wanted}")


# The columns that a preset does not name keep the defaults above. Source of the recipes: the report's tables, but for
# fer2013, which is ours. What was measured stands in README.md.
_BASELINE = dict(batch_size=64, lr=0.001, epochs=100, plateau_on="train_loss", plateau_factor=0.5, plateau_patience=10)
PRESETS: dict[str, dict[str, Any]] = {
    "cnn_baseline": dict(_BASELINE, model="cnn_baseline"),
    "cnn_improved": dict(_BASELINE, model="cnn_improved", batch_size=256, lr=0.01),
    "resnet_baseline": dict(_BASELINE, model="resnet_baseline"),
    "resnet_improved": dict(
        model="resnet_improved", optimizer="adamw", weight_decay=1e-5, batch_size=64, lr=1e-3, epochs=50, label_smoothing=0.1,
        flip=True, plateau_on="val_loss", plateau_factor=0.5, plateau_patience=5, lr_min=1e-6, best_on="val_loss", early_stop=7,
    ),
    "vgg": dict(
        model="vgg", batch_size=64, lr=0.01, epochs=100, weight_decay=1e-4,
        plateau_on="val_accuracy", plateau_factor=0.75, plateau_patience=5,
    ),
    "fer2013": dict(
        model="resnet_small", batch_size=128, lr=0.1, epochs=25, weight_decay=5e-4, schedule="cosine", warmup_epochs=2.0,
        lr_min=0.0, label_smoothing=0.1, ema=0.998, flip=True, rotate=10.0, shift=0.1, scale=0.15,
    ),
}  # fmt: skip


def check_divides(batch_size: int, ranks: int, accumulate: int) -> None:
    """A UserError unless every rank's share of the batch falls into `accumulate` equal parts."""
    pieces = ranks * accumulate
    if batch_size % pieces:
        lower = batch_size // pieces * pieces
        near = f"{lower} or {lower + pieces}" if lower else f"{pieces}"
        parts = f"world size {ranks}" + (f" times --accumulate {accumulate}" if accumulate > 1 else "")
        raise UserError(f"--batch-size {batch_size} does not divide by {parts}; use {near}")


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def unknown(what: str, got: str, valid: list[str]) -> UserError:
    """The error for a name that is not one of `valid`; suggests the nearest."""
    near = difflib.get_close_matches(got, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {what} {got!r}{hint} (known: {', '.join(valid)})")


def preset(name: str, **fields: Any) -> TrainConfig:
    """The configuration of preset `name` with `fields` (data and run at least) set on top."""
    if name not in PRESETS:
        raise unknown("preset", name, list(PRESETS))
    return TrainConfig(**{**PRESETS[name], **fields})


def changed_from(name: str, config: TrainConfig) -> dict[str, Any]:
    """The fields of `config` that are not what preset `name` says."""
    usual = preset(name, data=config.data, run=config.run)
    return {f.name: value for f in dataclasses.fields(config) if (value := getattr(config, f.name)) != getattr(usual, f.name)}


def fields_of(config: RunConfig, kind: str) -> dict[str, Any]:
    """The `science` or `runtime` fields as JSON-ready values."""
    return {
        f.name: str(value) if isinstance(value := getattr(config, f.name), Path) else value
        for f in dataclasses.fields(config)
        if f.metadata["kind"] == kind
    }


def said_of(config: RunConfig) -> dict[str, Any]:
    """The science fields that are not at their defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    return {name: value for name, value in fields_of(config, "science").items() if value != defaults[name]}


def science_hash(config: RunConfig, data_fingerprint: str) -> str:
    """Identity of the numbers a run will give: 12 hex digits over the non-default science fields and the data.

    Defaults are left out so that a field added later, at its default, does not orphan older runs.
    """
    text = json.dumps({"schema": SCHEMA, "data": data_fingerprint, **said_of(config)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


Run = TypeVar("Run", bound=TrainConfig | GanConfig)


def continued(config: Run, stored: dict[str, Any]) -> Run:
    """`config` as the continuation of a run whose science fields are `stored`.

    `auto` takes what the first start resolved, more epochs are welcome (the plateau schedule does not depend on their
    number); any other difference is refused by name.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    resolved: dict[str, Any] = {}
    differ: list[tuple[str, Any, Any]] = []
    for name, now in fields_of(config, "science").items():
        then = stored.get(name, defaults[name])  # a field younger than the run: it ran with the default
        automatic = now == {"precision": "auto", "threads": 0, "init_hash": ""}.get(name)
        resolved[name] = then if automatic else now
        if resolved[name] != then and not (name == "epochs" and now > then and getattr(config, "schedule", "") != "cosine"):
            differ.append((name, then, now))
    if differ:
        then_now = ", ".join(f"{said(name, then)} (now {said(name, now)})" for name, then, now in differ)
        why = (
            "this would be another experiment (epochs may grow where the schedule does not depend on them)"
            if differ[0][0] == "epochs"
            else "this would be another experiment"
        )
        raise UserError(
            f"{config.run} was started with {then_now}: {why}; use another --run folder, or the first start's flags"
        )
    return dataclasses.replace(config, **resolved)


def said(field: str, value: Any) -> str:
    """A field's value as one types it."""
    return (flag(field) if value else flag("no_" + field)) if isinstance(value, bool) else f"{flag(field)} {value}"
