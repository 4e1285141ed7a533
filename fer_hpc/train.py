"""Train a classifier: python -m fer_hpc.train PRESET --data DIR --run RUN.

The same command on the same run folder continues it; killed at any moment, it ends with the same weights and metrics
as if it had been left alone.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # the arguments are checked before torch is loaded
    from fer_hpc.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

import contextlib
import ctypes
import dataclasses
import hashlib
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fer_hpc import checkpoint, rundir
from fer_hpc.config import SCHEMA, TrainConfig, UserError, continued, fields_of, science_hash, unknown
from fer_hpc.data.augment import Augmentation
from fer_hpc.data.loader import Batch, Images, TrainLoader
from fer_hpc.data.shards import Manifest, open_split, read_manifest, staged
from fer_hpc.distributed import World
from fer_hpc.evaluate import autocast, pick_device, predict
from fer_hpc.metrics import loss_and_accuracy
from fer_hpc.models import MODELS
from fer_hpc.runlog import RunLog, environment

MAX_SAVE_SHARE = 0.01  # of the time; slow storage makes checkpoints rarer, not training slower


class Superseded(Exception):
    """Another start has claimed the run; this one wrote nothing after that which anybody reads."""


@dataclass
class State:
    """All that a step changes; what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    sums: torch.Tensor  # of the epoch so far: images, correct, loss in units of 2**-32 (integers add up exactly)
    images_seen: int = 0
    best: dict[str, Any] = field(default_factory=dict)  # value, epoch, images_seen and model of the best epoch

    def to_dict(self) -> dict[str, Any]:
        parts = ("model", "optimizer", "plateau", "scaler")
        saved = {name: getattr(self, name).state_dict() for name in parts}
        return {**saved, "sums": self.sums.cpu(), "images_seen": self.images_seen, "best": self.best}

    def load(self, saved: dict[str, Any]) -> None:
        for name in ("model", "optimizer", "plateau", "scaler"):
            getattr(self, name).load_state_dict(saved[name])
        self.sums.copy_(saved["sums"])
        self.images_seen, self.best = saved["images_seen"], saved["best"]


def train(config: TrainConfig, world: World) -> dict[str, Any]:
    """Train to the end, or until a signal asks to stop; gives the run's status ({"state": "finished" | "interrupted"}).

    Raises UserError for what the user can mend, Superseded where another start has taken the run over.
    """
    # Setup: which run this is, and the right to write it.
    if world.size > 1:
        raise UserError(f"world size {world.size}: training runs in one process so far; start it without torchrun or srun -n")
    manifest = read_manifest(config.data)
    device = pick_device(config.device, world.local_rank)
    config = _settled(config, manifest, device)
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    with _owned(config, manifest, world) as attempt, _stop_signals() as stop:
        # Data.
        here = staged(manifest, config.stage) if config.stage else manifest
        loader = train_loader(config, here, device)
        val = Images(open_split(here, "val"), device)
        total = -(-config.epochs * loader.n // config.batch_size) * config.batch_size  # images; every batch is full

        # Model, and where it stood.
        state = _fresh_state(config, manifest, device)
        parent = _restore(state, config.run)
        attempt.began(environment(world, device) | {"data": str(config.data.absolute())}, parent)
        log = RunLog(attempt, config.tensorboard, state.images_seen, total, loader.n)
        about = _about(config, manifest)
        saver = _Saver(attempt, log, config.checkpoint_every_s, about)
        where = f", from image {state.images_seen:,} of {total:,}" if parent else ""
        log.say(f"{config.run}: {config.model}, {config.precision} on {device}, attempt {attempt.number}{where}")

        # Loop: one step a turn; an epoch ends where its last image has been seen.
        epoch_began, model = (time.monotonic(), state.images_seen), state.model
        while state.images_seen < total and not stop:
            batch = loader.batch(state.images_seen)
            torch.manual_seed(_step_seed(config.seed, state.images_seen, world.rank))
            model.train()
            with autocast(config.precision, device):
                logits = model(batch.images)
            loss = loss_of(logits.float(), batch)
            state.optimizer.zero_grad(set_to_none=True)
            state.scaler.scale(loss).backward()
            state.scaler.step(state.optimizer)
            state.scaler.update()
            _add_to_sums(state.sums, loss.detach(), logits.detach(), batch.labels)
            epoch = state.images_seen // loader.n
            state.images_seen += config.batch_size

            if log.due():
                log.progress(state.images_seen, _finite(loss, state, batch, loader))
            if state.images_seen // loader.n > epoch:
                _finite(loss, state, batch, loader)
                row, timing = _end_epoch(state, config, loader.n, val, epoch_began)
                log.epoch(row, timing)
                epoch_began = time.monotonic(), state.images_seen
            if attempt.superseded():
                raise Superseded(f"{config.run}: another start has taken this run over; this one stops")
            if saver.due() and state.images_seen < total:
                _finite(loss, state, batch, loader)
                saver.save(state)

        # Close: a last checkpoint, from which more epochs may follow, and the weights for everyone else.
        saver.save(state)
        if state.images_seen < total:
            attempt.end("interrupted", f"stopped by {stop[0]}", images_seen=state.images_seen)
        else:
            _publish(attempt, state, about)
            best = {k: v for k, v in state.best.items() if k != "model"}
            attempt.end("finished", images_seen=state.images_seen, best=best)
        log.close()
    return rundir.status(config.run)


# ---- setup -----------------------------------------------------------------------------------------------------------


def keep_freed_memory() -> None:
    """Let the C library reuse freed buffers instead of returning them to the kernel.

    Activations are tens of megabytes; mapping them anew each step costs more in page faults than the arithmetic
    (docs/benchmarks.md has the figure). A no-op where the library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation by mmap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep the heap's top


def _settled(config: TrainConfig, manifest: Manifest, device: torch.device) -> TrainConfig:
    """The configuration with `auto` values resolved, checked against the data and against the run it continues."""
    if config.model not in MODELS:
        raise unknown("model", config.model, list(MODELS))
    for split in ("train", "val"):
        open_split(manifest, split)  # says so if it is absent or damaged
    height, width, _ = manifest.image_shape
    if (height, width) != (48, 48):
        raise UserError(
            f"--data {config.data} holds {height}x{width} faces, {config.model} takes 48x48; preprocess with --size 48"
        )
    if config.batch_size > manifest.n("train"):
        raise UserError(
            f"--batch-size {config.batch_size} is larger than the training split; use at most {manifest.n('train')}"
        )
    stored = rundir.read_json(config.run / "config.json")
    if stored is None and config.run.is_dir():
        strangers = [p.name for p in config.run.iterdir() if p.name not in ("attempts", "tb", "sheet.png") and p.name[0] != "."]
        if strangers:
            raise UserError(
                f"--run {config.run} holds other things ({', '.join(sorted(strangers)[:3])}, ...); give a new folder"
            )
    if stored is not None:
        if stored["data"]["fingerprint"] != manifest.fingerprint:
            raise UserError(
                f"{config.run} was trained on other data: fingerprint {stored['data']['fingerprint']} "
                f"({stored['data']['path']}), now {manifest.fingerprint} (--data {config.data}); use another --run folder"
            )
        return continued(config, stored["science"])
    precision = config.precision if config.precision != "auto" else ("bf16" if _multiplies_bf16(device) else "fp32")
    return dataclasses.replace(config, precision=precision, threads=config.threads or len(os.sched_getaffinity(0)))


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
        return " avx512_bf16" in flags or " amx_bf16" in flags
    return False


@contextlib.contextmanager
def _owned(config: TrainConfig, manifest: Manifest, world: World) -> Iterator[rundir.Attempt]:
    """Claim the run, store its configuration, and record how this start ended if an exception ends it."""
    attempt = rundir.claim(config.run, world.job, lambda line: print(line, file=sys.stderr, flush=True))
    try:
        rundir.write_json(config.run / "config.json", {
            "schema": SCHEMA,
            "id": science_hash(config, manifest.fingerprint),
            "science": fields_of(config, "science"),
            "runtime": fields_of(config, "runtime"),
            "data": {"path": str(config.data.absolute()), "fingerprint": manifest.fingerprint, "classes": manifest.classes,
                     "image_shape": manifest.image_shape, "train": manifest.n("train"), "val": manifest.n("val")},
        })  # fmt: skip
        yield attempt
    except Superseded as why:
        attempt.end("superseded", str(why))
        raise
    except BaseException as error:
        attempt.end("failed", f"{type(error).__name__}: {error}")
        raise


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """A list that gets the name of the first stop signal; the loop looks at it between steps. A second Ctrl-C kills."""
    received: list[str] = []

    def note(number: int, _: object) -> None:
        received.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fresh_state(config: TrainConfig, manifest: Manifest, device: torch.device) -> State:
    torch.manual_seed(config.seed)
    height, _, channels = manifest.image_shape
    model = MODELS[config.model](len(manifest.classes), channels, height)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, momentum=config.momentum, nesterov=config.momentum > 0, weight_decay=config.weight_decay
    )
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max" if config.plateau_on.endswith("accuracy") else "min", factor=config.plateau_factor,
        patience=config.plateau_patience - 1, threshold=1e-4, threshold_mode="abs", min_lr=config.lr_min, eps=0,
    )  # as Keras counts: lowered after `patience` epochs without gain, not one later  # fmt: skip
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    return State(model, optimizer, plateau, scaler, torch.zeros(3, dtype=torch.int64, device=device))


def _restore(state: State, run: Path) -> tuple[int, int, Path] | None:
    """Load the newest good checkpoint of the run's history into `state`; gives it, or None at a first start."""
    for found in rundir.checkpoints(run):
        try:
            state.load(checkpoint.load(found[2]))
        except (checkpoint.DamagedCheckpoint, OSError) as damage:
            print(f"warning: {damage}; falling back to the checkpoint before it", file=sys.stderr, flush=True)
            continue
        return found
    return None


def train_loader(config: TrainConfig, manifest: Manifest, device: torch.device) -> TrainLoader:
    """The configuration's batches; a set that cannot stay in memory in its present order gets a hint."""
    chosen = {f.name: getattr(config, f.name) for f in dataclasses.fields(Augmentation)}
    loader = TrainLoader(
        open_split(manifest, "train"), config.batch_size, config.seed, Augmentation(**chosen), device, config.shard_window
    )
    size = sum(part.nbytes for part in loader.images.split.images)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory and not config.shard_window:
        print(
            f"warning: {size / 1e9:.0f} GB of images in {memory / 1e9:.0f} GB of memory are read from storage again and "
            "again; --shard-window 8 reads shards in turn (another order, hence another experiment)",
            file=sys.stderr,
        )
    return loader


# ---- in the loop -----------------------------------------------------------------------------------------------------


def _step_seed(seed: int, images_seen: int, rank: int) -> int:
    """Seed of the random numbers inside the model (dropout) for one step."""
    digest = hashlib.blake2b(f"{seed} {images_seen} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def loss_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy; with mixup, of both labels by their shares."""
    if batch.weights is None or batch.other_labels is None:
        return cross_entropy(logits, batch.labels)
    kept = batch.weights * cross_entropy(logits, batch.labels, reduction="none")
    return (kept + (1 - batch.weights) * cross_entropy(logits, batch.other_labels, reduction="none")).mean()


def _add_to_sums(sums: torch.Tensor, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Count one batch; stays on the device. Whole numbers, so that no order of additions changes the result."""
    n = len(labels)
    scaled = (loss.double().nan_to_num() * (n * 2.0**32)).round().long()
    sums += torch.stack([torch.full_like(scaled, n), (logits.argmax(1) == labels).sum(), scaled])


def _finite(loss: torch.Tensor, state: State, batch: Batch, loader: TrainLoader) -> float:
    """The loss as a number; UserError where it is none, before anything broken is saved."""
    value = loss.item()
    if not math.isfinite(value):
        split = loader.images.split
        raise UserError(
            f"loss is {value} at {state.images_seen:,} images seen, in the batch that begins with "
            f"{split.where(int(batch.rows[0]))}; the last good checkpoint is kept: use a smaller --lr in another --run "
            "folder, or look at those images"
        )
    return value


def _end_epoch(
    state: State, config: TrainConfig, epoch_images: int, val: Images, began: tuple[float, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Validate, remember the best weights, adjust the learning rate; gives the epoch's metrics and timing rows."""
    images, correct, loss_units = state.sums.tolist()
    state.sums.zero_()
    train_s, trained = time.monotonic() - began[0], state.images_seen - began[1]  # since the epoch began, or this start
    val_loss, val_accuracy = loss_and_accuracy(predict(state.model, val, config.precision), val.split.columns["labels"])
    values = {
        "train_loss": loss_units / 2.0**32 / images, "train_accuracy": correct / images,
        "val_loss": val_loss, "val_accuracy": val_accuracy,
    }  # fmt: skip
    value = values[config.best_on] * (1 if config.best_on.endswith("accuracy") else -1)
    lr = state.optimizer.param_groups[0]["lr"]
    epoch = state.images_seen // epoch_images
    improved = not state.best or value > state.best["value"]
    if improved:
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.model.state_dict().items()}
        state.best = {"value": value, "epoch": epoch, "images_seen": state.images_seen, **values, "model": weights}
    state.plateau.step(values[config.plateau_on])
    row = {"epoch": epoch, "images_seen": state.images_seen, "lr": lr, **values, "best": improved}
    return row, {"train_s": train_s, "val_s": time.monotonic() - began[0] - train_s, "images_per_s": trained / train_s}


class _Saver:
    """Writes checkpoints every `every_s` seconds; 0: every minute, but never for more than MAX_SAVE_SHARE of the time."""

    def __init__(self, attempt: rundir.Attempt, log: RunLog, every_s: float, about: dict[str, Any]) -> None:
        self.attempt, self.log, self.about = attempt, log, about
        self.every_s, self.cost_s, self.last = every_s, 0.0, time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.last >= (self.every_s or max(60.0, self.cost_s / MAX_SAVE_SHARE))

    def save(self, state: State) -> None:
        began = time.monotonic()
        path = self.attempt.path / f"{state.images_seen:012d}.pt"
        try:
            self.log.sync()
            checkpoint.save(path, {**state.to_dict(), **self.about})
            if self.attempt.is_newest():
                self.attempt.prune()
        except OSError as error:
            self.log.say(f"warning: no checkpoint at {state.images_seen:,} images ({error}); the one before is kept")
        self.last = time.monotonic()
        self.cost_s = self.last - began


# ---- close -----------------------------------------------------------------------------------------------------------


def _about(config: TrainConfig, manifest: Manifest) -> dict[str, Any]:
    """What a file of weights must say to be used elsewhere."""
    return {
        "science": fields_of(config, "science"),
        "data": {"fingerprint": manifest.fingerprint, "classes": list(manifest.classes),
                 "image_shape": list(manifest.image_shape), "faces": manifest.content["faces"]},
    }  # fmt: skip


def _publish(attempt: rundir.Attempt, state: State, about: dict[str, Any]) -> None:
    """Write final.pt, best.pt and the merged metrics into the attempt, then to the top of the run folder."""
    final = {name: tensor.cpu() for name, tensor in state.model.state_dict().items()}
    checkpoint.save(attempt.path / "final.pt", {**about, "images_seen": state.images_seen, "model": final})
    checkpoint.save(attempt.path / "best.pt", {**about, **state.best})
    for name in ("final.pt", "best.pt"):
        attempt.publish(name)
    if attempt.is_newest():
        rows = rundir.rows(attempt.run)
        rundir.write_bytes(attempt.run / "metrics.jsonl", rundir.jsonl(rows))
