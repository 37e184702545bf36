"""The AlexNets, each a short list of layers."""

from dataclasses import dataclass, field

import numpy as np

from .errors import UserError
from .ops.conv import Conv
from .ops.dense import Dense
from .ops.dropout import Dropout
from .ops.lrn import LRN
from .ops.pool import MaxPool


def paper(classes):
    """Krizhevsky, Sutskever and Hinton 2012 as published: two towers (groups of 2), LRN, overlapping pooling."""
    return {
        "conv1": Conv(96, 11, stride=4, std=0.01), "norm1": LRN(5, 1e-4, 0.75, 2.0), "pool1": MaxPool(3, 2),
        "conv2": Conv(256, 5, pad=2, groups=2, std=0.01, bias=1.0), "norm2": LRN(5, 1e-4, 0.75, 2.0), "pool2": MaxPool(3, 2),
        "conv3": Conv(384, 3, pad=1, std=0.01),
        "conv4": Conv(384, 3, pad=1, groups=2, std=0.01, bias=1.0),
        "conv5": Conv(256, 3, pad=1, groups=2, std=0.01, bias=1.0), "pool5": MaxPool(3, 2),
        "fc6": Dense(4096, std=0.01, bias=1.0), "drop6": Dropout(0.5),
        "fc7": Dense(4096, std=0.01, bias=1.0), "drop7": Dropout(0.5),
        "fc8": Dense(classes, relu=False, std=0.01),
    }


def caffenet(classes):
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


def owt(classes):
    """"One weird trick" (Krizhevsky 2014), the torchvision net: one tower, no LRN, dropout before fc6 and fc7.

    torchvision averages the last maps to 6x6; at 224 pixels they are 6x6 already, at other sizes fc6 has their size here.
    """
    return {
        "conv1": Conv(64, 11, stride=4, pad=2), "pool1": MaxPool(3, 2),
        "conv2": Conv(192, 5, pad=2), "pool2": MaxPool(3, 2),
        "conv3": Conv(384, 3, pad=1), "conv4": Conv(256, 3, pad=1), "conv5": Conv(256, 3, pad=1), "pool5": MaxPool(3, 2),
        "drop6": Dropout(0.5), "fc6": Dense(4096), "drop7": Dropout(0.5), "fc7": Dense(4096), "fc8": Dense(classes, relu=False),
    }


def half(classes):
    """The half-size net of the Keras tutorial: one tower of the paper's, zero-padded (1, 2), no LRN, dropout 0.2 on inputs."""
    return {
        "conv1": Conv(48, 11, stride=4, pad=((1, 2), (1, 2))), "pool1": MaxPool(3, 2),
        "conv2": Conv(128, 5, pad=2), "pool2": MaxPool(3, 2),
        "conv3": Conv(192, 3, pad=1), "conv4": Conv(192, 3, pad=1), "conv5": Conv(128, 3, pad=1), "pool5": MaxPool(3, 2),
        "drop6": Dropout(0.2), "fc6": Dense(2048), "drop7": Dropout(0.2), "fc7": Dense(2048), "fc8": Dense(classes, relu=False),
    }


# net -> (its layers, the published input size, the published number of classes)
NETS = {"paper": (paper, 227, 1000), "caffenet": (caffenet, 227, 1000), "owt": (owt, 224, 1000), "half": (half, 224, 1000)}


@dataclass
class Net:
    """A net for images of one size: its layers by name, and the shape of each one's input and output."""

    name: str
    size: int
    classes: int
    layers: dict
    inputs: dict = field(init=False)
    outputs: dict = field(init=False)

    def __post_init__(self):
        self.inputs, self.outputs, shape = {}, {}, (self.size, self.size, 3)
        for name, layer in self.layers.items():
            self.inputs[name] = shape
            try:
                shape = self.outputs[name] = layer.output(shape)
            except ValueError as error:
                raise UserError(f"{self.name} at {self.size}x{self.size}: {name} runs out of pixels ({error}); use a larger --size") from None

    @property
    def side(self):
        """Pixels of the decoded pictures that the input is cropped from: 256 for the published 224."""
        return round(self.size * 8 / 7)

    def parameters(self):
        """{"conv1.weight": shape, ...} in order."""
        return {f"{name}.{part}": shape for name, layer in self.layers.items()
                for part, shape in layer.parameters(self.inputs[name]).items()}

    @property
    def bottom(self):
        """The first layer with parameters: nobody needs the gradient of its input."""
        return next(iter(self.parameters())).split(".")[0]

    def macs(self):
        """Multiply-accumulates of a forward pass of one image."""
        return sum(layer.macs(self.inputs[name]) for name, layer in self.layers.items())

    def initial(self, init, seed):
        """{name: float32 array}: first values, as `draw` gives them."""
        return dict(self.draw(init, seed))

    def draw(self, init, seed):
        """(name, float32 array) of each parameter's first values. "he": N(0, 2/fan_in), half that spread in dense layers, and zero
        biases, which trains from scratch on small data; "published": what the net's authors used (paper, caffenet: N(0, std)
        with their biases; half: Keras' Glorot uniform; owt: PyTorch's uniform 1/sqrt(fan_in)); "2012-code": what the program of 2012
        had instead of its paper's values (0.03 in conv3 to conv5)."""
        last = list(self.layers)[-1]
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
                    # of it and the last one at 0.01, or the first steps throw the loss far above ln(classes).
                    std = np.sqrt(2 / fan_in) * (1.0 if isinstance(layer, Conv) else 0.5)
                    value = in_pieces(shape, lambda n: random.standard_normal(n) * (0.01 if name == last else std))
                else:
                    raise UserError(f"--init {init} is not for {self.name}: choose he or published")
                yield f"{name}.{part}", value.astype(np.float32, copy=False)


def in_pieces(shape, draw):
    """A float32 array of `shape` from draw(n), which gives float64: as if drawn at once, without its memory in float64."""
    values = np.empty(int(np.prod(shape)), np.float32)
    for first in range(0, values.size, 1 << 20):
        values[first:first + (1 << 20)] = draw(min(1 << 20, values.size - first))
    return values.reshape(shape)


def build(name, classes=None, size=None, fewer=1):
    """The net of that name, at its published number of classes and input size unless told otherwise.

    fewer: what the filters of each convolution and the features of each hidden dense layer are divided by.
    """
    if name not in NETS:
        raise UserError(f"unknown net {name!r}: choose one of {', '.join(NETS)}")
    layers, published_size, published_classes = NETS[name]
    classes = published_classes if classes is None else classes
    if classes < 1:
        raise UserError(f"--classes {classes}: a net needs at least one class")
    layers = layers(classes)
    for layer in list(layers.values())[:-1]:
        for width in {"filters", "features"} & set(vars(layer)):
            setattr(layer, width, getattr(layer, width) // fewer)
    return Net(name, size or published_size, classes, layers)
