"""Val faces in TensorBoard's projector: what enters the last layer, with thumbnails."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from fer_hpc.data.shards import Split
from fer_hpc.run.log import RunLog

CHUNK = 64
THUMBNAIL = 32  # pixels
COMPONENTS = 100  # 1,024 features a face would be 20 MB of text for 1,000 faces


@torch.inference_mode()
def show_faces(
    log: RunLog, model: nn.Module, split: Split, classes: list[str], count: int, images_seen: int
) -> None:
    """Show `count` faces of a split, evenly spaced, with label, prediction and source id.

    The features are the inputs of the last linear layer, or the outputs where there is none; of
    many, the first COMPONENTS principal components.
    """
    rows = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(int))
    shards = np.searchsorted(split.starts, rows, side="right") - 1
    pixels = np.stack(
        [split.images[k][row - split.starts[k]] for k, row in zip(shards, rows, strict=True)]
    )
    faces = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    weight = next(model.parameters())
    inputs: list[torch.Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    hooks = [
        m.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])) for m in last
    ]
    model.eval()
    try:
        chunks = [model(part.to(weight)) for part in faces.split(CHUNK)]
    finally:
        for hook in hooks:
            hook.remove()
    features = torch.cat(inputs or chunks).flatten(1).float().cpu().numpy()
    predicted = torch.cat(chunks)[:, : len(classes)].argmax(1).tolist()
    labels = split.columns["labels"][rows]
    names = [
        [classes[label], classes[guess], _text(source)]
        for label, guess, source in zip(
            labels, predicted, split.columns["source_id"][rows], strict=True
        )
    ]
    side = min(THUMBNAIL, faces.shape[-1])
    small = interpolate(faces, (side, side), mode="bilinear", antialias=True)
    small = small.expand(-1, 3, -1, -1) if small.shape[1] == 1 else small
    log.embedding(reduced(features), names, ["label", "predicted", "source"], small, images_seen)


def reduced(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Features [n, d] around their mean, at most COMPONENTS of them, in few digits."""
    centred = features - features.mean(0)
    if centred.shape[1] > COMPONENTS:
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        centred = (u * s)[:, :COMPONENTS]
    return centred.astype(np.float64).round(4)


def _text(source: bytes | str) -> str:
    text = source.decode("utf-8", "replace") if isinstance(source, bytes) else str(source)
    return " ".join(text.split()) or "-"
