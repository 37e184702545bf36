"""A run that was kept, taken up from Python: its history, predictions, scores and report."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.augment import Input
from ..data.folder import ImageFolder, drawn_fraction, open_data, open_validation
from ..data.listing import twins
from ..data.loader import Loader
from ..data.shapes import default_set
from ..device import check_name, open_device
from ..device.base import Device
from ..errors import UserError, shown
from ..files import require_place, write_beside
from ..network import Network
from ..progress import Bar, silent
from . import checkpoint, page, why
from .explain import Explanation, explain, features_of, hidden_layer, nearest
from .folder import RunFolder, net_of
from .history import History
from .scores import Collector, Evaluation, evaluation, named_in, predictions, validate
from .words import as_python, heard

PathLike = str | os.PathLike
Picture = str | os.PathLike | Image.Image | np.ndarray


class Run:
    """A run folder and the network that was trained in it, for predictions, scores and a look inside.

    `folder` is its path, `config` what config.json says, `classes` their names, `net` the Net, `input` how it takes pictures, `history`
    its epochs, `checkpoint` the path of the weights in use: the best by validation top-1, or with last=True the latest.
    """

    def __init__(self, folder: PathLike | RunFolder, which: str | None = None, device: str | Device | None = "auto", threads: int | None = None,
                 announce: Callable[[str], None] | None = None, words: Callable[[], Any] = contextlib.nullcontext) -> None:
        kept = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self._kept, self._words, self.folder, self.config = kept, words, kept.given, kept.config()
        self.classes, self.net, self.input = self.config["classes"], net_of(self.config), Input.from_config(self.config)
        self.checkpoint = kept.checkpoint(which)
        if isinstance(device, str):
            check_name(device)
        self._asked = device or "auto", threads, announce
        self._network: Network | None = None
        self._busy = threading.RLock()      # one network, one pass at a time

    def __repr__(self) -> str:
        history = self.history
        reached = f", {len(history)} epoch{'s' * (len(history) > 1)}, best validation top-1 {history.best['val_top1']:.1%}" if history else ", no epoch yet"
        return f"Run {self._kept}: {self.net.name}, {len(self.classes)} classes{reached}"

    def __fspath__(self) -> str:
        return str(self._kept.path)

    @property
    def history(self) -> History:
        """The metrics of each epoch, as metrics.jsonl has them now."""
        if not self._kept.path.is_dir():
            raise UserError(f"the run folder {self.folder} is no longer there: minialex.load() it from where it is now")
        return History(self._kept.metrics(), len(self.classes))

    @functools.cached_property
    def device(self) -> Device:
        """Where it computes, opened when it is first needed; `chosen` says why there."""
        device, threads, announce = self._asked
        if not isinstance(device, str):
            self.chosen = "given"
            return device
        opened, self.chosen = open_device(device, threads, announce)
        if opened.name == "cuda":      # elsewhere a run that was trained with less precision is evaluated with more
            opened.take_precision(self.config["options"].get("precision", "float32"))
        return opened

    @property
    def network(self) -> Network:
        """The trained network, laid out for evaluation; a larger one takes its place where a larger batch is asked for."""
        with self._words():
            return self._network_for(32)

    def _network_for(self, batch: int) -> Network:
        """The trained network for batches of at least that many images."""
        with self._busy:
            network = self._network
            if network is None or network.batch < batch:
                self._network = network = None      # its memory goes first
                self._network = network = self._made(batch)
            return network

    def _made(self, batch: int, to_input: bool = False) -> Network:
        """The trained network, for evaluation."""
        checkpoint.require(self.checkpoint)      # before anything is compiled
        network = Network(self.net, self.device, batch, input=self.input, training=False, init=None, to_input=to_input,
                          conv=self.config.get("convolutions", "auto"))      # for the figures that training has told
        checkpoint.restore(self.checkpoint, network)
        network.load_mean(self._kept.mean(self.input))
        return network

    def predict(self, pictures: Picture | Iterable[Picture], *, top: int = 5, ten_crop: bool = False) -> list[list[tuple[str, float]]]:
        """The likeliest classes of pictures: for each a list of `top` (class, probability), the likeliest first.

        A picture is a path, a PIL image, or a uint8 array (height, width, 3) of 0 to 255; a single one counts as a list of one. They are prepared
        as training's validation was: centre crop; ten_crop=True averages over corners and centre, each also mirrored. UserError
        names a picture that cannot be read.
        """
        items = items_of(pictures)
        if not isinstance(top, int) or top < 1:
            raise UserError(f"top {top!r}: expected an integer of at least 1")
        if not items:
            return []
        refused: list[str] = []
        source = ImageFolder(".", [], items, np.full(len(items), -1, np.int32))
        with self._words():
            try:
                found = list(self.predictions(source, min(top, len(self.classes)), ten_crop, warn=refused.append))
            except UserError:      # the loader gives up where none can be read
                if not refused:
                    raise
        if refused:
            raise UserError(f"{refused[0].removeprefix('skipped ')}: leave it out" + f" (and {len(refused) - 1} others)" * (len(refused) > 1))
        return [[(self.classes[label], float(p)) for label, p in zip(labels, likely)] for _, labels, likely in found]

    def predictions(self, source: Any, top: int, ten_crop: bool = False, batch: int = 32, warn: Callable[[str], Any] | None = None) -> Any:
        """Yields (place in the source, labels (top,), probabilities (top,)) of each picture that can be read; warn(sentence) names the others."""
        network = self._network_for(min(batch, len(source)))
        yield from predictions(network, self._loader(source, min(batch, network.batch), warn), top, ten_crop, self._busy)

    def evaluate(self, data: PathLike | None = None, *, ten_crop: bool = False, without: PathLike | None = None, batch: int = 64,
                 warn: Callable[[str], Any] | None = None, bar: Bar = silent, began: Callable[[Any], Any] | None = None) -> Evaluation:
        """Scores of labelled pictures: class folders, a list, a packed set, or a folder in which val/ is such (default: the run's own
        validation set).

        ten_crop averages the probabilities of ten crops. without: a file that names images, without which they are scored once more.
        began(data source) is called before the first picture, when all is ready.
        """
        with self._words(), self._busy:
            asked, options = data, self.config["options"]
            if data is None and "converted" in self.config:
                raise UserError(f"the weights in {self.folder} were converted, and it has no images of its own: give --data DIR")
            if data is None:
                data = options["data"] or options["val"] or default_set(bar)
            drawn = options.get("val_fraction") is not None and os.path.realpath(data) == os.path.realpath(options["data"])
            try:
                source = self.data(warn=warn)[1] if drawn else open_validation(data, self.classes, bar)
            except UserError as error:
                if asked is not None:
                    raise
                raise UserError(f"{error}; give --data, if the run's data has moved") from None
            if drawn and asked is not None:
                (warn or heard)(f"{shown(data)} is what the run was trained on: scored are the images that were drawn from it for validation")
            for sentence in source.remarks():
                (warn or heard)(sentence)
            left_out, strangers = named_in(without, source, os.fspath(data)) if without is not None else (None, 0)
            network = self._network_for(min(batch, len(source)))
            if began is not None:
                began(source)
            return evaluation(network, self._loader(source, min(batch, network.batch), warn), ten_crop, left_out, strangers, bar)

    def explain(self, pictures: Picture | Iterable[Picture], out: PathLike | None = None, *, channels: int = 6, neighbours: int = 6,
                data: PathLike | None = None, warn: Callable[[str], Any] | None = None, bar: Bar = silent) -> list[Explanation]:
        """Why the network takes pictures, which are given as to `predict`, for what it does: an Explanation of each. out: an HTML file to write it to, as a
        page that needs nothing else.

        So many channels of each convolution, and so many nearest training images, of which at most 10,000 are looked at, spread evenly over the
        listing. data: as for `report`; where it is gone no neighbours are told, and warn(sentence) says so.
        """
        items, warn = items_of(pictures), warn or heard
        if out is not None:
            require_place("out", os.fspath(out))
        if not items:
            return []
        with self._words(), self._busy:
            images = self.input.prepare(items)
            lacking, train = self._training_set(data, warn) if neighbours and hidden_layer(self.net) else ("the net has no hidden layer", None)
            network = self._made(32, to_input=True)
            found, features = explain(network, images, (os.fspath(item) if isinstance(item, (str, os.PathLike)) else None for item in items), self.classes,
                                      channels, bar)
            if train is not None:
                for own, near in zip(found, nearest(network, features, train, neighbours, workers=self.device.decoders, warn=warn, bar=bar)):
                    own.neighbours = near
            if out is not None:
                why.write(out, self.config, self._kept.metrics(), found, hidden_layer(self.net), lacking)
        return found

    def report(self, data: PathLike | None = None, *, warn: Callable[[str], Any] | None = None) -> Path:
        """Writes report.html, curve.png and filters.png anew. -> the page's path

        data: the run's data, if it has moved; where it is gone, the report has no predictions, confusion or augmented batch, and
        warn(sentence) says so.
        """
        warn = warn or heard
        with self._words(), self._busy:
            try:
                sources = self.data(data, warn)
            except UserError as error:
                if data is not None:
                    raise
                warn(f"{error}; without its data (--data DIR, if it has moved) the report has no predictions, confusion or augmented batch")
                sources = None
            network = self._network_for(min(self.config["options"]["batch"], max(map(len, sources or [""]), default=1) or 1))
            found = page.first_filters(network)
            if sources:
                found |= self._shown(network, *sources, warn)
            page.write(self._kept.path, self.config, self._kept.metrics(), weights="best" if self.checkpoint == self._kept.best else "last", **found)
        return self.folder / "report.html"

    def _shown(self, network: Network, train: Any, val: Any, warn: Callable[[str], Any]) -> dict:
        """What a report shows of a run's data."""
        collector, input = Collector(network, val), self.input
        validate(network, self._loader(val, min(self.config["options"]["batch"], network.batch), warn), each=collector)
        seed = self.config["options"]["seed"]
        loader = Loader(train, input.side, page.SHOWN, fit=input.fit, seed=seed, cache_mb=0, warn=warn)
        with contextlib.closing(loader.epoch(0)) as batches:
            first = next(batch for batch in batches if len(batch))
        views = input.draw(seed, 0, first.index)
        found = collector.found()
        hidden, wrong = hidden_layer(self.net), found["mistakes"][:page.COMPARED]
        if hidden and wrong:
            if len(network.arrays[f"activation {hidden}"]) < network.batch:      # it is kept for a few images at a time
                network = self._made(32, to_input=True)
            features = features_of(network, np.stack([picture for picture, *_ in wrong]))
            near = nearest(network, features, train, page.NEAR, workers=self.device.decoders, warn=warn)
            found["neighbours"] = hidden, list(zip(wrong, near))
        return found | {"seen": page.augmented(input, first.images, views, self.device, self._kept.mean(input)), "labels": first.labels}

    def _training_set(self, data: PathLike | None, warn: Callable[[str], Any]) -> tuple[str, Any]:
        """("", the training set), or (why it is not there, None), which warn(sentence) is told too; a UserError if `data` does not hold it."""
        try:
            return "", self.data(data, warn)[0]
        except UserError as error:
            if data is not None:
                raise
            warn(f"{error}; without the run's data (--data DIR, if it has moved) no training images are told that are like the pictures")
            return "the run's training images are no longer where they were", None

    def export(self, path: PathLike, *, preprocessing: str = "inside") -> Path:
        """Writes the trained network to an ONNX file (`pip install 'minialex[onnx]'`), as minialex.onnx.model_of describes it. -> the file's path"""
        from .. import onnx
        with self._words(), self._busy:
            network = self._network_for(1)
            model = onnx.model_of(self.net, network.weights(), self.input, self.classes, self._kept.mean(self.input), preprocessing)
            write_beside(path, model.SerializeToString())
        return Path(path)

    def data(self, data: PathLike | None = None, warn: Callable[[str], Any] | None = None) -> tuple[Any, Any]:
        """(train, val), the run's data sources; data: where they are, if they have moved. warn(sentence) tells what was left out of them."""
        options = self.config["options"]
        where: tuple[Any, Any, Any] = (data, None, None) if data is not None else (options["data"] or None, options["train"] or None, options["val"] or None)
        fraction = drawn_fraction(*where, kept=options.get("val_fraction")) if any(where) else None
        train, val = open_data(*where, seed=options["seed"], val_fraction=fraction, warn=warn or heard)
        if train.classes != self.classes:
            raise UserError(f"the classes of {shown(train.root)} are not those of the run{twins(self.classes, train.classes)}")
        return train, val

    def _loader(self, source: Any, batch: int, warn: Callable[[str], Any] | None = None) -> Loader:
        """Batches of a source's pictures in their order, prepared for this run's network."""
        return Loader(source, self.input.side, batch, fit=self.input.fit, shuffle=False, cache_mb=0, workers=self.device.decoders, room=self.device.pictures,
                      warn=warn or heard)


def items_of(pictures: Picture | Iterable[Picture]) -> list[Any]:
    """The pictures that a method is given, one of which counts as a list of one; a UserError says what is none."""
    single = isinstance(pictures, (str, os.PathLike, Image.Image)) or isinstance(pictures, np.ndarray) and pictures.ndim < 4
    items: list[Any] = [pictures] if single else list(pictures) if isinstance(pictures, Iterable) else [pictures]
    for item in items:
        if not isinstance(item, (str, os.PathLike, Image.Image, np.ndarray)):
            raise UserError(f"a picture is a path, a PIL image or a uint8 array, not {type(item).__name__} {item!r:.60}")
    return items


def load(run: PathLike, *, last: bool = False, device: str | Device | None = "auto", threads: int | None = None) -> Run:
    """Takes up a run from its folder, with its best weights, or with last=True its latest. device: "auto", "cpu", "cuda" or "numpy"."""
    with as_python():
        return Run(run, "last" if last else None, device, threads, words=as_python)
