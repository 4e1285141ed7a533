"""The training loop of the expression-transfer GAN. Its clock counts pairs of faces.

As with classifiers, the same command on the same run folder continues the run, and a run that was
killed and continued ends like an uninterrupted one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from fer_hpc.config import GanConfig
from fer_hpc.data.shards import Manifest, open_split, read_manifest
from fer_hpc.data.step_inputs import Block, Inputs, blocks_ahead
from fer_hpc.data.stream import PixelStream
from fer_hpc.gan.networks import Networks, average_due, ema_weight, make_networks
from fer_hpc.gan.pairs import PairLoader
from fer_hpc.gan.step import SUMS, step
from fer_hpc.gan.validate import (
    epoch_text,
    progress_text,
    sample_grid,
    step_means,
    train_metrics,
    validate,
)
from fer_hpc.parallel.graph import StepRunner
from fer_hpc.parallel.world import World
from fer_hpc.run.chain import chain_inputs
from fer_hpc.run.environment import resource_use
from fer_hpc.run.folder import read_rows, read_status
from fer_hpc.run.session import start_run
from fer_hpc.run.state import Clock, EpochTimer, TrainState, step_seed
from fer_hpc.training.batches import check_data, stage_data, weights_context
from fer_hpc.training.resolve import resolve_config
from fer_hpc.training.setup import uses_graph


def train_gan(config: GanConfig, world: World) -> dict[str, Any]:
    """Train to the end, or until a signal asks to stop.

    Gives the run's status, {"state": "finished" | "interrupted", "why": ..., ...}. Raises UserError
    for what the user can change, Superseded where another start has taken the run over, PeerLost
    where another rank has died.
    """
    manifest = read_manifest(config.data)
    with start_run(config, world, partial(resolve_config, manifest=manifest)) as run:
        # Data.
        config, device = run.config, run.device
        data = stage_data(manifest, config, world)
        loader = pair_loader(config, data, "train", device, world)
        val = pair_loader(config, data, "val", device)
        clock = Clock(config.batch_size, loader.n, config.epochs)

        # Networks, from the newest checkpoint or from random weights.
        networks = make_networks(config, data, device)
        state = TrainState.fresh(networks.parts(), len(SUMS), device)
        run.restore(state)
        context = weights_context(config, data) | {"kind": "GAN"}
        verified = check_data(data, config, world)
        run.begin(state, clock, f"GAN, {config.mode}", context, bad_step_text, verified)

        # Loop: one step per iteration; an epoch ends where its last expressive face has been seen.
        first_adversarial = adversarial_from(config, loader.n)
        timer = EpochTimer(state.images_seen)

        def end_epoch() -> int:
            """Validate, log, draw samples."""
            nonlocal timer
            chain = state.chain_row(world, clock)
            train_row = train_metrics(state, world)
            train_s = timer.elapsed_s()
            row: dict[str, Any] = {
                "epoch": clock.epoch(state.images_seen),
                "images_seen": state.images_seen,
            }
            row |= train_row | validate(networks, val, world)
            grid = sample_grid(networks.scored, val, list(data.classes), config.precision)
            timing = timer.timing(state.images_seen, train_s) | resource_use(device)
            run.log.images("neutral | expression | output", grid, state.images_seen)
            run.log.epoch(row, timing, chain, epoch_text(row))
            networks.train()
            timer = EpochTimer(state.images_seen)
            return 0

        def one_step(inputs: Inputs, variant: tuple[bool, bool]) -> None:
            step(networks, state, loader.make(inputs), inputs, world, *variant)
            state.chain.add(inputs, state.sums)

        networks.train()
        graph = uses_graph(config, device, world)
        runner = StepRunner(one_step, state.tensors, device, graph, config.graph == "on")
        pixels = PixelStream(loader.images)
        make_block = partial(pair_block, config, loader, first_adversarial)
        with blocks_ahead(
            make_block, device, state.images_seen, config.batch_size, clock.total
        ) as blocks:
            while state.images_seen < clock.total:
                ends_epoch = clock.ends_epoch(state.images_seen)
                with timer.data():
                    block, k = blocks.at(state.images_seen)
                    streamed = pixels.at(block, k)
                seed = step_seed(config.seed, state.images_seen, world.rank)
                adversarial = state.images_seen >= first_adversarial
                variant = adversarial, adversarial and average_due(config, state.images_seen)
                runner.run(block, k, seed, variant, streamed=streamed)
                state.images_seen += config.batch_size
                if run.after_step(
                    state, progress_text, step_means, end_epoch if ends_epoch else None
                ):
                    break

        # End: the last checkpoint, from which more epochs may follow, and final.pt.
        run.finish(state, partial(results, networks, state))
    return read_status(config.run)


def pair_loader(
    config: GanConfig,
    manifest: Manifest,
    split: str,
    device: torch.device,
    world: World | None = None,
) -> PairLoader:
    """The configuration's pairs of a split, for this rank."""
    world = world or World()
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
        world.processes_per_gpu,
    )


def pair_block(
    config: GanConfig, loader: PairLoader, first_adversarial: int, images_seen: int, steps: int
) -> Block:
    """The inputs of the next steps: this rank's pairs, and ema_weight [steps]."""
    arrays = loader.block(images_seen, steps)
    if config.mode == "improved" and config.ema:
        seen = arrays["images_seen"].tolist()
        weights = [ema_weight(config, n, first_adversarial) for n in seen]
        arrays["ema_weight"] = np.array(weights, np.float32)
    samples = arrays["rows"], arrays["other_rows"]
    clock = loader.batch_size, loader.n, loader.rank
    return Block(arrays | chain_inputs(samples, arrays["images_seen"], *clock))


def adversarial_from(config: GanConfig, epoch_pairs: int) -> int:
    """Pairs after which all networks learn; before, only what learns from labels (--warmup).

    The last step of the first epoch is adversarial in any case: every epoch has all means.
    """
    if config.mode != "improved":
        return 0
    return min(int(config.warmup * epoch_pairs), epoch_pairs - config.batch_size)


def bad_step_text(images_seen: int) -> str:
    """The message for a loss that is not finite."""
    return (
        f"a loss is not a finite number at {images_seen:,} pairs seen; the last good checkpoint is "
        "kept: use a smaller --lr in another --run folder"
    )


def results(
    networks: Networks, state: TrainState
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What a finished run leaves: the generator's file, and the last epoch's values."""
    row = read_rows(networks.config.run)[-1]
    kept = ("epoch", "val_expression", "val_reconstruction", "train_g_loss", "train_d_correct")
    return {"final.pt": state.final_weights(networks.scored)}, {name: row[name] for name in kept}
