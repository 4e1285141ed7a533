from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fer_hpc.data.store import Batch
from fer_hpc.evaluation.metrics import loss_and_accuracy, smoothed_loss, valence_arousal
from fer_hpc.training.objective import LossNormalizer, Objective, class_weights

K = 5


def batch_of(n: int, **more: torch.Tensor) -> Batch:
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, K, n))
    return Batch(torch.zeros(n, 1, 2, 2), labels, torch.arange(n), **more)


def logits_of(n: int, extra: int = 0) -> torch.Tensor:
    return torch.randn(
        n,
        K + extra,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
        requires_grad=True,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_weights_it_is_torchs_cross_entropy(smoothing: float) -> None:
    batch, logits = batch_of(12), logits_of(12)
    total, loss, objective = Objective(K, smoothing)(logits, batch, LossNormalizer(12))
    assert total.item() == pytest.approx(
        cross_entropy(logits, batch.labels, label_smoothing=smoothing).item()
    )
    assert loss.item() / 12 == pytest.approx(cross_entropy(logits, batch.labels).item())
    assert objective.item() / 12 == pytest.approx(total.item())
    assert smoothed_loss(logits.detach().numpy(), batch.labels.numpy(), smoothing) == pytest.approx(
        total.item()
    )


def test_class_weights_are_capped_and_even_out_the_classes() -> None:
    weights = class_weights([600, 300, 90, 10, 0], cap=5.0)
    assert weights.tolist() == [1000 / (4 * 600), 1000 / (4 * 300), 1000 / (4 * 90), 5.0, 0.0]


def test_weighted_parts_add_up_to_the_global_batchs_mean() -> None:
    """Gradients of parts, divided by the global weight, add up to those of the whole batch."""
    weights = class_weights([40, 30, 20, 9, 1], cap=10.0)
    batch, logits = batch_of(12), logits_of(12)
    objective = Objective(K, 0.1, torch.from_numpy(weights))
    mass = LossNormalizer(float(weights[batch.labels.numpy()].sum()))
    whole = torch.autograd.grad(objective(logits, batch, mass)[0], logits)[0]
    parts = [
        objective(part, piece, mass)[0]
        for part, piece in zip(logits.split(4), batch.parts(3), strict=True)
    ]
    assert torch.allclose(torch.autograd.grad(sum(parts), logits)[0], whole)
    plain = torch.stack([cross_entropy(logits, batch.labels, torch.from_numpy(weights))])
    unsmoothed = Objective(K, 0.0, torch.from_numpy(weights))(logits, batch, mass)[0]
    assert unsmoothed.item() == pytest.approx(
        plain.item()
    )  # torch's weighted mean is the same thing


def test_mixup_weighs_both_labels() -> None:
    kept, others = torch.full((6,), 0.7), torch.tensor([0, 1, 2, 3, 4, 0])
    batch, logits = batch_of(6, weights=kept, other_labels=others), logits_of(6)
    loss = Objective(K)(logits, batch, LossNormalizer(6))[0]
    wanted = 0.7 * cross_entropy(logits, batch.labels) + 0.3 * cross_entropy(logits, others)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_missing_valence_and_arousal_add_nothing() -> None:
    affect = torch.tensor([[0.5, float("nan")], [float("nan"), float("nan")], [-0.5, 0.25]])
    batch, outputs = batch_of(3, affect=affect), logits_of(3, extra=2)
    plain = Objective(K)(outputs, batch, LossNormalizer(3))[0]
    total = Objective(K, va_weight=2.0)(outputs, batch, LossNormalizer(3, affect_count=3))[0]
    predicted = outputs[:, K:].tanh().detach()
    errors = [
        (predicted[0, 0] - 0.5) ** 2,
        (predicted[2, 0] + 0.5) ** 2,
        (predicted[2, 1] - 0.25) ** 2,
    ]
    assert (total - plain).item() == pytest.approx(2.0 * float(sum(errors)) / 3)
    gradient = torch.autograd.grad(total, outputs)[0]
    assert not gradient[1, K:].any()
    assert gradient.isfinite().all()


def test_valence_and_arousal_scores() -> None:
    truth = np.array([[0.5, np.nan], [-0.5, np.nan], [0.1, np.nan]])
    perfect = valence_arousal(truth, truth)
    assert (perfect["valence_rmse"], perfect["valence_sign"]) == (0.0, 1.0)
    assert perfect["valence_ccc"] == pytest.approx(1.0)
    assert "arousal_rmse" not in perfect
    assert valence_arousal(-truth, truth)["valence_ccc"] < 0


def test_targets_replace_the_labels_also_mixed_and_weighted() -> None:
    generator = torch.Generator().manual_seed(2)
    shares = torch.rand(12, K, generator=generator).softmax(1)
    batch, logits = batch_of(12, targets=shares), logits_of(12)
    total, loss, _ = Objective(K)(logits, batch, LossNormalizer(12))
    assert total.item() == pytest.approx(cross_entropy(logits, shares.double()).item())
    assert loss.item() / 12 == pytest.approx(total.item())
    numbers = (logits.detach().numpy(), batch.labels.numpy())
    assert loss_and_accuracy(*numbers, shares.numpy())[0] == pytest.approx(total.item())
    assert smoothed_loss(*numbers, 0.1, shares.double().numpy()) == pytest.approx(
        cross_entropy(logits, shares.double(), label_smoothing=0.1).item()
    )
    one_hot = torch.eye(K)[batch.labels]
    hard = Objective(K, 0.1)(logits, batch_of(12), LossNormalizer(12))[0]
    assert Objective(K, 0.1)(logits, batch_of(12, targets=one_hot), LossNormalizer(12))[0] == hard
    kept = torch.full((12,), 0.25)
    other = torch.roll(torch.arange(12), 1)
    mixed = batch_of(
        12,
        targets=shares,
        other_targets=shares[other],
        other_labels=batch.labels[other],
        weights=kept,
    )
    wanted = cross_entropy(logits, (0.25 * shares + 0.75 * shares[other]).double())
    assert Objective(K)(logits, mixed, LossNormalizer(12))[0].item() == pytest.approx(wanted.item())
    parts = mixed.parts(3)
    assert torch.equal(torch.cat([p.other_targets for p in parts]), shares[other])
