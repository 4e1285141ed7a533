"""The GAN's training step against a bare loop of the same networks.

    python bench/gan_step.py --data SHARDS

Both take the same batches from memory with the same precision and threads. The bare loop has no
clock, no checks, no sums and no moving average. Rounds alternate; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional

from fer_hpc.config import GanConfig
from fer_hpc.data.shards import read_manifest
from fer_hpc.gan.loop import pair_block, pair_loader
from fer_hpc.gan.networks import EMA_EVERY, Networks, make_networks
from fer_hpc.gan.pairs import Pairs
from fer_hpc.gan.step import SUMS, channel_statistics, step
from fer_hpc.parallel.device import autocast, pick_device, supports_bf16
from fer_hpc.parallel.process import keep_freed_memory
from fer_hpc.parallel.world import World
from fer_hpc.run.state import TrainState, step_seed


def bare(networks: Networks, config: GanConfig, pairs: Pairs, device: torch.device) -> None:
    g, d, c = networks.generator, networks.discriminator, networks.classifier
    with autocast(config.precision, device):
        code = g.expression(pairs.expressive)
        code_loss = functional.cross_entropy(g.class_head(code).float(), pairs.target)
        encoded = g.encode(pairs.neutral)
        fake = g.decode(pairs.neutral, encoded, code)
        real_score, real_features = d(pairs.expressive, pairs.target)
        fake_score, _ = d(fake.detach(), pairs.target)
        loss = 0.5 * ((real_score.float() - 1).square().mean() + fake_score.float().square().mean())
    loss.backward()
    networks.optimizers["discriminator"].step()
    networks.optimizers["discriminator"].zero_grad(set_to_none=True)
    with autocast(config.precision, device):
        labels = torch.cat([torch.full_like(pairs.target, networks.neutral), pairs.target])
        logits = c(torch.cat([pairs.neutral, pairs.expressive])).float()
        loss = functional.cross_entropy(logits, labels, networks.class_weights)
    loss.backward()
    networks.optimizers["classifier"].step()
    networks.optimizers["classifier"].zero_grad(set_to_none=True)
    d.requires_grad_(False)
    c.requires_grad_(False)
    c.eval()
    with autocast(config.precision, device):
        score, features = d(fake, pairs.target)
        change = (fake.float() - pairs.neutral).abs().mean((1, 2, 3))
        output_code, input_code = g.encode(fake)[-1].float(), encoded[-1].detach().float()
        loss = (
            (score.float() - 1).square().mean()
            + code_loss
            + config.feature_weight
            * functional.l1_loss(
                channel_statistics(features.float()),
                channel_statistics(real_features.detach().float()),
            )
            + config.expression_weight * functional.cross_entropy(c(fake).float(), pairs.target)
            + config.identity_weight * functional.l1_loss(output_code, input_code)
            + config.reconstruction_weight
            * (change * pairs.same).sum()
            / pairs.same.sum().clamp(min=1)
        )
    loss.backward()
    networks.optimizers["generator"].step()
    networks.optimizers["generator"].zero_grad(set_to_none=True)
    d.requires_grad_(True)
    c.requires_grad_(True)
    c.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    keep_freed_memory()
    device, manifest = pick_device("auto"), read_manifest(options.data)
    precision = "bf16" if supports_bf16(device) else "fp32"
    config = GanConfig(
        options.data,
        Path("unused"),
        batch_size=options.batch_size,
        precision=precision,  # type: ignore[arg-type]
    )
    loader = pair_loader(config, manifest, "train", device)
    both = {name: make_networks(config, manifest, device) for name in ("ours", "bare")}
    state = TrainState.fresh(both["ours"].parts(), len(SUMS), device)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for round_ in range(options.rounds + 1):  # the first warms up
        for name, networks in both.items():
            start = time.monotonic()
            for k in range(options.steps):
                seen = k * options.batch_size
                torch.manual_seed(step_seed(0, seen, 0))
                inputs = pair_block(config, loader, 0, seen, 1).to(device).inputs(0)
                pairs = loader.make(inputs)
                if name == "ours":
                    step(networks, state, pairs, inputs, World(), True, not k % EMA_EVERY)
                else:
                    bare(networks, config, pairs, device)
            with contextlib.suppress(AssertionError, RuntimeError):
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(time.monotonic() - start)
    rates = {
        name: options.steps * options.batch_size / statistics.median(times)
        for name, times in seconds.items()
    }
    print(
        f"{manifest.image_shape}, batch {options.batch_size}, {precision} on {device}: "
        f"ours {rates['ours']:.1f} pairs/s, bare {rates['bare']:.1f}, "
        f"ratio {rates['ours'] / rates['bare']:.3f} (bound 0.95)"
    )


if __name__ == "__main__":
    main()
