"""What one would write instead: Lightning, mixed bf16, a DataLoader with 8 persistent workers."""

from __future__ import annotations

import logging
import time
import warnings

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from fer_hpc.config import TrainConfig, fields_of
from fer_hpc.models.registry import build_network

WORKERS = 8


class Faces(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory; half of them mirrored, as float in [0, 1]."""

    def __init__(self, images: np.ndarray, classes: int) -> None:
        self.images, self.classes = images, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.images[row]).permute(2, 0, 1)
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return image.float() / 255, row % self.classes


def lightning_rate(
    config: TrainConfig, shape: tuple[int, int, int], classes: int, n: int, device: torch.device
) -> float:
    """Images/s of the last of three epochs of `n` images of `shape` (H, W, C)."""
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    times: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build_network(fields_of(config, "science"), classes, shape)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return cross_entropy(self.model(batch[0]), batch[1])

        def on_train_epoch_start(self) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - self.start)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9, nesterov=True)

    images = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    loader = DataLoader(
        Faces(images, classes),
        config.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)
    return n / times[-1]
