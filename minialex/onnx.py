"""ONNX (`pip install 'minialex[onnx]'`): files of AlexNet-like nets from anywhere, computed by our kernels, and our own nets as such files.

`Backend` is the package's own interface, onnx.backend.base, whose functions are here by their names too:

    minialex.onnx.prepare(onnx.load("model.onnx"), "CUDA").run([images])

Everything is float32. Convolutions, pools, LRN, ReLU, products, softmax, its loss and what changes the layout are launches of our kernels; what only
adds or multiplies arrays of one shape, or puts them side by side, is left to the arrays of the device.
"""

import functools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data.augment import Input
from .device import Array, Device, cuda
from .errors import UserError, shown
from .nets import Net
from .ops.bias import add_bias
from .ops.conv import Conv
from .ops.dense import Dense
from .ops.layer import Layer, Shape, Site, device_of, ready
from .ops.lrn import LRN
from .ops.pool import MaxPool
from .ops.relu import ReLU
from .ops.softmax import softmax, softmax_cross_entropy
from .ops.transpose import launch_transpose
from .version import __version__

try:
    import onnx
    from onnx import checker, helper, numpy_helper
    from onnx.backend import base
except ModuleNotFoundError as error:
    if error.name != "onnx":
        raise
    raise UserError("ONNX files are read and written by the package onnx, which is not installed: pip install 'minialex[onnx]'") from None


class Value:
    """What flows along an edge of a graph.

    Floats lie on the device, as `array` in ONNX's order, (N, C, ...), and as `last` with the channels last, (N, ..., C); each is made of the other when it is
    first asked for, so that nothing changes its layout between the layers of a stack. Anything else, such as shapes and labels, is numpy's and stays on
    the host. Nobody writes to any of them.
    """

    def __init__(self, device: Device, array: Array = None, last: Array = None) -> None:
        self.device = device
        for name, given in (("array", array), ("last", last)):
            if given is not None:
                vars(self)[name] = given      # in the place of what would be made

    @functools.cached_property
    def array(self) -> Array:
        return permuted(self.device, self.last, (0, self.last.ndim - 1, *range(1, self.last.ndim - 1)))

    @functools.cached_property
    def last(self) -> Array:
        return permuted(self.device, self.array, (0, *range(2, self.array.ndim), 1))

    @functools.cached_property
    def filters(self) -> Array:
        """Of a convolution's weights, (O, C, ...): (..., C, O)."""
        return permuted(self.device, self.last, (*range(1, self.last.ndim), 0))

    @property
    def shape(self) -> Shape:
        if "array" in vars(self):
            return tuple(self.array.shape)
        n, *space, channels = self.last.shape
        return (n, channels, *space)

    @property
    def floats(self) -> bool:
        return (self.array if "array" in vars(self) else self.last).dtype.kind == "f"

    @property
    def host(self) -> np.ndarray:
        return self.device.to_numpy(self.array) if self.floats else self.array

    def same(self, function: Callable[[Array], Array]) -> "Value":
        """The value of a function that keeps the shape and asks for no layout."""
        return Value(self.device, array=function(self.array)) if "array" in vars(self) else Value(self.device, last=function(self.last))


def permuted(device: Device, array: Array, order: Sequence[int]) -> Array:
    """The array with its axes in another order: by the transpose kernel where two blocks of axes change places, (.., A, B) -> (.., B, A)."""
    shape = tuple(array.shape[axis] for axis in order)
    moved = [axis for axis in order if array.shape[axis] != 1]
    still = sorted(moved)
    first = next((place for place, (axis, other) in enumerate(zip(moved, still)) if axis != other), None)
    if first is None or not array.size:
        return array.reshape(shape)
    if array.dtype.kind != "f":
        return np.ascontiguousarray(array.transpose(order))
    turned, behind = moved[first:], moved[first:].index(still[first])
    if turned[behind:] + turned[:behind] != still[first:]:
        return device.array(array.transpose(order))
    rows, lanes = (math.prod(array.shape[axis] for axis in block) for block in (turned[behind:], turned[:behind]))
    matrices = array.reshape(-1, rows, lanes)
    y = device.empty((len(matrices), lanes, rows))
    for matrix, to in zip(matrices, y):
        launch_transpose(device, matrix, to)
    return y.reshape(shape)


def forward(device: Device, layer: Layer, x: Array, **parameters: Array) -> Site:
    """One layer's pass over x, which is not copied. -> its Site"""
    shape, n = tuple(x.shape[1:]), len(x)
    site = Site(x=x, y=device.empty((n, *layer.output(shape))), parameters=parameters)
    site.kept = {name: device.empty((n, *of), kind) for name, (of, kind) in layer.kept(shape).items()}
    site.columns = device.empty((layer.columns(device, shape, max(n, 1), False, False)[1],))
    ready(layer, device, site, False)
    if x.size:
        layer.forward(device, site)
    return site


# The ops, each a function of a node and its inputs, of which those that are left out are None

@dataclass
class Node:
    """A node of a graph: its op's name and attributes, the names of its inputs and outputs, and the version of the ops that is meant."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    version: int
    device: Device

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def value(self, array: Array = None, last: Array = None) -> Value:
        return Value(self.device, array, last)

    @property
    def called(self) -> str:
        """What sentences call it."""
        return f"{self.op} {self.name or self.outputs[0]}"


def window(node: Node, length: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """(strides, pads, dilations) of a window over images of these extents, along each of their axes."""
    axes = len(length)
    if axes not in (1, 2):
        raise ValueError(f"windows are of 1 or 2 axes here, and this one is of {axes}")
    strides, dilations, pads = node.get("strides", [1] * axes), node.get("dilations", [1] * axes), node.get("pads", [0] * 2 * axes)
    auto = node.get("auto_pad", b"NOTSET").decode()
    if auto == "NOTSET":
        return strides, list(zip(pads[:axes], pads[axes:])), dilations
    pairs = []
    for extent, k, stride, dilation in zip(length, size, strides, dilations):
        total = max(0, (-(-extent // stride) - 1) * stride + (k - 1) * dilation + 1 - extent) if auto != "VALID" else 0
        pairs.append((total // 2, total - total // 2) if auto != "SAME_LOWER" else (total - total // 2, total // 2))
    return strides, pairs, dilations


def high(axes: Sequence, one: Any) -> tuple:
    """What is said of each axis of a row of pixels, of an image of height 1."""
    return tuple(axes) if len(axes) == 2 else (one, *axes)


def image(x: Value) -> Array:
    """(N, H, W, C) of images or rows of pixels."""
    return x.last if x.last.ndim == 4 else x.last.reshape(len(x.last), 1, *x.last.shape[1:])


def from_image(node: Node, y: Array, like: Value) -> Value:
    return node.value(last=y if like.last.ndim == 4 else y.reshape(len(y), *y.shape[2:]))


def conv(node: Node, x: Value, w: Value, b: Value | None = None) -> Value:
    device, filters = node.device, w.filters
    strides, pads, dilations = window(node, x.shape[2:], w.shape[2:])
    if set(dilations) != {1}:      # zeros in the filter
        size = tuple((k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations))
        spread = device.zeros((*size, *filters.shape[-2:]))
        spread[tuple(slice(None, None, d) for d in dilations)] = filters
        filters = spread
    if filters.ndim == 3:
        filters = filters.reshape(1, *filters.shape)
    layer = Conv(filters.shape[3], filters.shape[:2], high(strides, 1), high(pads, (0, 0)), node.get("group", 1), relu=False)
    if x.shape[1] != filters.shape[2] * layer.groups:
        raise ValueError(f"its filters are for {filters.shape[2] * layer.groups} channels, and its input has {x.shape[1]}")
    bias = device.zeros((filters.shape[3],)) if b is None else b.array
    return from_image(node, forward(device, layer, image(x), weight=filters, bias=bias).y, x)


def max_pool(node: Node, x: Value) -> tuple[Value, ...]:
    strides, pads, dilations = window(node, x.shape[2:], node.get("kernel_shape"))
    if set(dilations) != {1}:
        raise ValueError("its dilations are not 1")
    layer = MaxPool(high(node.get("kernel_shape"), 1), high(strides, 1), high(pads, (0, 0)), bool(node.get("ceil_mode", 0)))
    site = forward(node.device, layer, image(x))
    y = from_image(node, site.y, x)
    return (y,) if len(node.outputs) == 1 else (y, winners(node, layer, site, x))


def winners(node: Node, layer: MaxPool, site: Site, x: Value) -> Value:
    """Where each maximum lies in the whole input, (N, C, ...) counted row by row, or with storage_order 1 column by column."""
    (_, height, width, channels), place = site.x.shape, node.device.to_numpy(site.kept["winner"]).astype(np.int64)
    image, h, w, c = np.ogrid[tuple(slice(extent) for extent in place.shape)]
    row, column = np.divmod(place, layer.window.size[1])
    row, column = row + h * layer.window.stride[0] - layer.window.pad[0][0], column + w * layer.window.stride[1] - layer.window.pad[1][0]
    inside = column * height + row if node.get("storage_order", 0) else row * width + column
    return from_image(node, (image * channels + c) * height * width + inside, x)


def average_pool(node: Node, x: Value) -> Value:
    """The mean over each window, as a convolution of each channel by itself."""
    device, length = node.device, x.shape[2:]
    size = length if node.op == "GlobalAveragePool" else node.get("kernel_shape")
    strides, pads, dilations = window(node, length, size)
    if node.get("ceil_mode", 0) or set(dilations) != {1}:
        raise ValueError("its ceil_mode or its dilations are not the default")
    pixels, channels = image(x), x.shape[1]

    def sums(pixels: Array, channels: int) -> Array:
        weight = device.zeros((*high(size, 1), 1, channels))
        weight.fill(1 / math.prod(size))
        layer = Conv(channels, high(size, 1), high(strides, 1), high(pads, (0, 0)), channels, relu=False)
        return forward(device, layer, pixels, weight=weight, bias=device.zeros((channels,))).y
    y = sums(pixels, channels)
    if not node.get("count_include_pad", 0) and any(map(any, pads)):
        ones = device.zeros((1, *pixels.shape[1:3], 1))
        ones.fill(1)
        np.divide(y, sums(ones, 1), out=y)
    return from_image(node, y, x)


def lrn(node: Node, x: Value) -> Value:
    """ONNX divides alpha by the window's size."""
    layer = LRN(node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0), "mean")
    return node.value(last=forward(node.device, layer, x.last).y)


def relu(node: Node, x: Value) -> Value:
    def positive(array: Array) -> Array:
        y = node.device.array(array)
        if y.size:
            ReLU().forward(node.device, Site(x=y))
        return y
    return x.same(positive)


def arithmetic(function: Callable) -> Callable[..., Value]:
    """Sums, differences, products and ratios of numbers one by one, shapes broadcast as numpy does."""
    def compute(node: Node, a: Value, b: Value) -> Value:
        if node.version < 7 and node.get("broadcast") and node.get("axis") is not None:
            raise ValueError("its axis is given, as it was up to version 6 of the ops")
        if not a.floats or not b.floats:
            y = function(a.array, b.array)
            return node.value(y if y.dtype == a.array.dtype else np.trunc(y).astype(a.array.dtype))      # a ratio
        if function is np.add and len(a.shape) > 1 and b.shape in ((a.shape[-1],), (1, a.shape[-1])):      # a dense layer's bias
            y = node.device.array(a.array)
            if y.size:
                add_bias(node.device, y, b.array.reshape(-1), False)
            return node.value(y)
        way = "last" if len(a.shape) == len(b.shape) > 1 and ("last" in vars(a) or "last" in vars(b)) else "array"
        left, right = getattr(a, way), getattr(b, way)
        return node.value(**{way: function(left, right, out=node.device.empty(np.broadcast_shapes(left.shape, right.shape)))})
    return compute


def gemm(node: Node, a: Value, b: Value, c: Value | None = None) -> Value:
    """alpha op(a) op(b) + beta c."""
    device, turned = node.device, (bool(node.get("transA", 0)), bool(node.get("transB", 0)))
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    y = device.empty((a.shape[turned[0]], b.shape[1 - turned[1]]))
    device.gemm(a.array, b.array, y, *turned)
    if alpha != 1:
        np.multiply(y, alpha, out=y)
    if c is not None and beta:
        if beta == 1 and c.shape in ((y.shape[1],), (1, y.shape[1])):
            add_bias(device, y, c.array.reshape(-1), False)
        else:
            np.add(y, c.array * beta, out=y)
    return node.value(y)


def matmul(node: Node, a: Value, b: Value) -> Value:
    device = node.device
    left, right = (a.array if len(a.shape) > 1 else a.array.reshape(1, -1)), (b.array if len(b.shape) > 1 else b.array.reshape(-1, 1))
    stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    y = device.empty((*stack, left.shape[-2], right.shape[-1]))
    if not stack:
        device.gemm(left, right, y)
    elif right.ndim == 2 and y.size:      # each matrix times the same one
        device.gemm(left.reshape(-1, left.shape[-1]), right, y.reshape(-1, y.shape[-1]))
    elif y.size:
        left, right = (device.array(np.broadcast_to(of, (*stack, *of.shape[-2:]))).reshape(-1, *of.shape[-2:]) for of in (left, right))
        device.gemm(left, right, y.reshape(-1, *y.shape[-2:]))
    shape = [*stack, *y.shape[-2:][:len(a.shape) > 1], *y.shape[-1:][:len(b.shape) > 1]]
    return node.value(y.reshape(shape))


def flatten(node: Node, x: Value) -> Value:
    axis = node.get("axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    return node.value(x.array.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def reshape(node: Node, x: Value, shape: Value | None = None) -> Value:
    wanted = [int(extent) for extent in (node.get("shape") if shape is None else shape.host)]
    if not node.get("allowzero", 0):      # 0: as it was
        wanted = [extent or x.shape[axis] for axis, extent in enumerate(wanted)]
    return node.value(x.array.reshape(wanted))


def axes_of(node: Node, given: Value | None, rank: int) -> set[int] | None:
    """The axes that an attribute, or since version 13 an input, names."""
    axes = node.get("axes") if given is None else given.host.tolist()
    return None if axes is None else {axis % rank for axis in axes}


def squeeze(node: Node, x: Value, axes: Value | None = None) -> Value:
    out = axes_of(node, axes, len(x.shape))
    return node.value(x.array.reshape([extent for axis, extent in enumerate(x.shape) if (extent != 1 if out is None else axis not in out)]))


def unsqueeze(node: Node, x: Value, axes: Value | None = None) -> Value:
    count = len(node.get("axes", ()) if axes is None else axes.host)
    new, extents = axes_of(node, axes, len(x.shape) + count) or set(), iter(x.shape)
    return node.value(x.array.reshape([1 if axis in new else next(extents) for axis in range(len(x.shape) + count)]))


def transpose(node: Node, x: Value) -> Value:
    order = node.get("perm", list(reversed(range(len(x.shape)))))
    if order == [0, *range(2, len(order)), 1]:
        return node.value(x.last)
    if order == [0, len(order) - 1, *range(1, len(order) - 1)]:      # what comes has its channels last already
        return Value(node.device, last=x.array)
    return node.value(permuted(node.device, x.array, order))


def dropout(node: Node, x: Value, ratio: Value | None = None, training: Value | None = None) -> tuple[Value, ...]:
    """Nothing, as nets are only used here."""
    dropped = node.get("ratio", 0.5) if ratio is None else float(ratio.host)
    if training is not None and bool(training.host) and dropped or node.version < 7 and not node.get("is_test", 0):
        raise ValueError("it is to drop numbers, as in training, and nets are only used here")
    return (x, node.value(np.ones(x.shape, bool))) if len(node.outputs) > 1 else (x,)


def by_rows(function: Callable[..., Array]) -> Callable[[Node, Value], Value]:
    """An op over one axis, by a function of rows and the device; before version 13 of the ops over all axes from that one on."""
    def compute(node: Node, x: Value) -> Value:
        axes, device = len(x.shape), node.device
        axis = node.get("axis", -1 if node.version >= 13 else 1) % axes
        if node.version < 13:
            lanes = math.prod(x.shape[axis:])
            return node.value(function(x.array.reshape(-1, lanes), device=device).reshape(x.shape)) if x.array.size else x
        rows = permuted(device, x.array, (*range(axis), *range(axis + 1, axes), axis))
        y = function(rows.reshape(-1, x.shape[axis]), device=device).reshape(rows.shape) if rows.size else rows
        return node.value(permuted(device, y, (*range(axis), axes - 1, *range(axis, axes - 1))))
    return compute


def log_softmax(x: Array, device: Device) -> Array:
    """x less the logarithm of the sum of its exponentials, which is a row's likeliest class's number and its loss."""
    likeliest = x.argmax(axis=1)
    loss, _ = softmax_cross_entropy(x, likeliest, device=device)
    return np.subtract(x, (loss + x[np.arange(len(x)), likeliest])[:, None], out=device.empty(x.shape))


def cross_entropy(node: Node, x: Value, labels: Value, weight: Value | None = None) -> tuple[Value, ...]:
    """SoftmaxCrossEntropyLoss: the loss and, where it is asked for, the logarithm of the probabilities."""
    device, classes = node.device, x.shape[1]
    rows, targets = x.last.reshape(-1, classes), labels.host.reshape(-1).astype(np.int64)
    counts = targets != node.get("ignore_index", classes)
    right = np.where(counts, targets, 0)
    loss, _ = softmax_cross_entropy(rows, device.array(right), weight=None if weight is None else weight.array, device=device)
    each = np.where(counts, device.to_numpy(loss), 0).astype(np.float64)
    weights = counts * (1.0 if weight is None else weight.host[right])
    reduction = node.get("reduction", b"mean").decode()
    result = each.reshape(labels.shape) if reduction == "none" else each.sum() / (weights.sum() if reduction == "mean" else 1)
    y = node.value(device.array(np.asarray(result, np.float32)))
    return (y,) if len(node.outputs) == 1 else (y, node.value(last=log_softmax(rows, device).reshape(x.last.shape)))


def constant(node: Node) -> Value:
    given = node.attributes
    if "value" in given:
        return placed(node.device, numpy_helper.to_array(given["value"]))
    kind = np.int64 if any(name.startswith("value_int") for name in given) else np.float32
    return placed(node.device, np.array(next(iter(given.values())), kind))


def constant_of_shape(node: Node, shape: Value) -> Value:
    fill = numpy_helper.to_array(node.get("value")) if node.get("value") is not None else np.zeros(1, np.float32)
    return placed(node.device, np.full(shape.host.tolist(), fill.item(), fill.dtype))


def concat(node: Node, *parts: Value) -> Value:
    arrays, axis = [part.array for part in parts], node.get("axis", 1)
    axis %= arrays[0].ndim
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    y: Array = node.device.empty(tuple(shape)) if parts[0].floats else np.empty(shape, arrays[0].dtype)
    start = 0
    for array in arrays:
        y[(slice(None),) * axis + (slice(start, start + array.shape[axis]),)] = array
        start += array.shape[axis]
    return node.value(y)


def gather(node: Node, x: Value, places: Value) -> Value:
    if x.floats:
        raise ValueError("it gathers floats, and only shapes are gathered here")
    return node.value(np.asarray(x.array.take(places.host, axis=node.get("axis", 0))))


OPS: dict[str, Callable[..., Any]] = {
    "Conv": conv, "MaxPool": max_pool, "AveragePool": average_pool, "GlobalAveragePool": average_pool, "LRN": lrn, "Relu": relu,
    "Gemm": gemm, "MatMul": matmul, "Add": arithmetic(np.add), "Sub": arithmetic(np.subtract), "Mul": arithmetic(np.multiply), "Div": arithmetic(np.divide),
    "Flatten": flatten, "Reshape": reshape, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Transpose": transpose, "Concat": concat,
    "Dropout": dropout, "Softmax": by_rows(softmax), "LogSoftmax": by_rows(log_softmax), "SoftmaxCrossEntropyLoss": cross_entropy,
    "Identity": lambda node, x: x, "Constant": constant, "ConstantOfShape": constant_of_shape,
    # of a Flatten that is written x.view(x.size(0), -1)
    "Shape": lambda node, x: node.value(np.array(x.shape[node.get("start", 0):node.get("end", len(x.shape))], np.int64)),
    "Gather": gather}


# Graphs

def placed(device: Device, array: np.ndarray) -> Value:
    """A numpy array as a Value; a ValueError where its numbers are none of ours."""
    if array.dtype.kind not in "fiub" or array.dtype.kind == "f" and array.dtype != np.float32:
        raise ValueError(f"its numbers are {array.dtype}, and the kernels' float32")
    return Value(device, device.array(array) if array.dtype.kind == "f" else array)


def refusal(nodes: Iterable[Any], values: Iterable[Any] = ()) -> str | None:
    """Why a graph cannot be computed here, as far as its nodes and its inputs tell, or None."""
    strange = sorted({f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type for node in nodes
                      if node.op_type not in OPS or node.domain not in ("", "ai.onnx")})
    if strange:
        return f"it has ops that are not computed here: {', '.join(strange)}"
    for value in values:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            return f"its input {value.name} is no tensor"
        if (name := onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)) not in ("FLOAT", "INT64", "INT32", "INT16", "INT8", "UINT8", "UINT16",
                                                                                             "UINT32", "UINT64", "BOOL"):
            return f"its input {value.name} is of {name}, and the kernels of FLOAT"
    return None


def read(path: str | os.PathLike) -> Any:
    """The model in an ONNX file."""
    try:
        return onnx.load(path)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read ({error.strerror})") from None
    except Exception:      # of protobuf, or the checker's of weights that lie in other files
        raise UserError(f"{shown(path)} is not an intact ONNX file") from None


class Prepared(base.BackendRep):
    """A graph on a device, with its constants in place: `run` it again and again. `inputs` and `outputs` are their names."""

    def __init__(self, nodes: Iterable[Any], inputs: Sequence[str], outputs: Sequence[str], constants: Mapping[str, np.ndarray], version: int,
                 device: Device) -> None:
        self.device, self.inputs, self.outputs = device, list(inputs), list(outputs)
        self.nodes = [Node(node.op_type, node.name, list(node.input), list(node.output), {a.name: helper.get_attribute_value(a) for a in node.attribute},
                           version, device) for node in nodes]
        uses = Counter(name for node in self.nodes for name in node.inputs)
        self.constants = {name: placed(device, array) for name, array in constants.items() if name in uses or name in self.outputs}
        self.ends = {name: place for place, node in enumerate(self.nodes) for name in (*node.inputs, *node.outputs)}      # where it is used for the last time

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the first output is of probabilities, and not of what a softmax makes them of."""
        makers, name = {name: node for node in self.nodes for name in node.outputs}, self.outputs[0]
        while name in makers and makers[name].op in ("Reshape", "Flatten", "Squeeze", "Identity"):
            name = makers[name].inputs[0]
        return name in makers and makers[name].op == "Softmax"

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs, numpy's, for inputs in the order of `inputs` or by name, arrays that numpy can read."""
        if not isinstance(inputs, Mapping):
            inputs = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(inputs) > len(self.inputs):
                raise UserError(f"the graph takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(inputs)}")
            inputs = dict(zip(self.inputs, inputs))
        given = {}
        for name, array in inputs.items():
            try:
                given[name] = placed(self.device, np.asarray(array))
            except ValueError as error:
                raise UserError(f"input {name}: {error}") from None
        found = [value.host for value in self.compute(given)]
        return base.namedtupledict("Outputs", self.outputs)(*(y.astype(np.float32) if y.dtype.kind == "f" else y for y in found))

    def compute(self, given: Mapping[str, Value]) -> list[Value]:
        """The outputs for inputs by name."""
        missing = [name for name in self.inputs if name not in given and name not in self.constants]
        if missing:
            raise UserError(f"the graph's input {missing[0]} is missing")
        values = {**self.constants, **given}
        for place, node in enumerate(self.nodes):
            try:
                made = OPS[node.op](node, *(values[name] if name else None for name in node.inputs))
            except (ValueError, TypeError, IndexError, OverflowError) as error:
                raise UserError(f"{node.called} cannot be computed here: {error}") from error
            values |= dict(zip(node.outputs, made if isinstance(made, tuple) else (made,)))
            for name in {*node.inputs, *node.outputs}:
                if name and self.ends[name] == place and name not in self.outputs:      # its memory is for others
                    values.pop(name, None)
        return [values[name] for name in self.outputs]


class Backend(base.Backend):
    """The interface of the package onnx. device: as it names them, "CPU", "CUDA" or "CUDA:1", or as we do, or an open Device."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the nodes and inputs of a model are of kinds that are computed here."""
        return refusal(model.graph.node, model.graph.input) is None and cls.supports_device(device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        name, _, number = device.lower().partition(":")
        return {"cpu": lambda: sys.platform != "win32", "numpy": lambda: True, "cuda": lambda: not cuda.why_not(int(number or 0))}.get(name, lambda: False)()

    @classmethod
    def prepare(cls, model: Any, device: str | Device = "CPU", **kwargs: Any) -> Prepared:
        """A model ready to run; a UserError says what is not computed here, onnx.checker's ValidationError what is no model at all."""
        graph = model.graph
        told = refusal(graph.node, graph.input)
        if told:
            raise UserError(f"the model cannot be computed here: {told}")
        checker.check_model(model)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        inputs, outputs = [value.name for value in graph.input if value.name not in constants], [value.name for value in graph.output]
        version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 1)
        try:
            return Prepared(graph.node, inputs, outputs, constants, version, opened(device))
        except ValueError as error:
            raise UserError(f"the model cannot be computed here: {error}") from None

    @classmethod
    def run_node(cls, node: Any, inputs: Any, device: str | Device = "CPU", outputs_info: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs of one node, of the newest version of the ops unless opset_version says another."""
        super().run_node(node, inputs, "CPU", outputs_info, **kwargs)
        told = refusal([node])
        if told:
            raise UserError(f"the node cannot be computed here: {told}")
        names, outputs = [name for name in node.input if name], [name for name in node.output if name]
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        return Prepared([node], names, outputs, {}, version, opened(device)).run(inputs)


def opened(device: str | Device) -> Device:
    return device_of(device.lower() if isinstance(device, str) else device)


prepare, run_model, run_node = Backend.prepare, Backend.run_model, Backend.run_node
supports_device, is_compatible = Backend.supports_device, Backend.is_compatible


# Our own nets as ONNX files

OPSET, IR = 13, 7          # from 2020: what reads ONNX at all reads these
LARGEST = (1 << 31) - 1    # bytes of a message of protobuf's
APPLIED = "inside", "described"      # where a picture's mean and scale are: in the graph, or in the words of the metadata alone


def model_of(net: Net, weights: Mapping[str, np.ndarray], input: Input, classes: Sequence[str], mean: np.ndarray | None = None,
             preprocessing: str = "inside") -> Any:
    """A net as an ONNX model, checked: "image" float32 (batch, 3, size, size), RGB, to "logits" (batch, classes), for any batch.

    weights: {"conv1.weight": array, ...}. preprocessing: "inside", the image's pixels are 0 to 255 and the graph itself subtracts the mean and scales;
    "described", whoever runs it does so, as the metadata say. mean: the mean image (side, side, 3) of an input that has one, of which the centre is taken.
    The metadata have the names of the classes and how a picture becomes an image, as JSON under "classes" and "input".
    """
    if preprocessing not in APPLIED:
        raise UserError(f"--preprocessing {preprocessing}: choose one of {', '.join(APPLIED)}")
    if mean is not None and preprocessing == "described":
        raise UserError("--preprocessing described: this net subtracts a mean image, which cannot be described in a line; use inside")
    if sum(array.nbytes for array in weights.values()) > LARGEST - (1 << 20):
        raise UserError(f"{net.name} has {sum(array.nbytes for array in weights.values()) / 2**30:.1f} GB of weights, and an ONNX file holds 2 GB at most")
    nodes: list[Any] = []
    tensors: list[Any] = []

    def constant(name: str, array: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def then(op: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    at, scale = "image", np.broadcast_to(input.scale, 3)
    if preprocessing == "inside":
        if mean is not None:
            centre = slice(input.margin // 2, input.margin // 2 + input.size)
            at = then("Sub", "input.centred", at, constant("input.mean", mean[centre, centre].transpose(2, 0, 1)[None].astype(np.float32)))
        elif input.mean_colour.any():
            at = then("Sub", "input.centred", at, constant("input.mean", input.mean_colour.astype(np.float32).reshape(1, 3, 1, 1)))
        if (scale != 1).any():
            at = then("Mul", "input.scaled", at, constant("input.scale", scale.astype(np.float32).reshape(1, 3, 1, 1)))
    last = list(net.layers)[-1]
    for name, layer in net.layers.items():
        shape = net.inputs[name]
        end = "logits" if name == last and len(net.outputs[name]) == 1 else f"{name}.output" if name in ("image", "logits") else name
        through = f"{name}.linear" if getattr(layer, "relu", False) else end
        if isinstance(layer, (Conv, Dense)):
            matrix, bias = weights[f"{name}.weight"], constant(f"{name}.bias", weights[f"{name}.bias"])
        if isinstance(layer, Conv):
            at = then("Conv", through, at, constant(f"{name}.weight", matrix.transpose(3, 2, 0, 1)), bias, kernel_shape=layer.window.size,
                      strides=layer.window.stride, pads=pads_of(layer), group=layer.groups)
        elif isinstance(layer, Dense):
            if len(shape) == 3:      # rows in the order (C, H, W)
                at = then("Flatten", f"{name}.flat", at)
                matrix = matrix.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(matrix.shape)
            at = then("Gemm", through, at, constant(f"{name}.weight", matrix.T), bias, transB=1)
        elif isinstance(layer, MaxPool):
            at = then("MaxPool", end, at, kernel_shape=layer.window.size, strides=layer.window.stride, pads=pads_of(layer), ceil_mode=int(layer.window.ceil))
        elif isinstance(layer, LRN):
            apart = len(shape) == 1 or layer.groups > 1      # ONNX has it of whole images: of a group then, which becomes an image of its own
            if apart:
                at = then("Reshape", f"{name}.groups", at, constant(f"{name}.group", np.array([-1, shape[-1] // layer.groups, *(shape[:-1] or (1, 1))])))
            alpha = layer.alpha * (layer.size if layer.alpha_mode == "sum" else 1)
            at = then("LRN", f"{name}.normalised" if apart else end, at, size=layer.size, alpha=alpha, beta=layer.beta, bias=layer.k)
            if apart:
                at = then("Reshape", end, at, constant(f"{name}.whole", np.array([-1, shape[-1], *shape[:-1]])))
        elif isinstance(layer, ReLU):
            at = then("Relu", end, at)
        elif not layer.trained_only:
            raise UserError(f"{net.name}: {name} is {layer}, for which there is no ONNX op here")
        if through != end:
            at = then("Relu", end, at)
    if at != "logits":      # of a convolution
        at = then("Flatten", "logits", at)
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, net.size, net.size])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", net.classes])
    graph = helper.make_graph(nodes, net.name, [image], [logits], tensors)
    model = helper.make_model(graph, producer_name="minialex", producer_version=__version__, ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)])
    about = {"channels": "RGB", "size": input.size, "side": input.side, "fit": input.fit, "mean": "image" if mean is not None else input.mean_colour.tolist(),
             "scale": scale.tolist(), "preprocessing": preprocessing}
    helper.set_model_props(model, {"classes": json.dumps(list(classes)), "input": json.dumps(about)})
    checker.check_model(model, full_check=True)
    return model


def pads_of(layer: Conv | MaxPool) -> list[int]:
    (top, bottom), (left, right) = layer.window.pad
    return [top, left, bottom, right]
