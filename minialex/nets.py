"""The AlexNets, each a short list of layers."""

import html
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .errors import UserError
from .ops.conv import Conv
from .ops.dense import Dense
from .ops.dropout import Dropout
from .ops.layer import Layer, Shape
from .ops.lrn import LRN
from .ops.pool import MaxPool
from .ops.relu import ReLU
from .ops.window import OutOfPixels


def paper(classes: int) -> dict[str, Layer]:
    """Krizhevsky, Sutskever and Hinton 2012 as published: two towers (groups of 2), LRN, overlapping pooling."""
    return {
        "conv1": Conv(96, 11, stride=4, std=0.01), "norm1": LRN(5, 1e-4, 0.75, 2.0, groups=2), "pool1": MaxPool(3, 2),
        "conv2": Conv(256, 5, pad=2, groups=2, std=0.01, bias=1.0), "norm2": LRN(5, 1e-4, 0.75, 2.0, groups=2), "pool2": MaxPool(3, 2),
        "conv3": Conv(384, 3, pad=1, std=0.01),
        "conv4": Conv(384, 3, pad=1, groups=2, std=0.01, bias=1.0),
        "conv5": Conv(256, 3, pad=1, groups=2, std=0.01, bias=1.0), "pool5": MaxPool(3, 2),
        "fc6": Dense(4096, std=0.01, bias=1.0), "drop6": Dropout(0.5),
        "fc7": Dense(4096, std=0.01, bias=1.0), "drop7": Dropout(0.5),
        "fc8": Dense(classes, relu=False, std=0.01),
    }


def caffenet(classes: int) -> dict[str, Layer]:
    """BVLC CaffeNet: pooling before LRN, whose alpha is divided by the window, k 1; hidden biases 0.1."""
    return {
        "conv1": Conv(96, 11, stride=4, std=0.01), "pool1": MaxPool(3, 2, ceil=True), "norm1": LRN(5, 1e-4, 0.75, 1.0, "mean"),
        "conv2": Conv(256, 5, pad=2, groups=2, std=0.01, bias=0.1), "pool2": MaxPool(3, 2, ceil=True), "norm2": LRN(5, 1e-4, 0.75, 1.0, "mean"),
        "conv3": Conv(384, 3, pad=1, std=0.01),
        "conv4": Conv(384, 3, pad=1, groups=2, std=0.01, bias=0.1),
        "conv5": Conv(256, 3, pad=1, groups=2, std=0.01, bias=0.1), "pool5": MaxPool(3, 2, ceil=True),
        "fc6": Dense(4096, std=0.005, bias=0.1), "drop6": Dropout(0.5),
        "fc7": Dense(4096, std=0.005, bias=0.1), "drop7": Dropout(0.5),
        "fc8": Dense(classes, relu=False, std=0.01),
    }


def alexnet_caffe(classes: int) -> dict[str, Layer]:
    """BVLC's AlexNet (models/bvlc_alexnet/train_val.prototxt): the paper's order, Caffe's LRN (alpha divided by the window, k 1) and hidden biases 0.1."""
    order = ("conv1", "norm1", "pool1", "conv2", "norm2", "pool2")
    layers = caffenet(classes)
    return {name: layers[name] for name in (*order, *(name for name in layers if name not in order))}


def owt(classes: int) -> dict[str, Layer]:
    """"One weird trick" (Krizhevsky 2014), the torchvision net: one tower, no LRN, dropout before fc6 and fc7.

    torchvision averages the last maps to 6x6; at 224 pixels they are 6x6 already, at other sizes fc6 has their size here.
    """
    return {
        "conv1": Conv(64, 11, stride=4, pad=2), "pool1": MaxPool(3, 2),
        "conv2": Conv(192, 5, pad=2), "pool2": MaxPool(3, 2),
        "conv3": Conv(384, 3, pad=1), "conv4": Conv(256, 3, pad=1), "conv5": Conv(256, 3, pad=1), "pool5": MaxPool(3, 2),
        "drop6": Dropout(0.5), "fc6": Dense(4096), "drop7": Dropout(0.5), "fc7": Dense(4096), "fc8": Dense(classes, relu=False),
    }


def half(classes: int) -> dict[str, Layer]:
    """The half-size net of the Keras tutorial: one tower of the paper's, zero-padded (1, 2), no LRN, dropout 0.2 on inputs."""
    return {
        "conv1": Conv(48, 11, stride=4, pad=((1, 2), (1, 2))), "pool1": MaxPool(3, 2),
        "conv2": Conv(128, 5, pad=2), "pool2": MaxPool(3, 2),
        "conv3": Conv(192, 3, pad=1), "conv4": Conv(192, 3, pad=1), "conv5": Conv(128, 3, pad=1), "pool5": MaxPool(3, 2),
        "drop6": Dropout(0.2), "fc6": Dense(2048), "drop7": Dropout(0.2), "fc7": Dense(2048), "fc8": Dense(classes, relu=False),
    }


# net -> (its layers, the published input size, the published number of classes)
NETS: dict[str, tuple[Callable[[int], dict[str, Layer]], int, int]] = {
    "paper": (paper, 227, 1000), "caffenet": (caffenet, 227, 1000), "alexnet-caffe": (alexnet_caffe, 227, 1000),
    "owt": (owt, 224, 1000), "half": (half, 224, 1000)}


@dataclass(repr=False)
class Net:
    """A net for images of one size: its layers by name, in order, and the shape of each one's input and output.

    The last layer gives a number for each class, (classes,) or (1, 1, classes), and has no ReLU. A UserError says what does not fit.
    """

    layers: dict[str, Layer]
    size: int
    name: str = "net"
    classes: int = field(init=False)
    inputs: dict[str, Shape] = field(init=False)
    outputs: dict[str, Shape] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.layers, dict) or not self.layers:
            raise UserError(f'{self.name}: expected layers by name, such as {{"conv1": Conv(48, 11, stride=4), "fc2": Dense(10, relu=False)}}, '
                            f"got {self.layers!r}")
        if not isinstance(self.name, str) or not self.name.isprintable() or set("/\\") & set(self.name) or not self.name.strip(" .") or self.name[0] == ".":
            raise UserError(f"a net's name is a part of its run folder's: expected a name without slashes that begins with no dot, got {self.name!r}")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise UserError(f"{self.name}: expected a size of 1 pixel or more, got {self.size!r}")
        self.layers, self.inputs, self.outputs = dict(self.layers), {}, {}
        shape: Shape = (self.size, self.size, 3)
        for name, layer in self.layers.items():
            check_name(self.name, name)
            if not isinstance(layer, Layer):
                raise UserError(f"{self.name}: {name} is no layer but {layer!r}: expected one such as Conv(48, 11, stride=4) or Dense(10)")
            self.inputs[name] = shape
            try:
                shape = self.outputs[name] = layer.output(shape)
            except OutOfPixels as error:
                raise UserError(f"{self.name} at {self.size}x{self.size}: {name} runs out of pixels ({error}); use a larger --size") from None
            except ValueError as error:
                raise UserError(f"{self.name}: {name} does not fit an input of {by(shape)} ({error})") from None
        self.check_end()
        self.classes = shape[-1]

    def check_end(self) -> None:
        """Refuses a net whose output is not one number for each class, or that has nothing to learn."""
        last, layer = list(self.layers.items())[-1]
        if self.parameters() and not any(self.layers[name.split(".")[0]].lr for name in self.parameters()):
            raise UserError(f"{self.name}: all layers are frozen (lr=0), so that there is nothing to train: leave one that learns")
        if not self.parameters():
            raise UserError(f"{self.name}: no layer has parameters, so that there is nothing to train: use a Conv or a Dense")
        if layer.in_place:
            raise UserError(f"{self.name}: the last layer, {last}, is {layer}, which would change the numbers of the classes: leave it out")
        shape = self.outputs[last]
        if len(shape) != 1 and shape[:-1] != (1, 1):
            raise UserError(f"{self.name}: the last layer, {last}, gives {by(shape)}, and should give one number for each class, (classes,) or "
                            "(1, 1, classes): end with Dense(classes, relu=False), or with a Conv or MaxPool whose window is its whole input")
        for name, layer in reversed(self.layers.items()):      # pools and the like keep the sign
            if getattr(layer, "relu", isinstance(layer, ReLU)):
                raise UserError(f"{self.name}: the numbers of the classes come from {name}, whose ReLU leaves none below 0: "
                                + ("leave it out" if isinstance(layer, ReLU) else "give it relu=False"))
            if layer.parameters(self.inputs[name]):
                break

    def __repr__(self) -> str:
        return f"Net {self.name}, {self.size}x{self.size}, {self.classes:,} classes, {self.count():,} parameters"

    def summary(self) -> "Summary":
        """A table of the layers, as text or, in a notebook, as HTML."""
        return Summary(self)

    def described(self) -> dict:
        """The layers as JSON has them, {"conv1": {"op": "Conv", "filters": 48, ...}, ...}; `from_description` makes the net again."""
        described = {name: {"op": type(layer).__name__, **asdict(layer)} for name, layer in self.layers.items()}
        return json.loads(json.dumps(described))      # tuples become lists

    @property
    def published(self) -> bool:
        """Whether it is one of NETS, layer by layer, so that its name says all."""
        return self.name in NETS and list(self.layers.items()) == list(NETS[self.name][0](self.classes).items())

    def count(self) -> int:
        """Numbers that are learnt."""
        return sum(math.prod(shape) for shape in self.parameters().values())

    @property
    def side(self) -> int:
        """Pixels of the decoded pictures that the input is cropped from: 256 for the published 224."""
        return round(self.size * 8 / 7)

    def parameters(self) -> dict[str, Shape]:
        """{"conv1.weight": shape, ...} in order."""
        return {f"{name}.{part}": shape for name, layer in self.layers.items()
                for part, shape in layer.parameters(self.inputs[name]).items()}

    @property
    def pooled(self) -> dict[str, str]:
        """{convolution: the max-pool right behind it, which adds its bias and applies its ReLU}."""
        pairs = zip(self.layers, list(self.layers)[1:])
        return {name: above for name, above in pairs if isinstance(self.layers[name], Conv) and isinstance(self.layers[above], MaxPool)}

    def held(self, name: str) -> dict[str, str]:
        """{part: "layer.part"} of the parameters that a layer works with: a max-pool right behind a convolution has that one's bias too."""
        own = {part: f"{name}.{part}" for part in self.layers[name].parameters(self.inputs[name])}
        return own | {"bias": f"{conv}.bias" for conv, above in self.pooled.items() if above == name}

    @property
    def bottom(self) -> str:
        """The first layer that learns: nobody needs the gradient of its input, nor that of what lies below it."""
        return next(name for name, layer in self.layers.items() if layer.lr and layer.parameters(self.inputs[name]))

    @property
    def above(self) -> list[str]:
        """The layers whose inputs' gradients are needed."""
        names = list(self.layers)
        return names[names.index(self.bottom) + 1:]

    def with_rates(self, rates: Mapping[str, float]) -> "Net":
        """The net with these factors of the learning rate, {layer: factor}, 0 of those that are frozen; a UserError names one that has no parameters."""
        able = [name for name, layer in self.layers.items() if layer.parameters(self.inputs[name])]
        if wrong := [name for name in rates if name not in able]:
            raise UserError(f"{self.name} has no layer {wrong[0]} with weights, which could be frozen or have a learning rate of its own: choose among {', '.join(able)}")
        layers: dict[str, Any] = self.layers
        return Net({name: replace(layer, lr=float(rates[name])) if name in rates else layer for name, layer in layers.items()}, self.size, self.name)

    def with_classes(self, classes: int) -> "Net":
        """The net with another number of classes: a last layer of another width."""
        last, layer = list(self.layers.items())[-1]
        if not isinstance(layer, (Conv, Dense)):
            raise UserError(f"{self.name}: its last layer, {last}, is {layer}, whose outputs cannot be made {classes} classes")
        changed: Any = replace(layer, filters=classes) if isinstance(layer, Conv) else replace(layer, features=classes)
        return Net({**self.layers, last: changed}, self.size, self.name)

    def receptive_field(self, name: str, row: int = 0, column: int = 0) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the pixels of the input that a layer's output at (row, column) depends on, bottom and right not among them."""
        spans = [(row, row + 1), (column, column + 1)]
        for below in reversed(list(self.layers)[:list(self.layers).index(name) + 1]):
            layer, lengths = self.layers[below], self.inputs[below][:-1]      # (height, width), or () of features
            if isinstance(layer, (Conv, MaxPool)):
                window = layer.window
                spans = [(max(0, first * stride - pad[0]), min(length, (last - 1) * stride - pad[0] + size))
                         for (first, last), length, size, stride, pad in zip(spans, lengths, window.size, window.stride, window.pad)]
            elif layer.dense:
                spans = [(0, length) for length in lengths or (self.size, self.size)]
        return spans[0][0], spans[1][0], spans[0][1], spans[1][1]

    def macs(self) -> int:
        """Multiply-accumulates of a forward pass of one image."""
        return sum(layer.macs(self.inputs[name]) for name, layer in self.layers.items())

    def initial(self, init: str, seed: int) -> dict[str, np.ndarray]:
        """{name: float32 array}: first values, as `draw` gives them."""
        return dict(self.draw(init, seed))

    def draw(self, init: str, seed: int) -> Iterator[tuple[str, np.ndarray]]:
        """(name, float32 array) of each parameter's first values. "he": N(0, 2/fan_in), a tenth of that spread in the first layer if it is a
        convolution, half of it in dense layers, and zero biases, which trains from scratch on small data; "published": what the net's
        authors used (paper, caffenet: N(0, std) with their biases; half: Keras' Glorot uniform; owt: PyTorch's uniform 1/sqrt(fan_in));
        "2012-code": what the program of 2012 had instead of its paper's values (0.03 in conv3 to conv5)."""
        last = list(self.layers)[-1]
        layer: Any
        for number, (name, layer) in enumerate(self.layers.items()):
            for part, shape in layer.parameters(self.inputs[name]).items():
                random = np.random.Generator(np.random.Philox(key=[seed, number * 2 + (part == "bias")]))
                fan_in = layer.fan_in(self.inputs[name])
                fan_out = shape[-1] * (layer.window.size[0] * layer.window.size[1] if isinstance(layer, Conv) else 1)
                if init == "published" and layer.std is None and self.name == "owt":
                    value = in_pieces(shape, lambda n: random.uniform(-1, 1, n) / np.sqrt(fan_in))
                elif part == "bias":
                    value = np.full(shape, 0.0 if init == "he" else layer.bias)
                elif init == "2012-code" and layer.std is not None:      # initW of layers-145.cfg
                    value = in_pieces(shape, lambda n: random.standard_normal(n) * (0.03 if name in ("conv3", "conv4", "conv5") else layer.std))
                elif init == "published" and layer.std is None:
                    value = in_pieces(shape, lambda n: random.uniform(-1, 1, n) * np.sqrt(6 / (fan_in + fan_out)))
                elif init == "published":
                    value = in_pieces(shape, lambda n: random.standard_normal(n) * layer.std)
                elif init == "he":
                    # Three max-pools make activations three times larger than He's rule expects; dense layers start at half
                    # of it and the last one at 0.01, or the first steps throw the loss far above ln(classes). In the first
                    # convolution decay takes a few hundredths of the noise in a short run: at full spread it hides what is learnt.
                    std = np.sqrt(2 / fan_in) * (0.5 if not isinstance(layer, Conv) else 0.1 if number == 0 else 1.0)
                    value = in_pieces(shape, lambda n: random.standard_normal(n) * (0.01 if name == last else std))
                else:
                    raise UserError(f"--init {init} is not for {self.name}: choose he or published")
                yield f"{name}.{part}", value.astype(np.float32, copy=False)


def in_pieces(shape: Shape, draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """A float32 array of `shape` from draw(n), which gives float64: as if drawn at once, without its memory in float64."""
    values = np.empty(int(np.prod(shape)), np.float32)
    for first in range(0, values.size, 1 << 20):
        values[first:first + (1 << 20)] = draw(min(1 << 20, values.size - first))
    return values.reshape(shape)


def build(name: str, classes: int | None = None, size: int | None = None, fewer: int = 1) -> Net:
    """The net of that name, at its published number of classes and input size unless told otherwise.

    fewer: what the filters of each convolution and the features of each hidden dense layer are divided by.
    """
    if name not in NETS:
        raise UserError(f"unknown net {name!r}: choose one of {', '.join(NETS)}")
    made, published_size, published_classes = NETS[name]
    classes = published_classes if classes is None else classes
    if classes < 1:
        raise UserError(f"--classes {classes}: a net needs at least one class")
    layers = made(classes)
    for layer in list(layers.values())[:-1]:
        for width in {"filters", "features"} & set(vars(layer)):
            setattr(layer, width, getattr(layer, width) // fewer)
    return Net(layers, size or published_size, name)


def from_description(layers: dict, size: int, name: str = "net") -> Net:
    """The net that `Net.described` gave the layers of."""
    ops, made = {op.__name__: op for op in reversed(Layer.__subclasses__()) if op.numbered}, {}      # the others are made where a net is cut
    for layer, described in layers.items() if isinstance(layers, dict) else ():
        try:
            fields = dict(described)
            made[layer] = ops[fields.pop("op")](**fields)
        except KeyError as error:
            raise UserError(f"{name}: {layer} is described without a known op ({error}): choose one of {', '.join(sorted(ops))}") from None
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {layer} is not described as a layer is ({error})") from None
    return Net(made, size, name)


def check_name(net: str, name: object) -> None:
    """Names of layers become names of arrays, such as "activation conv1" and "conv1.weight"."""
    if not isinstance(name, str) or not re.fullmatch(r"[^\s./\\]+", name):
        raise UserError(f"{net}: {name!r} cannot be a layer's name: expected text without spaces, dots and slashes, such as conv1")
    if name == "input":
        raise UserError(f"{net}: a layer cannot have the name input, which is that of the pictures: choose another")


class Summary:
    """A net's layers, output shapes, parameters and multiply-accumulates."""

    def __init__(self, net: Net) -> None:
        self.title = f"{net.name}, {net.size}x{net.size}, {net.classes} classes"
        self.rows = [("layer", "output shape", "parameters", "MACs"), ("input", by(net.inputs[next(iter(net.layers))]), "", "")]
        for name, layer in net.layers.items():
            count = sum(math.prod(shape) for shape in layer.parameters(net.inputs[name]).values())
            self.rows.append((f"{name} ({kind(layer)})", by(net.outputs[name]), f"{count:,}", f"{layer.macs(net.inputs[name]):,}"))
        self.rows.append(("total", "", f"{net.count():,}", f"{net.macs():,}"))

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows)]
        lines = ["  ".join((cell.ljust, cell.rjust)[i > 0](width) for i, (cell, width) in enumerate(zip(row, widths))) for row in self.rows]
        rule = "-" * len(lines[0])
        return "\n".join([self.title, lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def _repr_html_(self) -> str:
        def line(row: tuple[str, ...], tag: str) -> str:
            sides = ("left", "right", "right", "right")
            return "<tr>" + "".join(f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>' for cell, side in zip(row, sides)) + "</tr>"

        head, *body = self.rows
        return (f"<table><caption>{html.escape(self.title)}</caption><thead>{line(head, 'th')}</thead>"
                f"<tbody>{''.join(line(row, 'td') for row in body)}</tbody></table>")


def by(shape: Shape) -> str:
    """A shape as one says it, 6 x 6 x 256."""
    return " x ".join(map(str, shape))


def kind(layer: Layer) -> str:
    """What a layer is, in a table."""
    name = type(layer).__name__
    return f"{name} + ReLU" if getattr(layer, "relu", False) else name
