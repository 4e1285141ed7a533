"""Networks for expression transfer: a conditional U-Net generator and a PatchGAN discriminator.

The generator takes a neutral face and the face of another person with an expression. It gives the
neutral person's face with that expression.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from fer_hpc.models.resnet import resnet_baseline
from fer_hpc.parallel.device import one_hot

CODE_SIZE = 128  # length of the expression code
_ENCODER = (64, 128, 256, 512, 512, 512, 512)  # for 256 pixels; half the side needs one stage less
_DECODER = (512, 512, 256, 128, 64)
_RENAMED = {"name.": "class_head.", "told.": "film."}  # prefixes in earlier versions' state dicts


class Generator(nn.Module):
    """Conditional U-Net (Isola et al. 2017) with the layers of the source report.

    Takes two faces [B, C, S, S] in [-1, 1], S being 32, 64, 128 or 256, and gives [B, C, S, S] in
    [-1, 1]. Each encoder stage halves the side, down to 2x2: 256 pixels need seven stages. The code
    of the expressive face, [B, CODE_SIZE], joins the bottleneck. The last upsampling is bilinear.

    `classes` = 0 is the report's generator. With `classes` > 0 it has four changes:
    - The expression encoder is a ResNet, and `class_head` predicts the class from its code, so that
      the encoder can be trained with labels.
    - The code also scales and shifts the normalised features of the decoder (FiLM, Perez et al.
      2018). If only the bottleneck receives the code, its influence shrinks with every stage.
    - The last two decoder stages have no FiLM: there it would draw a texture over the whole face.
    - The output is added to the neutral face. It keeps details finer than the bilinear upsampling.
    """

    def __init__(self, channels: int, size: int, classes: int = 0) -> None:
        super().__init__()
        stages = size.bit_length() - 2
        encoder_widths = _ENCODER[:stages]
        self.down = nn.ModuleList()
        inputs = channels
        for i, width in enumerate(encoder_widths):
            layers: list[nn.Module] = [nn.Conv2d(inputs, width, 4, 2, 1)]
            if i not in (0, stages - 1):
                layers.append(nn.BatchNorm2d(width))
            self.down.append(nn.Sequential(*layers, nn.LeakyReLU(0.2)))
            inputs = width
        self.expression = (
            resnet_baseline(CODE_SIZE, channels, size)
            if classes
            else _three_convolutions(channels, CODE_SIZE)
        )
        self.class_head = nn.Linear(CODE_SIZE, classes) if classes else None
        self.fuse = nn.Conv2d(inputs + CODE_SIZE, 512, 1)
        self.up, self.film, self.act = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        inputs = 512
        for i, width in enumerate(_DECODER[7 - stages :]):
            has_film = classes > 0 and i < stages - 4
            self.up.append(
                nn.Sequential(nn.ConvTranspose2d(inputs, width, 4, 2, 1), nn.BatchNorm2d(width))
            )
            self.film.append(nn.Linear(CODE_SIZE, 2 * width) if has_film else nn.Identity())
            self.act.append(nn.Sequential(nn.ReLU(), *([nn.Dropout(0.5)] if i < 2 else [])))
            inputs = width + encoder_widths[stages - 2 - i]  # the skip connection of that side
        self.out = nn.ConvTranspose2d(inputs, channels, 4, 2, 1)
        self.enlarge = _Enlarge(size // 2)
        for part in (self.down, self.fuse, self.up, self.out):
            _init_weights(part)
        if classes:
            nn.init.zeros_(self.out.weight)  # the first output is the neutral face
        self.register_load_state_dict_pre_hook(_rename_old_keys)

    def encode(self, neutral: torch.Tensor) -> list[torch.Tensor]:
        """The output of each encoder stage for neutral faces [B, C, S, S], largest side first."""
        outputs = []
        for stage in self.down:
            neutral = stage(neutral)
            outputs.append(neutral)
        return outputs

    def forward(self, neutral: torch.Tensor, expressive: torch.Tensor) -> torch.Tensor:
        return self.decode(neutral, self.encode(neutral), self.expression(expressive))

    def decode(
        self, neutral: torch.Tensor, encoded: list[torch.Tensor], code: torch.Tensor
    ) -> torch.Tensor:
        """Output faces [B, C, S, S] for `encoded` = encode(neutral) and codes [B, CODE_SIZE]."""
        *skips, bottleneck = encoded
        planes = code[:, :, None, None].expand(-1, -1, *bottleneck.shape[2:])
        x = self.fuse(torch.cat([bottleneck, planes], 1))
        for stage, film, act in zip(self.up, self.film, self.act, strict=True):
            x = stage(x)
            if isinstance(film, nn.Linear):
                scale, shift = film(code)[:, :, None, None].chunk(2, 1)
                x = x * (1 + scale) + shift
            x = torch.cat([act(x), skips.pop()], 1)
        output = self.enlarge(torch.tanh(self.out(x)))
        return output if self.class_head is None else (neutral + output.float()).clamp(-1, 1)


class _Enlarge(nn.Module):
    """Bilinear interpolation of [B, C, side, side] to twice the side, corners kept.

    On a GPU by two matrix products: there torch's own adds gradients up in no fixed order.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        place = torch.arange(2 * side, dtype=torch.float64) * (side - 1) / (2 * side - 1)
        distance = (place[:, None] - torch.arange(side)).abs()
        self.weights: torch.Tensor
        weights = (1 - distance).clamp(min=0).float()  # [2 side, side]
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu":
            return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        with torch.autocast(x.device.type, enabled=False):
            return (self.weights @ x.float() @ self.weights.T).to(x.dtype)


def _rename_old_keys(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: object) -> None:
    """Give the weights of earlier versions this version's names; called by load_state_dict."""
    for old, new in _RENAMED.items():
        for key in [key for key in state_dict if key.startswith(prefix + old)]:
            state_dict[prefix + new + key.removeprefix(prefix + old)] = state_dict.pop(key)


class Discriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) with the layers of the source report.

    Takes a face [B, C, S, S] in [-1, 1]. With `classes` > 0 it also takes the class that the face
    should show, [B] int64. Gives one score for each patch, [B, 1, P, P] (1: real, 0: generated),
    and the features of the third block [B, 256, S/8, S/8]. `spectral` replaces batch norm by
    spectral norm (Miyato et al. 2018).
    """

    def __init__(self, channels: int, classes: int = 0, spectral: bool = False) -> None:
        super().__init__()
        self.classes = classes

        def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
            layer = nn.Conv2d(inputs, outputs, 4, stride, 1)
            nn.init.normal_(layer.weight, 0.0, 0.02)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            return spectral_norm(layer) if spectral else layer

        def norm(width: int) -> list[nn.Module]:
            return [] if spectral else [nn.BatchNorm2d(width)]

        act = nn.LeakyReLU(0.2)
        self.features = nn.Sequential(
            *(conv(channels + classes, 64, 2), act),
            *(conv(64, 128, 2), *norm(128), act),
            *(conv(128, 256, 2), *norm(256), act),
        )
        self.score = nn.Sequential(conv(256, 512, 1), *norm(512), act, conv(512, 1, 1))

    def forward(
        self, face: torch.Tensor, target: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.classes:
            assert target is not None
            planes = one_hot(target, self.classes, face.dtype)[:, :, None, None]
            face = torch.cat([face, planes.expand(-1, -1, *face.shape[2:])], 1)
        features = self.features(face)
        return self.score(features), features


def paper_classifier(channels: int) -> nn.Module:
    """The report's expression classifier: faces [B, channels, S, S] to logits [B, 2].

    The report trains it on expressive faces only, all of them with the second class.
    """
    return _three_convolutions(channels, 2)


def _three_convolutions(channels: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, width in ((channels, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, width, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, outputs))


def _init_weights(network: nn.Module) -> None:
    """Normal weights of deviation 0.02, as in DCGAN and pix2pix; the report gives none."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
