"""Train, score and compare facial-expression classifiers, on a laptop or a cluster.

`from fer_hpc import train, evaluate, predict, load, preset, TrainConfig, register_model, …`: each
name is imported when it is first used, so that importing the package loads neither torch nor ray.
"""

import importlib
import os
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fer_hpc.api import evaluate as evaluate
    from fer_hpc.api import predict as predict
    from fer_hpc.api import preset as preset
    from fer_hpc.api import train as train
    from fer_hpc.config import TrainConfig as TrainConfig
    from fer_hpc.config import UserError as UserError
    from fer_hpc.data.sources import register_source as register_source
    from fer_hpc.evaluation.load import Predictor as Predictor
    from fer_hpc.evaluation.load import load as load
    from fer_hpc.models.registry import register_model as register_model
    from fer_hpc.training.losses import register_loss as register_loss

# OpenCV reads this when it is loaded: it refuses a picture whose header claims more pixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 26))

__version__ = "0.2.0"

# Name -> the module that defines it.
API = {
    "train": "fer_hpc.api",
    "evaluate": "fer_hpc.api",
    "predict": "fer_hpc.api",
    "preset": "fer_hpc.api",
    "load": "fer_hpc.evaluation.load",
    "Predictor": "fer_hpc.evaluation.load",
    "TrainConfig": "fer_hpc.config",
    "UserError": "fer_hpc.config",
    "register_model": "fer_hpc.models.registry",
    "register_source": "fer_hpc.data.sources",
    "register_loss": "fer_hpc.training.losses",
}


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"module 'fer_hpc' has no attribute {name!r}")
    return getattr(importlib.import_module(API[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *API})


class _Package(types.ModuleType):
    """This package: `import fer_hpc.train`, the command, does not replace the function `train`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in API and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
