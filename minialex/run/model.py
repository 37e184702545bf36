"""A classifier in an ONNX file, from minialex or from anywhere, asked what it sees in pictures as a Run is."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from .. import onnx
from ..data.augment import Input
from ..data.loader import Loader
from ..device import open_device
from ..errors import UserError, shown
from ..ops.augment import augment_images
from ..ops.softmax import softmax
from .scores import predictions

# How the nets that people have take pictures, where a file does not say: as the keys of Input, and the order of the colours.
TORCHVISION = "mean=123.675:116.28:103.53,scale=1/58.395:1/57.12:1/57.375"      # torchvision.models, where pixels are from 0 to 1
CAFFE = "bgr,mean=122.679:116.669:104.007,scale=1"      # the mean colour of Caffe's ilsvrc_2012_mean.npy, pixels as they are
FORMS = {"torchvision": TORCHVISION, "caffe": CAFFE}


class Model:
    """`classes` are the names, `input` is how it takes pictures, `told` a sentence where that is taken for granted, or empty.

    form: how it takes pictures, torchvision, caffe or KEY=VALUE,... of mean and scale, with bgr where blue comes first; a file of minialex's says so itself.
    names: a text file with the name of a class in each line, in order.
    """

    def __init__(self, path: str, device: str = "auto", threads: int | None = None, *, form: str | None = None, names: str | None = None,
                 announce: Callable[[str], None] | None = None) -> None:
        self.path, self.told = shown(path), ""
        model = onnx.read(path)
        about = read_metadata(model, self.path) if model.producer_name == "minialex" else {}
        constants = {tensor.name for tensor in model.graph.initializer}
        given = [value for value in model.graph.input if value.name not in constants]
        extents = [extent.dim_value for extent in given[0].type.tensor_type.shape.dim] if len(given) == 1 else []
        if len(extents) != 4 or 3 not in (extents[1], extents[3]) or len({*extents[1:]} - {3}) > 1:
            shapes = [", ".join(of.dim_param or str(of.dim_value) for of in value.type.tensor_type.shape.dim) for value in given]
            raise UserError(f"{self.path}: expected a net with one input, square colour images (batch, 3, size, size) or (batch, size, size, 3); it takes "
                            + ", ".join(f"{value.name} ({shape})" for value, shape in zip(given, shapes)))
        self.name, self.at_once, self.channels_last = given[0].name, extents[0], extents[1] != 3
        self.input, self.bgr = self.described(about.get("input"), extents[2], form)
        self.device = open_device(device, threads, announce)[0]
        try:
            self.graph = onnx.prepare(model, self.device)
            black = np.zeros((1, self.input.side, self.input.side, 3), np.uint8)
            self.evaluate(black, None, self.input.centre(1))      # to see how many classes there are
        except (UserError, onnx.checker.ValidationError) as error:
            raise UserError(f"{self.path}: {' '.join(str(error).split())}") from None
        count = self.found.shape[1]
        self.classes = lines_of(names) if names else about.get("classes") or [f"class {k}" for k in range(count)]
        if len(self.classes) != count:
            raise UserError(f"{shown(names or path)} names {len(self.classes)} classes, and the network of {self.path} tells {count} apart")

    def described(self, told: Any, size: int, form: str | None) -> tuple[Input, bool]:
        """-> how it takes pictures, and whether blue comes first"""
        if told and form:
            raise UserError(f"--input {form}: {self.path} says itself how it takes pictures, so leave it out")
        if told:
            as_they_are = Input(told["side"], told["size"], told["fit"], mean=(0.0,) * 3, scale=(1.0,) * 3)
            inside = told["preprocessing"] == "inside"      # the graph itself has the mean and the scale
            return as_they_are if inside else replace(as_they_are, mean=tuple(told["mean"]), scale=tuple(told["scale"])), False
        if not form:
            self.told = f"{self.path} does not say how it takes pictures: as torchvision's nets do, unless --input says another way"
        words = FORMS.get(form or "torchvision", form or "").split(",")
        size = size or 224
        taken = Input(round(size * 8 / 7), size, mean=(0.0,) * 3, scale=(1.0,) * 3)
        try:
            if not {word.partition("=")[0] for word in words} <= {"mean", "scale", "bgr"}:
                raise UserError
            taken = taken.with_text(",".join(word for word in words if word != "bgr"))
            if isinstance(taken.mean, str):      # to be measured
                raise UserError
        except UserError:
            raise UserError(f"--input {form}: expected torchvision, caffe, or mean=R:G:B,scale=R:G:B, with bgr where blue comes first") from None
        return (replace(taken, mean=taken.mean[::-1], scale=taken.scale[::-1]) if "bgr" in words else taken), "bgr" in words

    def evaluate(self, images: np.ndarray, labels: Any, views: np.ndarray) -> None:
        """A pass over pictures, after which `probabilities` has what it says; of as many at a time as the file is for."""
        found, step = [], self.at_once or len(images)
        for first in range(0, len(images), step):
            part, view = images[first:first + step], views[first:first + step]
            part, view = (np.concatenate([of, of[:1].repeat(step - len(of), axis=0)]) for of in (part, view))      # the last may lack some
            pixels = augment_images(part[..., ::-1] if self.bgr else part, view, self.input.size, device=self.device)
            value = onnx.Value(self.device, array=pixels) if self.channels_last else onnx.Value(self.device, last=pixels)
            y = self.graph.compute({self.name: value})[0].array.reshape(step, -1)
            if not self.graph.ends_in_softmax:
                y = softmax(y, device=self.device)
            found.append(self.device.to_numpy(y))
        self.found = np.concatenate(found)

    def probabilities(self, n: int) -> np.ndarray:
        return self.found[:n]

    def predictions(self, source: Any, top: int, ten_crop: bool = False, batch: int = 32, warn: Callable[[str], Any] | None = None) -> Iterator[Any]:
        """As Run.predictions."""
        loader = Loader(source, self.input.side, min(batch, len(source)), fit=self.input.fit, shuffle=False, cache_mb=0,
                        workers=self.device.decoders, warn=warn)
        yield from predictions(self, loader, top, ten_crop)


def read_metadata(model: Any, path: str) -> dict:
    """What onnx.model_of has written down."""
    try:
        about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        if "input" in about:
            *given, _ = (about["input"][key] for key in ("side", "size", "fit", "mean", "scale", "preprocessing"))
            Input(*given)
        return about
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: its metadata are not as minialex writes them: export it anew") from None


def lines_of(path: str) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(path)} cannot be read ({getattr(error, 'strerror', None) or 'it is not UTF-8 text'})") from None
