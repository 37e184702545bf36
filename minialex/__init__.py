"""AlexNet from scratch: every kernel written by hand, once, for NVIDIA GPUs and for CPUs.

fit() trains a net on folders of pictures, load() takes up a run, convert() weights of other libraries; Net and its layers make a net of one's own, Network runs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__


if TYPE_CHECKING:
    from . import functional, gradcheck, nets
    from .convert import convert
    from .data.augment import Input
    from .data.folder import open_data
    from .data.image import picture
    from .data.loader import Loader
    from .device import open_device
    from .errors import UserError
    from .nets import Net
    from .network import Network
    from .ops.conv import Conv
    from .ops.dense import Dense
    from .ops.dropout import Dropout
    from .ops.lrn import LRN
    from .ops.pool import MaxPool
    from .ops.relu import ReLU
    from .optim import SGD, Adam, Schedule
    from .run.explain import Explanation
    from .run.fit import fit
    from .run.history import History
    from .run.run import Run, load
    from .run.scores import Evaluation
    from .run.trainer import Trainer

# Where each name is: taken from there when it is first asked for, so that `import minialex` costs nothing.
_PLACES = {"fit": "run.fit", "load": "run.run", "Run": "run.run", "History": "run.history", "Evaluation": "run.scores", "Explanation": "run.explain", "Trainer": "run.trainer",
           "Net": "nets", "Network": "network", "Conv": "ops.conv", "Dense": "ops.dense", "Dropout": "ops.dropout", "LRN": "ops.lrn",
           "MaxPool": "ops.pool", "ReLU": "ops.relu", "SGD": "optim", "Adam": "optim", "Schedule": "optim", "Input": "data.augment",
           "Loader": "data.loader", "open_data": "data.folder", "picture": "data.image", "open_device": "device", "UserError": "errors"}
_ROOMS = "convert", "functional", "gradcheck", "nets", "onnx"      # convert is a function too; the last needs a package that may be missing, and so is in no list

__all__ = ["Adam", "Conv", "Dense", "Dropout", "Evaluation", "Explanation", "History", "Input", "LRN", "Loader", "MaxPool", "Net", "Network", "ReLU", "Run", "SGD", "Schedule",
           "Trainer", "UserError", "convert", "fit", "functional", "gradcheck", "load", "nets", "open_data", "open_device", "picture"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
