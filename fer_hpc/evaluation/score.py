"""Score a run on a split: python -m fer_hpc.evaluate RUN --split test."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from fer_hpc.config import CLASSES
from fer_hpc.config.commands import EvaluateConfig
from fer_hpc.data.checksums import verify_in_background
from fer_hpc.data.loader import eval_rows
from fer_hpc.data.step_inputs import Block, Inputs
from fer_hpc.data.store import ImageStore, affect_of
from fer_hpc.data.stream import PixelStream
from fer_hpc.evaluation import metrics
from fer_hpc.evaluation.calibration import (
    FITTED_HERE,
    calibration,
    fit_temperature,
    store_temperature,
    stored_temperature,
)
from fer_hpc.evaluation.groups import group_tables
from fer_hpc.evaluation.opened import OpenedRun, open_run
from fer_hpc.evaluation.results import (
    GALLERY,
    ROBUSTNESS,
    result_files,
    say_replaced,
    wanted_extras,
)
from fer_hpc.files import write_bytes, write_json
from fer_hpc.parallel.collectives import gather_round_robin, process_group
from fer_hpc.parallel.device import arithmetic, autocast
from fer_hpc.parallel.graph import StepRunner
from fer_hpc.parallel.world import World

ONE_PROCESS = World()
CONTEMPT = "Contempt"  # left out in AffectNet's form with 7 classes
CROP_SHARE = 11 / 12  # of the side, in ten_crop: 44 of 48 pixels


# ---- outputs of a split ---------------------------------------------------------------------


class Scorer:
    """Outputs of a network on a split; the mean over the views of --tta.

    Ranks take chunks of a fixed size in turn. So the arithmetic, and with it every bit, is the
    same for any number of ranks that use the same number of threads. With `graph`, a GPU repeats
    the chunks as a CUDA graph; keep the scorer then.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageStore,
        precision: str,
        world: World = ONE_PROCESS,
        tta: str = "none",
        graph: bool = False,
    ) -> None:
        self.model, self.images, self.world = model, images, world
        self._precision, self._tta = precision, tta
        self.rows = eval_rows(len(images.split), world.rank, world.size)
        self._block = Block({"rows": self.rows}).to(images.device)
        self._pixels = PixelStream(images)
        self._runner = StepRunner(self._score, None, images.device, graph)

    def _score(self, inputs: Inputs, _: object) -> torch.Tensor:
        """The mean output [B, classes (+ 2)] over the views of one chunk."""
        images = self.images.gather(inputs).images
        with autocast(self._precision, images.device):
            images = images.double() if self._precision == "fp64" else images
            outputs = [self.model(view).float() for view in views(images, self._tta)]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)

    @torch.no_grad()
    def outputs(self) -> NDArray[np.float32]:
        """Outputs [n, classes (+ 2)] of the split in row order, on every rank."""
        self.model.eval()
        outputs = torch.empty(0)
        for k in range(len(self._block)):
            pixels = self._pixels.at(self._block, k)
            chunk = self._runner.run(self._block, k, streamed=pixels)
            if not k:
                outputs = chunk.new_empty(len(self._block), *chunk.shape)
            outputs[k] = chunk
        gathered = gather_round_robin(outputs.cpu(), self.world).flatten(0, 1)
        return gathered[: len(self.images.split)].contiguous().numpy()


def predict(
    model: nn.Module,
    images: ImageStore,
    precision: str,
    world: World = ONE_PROCESS,
    tta: str = "none",
) -> NDArray[np.float32]:
    """Outputs [n, classes (+ 2)] of a split in row order, once; see `Scorer`."""
    with arithmetic(precision, images.device):
        return Scorer(model, images, precision, world, tta).outputs()


def views(images: torch.Tensor, tta: str) -> Iterator[torch.Tensor]:
    """The views of images [B, C, H, W] whose outputs --tta averages.

    none: the images. flip: also mirrored. ten_crop: four corners and the centre, each also
    mirrored; crops are enlarged to the full size, because some networks take only that.
    """
    if tta != "ten_crop":
        yield images
        if tta == "flip":
            yield images.flip(3)
        return
    size = images.shape[2]
    side = round(CROP_SHARE * size)
    far, middle = size - side, (size - side) // 2
    for top, left in ((0, 0), (0, far), (far, 0), (far, far), (middle, middle)):
        crop = images[:, :, top : top + side, left : left + side]
        whole = interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)
        whole = whole.contiguous(memory_format=torch.channels_last)
        yield whole
        yield whole.flip(3)


def split_outputs(
    outputs: NDArray[Any], classes: int
) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """Outputs [n, classes (+ 2)] as logits [n, classes] and valence and arousal [n, 2], if any."""
    if outputs.shape[1] == classes:
        return outputs, None
    return outputs[:, :classes], np.tanh(outputs[:, classes:].astype(np.float64))


# ---- scores of a run ------------------------------------------------------------------------


def evaluate(config: EvaluateConfig, world: World = ONE_PROCESS) -> dict[str, Any]:
    """Score the run's best weights on a split; gives the content of eval-NAME.json.

    Rank 0 writes it with predictions-NAME.npz, confusion-NAME.png and reliability-NAME.png into the
    run folder; for NAME see `result_name`. On val the temperature is fitted and stored, on other
    splits the stored one is used. Another data set is compared by class names: classes that one
    side lacks are masked before the softmax, faces of classes that the run does not know are
    dropped and counted. The opening of a test split is recorded.
    """
    opened = open_run(config, world)
    verified = None
    if not world.rank:
        verified = verify_in_background(opened.manifest, (config.split,), config.run)
        opened.record(["scores", *wanted_extras(config)])
    with process_group(world):
        images = ImageStore(opened.split, opened.device)
        precision = opened.network.science["precision"]
        outputs = predict(opened.network.model, images, precision, world, config.tta)
    logits, affect = split_outputs(outputs, len(opened.network.data["classes"]))
    logits = opened.logits(logits)
    faces, classes = opened.faces, opened.classes
    result = {
        "split": config.split,
        "data": opened.manifest.fingerprint,
        "weights": opened.weights,
        "tta": config.tta,
        "epoch": opened.network.best["epoch"],
        "finished": opened.network.is_final,
        "masked": opened.masked,
        "dropped": len(opened.split) - len(faces.labels),
        **metrics.summary(logits, faces.labels, classes, faces.targets),
    }
    if set(classes) == set(CLASSES):
        result["affectnet_7"] = metrics.without_class(logits, faces.labels, classes, CONTEMPT)
    if affect is not None:
        result |= metrics.valence_arousal(affect, affect_of(opened.split))
    if verified:
        verified.result()  # raises where a shard has changed
        result["calibration"] = _calibration(opened, logits)
        result["groups"] = group_tables(
            opened.split.columns,
            faces.rows,
            config.by,
            logits.argmax(1),
            faces.labels,
            classes,
            config.min_group,
        )
        say_replaced(config.run, opened.name, opened.manifest.fingerprint)
        _write(opened, result, logits)
        write_extras(opened, wanted_extras(config))
    return result


def add_extras(config: EvaluateConfig, extras: Sequence[str]) -> None:
    """Write extras where the scores and predictions are there already."""
    opened = open_run(config, ONE_PROCESS)
    opened.record(extras)
    write_extras(opened, extras)


def write_extras(opened: OpenedRun, extras: Sequence[str]) -> None:
    """Write robust-NAME.* and gallery-NAME.*, on one rank."""
    if ROBUSTNESS in extras:
        from fer_hpc.evaluation.robust import robustness  # takes longer than the scores

        robustness(opened)
    if GALLERY in extras:
        from fer_hpc.evaluation.gallery import gallery

        gallery(opened)


def _calibration(opened: OpenedRun, logits: NDArray[Any]) -> dict[str, Any]:
    """The field `calibration`. On the run's own val, the temperature is fitted and stored."""
    config, labels, targets = opened.config, opened.faces.labels, opened.faces.targets
    if config.tta != "none":
        note = f"the temperature is that of single views, not of --tta {config.tta}"
        return calibration(logits, labels, targets, None, note)
    if config.split == "val" and opened.is_own_data:
        temperature = fit_temperature(logits, labels, targets)
        data = opened.manifest.fingerprint
        store_temperature(config.run, temperature, opened.weights, data, len(labels))
        return calibration(logits, labels, targets, temperature, FITTED_HERE)
    return calibration(logits, labels, targets, *stored_temperature(config.run, opened.weights))


def _write(opened: OpenedRun, result: dict[str, Any], logits: NDArray[Any]) -> None:
    """Write predictions, plots and, when these are there, the scores."""
    from fer_hpc.evaluation import plots  # matplotlib, which training does not need

    faces, classes, config = opened.faces, opened.classes, opened.config
    files = result_files(config.run, opened.name)
    arrays = {"logits": logits, "labels": faces.labels, "classes": np.array(classes)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, **faces.columns)
    write_bytes(files["predictions"], buffer.getvalue())
    about = f"{config.run.name}, {opened.name}"
    title = f"{about}: {result['accuracy']:.1%} of {len(faces.labels):,}"
    plots.confusion(np.array(result["confusion"]), classes, title, files["confusion"])
    plots.reliability(result["calibration"], about, files["reliability"])
    write_json(files["scores"], result)
