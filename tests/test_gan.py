"""The expression-transfer GAN: networks, pairs, steps, what measures it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fer_hpc.config import GanConfig
from fer_hpc.config.gan import GAN_SIDES
from fer_hpc.data.shards import open_split, read_manifest
from fer_hpc.gan.loop import pair_block, pair_loader
from fer_hpc.gan.measures import (
    bootstrap_counts,
    feature_distances,
    frechet_distance,
    kernel_distance,
    mean_with_interval,
    partner_of_another_class,
)
from fer_hpc.gan.networks import make_networks
from fer_hpc.gan.pairs import PairLoader
from fer_hpc.gan.step import SUMS, random_flip_shift, step
from fer_hpc.models.gan import CODE_SIZE, Discriminator, Generator, paper_classifier
from fer_hpc.parallel.world import World
from fer_hpc.run.state import TrainState

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", GAN_SIDES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_and_a_batch_of_one(size: int, channels: int) -> None:
    face = torch.rand(1, channels, size, size) * 2 - 1
    generator = Generator(channels, size)
    made = generator(face, face)
    assert made.shape == face.shape
    assert made.abs().max() <= 1
    assert generator.encode(face)[-1].shape == (1, 512, 2, 2)
    for network in (Discriminator(channels), Discriminator(channels, 7, spectral=True)):
        scores, features = network(made, torch.tensor([3]))
        assert scores.shape == (1, 1, size // 8 - 2, size // 8 - 2)
        assert features.shape == (1, 256, size // 8, size // 8)
    assert paper_classifier(channels)(made).shape == (1, 2)


def test_the_improved_generator_changes_the_neutral_face_and_classifies_expressions() -> None:
    face, other = torch.rand(2, 2, 1, 32, 32) * 2 - 1
    generator = Generator(1, 32, classes=7)
    assert torch.equal(generator(face, other), face)  # nothing drawn yet
    torch.nn.init.normal_(generator.out.weight)
    made = generator(face, other)
    assert made.shape == face.shape
    assert made.abs().max() <= 1
    assert (made - face).abs().mean() > 0.1
    code = generator.expression(other)
    assert generator.class_head is not None
    assert generator.class_head(code).shape == (2, 7)


@pytest.mark.parametrize("size", GAN_SIDES)
def test_the_expressions_code_reaches_the_face_at_every_depth(size: int) -> None:
    """Without FiLM the code changes 0.51, 0.15, 0.11 and 0.05 of the first output; at 64 pixels
    nothing after training."""
    torch.manual_seed(0)
    generator = Generator(1, size, classes=7)
    torch.nn.init.normal_(generator.out.weight, 0.0, 0.02)
    with torch.no_grad():
        neutral = torch.rand(1, 1, size, size).expand(8, -1, -1, -1) * 2 - 1
        codes = 0.35 * torch.randn(8, CODE_SIZE)
        change = generator.eval().decode(neutral, generator.encode(neutral), codes) - neutral
    assert change.std(0).mean() > 0.4 * change.abs().mean()


def test_only_expressions_are_learnt_before_the_adversarial_steps(faces: Path) -> None:
    manifest, config = (
        read_manifest(faces),
        GanConfig(faces, Path("unused"), batch_size=8, precision="fp32"),
    )
    networks = make_networks(config, manifest, CPU)
    loader = pair_loader(config, manifest, "train", CPU)
    state = TrainState.fresh(networks.parts(), len(SUMS), CPU)

    def changed_by(adversarial: bool) -> set[str]:
        parts = {
            "output": networks.generator.out,
            "code": networks.generator.expression,
            "discriminator": networks.discriminator,
            "classifier": networks.classifier,
        }
        before = {
            name: [p.clone() for p in network.parameters()] for name, network in parts.items()
        }
        given = pair_block(config, loader, 0, 0, 1).inputs(0)
        step(networks, state, loader.make(given), given, World(), adversarial)
        return {
            name
            for name, network in parts.items()
            if any(
                not torch.equal(*both)
                for both in zip(before[name], network.parameters(), strict=True)
            )
        }

    assert changed_by(adversarial=False) == {"code", "classifier"}
    assert changed_by(adversarial=True) == {"code", "classifier", "output", "discriminator"}
    sums = dict(zip(SUMS, state.sums.tolist(), strict=True))
    assert (sums["pairs"], sums["adversarial_steps"]) == (16, 8 * 2**32)


def test_the_classifier_sees_each_face_shifted_and_mirrored_on_its_own() -> None:
    torch.manual_seed(0)
    side, furthest = 16, 2
    face = torch.rand(1, 3, side, side)
    padded = torch.nn.functional.pad(face, [furthest] * 4, mode="replicate")
    wanted = {
        (dy, dx, flip): shifted.flip(3) if flip else shifted
        for dy in range(2 * furthest + 1)
        for dx in range(2 * furthest + 1)
        for flip in (False, True)
        for shifted in [padded[:, :, dy : dy + side, dx : dx + side]]
    }
    faces = face.expand(400, -1, -1, -1).clone().requires_grad_()
    seen = random_flip_shift(faces)
    found = [next(k for k, w in wanted.items() if torch.equal(w[0], one)) for one in seen]
    assert set(found) == set(wanted), "every shift in both directions, mirrored and not"
    seen.sum().backward()
    assert faces.grad is not None
    assert faces.grad.sum() == seen.numel(), "gradients pass"


def test_the_reports_generator_has_its_layers() -> None:
    """Seven stages down to 2x2, six up, then bilinear; widths as the report gives them."""
    generator = Generator(3, 256)
    assert [stage[0].out_channels for stage in generator.down] == [64, 128, 256, 512, 512, 512, 512]
    assert [stage[0].out_channels for stage in generator.up] == [512, 512, 256, 128, 64]
    assert [stage[0].in_channels for stage in generator.up] == [512, 1024, 1024, 768, 384]
    assert generator.out.in_channels == 64 + 128
    assert generator.fuse.in_channels == 512 + 128
    assert [any(isinstance(m, torch.nn.Dropout) for m in stage) for stage in generator.act] == [
        True,
        True,
        False,
        False,
        False,
    ]


def pairs(shards: Path, **more: object) -> PairLoader:
    manifest = read_manifest(shards)
    neutral = manifest.classes.index("Neutral")
    split = open_split(manifest, "train")
    return PairLoader(split, neutral, 12, 3, CPU, **more)  # type: ignore[arg-type]


def test_pairs_are_a_neutral_face_and_another_persons_expression(faces: Path) -> None:
    loader = pairs(faces)
    labels, groups = loader.labels, loader.groups
    seen, same_share = [], 0.0
    for k in range(20):
        neutral, expressive, same, _ = loader.rows(12 * k)
        assert (labels[neutral] == 0).all()
        assert (labels[expressive[~same]] != 0).all()
        assert (expressive[same] == neutral[same]).all()
        assert (groups[neutral[~same]] != groups[expressive[~same]]).all()
        seen += labels[expressive[~same]].tolist()
        same_share += same.mean() / 20
    assert 0.05 < same_share < 0.25
    counts = np.bincount(seen, minlength=8)[1:]
    assert counts[counts > 0].max() < 2 * counts[counts > 0].min(), "balanced over the expressions"


def test_ranks_take_slices_of_the_same_pairs(faces: Path) -> None:
    whole = pairs(faces).batch(36)
    parts = [pairs(faces, rank=rank, size=2).batch(36) for rank in (0, 1)]
    for name in ("neutral", "expressive", "target", "same"):
        assert torch.equal(
            torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)
        ), name
    assert whole.neutral.min() >= -1
    assert whole.neutral.max() <= 1


def test_distances_are_zero_for_the_same_and_as_known_for_gaussians() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (4000, 3)), rng.normal((3, 0, 0), 2, (4000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(9 + 3 * (1 + 4 - 2 * 2), rel=0.05)
    assert abs(kernel_distance(a, rng.normal(0, 1, (4000, 3)))) < 0.02
    assert kernel_distance(a, b) > 1
    found = feature_distances(a[:400], b[:400], a[:400], rng)["frechet"]
    assert found["of_neutral_faces"] == pytest.approx(found["real_halves"])
    assert found["bootstrap_95"][0] < found["value"] < found["bootstrap_95"][1]


def test_faces_of_the_same_distribution_are_as_near_as_other_real_faces() -> None:
    """Frechet distances fall as 1/n, so all of them must compare the same number of faces."""
    rng = np.random.default_rng(0)
    real, made, neutral = rng.normal(0, 1, (3, 400, 40))
    found = feature_distances(real, made, neutral, rng)["frechet"]
    assert found["value"] == pytest.approx(found["real_halves"], rel=0.1)
    assert found["of_neutral_faces"] == pytest.approx(found["real_halves"], rel=0.1)


def test_intervals_draw_all_pairs_of_a_person_together() -> None:
    """Ten people of a hundred equal pairs each tell as much as ten pairs."""
    values = np.repeat(np.random.default_rng(1).normal(size=10), 100)
    narrow, wide = (
        mean_with_interval(values, bootstrap_counts(people))["interval_95"]
        for people in (np.arange(1000), np.arange(1000) // 100)
    )
    assert wide[1] - wide[0] > 7 * (narrow[1] - narrow[0])
    balanced = mean_with_interval(
        values > 0, bootstrap_counts(np.arange(1000)), (values > 0).astype(int)
    )
    assert balanced == {"mean": 0.5, "interval_95": [0.5, 0.5]}


def test_another_expression_is_of_another_class() -> None:
    target = np.array([1, 1, 1, 2, 3, 3, 1])
    assert (target[partner_of_another_class(target)] != target).all()
    assert sorted(partner_of_another_class(np.ones(5, int)).tolist()) == [0, 1, 2, 3, 4]
