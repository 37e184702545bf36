"""The two towers of 2012: a net cut into two halves, each for a device of its own (Krizhevsky 2012, section 3.5).

Each layer's filters, or features, are cut in two, and with them the last axis of every parameter. A layer with groups reads its own tower's half alone;
before one without, the towers show each other what they have, and in backward they add up what each has found of the gradient.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .device import Device
from .errors import UserError
from .nets import Net
from .ops.columns import move
from .ops.conv import Conv
from .ops.dense import Dense
from .ops.dropout import Dropout
from .ops.layer import Layer, Shape, Site
from .ops.lrn import LRN

TOWERS = 2


def half(count: int, tower: int) -> slice:
    """What of so many channels a tower has."""
    return slice(count * tower // TOWERS, count * (tower + 1) // TOWERS)


@dataclass(repr=False)
class Gather(Layer):
    """The `channels` of both towers, of which this one has those from `at` on. last: of the logits, whose gradient both have whole."""

    channels: int
    at: int
    last: bool = False

    exchanges, numbered = True, False

    def output(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.channels)


@dataclass(repr=False)
class Own(Layer):
    """This tower's half, `width` channels from `at` on, of what both have computed whole: behind a layer that reads across the towers, before one with
    groups."""

    width: int
    at: int

    numbered = False

    def output(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.width)

    def kept(self, shape: Shape) -> dict[str, tuple[Shape, Any]]:
        """Zeros, which nobody writes to: the gradient of the other half is found by the other tower."""
        return {"zeros": ((*shape[:-1], shape[-1] - self.width), np.float32)}

    def forward(self, device: Device, at: Site) -> None:
        move(device, at.x, self.at, at.y, 0, self.width)

    def backward(self, device: Device, at: Site) -> None:
        move(device, at.dy, 0, at.dx, self.at, self.width)
        move(device, at.kept["zeros"], 0, at.dx, self.width if self.at == 0 else 0, at.dx.shape[-1] - self.width)


def cut(layer: Layer, **fields: int) -> Layer:
    """The layer with some of its fields changed."""
    changed: Any = replace(layer, **fields)      # type: ignore[arg-type]
    return changed


def tower_of(net: Net, tower: int) -> Net:
    """A tower's half of a net, with a Gather before each layer that reads both; a UserError where a layer cannot be cut.

    A normalisation across the towers is computed whole in both."""
    layers: dict[str, Layer] = {}
    whole, towers = True, False      # whether what comes next has the channels of both
    for name, layer in net.layers.items():
        groups = getattr(layer, "groups", 1)
        channels = net.inputs[name][-1]
        if groups % TOWERS and groups > 1:
            raise UserError(f"--towers {TOWERS}: {name} of {net.name} has {groups} groups, which cannot be cut in two")
        reads_half = groups > 1 or not isinstance(layer, (Conv, Dense, LRN, Dropout))
        if groups > 1 and whole:
            own = half(channels, tower)
            layers[f"of_{name}"] = Own(own.stop - own.start, own.start)
            whole = False
        if not reads_half and not whole:
            layers[f"to_{name}"] = Gather(channels, half(channels, tower).start)
            whole = True
        if isinstance(layer, (Conv, Dense)):
            width = "filters" if isinstance(layer, Conv) else "features"
            count = getattr(layer, width)
            own = half(count, tower)
            layer = cut(layer, **{width: own.stop - own.start}, **({"groups": groups // TOWERS} if groups > 1 else {}))
            whole, towers = False, towers or groups > 1
        elif groups > 1:
            layer = cut(layer, groups=groups // TOWERS)
        layers[name] = layer
    if not towers:
        raise UserError(f"--towers {TOWERS}: {net.name} has no layer with groups, so that it has no towers; paper has")
    layers["to_loss"] = Gather(net.classes, half(net.classes, tower).start, last=True)
    return Net(layers, net.size, net.name)
