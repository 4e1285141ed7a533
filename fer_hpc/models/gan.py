"""Expression transfer: a generator that gives a neutral face another person's expression, and the discriminator against it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from fer_hpc.models.resnet import resnet_baseline

SIDES = (32, 64, 128, 256)
_ENCODER = (64, 128, 256, 512, 512, 512, 512)  # of 256 pixels; a halved side has one stage less
_DECODER = (512, 512, 256, 128, 64)
CODE = 128  # numbers that say an expression


class Generator(nn.Module):
    """U-Net over the neutral face, with a code of the expressive face fused into its bottleneck; the report's layers.

    Both faces [B, C, S, S] in [-1, 1]; gives [B, C, S, S] in [-1, 1]. S is 32, 64, 128 or 256: every stage halves it, down
    to 2x2, so 256 pixels have seven stages. The last stage up is bilinear, as in the report.
    With `classes`, improved: what is drawn is a change of the neutral face, whose details, finer than the bilinear stage, stay;
    a ResNet makes the code, whose class `name` tells, so that it can be taught; and the code scales and shifts what the stages
    up have normalised (FiLM, Perez et al. 2018), but for the last two, which would draw it as a texture over the whole face.
    Told to the bottleneck alone, it fades by each stage above.
    """

    def __init__(self, channels: int, size: int, classes: int = 0) -> None:
        super().__init__()
        stages = size.bit_length() - 2
        widths = _ENCODER[:stages]
        self.down = nn.ModuleList()
        inputs = channels
        for i, width in enumerate(widths):
            bare = i in (0, stages - 1)
            layers: list[nn.Module] = [nn.Conv2d(inputs, width, 4, 2, 1)] + (
                [] if bare else [nn.BatchNorm2d(width)]
            )
            self.down.append(nn.Sequential(*layers, nn.LeakyReLU(0.2)))
            inputs = width
        self.expression = (
            resnet_baseline(CODE, channels, size)
            if classes
            else _three_convolutions(channels, CODE)
        )
        self.class_head = nn.Linear(CODE, classes) if classes else None
        self.fuse = nn.Conv2d(inputs + CODE, 512, 1)
        self.up, self.film, self.act = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        inputs = 512
        for i, width in enumerate(_DECODER[7 - stages :]):
            deep = i < stages - 4
            self.up.append(
                nn.Sequential(nn.ConvTranspose2d(inputs, width, 4, 2, 1), nn.BatchNorm2d(width))
            )
            self.film.append(nn.Linear(CODE, 2 * width) if classes and deep else nn.Identity())
            self.act.append(nn.Sequential(nn.ReLU(), *([nn.Dropout(0.5)] if i < 2 else [])))
            inputs = width + widths[stages - 2 - i]  # the encoder's stage of that side joins
        self.out = nn.ConvTranspose2d(inputs, channels, 4, 2, 1)
        for part in (self.down, self.fuse, self.up, self.out):
            _initialise(part)
        if classes:
            nn.init.zeros_(self.out.weight)  # it begins with the neutral face

    def encode(self, neutral: torch.Tensor) -> list[torch.Tensor]:
        """What each stage of the encoder makes of the neutral face."""
        found = []
        for stage in self.down:
            neutral = stage(neutral)
            found.append(neutral)
        return found

    def forward(self, neutral: torch.Tensor, expressive: torch.Tensor) -> torch.Tensor:
        return self.decode(neutral, self.encode(neutral), self.expression(expressive))

    def decode(
        self, neutral: torch.Tensor, encoded: list[torch.Tensor], code: torch.Tensor
    ) -> torch.Tensor:
        """The neutral face, of which `encode` has made `encoded`, with the expression of a code [B, CODE]."""
        *skips, deepest = encoded
        x = self.fuse(
            torch.cat([deepest, code[:, :, None, None].expand(-1, -1, *deepest.shape[2:])], 1)
        )
        for stage, film, act in zip(self.up, self.film, self.act, strict=True):
            x = stage(x)
            if isinstance(film, nn.Linear):
                scale, shift = film(code)[:, :, None, None].chunk(2, 1)
                x = x * (1 + scale) + shift
            x = torch.cat([act(x), skips.pop()], 1)
        drawn = torch.tanh(self.out(x))
        drawn = functional.interpolate(drawn, scale_factor=2.0, mode="bilinear", align_corners=True)
        return drawn if self.class_head is None else (neutral + drawn.float()).clamp(-1, 1)


class Discriminator(nn.Module):
    """PatchGAN: whether each patch of a face is real; the report's layers.

    Face [B, C, S, S] in [-1, 1]; with `classes`, also the class it shall show, [B] int64. Gives patch scores [B, 1, P, P],
    1 meaning real, and the third block's features. `spectral`: spectral norm instead of batch norm (Miyato et al. 2018).
    """

    def __init__(self, channels: int, classes: int = 0, spectral: bool = False) -> None:
        super().__init__()
        self.classes = classes

        def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
            made = nn.Conv2d(inputs, outputs, 4, stride, 1)
            nn.init.normal_(made.weight, 0.0, 0.02)
            nn.init.zeros_(made.bias)  # type: ignore[arg-type]
            return spectral_norm(made) if spectral else made

        def norm(width: int) -> list[nn.Module]:
            return [] if spectral else [nn.BatchNorm2d(width)]

        act = nn.LeakyReLU(0.2)
        self.features = nn.Sequential(
            conv(channels + classes, 64, 2),
            act,
            conv(64, 128, 2),
            *norm(128),
            act,
            conv(128, 256, 2),
            *norm(256),
            act,
        )
        self.score = nn.Sequential(conv(256, 512, 1), *norm(512), act, conv(512, 1, 1))

    def forward(
        self, face: torch.Tensor, target: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.classes:
            assert target is not None
            planes = functional.one_hot(target, self.classes).to(face.dtype)[:, :, None, None]
            face = torch.cat([face, planes.expand(-1, -1, *face.shape[2:])], 1)
        features = self.features(face)
        return self.score(features), features


def paper_classifier(channels: int) -> nn.Module:
    """The report's expression classifier of two classes, of which it only ever saw the second."""
    return _three_convolutions(channels, 2)


def _three_convolutions(channels: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, width in ((channels, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, width, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, outputs))


def _initialise(network: nn.Module) -> None:
    """Normal weights of deviation .02, as DCGAN and pix2pix have them; the report says nothing about it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
