"""Train the expression-transfer GAN: python -m fer_hpc.train_gan --data DIR --run RUN.

As with classifiers, the same command on the same run folder continues it, and killed at any moment it ends as if it had been
left alone. The clock counts pairs of faces.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fer_hpc.config import GanConfig, UserError, fields_of, non_default_fields
from fer_hpc.data.shards import Manifest, open_split, read_manifest
from fer_hpc.files import to_jsonl, write_bytes
from fer_hpc.gan.pairs import PairLoader, Pairs
from fer_hpc.models.gan import Discriminator, Generator, paper_classifier
from fer_hpc.models.resnet import resnet_baseline
from fer_hpc.parallel.collectives import (
    Agreement,
    average_gradients,
    broadcast_buffers,
    detect_lost_peers,
    gather_json,
    min_over_ranks,
    on_rank_0,
    process_group,
    sum_over_ranks,
)
from fer_hpc.parallel.device import autocast, pick_device, set_determinism
from fer_hpc.parallel.process import keep_freed_memory
from fer_hpc.parallel.world import World
from fer_hpc.run import checkpoint
from fer_hpc.run.attempts import Attempt
from fer_hpc.run.environment import describe_environment, rank_location, resource_use
from fer_hpc.run.folder import read_rows, read_status
from fer_hpc.run.log import RunLog
from fer_hpc.run.session import (
    Saver,
    Superseded,
    checkpoint_write_error,
    claim_run,
    restore,
    step_seed,
    stop_reason,
    stop_signals,
)
from fer_hpc.run.watchdog import Watchdog
from fer_hpc.training.resolve import resolve_config, stage_data

NO_BAD_STEP = 2**62  # images_seen of a step that did not happen
SUPERVISED_SUMS = (
    "c_loss",
    "c_correct",
    "code",
)  # known of every pair; the others only once the generator plays
SUMS = (
    "pairs",
    *SUPERVISED_SUMS,
    "adversarial_steps",
    "d_correct",
    "g_loss",
    "d_loss",
    "adversarial",
    "feature",
    "expression",
    "identity",
    "reconstruction",
)
CLASSIFIER_MODEL = "resnet_baseline"  # improved: network of the classifier, and of the expression's code; no judge may be one
VAL_PAIRS = 512  # at most so many are looked at after an epoch
PAPER_WEIGHTS = {
    "feature": 10.0,
    "expression": 20.0,
}  # the report's weights beside 1 for the adversarial loss
IMPROVED_WEIGHTS = (
    "feature",
    "expression",
    "identity",
    "reconstruction",
)  # improved: GanConfig has their weights
DISCRIMINATOR_LR_SCALE = 4.0  # improved: times the generator's learning rate (Heusel et al. 2017); spectral norm slows its learning
SUPERVISED_LR_SCALE = 5.0  # improved: times the generator's learning rate, for what learns from labels until the generator plays
EMA_EVERY = 4  # improved: steps between two updates of the moving average, a pass over all weights: a twentieth of a small step
MAX_SHIFT = (
    1 / 8
)  # improved: of the side, by which faces are shifted at most before the classifier sees them


@dataclass
class State:
    """All that a step changes; what a checkpoint holds."""

    generator: Generator
    discriminator: Discriminator
    classifier: nn.Module
    ema: AveragedModel | None
    optimizers: dict[str, torch.optim.Optimizer]
    sums: torch.Tensor  # of the epoch so far, as SUMS names them; losses in units of 2**-32, so that they add up exactly
    broken_at: (
        torch.Tensor
    )  # images seen before this rank's first step whose losses were not finite
    neutral: int  # class
    class_weights: (
        torch.Tensor | None
    )  # improved: in the classifier's loss; half of what it sees is neutral
    images_seen: int = 0

    @property
    def scored(self) -> Generator:
        """The generator that is looked at and kept: the moving average where there is one."""
        return self.generator if self.ema is None else self.ema.module  # type: ignore[return-value]

    @property
    def _parts(self) -> dict[str, Any]:
        networks = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "classifier": self.classifier,
        }
        return {
            **networks,
            **({"ema": self.ema} if self.ema else {}),
            **{f"{k}_adam": v for k, v in self.optimizers.items()},
        }

    def to_dict(self, world: World) -> dict[str, Any]:
        """What a checkpoint holds; called on all ranks together, whose sums it adds up."""
        saved = {name: part.state_dict() for name, part in self._parts.items()}
        return {
            **saved,
            "sums": sum_over_ranks(self.sums, world).cpu(),
            "images_seen": self.images_seen,
        }

    def load(self, saved: dict[str, Any], rank: int) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        self.sums.copy_(saved["sums"] if rank == 0 else torch.zeros_like(self.sums))
        self.images_seen = saved["images_seen"]


def train_gan(config: GanConfig, world: World) -> dict[str, Any]:
    """Train to the end, or until a signal asks to stop; gives the run's status ({"state": "finished" | "interrupted"}).

    Raises UserError for what the user can mend, Superseded where another start has taken the run over, PeerLost where
    another rank has died.
    """
    # Setup: which run this is, and rank 0's right to write it.
    manifest = read_manifest(config.data)
    if manifest.content.get("generated"):
        raise UserError(
            f"--data {config.data} holds faces that a GAN made; train on the shards that they were added to"
        )
    device = pick_device(config.device, world.local_rank)
    keep_freed_memory()
    given = config
    with contextlib.ExitStack() as closing:
        closing.enter_context(process_group(world))
        signals = closing.enter_context(stop_signals())
        config, attempt = closing.enter_context(
            claim_run(config, lambda: resolve_config(given, manifest, device, world), world)
        )
        closing.enter_context(detect_lost_peers(world))
        torch.set_num_threads(config.threads)
        set_determinism(config, device)

        # Data.
        here = stage_data(manifest, config, world)
        hung = lambda why: attempt.end("interrupted", why) if attempt else None  # noqa: E731
        watch = closing.enter_context(
            Watchdog(config.hang_factor, config.hang_floor_s, world.rank, hung)
        )
        loader = pair_loader(config, here, "train", device, world)
        val = pair_loader(config, here, "val", device)
        total = (
            -(-config.epochs * loader.n // config.batch_size) * config.batch_size
        )  # pairs; every batch is full
        warmup = min(
            int(config.warmup * loader.n), loader.n - config.batch_size
        )  # the epoch's last step plays in any case
        adversarial_from = warmup if config.mode == "improved" else 0

        # Networks, and where they stood.
        state = fresh_state(config, manifest, device)
        parent = restore(state, config.run, world)
        log = RunLog(attempt, config.tensorboard, state.images_seen, total, loader.n)
        ranks = gather_json(rank_location(world, device), world)
        if attempt:
            attempt.began(
                describe_environment(world, device)
                | {"ranks": ranks, "data": str(config.data.absolute())},
                parent,
            )
        saver, about = (
            Saver(attempt, log, config.checkpoint_every_s, world.job),
            _about(config, manifest),
        )
        where = f", from pair {state.images_seen:,} of {total:,}" if parent else ""
        number = attempt.number if attempt else 0
        how = f"{config.mode}, {config.precision} on {world.size} x {device.type}"
        log.say(f"{config.run}: GAN, {how}, attempt {number}{where}")
        log.hparams(
            {"batch_size": config.batch_size, "lr": config.lr, "seed": config.seed}
            | non_default_fields(config)
        )

        # Loop: one step a turn; an epoch ends where its last expressive face has been seen.
        agreement, stop = Agreement(world, 4), 0
        epoch_began, epoch_from = time.monotonic(), state.images_seen
        while state.images_seen < total:
            ends_epoch = (
                state.images_seen + config.batch_size
            ) // loader.n > state.images_seen // loader.n
            pairs = loader.batch(state.images_seen)
            torch.manual_seed(step_seed(config.seed, state.images_seen, world.rank))
            step(
                state,
                config,
                pairs,
                device,
                world,
                adversarial=state.images_seen >= adversarial_from,
            )
            state.images_seen += config.batch_size
            watch.step(state.images_seen)

            broken = (device.type == "cpu" or log.due()) and bool(
                state.broken_at < NO_BAD_STEP
            )  # asking a GPU makes it wait
            if log.due() and not broken:
                log.progress(state.images_seen, _so_far(state))
            taken_over = attempt is not None and attempt.superseded()
            asked = max(signals, default=saver.end_is_near(watch.longest_s))
            stop, save, lost, alarm = agreement.exchange([asked, saver.due(), taken_over, broken])
            if alarm or ends_epoch:
                _stop_if_broken(state, world)
            if ends_epoch:
                with watch.phase("validation"):
                    train_s, trained = (
                        time.monotonic() - epoch_began,
                        state.images_seen - epoch_from,
                    )
                    row, grid = _end_epoch(
                        state, config, loader.n, val, list(manifest.classes), world
                    )
                    timing = {
                        "train_s": train_s,
                        "val_s": time.monotonic() - epoch_began - train_s,
                        "images_per_s": trained / train_s,
                    } | resource_use(device)
                    log.images("neutral | expression | output", grid, state.images_seen)
                    log.epoch(row, timing, _line(row))
                epoch_began, epoch_from = time.monotonic(), state.images_seen
            if lost:
                raise Superseded(
                    f"{config.run}: another start has taken this run over; this one stops"
                )
            if stop:
                break
            if save and state.images_seen < total:
                _stop_if_broken(state, world)
                with watch.phase("saving"):
                    saver.save(state.images_seen, state.to_dict(world) | about)

        # Close: a last checkpoint, from which more epochs may follow, and the weights for everyone else.
        agreement.close()
        _stop_if_broken(state, world)
        saver.save(state.images_seen, state.to_dict(world) | about, last=True)
        if attempt:
            _end(attempt, state, total, about, stop)
        log.close()
        if world.size > 1:
            torch.distributed.barrier()  # nobody leaves while rank 0 still writes: a launcher would stop it
    return read_status(config.run)


def step(
    state: State,
    config: GanConfig,
    pairs: Pairs,
    device: torch.device,
    world: World,
    adversarial: bool = True,
) -> None:
    """One step of each network on one batch; while not `adversarial`, of those alone that learn the expressions of real faces.
    The generator's output is made once and serves all three."""
    improved = config.mode == "improved"
    target = pairs.target if improved else None
    mixed = autocast(config.precision, device)
    state.generator.train()
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            if group["supervised"]:  # a classifier that changes fast is followed by nobody
                group["lr"] = config.lr if adversarial else SUPERVISED_LR_SCALE * config.lr

    # Classifier: real faces only.
    with mixed:
        if improved:
            seen = random_flip_shift(torch.cat([pairs.neutral, pairs.expressive]))
            labels = torch.cat([torch.full_like(pairs.target, state.neutral), pairs.target])
        else:  # the report's: it is shown expressive faces alone, which are all "1"
            seen, labels = pairs.expressive, torch.ones_like(pairs.target)
        logits = state.classifier(seen).float()
        c_loss = functional.cross_entropy(logits, labels, state.class_weights)
    backward_and_step(state, "classifier", c_loss, world)
    numbers = {"c_loss": c_loss, "c_correct": (logits.argmax(1) == labels).float().mean()}

    # Expression's code: in the improved mode it learns its class as well.
    with mixed:
        code = state.generator.expression(pairs.expressive)
        if state.generator.class_head:
            numbers["code"] = functional.cross_entropy(
                state.generator.class_head(code).float(), pairs.target
            )
    if not adversarial:
        backward_and_step(state, "generator", numbers["code"], world)
        return _add_to_sums(state, len(pairs.target), numbers)

    # Discriminator: real faces to 1, made ones to 0.
    with mixed:
        encoded = state.generator.encode(pairs.neutral)
        fake = state.generator.decode(pairs.neutral, encoded, code)
        real_score, real_features = state.discriminator(pairs.expressive, target)
        fake_score, _ = state.discriminator(fake.detach(), target)
        real_score, fake_score = real_score.float(), fake_score.float()
        d_loss = 0.5 * ((real_score - 1).square().mean() + fake_score.square().mean())
    backward_and_step(state, "discriminator", d_loss, world)
    numbers |= {
        "d_loss": d_loss,
        "d_correct": 0.5 * ((real_score > 0.5).float().mean() + (fake_score <= 0.5).float().mean()),
    }

    # Generator: fool the one, please the other, stay the same person.
    with no_grad_into(state.discriminator), no_grad_into(state.classifier), mixed:
        score, features = state.discriminator(fake, target)
        numbers["adversarial"] = (score.float() - 1).square().mean()
        wanted = real_features.detach().float()
        broadcast_buffers(state.classifier, world)
        state.classifier.eval()  # its batch norm shall not learn from made faces
        guessed = state.classifier(random_flip_shift(fake) if improved else fake).float()
        state.classifier.train()
        if improved:
            numbers["feature"] = functional.l1_loss(
                _channel_statistics(features.float()), _channel_statistics(wanted)
            )
            numbers["expression"] = functional.cross_entropy(guessed, pairs.target)
            with frozen_bn_stats(state.generator.down):
                kept = state.generator.encode(fake)[-1].float()
            numbers["identity"] = functional.l1_loss(kept, encoded[-1].detach().float())
            off = (fake.float() - pairs.neutral).abs().mean((1, 2, 3))
            numbers["reconstruction"] = (off * pairs.same).sum() / pairs.same.sum().clamp(min=1)
            weights = {name: getattr(config, f"{name}_weight") for name in IMPROVED_WEIGHTS}
        else:
            numbers["feature"] = functional.l1_loss(features.float(), wanted)
            numbers["expression"] = functional.cross_entropy(guessed, labels)
            weights = PAPER_WEIGHTS
        numbers["g_loss"] = numbers["adversarial"] + sum(
            weight * numbers[name] for name, weight in weights.items()
        )
    backward_and_step(state, "generator", numbers["g_loss"] + numbers.get("code", 0), world)
    if state.ema and state.images_seen // config.batch_size % EMA_EVERY == 0:
        state.ema.update_parameters(state.generator)
    _add_to_sums(state, len(pairs.target), numbers | {"adversarial_steps": torch.ones_like(d_loss)})


def random_flip_shift(faces: torch.Tensor) -> torch.Tensor:
    """Faces [B, C, S, S] as the classifier sees them: each mirrored or not and shifted by up to MOVED of its side, the border
    repeating. So what pleases it has to be an expression rather than a pattern of dots. A gather, since sampling between the
    pixels has no deterministic gradient on GPUs."""
    n, _, side, _ = faces.shape
    furthest = round(MAX_SHIFT * side)
    across, down = (
        torch.arange(side) + torch.randint(-furthest, furthest + 1, (n, 1)) for _ in range(2)
    )
    across = torch.where(torch.rand(n, 1) < 0.5, side - 1 - across, across)
    y, x = (
        pixels.clamp(0, side - 1).to(faces.device, non_blocking=True) for pixels in (down, across)
    )
    rows = torch.arange(n, device=faces.device)[:, None, None]
    return faces.permute(0, 2, 3, 1)[rows, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def backward_and_step(state: State, name: str, loss: torch.Tensor, world: World) -> None:
    """One step of Adam down a network's loss, its gradients averaged over the ranks."""
    loss.backward()
    average_gradients(getattr(state, name).parameters(), world)
    state.optimizers[name].step()
    state.optimizers[name].zero_grad(set_to_none=True)


@contextlib.contextmanager
def no_grad_into(network: nn.Module) -> Any:
    """Gradients pass through the network, not into it."""
    network.requires_grad_(False)
    yield
    network.requires_grad_(True)


@contextlib.contextmanager
def frozen_bn_stats(network: nn.Module) -> Any:
    """Batch norm by the batch, as in training, whose running statistics stay: when it draws it is given neutral faces alone."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _channel_statistics(features: torch.Tensor) -> torch.Tensor:
    """Mean and deviation of each channel over the face [B, 2C]: what is there, not where. (eps: no gradient of sqrt at 0)"""
    return torch.cat([features.mean((2, 3)), (features.var((2, 3)) + 1e-5).sqrt()], 1)


def _add_to_sums(state: State, n: int, numbers: dict[str, torch.Tensor]) -> None:
    """Add a batch's means, times its size; stays on the device. Whole numbers, so no order of additions changes the result."""
    zero = torch.zeros((), device=state.sums.device)
    values = torch.stack([numbers.get(name, zero).detach().double() for name in SUMS[1:]])
    units = (values.nan_to_num() * (n * 2.0**32)).round().long()
    state.sums += torch.cat([torch.full_like(units[:1], n), units])
    state.broken_at.clamp_(max=torch.where(values.isfinite().all(), NO_BAD_STEP, state.images_seen))


# ---- setup -----------------------------------------------------------------------------------------------------------


def pair_loader(
    config: GanConfig, manifest: Manifest, split: str, device: torch.device, world: World = World()
) -> PairLoader:  # noqa: B008
    return PairLoader(
        open_split(manifest, split),
        manifest.classes.index("Neutral"),
        config.batch_size,
        config.seed,
        device,
        config.mode == "improved",
        config.balanced,
        world.rank,
        world.size,
    )


def fresh_state(config: GanConfig, manifest: Manifest, device: torch.device) -> State:
    """The state at pair 0."""
    torch.manual_seed(config.seed)
    size, _, channels = manifest.image_shape
    improved, classes = config.mode == "improved", len(manifest.classes)

    def placed(network: nn.Module) -> Any:
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    generator = placed(Generator(channels, size, classes if improved else 0))
    discriminator = placed(Discriminator(channels, classes if improved else 0, spectral=improved))
    classifier = placed(
        resnet_baseline(classes, channels, size) if improved else paper_classifier(channels)
    )
    if improved:
        for module in [*classifier.modules(), *generator.expression.modules()]:
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = (
                    0.1  # Keras' .01 lags too far behind weights that guide while they learn
                )
    supervised = (
        [
            *classifier.parameters(),
            *generator.expression.parameters(),
            *generator.class_head.parameters(),
        ]
        if improved
        else []
    )
    adams = {
        "generator": _adam(generator, config.lr, supervised),
        "discriminator": _adam(
            discriminator, (DISCRIMINATOR_LR_SCALE if improved else 1) * config.lr, supervised
        ),
        "classifier": _adam(classifier, config.lr, supervised),
    }
    ema = (
        AveragedModel(generator, multi_avg_fn=_average(config.ema), use_buffers=True)
        if improved and config.ema
        else None
    )
    sums = torch.zeros(len(SUMS), dtype=torch.int64, device=device)
    broken_at = torch.full((), NO_BAD_STEP, dtype=torch.int64, device=device)
    neutral = manifest.classes.index("Neutral")
    class_weights = torch.ones(classes, device=device) if improved else None
    if class_weights is not None:
        class_weights[neutral] = 1 / (classes - 1)  # as often as another, on average
    return State(
        generator, discriminator, classifier, ema, adams, sums, broken_at, neutral, class_weights
    )


def _adam(network: nn.Module, lr: float, supervised: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with the report's rates for those that play; what is `supervised` by labels has Adam's usual betas."""
    ids = {id(parameter) for parameter in supervised}
    groups: list[dict[str, Any]] = []
    for is_supervised, betas in ((False, (0.5, 0.999)), (True, (0.9, 0.999))):
        if members := [p for p in network.parameters() if (id(p) in ids) == is_supervised]:
            groups.append({"params": members, "betas": betas, "supervised": is_supervised})
    return torch.optim.Adam(groups, lr, fused=True)


def _average(
    share: float,
) -> Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor | int], None]:
    """A moving average that is young at first: it keeps (1 + n) / (10 + n) after n steps until that reaches `share`, else a
    short training's average would be its initial weights."""

    def update(
        averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], steps: torch.Tensor | int
    ) -> None:
        n = EMA_EVERY * int(steps)
        get_ema_multi_avg_fn(min(share, (1 + n) / (10 + n)) ** EMA_EVERY)(
            tuple(averaged), tuple(current), steps
        )

    return update


def _about(config: GanConfig, manifest: Manifest) -> dict[str, Any]:
    """What a file of weights must say to be used elsewhere."""
    return {
        "science": fields_of(config, "science"),
        "kind": "GAN",
        "data": {
            "fingerprint": manifest.fingerprint,
            "classes": list(manifest.classes),
            "image_shape": list(manifest.image_shape),
            "faces": manifest.content["faces"],
        },
    }


# ---- in the loop -----------------------------------------------------------------------------------------------------


def _stop_if_broken(state: State, world: World) -> None:
    """UserError on all ranks where any rank's losses were not numbers, before anything broken is saved."""
    images_seen = int(min_over_ranks(state.broken_at, world))
    if images_seen < NO_BAD_STEP:
        raise UserError(
            f"a loss is not a finite number at {images_seen:,} pairs seen; the last good checkpoint is kept: use a smaller "
            "--lr in another --run folder"
        )


def _end_epoch(
    state: State,
    config: GanConfig,
    epoch_images: int,
    val: PairLoader,
    classes: list[str],
    world: World,
) -> tuple[dict[str, Any], torch.Tensor]:
    """Look at val, begin a new epoch; gives the epoch's metrics and a picture of samples [C, H, W] in [0, 1]."""
    sums = sum_over_ranks(state.sums, world).tolist()
    state.sums.zero_()
    for network in (state.scored, state.classifier):
        broadcast_buffers(network, world)
    means = {
        name: value / 2.0**32 / sums[0] for name, value in zip(SUMS[1:], sums[1:], strict=True)
    }
    adversarial_share = means.pop("adversarial_steps")
    row = {"epoch": state.images_seen // epoch_images, "images_seen": state.images_seen}
    row |= {
        f"train_{name}": value if name in SUPERVISED_SUMS else value / adversarial_share
        for name, value in means.items()
    }
    device = val.images.device
    row |= on_rank_0(world, lambda: _validate(state, config, val, device))
    return row, sample_grid(state.scored, val, classes, config.precision)


@torch.inference_mode()
def _validate(
    state: State, config: GanConfig, val: PairLoader, device: torch.device
) -> dict[str, float]:
    """On fixed pairs of val: share of outputs that the training's own classifier takes for the target (it is not a judge: see
    evaluate), and how far a neutral face that is both inputs comes out changed (mean absolute difference, of 2)."""
    state.scored.eval()
    state.classifier.eval()
    hits, off, seen, improved = 0, 0.0, 0, config.mode == "improved"
    rows = val.pools[1][: VAL_PAIRS * max(1, val.n // VAL_PAIRS) : max(1, val.n // VAL_PAIRS)]
    for first in range(0, len(rows), 64):
        mine = rows[first : first + 64]
        neutral = val.faces(val.pools[0][np.arange(first, first + len(mine)) % len(val.pools[0])])
        with autocast(config.precision, device):
            made = state.scored(neutral, val.faces(mine))
            guessed = state.classifier(made)
            again = state.scored(neutral, neutral)
        wanted = torch.from_numpy(val.labels[mine] if improved else np.ones_like(mine)).to(device)
        hits += int((guessed.argmax(1) == wanted).sum())
        off += float((again.float() - neutral).abs().mean((1, 2, 3)).double().sum())
        seen += len(mine)
    state.classifier.train()
    return {"val_expression": hits / seen, "val_reconstruction": off / seen}


@torch.inference_mode()
def sample_grid(
    generator: Generator, val: PairLoader, classes: list[str], precision: str, people: int = 4
) -> torch.Tensor:
    """Rows of neutral | expressive | output, one for each expression of val, `people` of them beside each other; in [0, 1]."""
    generator.eval()
    strips = []
    for k in range(len(classes)):
        rows = val.pools[1][val.labels[val.pools[1]] == k]
        if not len(rows):
            continue
        expressive = val.faces(rows[np.arange(people) % len(rows)])
        neutral = val.faces(val.pools[0][np.arange(people) % len(val.pools[0])])
        with autocast(precision, val.images.device):
            made = generator(neutral, expressive).float()
        strips.append(
            torch.cat(
                [torch.cat([neutral[i], expressive[i], made[i]], 2) for i in range(people)], 2
            )
        )
    return (torch.cat(strips, 1) + 1) / 2


def _so_far(state: State) -> str:
    pairs, *sums = state.sums.tolist()
    means = {
        name: value / 2.0**32 / max(pairs, 1) for name, value in zip(SUMS[1:], sums, strict=True)
    }
    game = (
        f"G {means['g_loss'] / means['games']:.3f}  D {means['d_loss'] / means['games']:.4f}  "
        if means["adversarial_steps"]
        else ""
    )
    return f"{game}C {means['c_loss']:.3f}"


def _line(row: dict[str, Any]) -> str:
    return (
        f"G {row['train_g_loss']:.3f}  D {row['train_d_loss']:.4f} accuracy {row['train_d_correct']:.3f}  "
        f"C {row['train_c_loss']:.3f} accuracy {row['train_c_correct']:.3f}  "
        f"val expression {row['val_expression']:.3f} reconstruction {row['val_reconstruction']:.3f}"
    )


def _end(attempt: Attempt, state: State, total: int, about: dict[str, Any], stop: int) -> None:
    """Publish what a finished run leaves, or note who stopped it."""
    if state.images_seen < total:
        attempt.end("interrupted", stop_reason(stop), images_seen=state.images_seen)
        return
    final = {name: tensor.cpu() for name, tensor in state.scored.state_dict().items()}
    try:
        checkpoint.save(
            attempt.path / "final.pt", {**about, "images_seen": state.images_seen, "model": final}
        )
        attempt.publish("final.pt")
        if attempt.is_newest():
            write_bytes(attempt.run / "metrics.jsonl", to_jsonl(read_rows(attempt.run)))
    except OSError as error:
        raise checkpoint_write_error(attempt.run, state.images_seen, error) from None
    last = read_rows(attempt.run)[-1]
    kept = {
        key: last[key]
        for key in ("val_expression", "val_reconstruction", "train_g_loss", "train_d_correct")
    }
    attempt.end("finished", images_seen=state.images_seen, best=kept | {"epoch": last["epoch"]})
