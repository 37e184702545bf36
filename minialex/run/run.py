"""The Python API of training: fit() trains and keeps, load() takes up what was kept, and both give a Run."""

import contextlib
import functools
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.augment import Input
from ..data.folder import ImageFolder, open_data, open_validation
from ..data.loader import Loader
from ..device import open_device
from ..device.base import Device
from ..errors import UserError, shown
from ..nets import Net
from ..network import Network
from ..progress import Bar, anywhere, silent
from . import checkpoint, page
from .folder import RunFolder, net_of
from .history import History
from .scores import Collector, Evaluation, evaluation, named_in, predictions, validate
from .session import Session
from .settings import OPTIONS, settle

PathLike = str | os.PathLike
Picture = str | os.PathLike | Image.Image | np.ndarray


@contextlib.contextmanager
def as_python():
    """Sentences name an option as the command line does (--weight-decay); a caller in Python knows it as weight_decay."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"--([a-z][a-z-]*)", lambda option: option[1].replace("-", "_"), str(error))) from None


class Run:
    """A run folder and the network that was trained in it, for predictions, scores and a look inside.

    `folder` is its path, `config` what config.json says, `classes` their names, `net` the Net, `input` how it takes pictures, `history`
    its epochs, `checkpoint` the path of the weights in use: the best by validation top-1, or with last=True the latest.
    """

    def __init__(self, folder: PathLike, which: str | None = None, device: str | Device = "auto", threads: int | None = None,
                 announce: Callable[[str], None] | None = None) -> None:
        kept = RunFolder(folder)
        self._kept, self.folder, self.config = kept, kept.path, kept.config()
        self.classes, self.net, self.input = self.config["classes"], net_of(self.config), Input.from_config(self.config)
        self.checkpoint = kept.checkpoint(which)
        self._asked = device, threads, announce
        self._network: Network | None = None
        self._busy = threading.RLock()      # one network, one pass at a time

    def __repr__(self) -> str:
        history = self.history
        reached = f", {len(history)} epoch{'s' * (len(history) > 1)}, best validation top-1 {history.best['val_top1']:.1%}" if history else ", no epoch yet"
        return f"Run {self.folder}: {self.net.name}, {len(self.classes)} classes{reached}"

    @property
    def history(self) -> History:
        """The metrics of each epoch, as metrics.jsonl has them now."""
        return History(self._kept.metrics(), len(self.classes))

    @functools.cached_property
    def device(self) -> Device:
        """Where it computes, opened when it is first needed; `chosen` says why there."""
        device, threads, announce = self._asked
        opened, self.chosen = open_device(device, threads, announce) if isinstance(device, str) else (device, "given")
        return opened

    @property
    def network(self) -> Network:
        """The trained network, laid out for evaluation; a larger one takes its place where a larger batch is asked for."""
        return self.network_for(32)

    def network_for(self, batch: int) -> Network:
        """The trained network for batches of at least that many images."""
        if self._network is None or self._network.batch < batch:
            network = Network(self.net, self.device, batch, input=self.input, training=False, init=None)
            checkpoint.restore(self.checkpoint, network)
            network.load_mean(self._kept.mean(self.input))
            self._network = network
        return self._network

    def predict(self, pictures: Picture | Iterable[Picture], *, top: int = 5, ten_crop: bool = False) -> list[list[tuple[str, float]]]:
        """The likeliest classes of pictures: for each a list of `top` (class, probability), the likeliest first.

        A picture is a path, a PIL image, or a uint8 array (height, width, 3) of 0 to 255; a single one counts as a list of one. They are prepared
        as training's validation was: centre crop; ten_crop=True averages over corners and centre, each also mirrored. UserError
        names a picture that cannot be read.
        """
        single = isinstance(pictures, (str, os.PathLike, Image.Image)) or isinstance(pictures, np.ndarray) and pictures.ndim < 4
        items: list[Any] = [pictures] if single else list(pictures)      # type: ignore[arg-type]
        if top < 1:
            raise UserError(f"top {top}: expected at least 1")
        if not items:
            return []
        refused: list[str] = []
        source = ImageFolder(".", [], items, np.full(len(items), -1, np.int32))
        found = list(self.predictions(source, min(top, len(self.classes)), ten_crop, warn=refused.append))
        if refused:
            raise UserError(f"{refused[0].removeprefix('skipped ')}: leave it out" + f" (and {len(refused) - 1} others)" * (len(refused) > 1))
        return [[(self.classes[label], float(p)) for label, p in zip(labels, likely)] for _, labels, likely in found]

    def predictions(self, source: Any, top: int, ten_crop: bool = False, batch: int = 32, warn: Callable[[str], Any] | None = None) -> Any:
        """Yields (place in the source, labels (top,), probabilities (top,)) of each picture that can be read; warn(sentence) names the others."""
        with self._busy:
            network = self.network_for(min(batch, len(source)))
            yield from predictions(network, self.loader(source, min(batch, network.batch), warn), top, ten_crop)

    def evaluate(self, data: PathLike | None = None, *, ten_crop: bool = False, without: PathLike | None = None, batch: int = 64,
                 warn: Callable[[str], Any] | None = None, bar: Bar = silent) -> Evaluation:
        """Scores of labelled pictures: class folders, a list, a packed set, or a folder in which val/ is such (default: the run's own
        validation set).

        ten_crop averages the probabilities of ten crops. without: a file that names images, without which they are scored once more.
        """
        if data is None:
            source, data = self.data()[1], self.config["options"]["data"] or self.config["options"]["val"] or "."
        else:
            source = open_validation(data, self.classes, bar)
        left_out, strangers = named_in(without, source, os.fspath(data)) if without is not None else (None, 0)
        with self._busy:
            network = self.network_for(min(batch, len(source)))
            return evaluation(network, self.loader(source, min(batch, network.batch), warn), ten_crop, left_out, strangers, bar)

    def report(self, data: PathLike | None = None, *, warn: Callable[[str], Any] | None = None) -> Path:
        """Writes report.html and its pictures anew. -> its path

        data: the run's data, if it has moved; where it is gone, the report has no predictions, confusion or augmented batch, and
        warn(sentence) says so.
        """
        warn = warn or warnings.warn
        with self._busy:
            network = self.network_for(self.config["options"]["batch"])
            found = page.first_filters(network)
            try:
                train, val = self.data(data)
            except UserError as error:
                if data is not None:
                    raise
                warn(f"{error}; without its data (--data DIR, if it has moved) the report has no predictions, confusion or augmented batch")
            else:
                found |= self.shown(network, train, val, warn)
            page.write(self.folder, self.config, self._kept.metrics(), **found)
        return self._kept.report

    def shown(self, network: Network, train: Any, val: Any, warn: Callable[[str], Any]) -> dict:
        """What a report shows of a run's data."""
        collector, input = Collector(network, val), self.input
        validate(network, self.loader(val, min(self.config["options"]["batch"], network.batch), warn), each=collector)
        seed = self.config["options"]["seed"]
        loader = Loader(train, input.side, page.SHOWN, fit=input.fit, seed=seed, cache_mb=0, warn=warn)
        with contextlib.closing(loader.epoch(0)) as batches:
            first = next(batch for batch in batches if len(batch))
        views = input.draw(seed, 0, first.index)
        return collector.found() | {"seen": page.augmented(input, first.images, views, self.device, self._kept.mean(input))}

    def data(self, data: PathLike | None = None) -> tuple[Any, Any]:
        """(train, val), the run's data sources; data: where they are, if they have moved."""
        options = self.config["options"]
        train, val = open_data(data) if data is not None else open_data(options["data"] or None, options["train"] or None, options["val"] or None)
        if train.classes != self.classes:
            raise UserError(f"the classes of {shown(train.root)} are not those of the run")
        return train, val

    def loader(self, source: Any, batch: int, warn: Callable[[str], Any] | None = None) -> Loader:
        """Batches of a source's pictures in their order, prepared for this run's network."""
        return Loader(source, self.input.side, batch, fit=self.input.fit, shuffle=False, cache_mb=0, workers=self.device.decoders, warn=warn)


def load(run: PathLike, *, last: bool = False, device: str | Device = "auto", threads: int | None = None) -> Run:
    """Takes up a run from its folder, with its best weights, or with last=True its latest. device: "auto", "cpu", "cuda" or "numpy"."""
    with as_python():
        return Run(run, "last" if last else None, device, threads)


def fit(data: PathLike | None = None, *, net: str | Net | None = None, train: PathLike | None = None, val: PathLike | None = None,
        recipe: str | None = None, epochs: int | None = None, batch: int | None = None, size: int | None = None, side: int | None = None,
        fit: str | None = None, augment: str | None = None, drop_last: bool | None = None, optimizer: str | None = None, lr: float | None = None,
        schedule: str | None = None, momentum: float | None = None, weight_decay: float | None = None, form: str | None = None,
        bias_lr: float | None = None, bias_decay: float | None = None, label_smoothing: float | None = None, init: str | None = None,
        seed: int | None = None, device: str | None = None, threads: int | None = None, workspace_mb: float | None = None,
        out: PathLike | None = None, resume: PathLike | None = None, progress: bool = True, stop: Callable[[], bool] = lambda: False,
        on_epoch: Callable[[dict], Any] | None = None) -> Run:
    """Trains a net on folders of pictures, and keeps the run in a folder. -> the Run, also when it was stopped early

    data: a folder with train/CLASS/*.jpg and val/CLASS/*.jpg (or the two apart, as train and val); without any, a small set of ten
    classes that is drawn on first use. net: a name of minialex.nets.NETS (default "half") or a Net of one's own. All other options are
    those of `python -m minialex.train --help`, None for their default. out: the run folder (default: a new one in runs/). resume: a run
    folder to go on with, bit for bit as if it had not stopped; epochs, device, threads and a data folder that has moved may be given with it.

    progress shows a bar, in a notebook or a terminal. stop() is asked after each step: once it is true the run is saved and
    returned. on_epoch(metrics) is called after each epoch was saved. An interrupt (KeyboardInterrupt) goes through; what was saved last,
    at the end of each epoch and every ten minutes, can be resumed. What is not as expected is a Python warning, and a mistake a UserError.
    """
    with as_python():
        asked = {**dict.fromkeys(OPTIONS), "recipe": recipe, "epochs": epochs, "batch": batch, "size": size, "side": side, "fit": fit,
                 "augment": augment, "drop_last": drop_last, "optimizer": optimizer, "lr": lr, "schedule": schedule, "momentum": momentum,
                 "weight_decay": weight_decay, "form": form, "bias_lr": bias_lr, "bias_decay": bias_decay, "label_smoothing": label_smoothing,
                 "init": init, "seed": seed, "device": device, "threads": threads, "workspace_mb": workspace_mb}
        asked |= {name: None if path is None else os.fspath(path) for name, path in (("data", data), ("train", train), ("val", val))}
        own = net if isinstance(net, Net) else None
        if own is not None and size not in (None, own.size):
            raise UserError(f"size {size}: the net given is for pictures of {own.size} pixels; leave size out")
        asked["net"] = own.name if own is not None else net
        options, config, folder = settle(asked, out, resume)
        show = anywhere if progress else silent
        with Session(options, config, folder, own, tell=heard, bar=show) as session:
            trainer = session.trainer
            steps = len(trainer.train) * trainer.epochs
            with show(total=steps, initial=trainer.state["step"], unit="step", leave=True, desc=str(folder)) as bar:
                for at in session.run(stop):
                    if at == "step":
                        bar.update()
                        bar.set_postfix({name: f"{value:.3f}" for name, value in trainer.so_far().items()}, refresh=False)
                    elif at == "epoch":
                        last = trainer.metrics[-1]
                        bar.set_description(f"{folder}, epoch {last['epoch']}/{trainer.epochs}: val loss {last['val_loss']:.3f}, top-1 {last['val_top1']:.1%}")
                        for topic, sentence in session.remarks():
                            heard(topic, sentence)
                        if on_epoch is not None:
                            on_epoch(last)
            return Run(folder.path, device=session.device)


def heard(topic: str, sentence: str) -> None:
    """What a session tells, as Python warnings where it is not as expected."""
    if topic in ("warning", "skipped"):
        warnings.warn(sentence, stacklevel=2)
