from __future__ import annotations

import pytest
import torch
from torch import nn

from fer_hpc.models.cnn import Dropout
from fer_hpc.models.gpu_convolutions import convolve, use_quick_convolutions
from fer_hpc.models.registry import MODELS


@pytest.mark.parametrize(
    ("name", "channels", "size", "parameters"),
    [
        ("cnn_baseline", 1, 48, 2_435_946),
        ("cnn_improved", 1, 48, 4_869_354),
        ("resnet_baseline", 1, 48, 175_400),
        ("resnet_improved", 3, 224, 26_055_416),
        ("vgg", 1, 48, 40_380_616),
        ("resnet_small", 1, 48, 7_843_816),
    ],
)
def test_parameter_counts(name: str, channels: int, size: int, parameters: int) -> None:
    """As the report gives them; resnet_small is not the report's."""
    with torch.device("meta"):
        model = MODELS[name].build(8, channels, size)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_small_resnet_has_keras_running_statistics_too() -> None:
    """176,520 values with batch norm's running means and variances, as Keras counts."""
    model = MODELS["resnet_baseline"].build(8, 1, 48)
    values = [
        v for name, v in model.state_dict().items() if not name.endswith("num_batches_tracked")
    ]
    assert sum(v.numel() for v in values) == 176_520


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("classes", "channels", "size"), [(8, 1, 48), (7, 3, 32)])
def test_every_parameter_gets_a_gradient(name: str, classes: int, channels: int, size: int) -> None:
    torch.manual_seed(0)
    size = max(size, MODELS[name].sides[0])
    model = MODELS[name].build(classes, channels, size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            # A residual branch whose last weight is zero gets no gradient in its first step.
            nn.init.ones_(module.weight)
    logits = model(torch.rand(4, channels, size, size))
    assert logits.shape == (4, classes)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1
    )


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
    """Eight mask bytes come from one random word; all of them must have the same distribution."""
    torch.manual_seed(0)
    kept = torch.stack([Dropout(0.3)(torch.ones(8)) > 0 for _ in range(4000)]).float()
    assert (kept.mean(0) - 0.7).abs().max() < 0.03
    assert (torch.corrcoef(kept.T) - torch.eye(8)).abs().max() < 0.06


@pytest.mark.parametrize(
    ("size", "stride", "padding", "channels"),
    [
        *[(3, 2, 1, 8), (3, 2, 0, 5), (1, 2, 0, 8), (1, 1, 0, 3), (2, 2, 1, 1), (3, 1, 1, 1)],
        *[(3, 2, 1, 16), (3, 1, 1, 12), (1, 2, 0, 32)],
    ],
)
@pytest.mark.parametrize("side", [12, 13])
def test_quick_forms_of_convolutions_are_the_same_sums(
    size: int, stride: int, padding: int, channels: int, side: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 6, size, stride, padding).double()
    images = torch.randn(2, channels, side, side, dtype=torch.float64, requires_grad=True)
    found = []
    for output in (conv(images), convolve(conv, images)):
        inputs = [images, conv.weight, conv.bias]
        gradients = torch.autograd.grad((output * output.detach().cos()).sum(), inputs)
        found.append((output, *gradients))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*found, strict=True))
    assert found[0][0].shape == found[1][0].shape


def test_only_plain_convolutions_of_few_channels_change_their_form() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, 1),
        nn.Conv2d(32, 32, 3),
        nn.Conv2d(32, 64, 1),
        nn.Conv2d(4, 8, 3, 2, groups=2),
        nn.Conv2d(64, 8, 3),
        nn.Conv2d(32, 64, 3),
    )
    before = [type(module) for module in network]
    state = list(network.state_dict())
    changed = [type(module) for module in use_quick_convolutions(network)]
    assert [a is b for a, b in zip(before, changed, strict=True)] == 3 * [False] + 3 * [True]
    assert list(network.state_dict()) == state
