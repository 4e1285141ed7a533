from __future__ import annotations

import pytest
import torch
from torch import nn

from fer_hpc.models import MODELS
from fer_hpc.models.cnn import Dropout


@pytest.mark.parametrize(("name", "parameters"), [("cnn_baseline", 2_435_946), ("cnn_improved", 4_869_354)])
def test_parameter_counts_are_the_reports(name: str, parameters: int) -> None:
    model = MODELS[name](8, 1, 48)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("classes", "channels"), [(8, 1), (7, 3)])
def test_every_parameter_gets_a_gradient(name: str, classes: int, channels: int) -> None:
    model = MODELS[name](classes, channels, 48)
    logits = model(torch.rand(4, channels, 48, 48))
    assert logits.shape == (4, classes)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout_keeps_the_expectation_and_the_memory_format(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 16, 24, 24).to(memory_format=torch.channels_last)
    y = Dropout(p)(x)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.004)
    assert y.mean().item() == pytest.approx(1, abs=0.005)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(Dropout(p).eval()(x), x)


def test_dropout_treats_every_position_alike() -> None:
    """Eight mask bytes come from one random word; none of them may be special."""
    torch.manual_seed(0)
    kept = torch.stack([Dropout(0.3)(torch.ones(8)) > 0 for _ in range(4000)]).float()
    assert (kept.mean(0) - 0.7).abs().max() < 0.03
    assert (torch.corrcoef(kept.T) - torch.eye(8)).abs().max() < 0.06
