"""Networks of the timm library: `--model timm:NAME`, as `timm:resnet18`."""

from __future__ import annotations

import difflib
import functools
from types import ModuleType
from typing import Any

from torch import nn

from fer_hpc.config import UserError
from fer_hpc.models.spec import ModelSpec, Tensors, head_names

PREFIX = "timm:"
SIDES = (32, 1024)  # what a network really takes is tried when a run starts


def timm_spec(name: str) -> ModelSpec:
    """The spec of `timm:NAME`: made for the size, mean and std of its published weights.

    Raises UserError where timm is not installed or has no such network.
    """
    timm = _timm(name)
    cfg = _config(timm, name)
    channels, side, _ = cfg.input_size
    return ModelSpec(
        name,
        functools.partial(_build, name),
        sides=SIDES,
        face=(side, channels),
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
    )


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError:
        raise UserError(
            f"--model {name} needs the timm library; pip install fer-hpc[timm]"
        ) from None
    return timm


def _config(timm: ModuleType, name: str) -> Any:
    """timm's description of a network and its published weights (a PretrainedCfg)."""
    bare = name.removeprefix(PREFIX)
    architecture, _, tag = bare.partition(".")
    if not timm.models.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(PREFIX + n for n in near)}?" if near else ""
        raise UserError(
            f"--model {name}: timm {timm.__version__} has no network {architecture!r}{hint} "
            "(timm.list_models() lists all)"
        )
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and bare not in tagged:
        raise UserError(
            f"--model {name}: timm {timm.__version__} has no weights {tag!r} of {architecture} "
            f"(known: {', '.join(PREFIX + n for n in tagged) or 'none'})"
        )
    return timm.models.get_pretrained_cfg(bare)


def _build(name: str, outputs: int, channels: int, side: int, **weights: Any) -> nn.Module:
    timm = _timm(name)
    bare, cfg = name.removeprefix(PREFIX), _config(timm, name)
    # timm's flag for networks that are built for one size, and take it as an argument
    size = {"img_size": side} if cfg.fixed_input_size else {}
    network: nn.Module = timm.create_model(
        bare, num_classes=outputs, in_chans=channels, **size, **weights
    )
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if size and patch and side % patch[0]:
        nearest = max(1, round(side / patch[0])) * patch[0]
        raise UserError(
            f"--model {name} divides a face into patches of {patch[0]} pixels, and {side} is no "
            f"multiple of it; preprocess with --size {nearest} or --size {cfg.input_size[1]}"
        )
    if not weights:
        network.starting_weights = functools.partial(  # type: ignore[assignment]
            _starting_weights, name, outputs, channels, side
        )
    return network


def _starting_weights(
    name: str, outputs: int, channels: int, side: int, tensors: Tensors | None
) -> Tensors:
    """The published weights, or those of a file, as timm adapts them to channels and size.

    The last layer is left out where it was trained on other classes.
    """
    if tensors is None:
        return _published(name, outputs, channels, side)
    own = _build(name, outputs, channels, side)
    head = head_names(own)
    state = own.state_dict()
    new = {n: state[n] for n in head if n not in tensors or tensors[n].shape != state[n].shape}
    # With the number of outputs as its own, timm refuses a file that lacks anything.
    overlay = {"state_dict": {**tensors, **new}, "num_classes": outputs, "label_offset": 0}
    adapted = _build(
        name, outputs, channels, side, pretrained=True, pretrained_cfg_overlay=overlay
    ).state_dict()
    return {n: tensor for n, tensor in adapted.items() if n not in new}


def _published(name: str, outputs: int, channels: int, side: int) -> Tensors:
    """The weights that timm publishes, from its cache on disk or the network."""
    from huggingface_hub import constants

    if not _config(_timm(name), name).has_weights:
        raise UserError(f"--pretrained: timm has no weights of {name.removeprefix(PREFIX)}")
    try:
        network = _build(name, outputs, channels, side, pretrained=True)
    except Exception as error:  # every kind of network and file error, and RuntimeError of timm
        raise UserError(
            f"--pretrained: the weights of {name} could not be loaded "
            f"({type(error).__name__}: {_first_line(error)}). They are looked for in "
            f"{constants.HF_HUB_CACHE} and then on the network. On a node without network: load "
            "them once on a node with network into a cache folder that both see (HF_HOME), and "
            "set HF_HUB_OFFLINE=1; or give a file of weights with --init-from"
        ) from error
    head = head_names(network)
    return {n: tensor for n, tensor in network.state_dict().items() if n not in head}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
