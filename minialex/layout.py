"""What a network needs on a device, laid out before anything is allocated: shares, chunks, and an array for each name."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .data.augment import Input
from .device import Array, Device
from .errors import UserError
from .nets import Net
from .ops.layer import Shape
from .optim import norm_slices


APART = 256      # floats, that the places of parameters are multiples of


def cut(device: Device, batch: int) -> tuple[int, int]:
    """The shares of a batch, and the images that one takes at a time."""
    shares = max(1, min(device.threads, batch // 4))
    return shares, min(device.chunk or batch, -(-batch // shares))


class Layout:
    """What a network needs on a device, known before anything is allocated; of the device it asks only how it divides work.

    A batch is cut into `shares` (one per core), and a share takes `chunk` images at a time through the convolutional
    layers. `arrays` is {name: (shape, dtype)}, with names like "activation conv1". totals: columns of the sums of scores, on whose number the
    last bits of a sum depend (default: the batch).

    Parameters lie in one array, "parameter all", and so do their gradients and what the optimizer keeps: {name: (start, shape)} is `places`, and what is
    between is 0. The rows of dense weights lie `device.pitch` apart. `updates` are the parts of such an array that a step changes together, as (".weight" or
    ".bias", slice, place of their factor among `factors` of the learning rate): two, unless layers have factors of their own. `shared` are the two parts of the
    convolutional layers that learn, of whose gradients each share but the first has arrays of its own, "gradient shares 0" and "gradient shares 1".

    training: with room for backward; to_input: for backward as far as the net's input. `above` are the layers whose inputs' gradients are needed.
    """

    def __init__(self, net: Net, device: Device, batch: int, *, input: Input | None = None, training: bool = True, workspace_mb: float | None = None,
                 slots: Sequence[str] = ("velocity",), clipped: bool = False, totals: int | None = None, to_input: bool = False) -> None:
        self.above = list(net.layers) if to_input else net.above
        self.input = input or Input(net.side, net.size)
        self.net, self.batch, self.training, floats = net, batch, training, device.float
        side = self.input.side
        names = list(net.layers)
        first = next((i for i, n in enumerate(names) if net.layers[n].dense), len(names))
        while first and net.layers[names[first - 1]].trained_only:      # dropout before a dense layer is one launch for the whole batch
            first -= 1
        self.stack, self.tail = names[:first], names[first:]
        self.shares, self.chunk = cut(device, batch)
        self.columns = self.fit(device, workspace_mb)
        count = self.place(device)

        rows = batch if training else min(batch, self.shares * self.chunk)
        own = ["input", *(name for name in self.stack if not net.layers[name].in_place)]      # the tail, or the loss, reads the last of these
        self.arrays: dict[str, tuple[Shape, Any]] = {
            "input images": ((batch, side, side, 3), np.uint8), "input views": ((batch, 18), floats),
            "input labels": ((batch,), np.int32), "input mean": ((side, side, 3) if self.input.mean == "image" else (1,), floats),
            "input now": ((2 * len(self.factors),), np.float64), "input class weights": ((2, net.classes), floats),
            "output loss": ((batch,), floats), "output rank": ((batch,), floats),
            "output probabilities": ((batch, net.classes), floats), "output totals": ((3, totals or batch), np.float64),
            "activation input": ((rows if own[1:] else batch, net.size, net.size, 3), floats)}
        if to_input:
            self.arrays |= {"input wanted": ((batch, net.classes), floats), "output input gradient": ((batch, net.size, net.size, 3), floats)}
        for name, layer in net.layers.items():
            keep = rows if name in own[:-1] else batch
            if not layer.in_place:
                self.arrays[f"activation {name}"] = ((keep, *net.outputs[name]), floats)
            for key, (shape, dtype) in layer.kept(net.inputs[name]).items():
                self.arrays[f"kept {name}.{key}"] = ((rows if name in self.stack else batch, *shape), dtype)
        for kind in ("parameter", *([*slots, "gradient"] if training else [])):
            self.arrays[f"{kind} all"] = ((count,), floats)
        if training and self.shares > 1:
            self.arrays |= {f"gradient shares {i}": ((self.shares - 1, of.stop - of.start), floats) for i, of in enumerate(self.shared)}
        if training:
            keepable = {f"kept {name}.{key}": ((rows, *shape), dtype) for name, layer in net.layers.items() for key, (shape, dtype) in layer.keepable(net.inputs[name]).items()}
            spare = device.spare()
            room = spare - sizes(self.arrays) if workspace_mb is None else workspace_mb * 2**20 - 4 * self.shares * self.columns
            if spare and sizes(keepable) <= room:
                self.arrays |= keepable
        for name, layer in net.layers.items():
            for backward in (False, *([True] if training and name in self.above else [])):
                self.arrays |= {f"prepared {name}.{key}": (shape, floats) for key, shape in layer.prepared(net.inputs[name], backward).items()}
        self.arrays["workspace columns"] = ((self.shares, self.columns), floats)
        if training and clipped:
            self.arrays["workspace norm"] = ((norm_slices([count]),), floats)
            self.arrays["output norm"] = ((2,), floats)
        meeting = [name for name, layer in net.layers.items() if layer.exchanges]
        if meeting:      # what goes to the other tower, and what comes from it
            most = max(int(np.prod(net.outputs[name])) - int(np.prod(net.inputs[name])) for name in meeting)
            self.arrays["workspace exchange"] = ((2, batch * max(most, *(int(np.prod(net.inputs[name])) for name in meeting))), floats)
            below = [int(np.prod(net.outputs[name])) for name in meeting if name in self.stack]
            if training and below:
                self.arrays["workspace exchange gradients"] = ((2, batch * max(below)), floats)
        if training:
            widest = max((int(np.prod(net.outputs[n])) for n in self.stack), default=0)
            self.arrays["workspace stack gradients"] = ((self.shares, 2, self.chunk * widest), floats)
            wide = max([net.classes, *(int(np.prod(shape)) for n in self.tail for shape in (net.inputs[n], net.outputs[n]))])
            self.arrays["workspace dense gradients"] = ((2, batch * wide), floats)
            dense = [layer.partials(net.inputs[n], batch) for n, layer in net.layers.items() if layer.dense]
            self.arrays["workspace dense"] = ((max(dense, default=0),), floats)      # once, while each share has columns

    def place(self, device: Device) -> int:
        """Gives each parameter its place. -> floats of all"""
        shapes = {name: (*shape[:-1], device.pitch(shape[-1])) if len(shape) == 2 else shape for name, shape in self.net.parameters().items()}
        rates = {name: self.net.layers[name.split(".")[0]].lr for name in shapes}
        self.factors = sorted({1.0, *rates.values()} - {0.0}, key=lambda rate: rate != 1)
        self.places: dict[str, tuple[int, Shape]] = {}
        self.updates: list[tuple[str, slice, int]] = []
        self.shared: list[slice] = []
        end = 0
        # The stack's at both ends, so that weights and biases meet once. Equal factors lie together: the usual one where stack and tail meet, and frozen
        # layers outside.
        for part, stack, outward in ((".weight", True, False), (".weight", False, True), (".bias", False, False), (".bias", True, True)):
            own = [name for name in shapes if name.endswith(part) and (name.split(".")[0] in self.stack) == stack]
            learnt = []
            for name in sorted(own, key=lambda name: (rates[name] == 0, rates[name] != 1, rates[name]), reverse=not outward):
                start, end = end, end + -(-math.prod(shapes[name]) // APART) * APART
                self.places[name] = start, shapes[name]
                if not rates[name]:
                    continue
                learnt.append(slice(start, end))
                number, last = self.factors.index(rates[name]), self.updates[-1] if self.updates else None
                if last and last[0] == part and last[1].stop == start and last[2] == number:
                    self.updates[-1] = part, slice(last[1].start, end), number
                else:
                    self.updates.append((part, slice(start, end), number))
            if stack:
                self.shared.append(slice(learnt[0].start, learnt[-1].stop) if learnt else slice(end, end))
        return end

    def view(self, name: str, of: Array, start: int = 0) -> Array:
        """A parameter's part of an array that begins at `start` of all, without the zeros at the end of its rows."""
        at, shape = self.places[name]
        return of[at - start:at - start + math.prod(shape)].reshape(shape)[..., :self.net.parameters()[name][-1]]

    def fit(self, device: Device, workspace_mb: float | None) -> int:
        """Floats of the column buffer of one share: what the device's cache or chip and --workspace-mb ask for, and at least what works."""
        net, need = self.net, 0
        if workspace_mb is not None and not 0 < workspace_mb < math.inf:
            raise UserError(f"--workspace-mb {workspace_mb}: expected megabytes, more than 0")
        for name, layer in net.layers.items():
            shape = net.inputs[name]
            least, best = layer.columns(device, shape, self.chunk, self.training and name in (net.bottom, *self.above), name in self.above)
            if workspace_mb is not None and least:
                allowed = int(workspace_mb * 2**20 / 4 / self.shares)
                if allowed < least:
                    raise UserError(f"--workspace-mb {workspace_mb:g}: {name} needs at least {least * 4 * self.shares / 2**20:.1f} MB "
                                    f"in {self.shares} shares")
                best = min(best, allowed)
            need = max(need, best)
        partials = [layer.partials(net.inputs[n], self.chunk if n in self.stack else self.batch) for n, layer in net.layers.items() if not layer.dense]
        return max([need, *partials])

    def bytes(self, kind: str = "") -> int:
        """Bytes of the arrays whose name starts with `kind`."""
        return sizes({name: array for name, array in self.arrays.items() if name.startswith(kind)})


def sizes(arrays: dict[str, tuple[Shape, Any]]) -> int:
    """Bytes of {name: (shape, dtype)}."""
    return sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
