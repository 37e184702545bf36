"""Convolution: y[n, oh, ow, o] = b[o] + sum over kh, kw, c of x[n, oh*s - top + kh, ow*s - left + kw, c] w[kh, kw, c, o].

Two algorithms compute it, each in a file of its own: Im2col any of them, Winograd those of stride 1 with small filters, in fewer multiplications.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import Array, Device
from .bias import bias_partials
from .im2col import Im2col, col2im
from .layer import Layer, Shape, Site, as_array, device_of, on_arrays, put, require_rate, run_alone
from .window import Extent, Pad, Window, frozen, image, known
from .winograd import Winograd

ALGORITHMS: dict[str, type[Im2col] | type[Winograd]] = {"im2col": Im2col, "winograd": Winograd}


@dataclass(repr=False)
class Conv(Layer):
    """`filters` filters of `size`, with bias; relu=True applies ReLU in the bias's pass.

    size, stride: int or (height, width); pad: int, (height, width) or ((top, bottom), (left, right)), zeros.
    std and bias are what the net's publication initialises with (see nets.py). algorithm: "im2col", "winograd" (square filters and strides, whose
    filters are 3 or 5 strides large, rounded up; see ops/winograd.py), a pair of them for forward and backward, or "auto": a Network takes the faster ones.
    lr: what the learning rate is times; with 0 the layer is frozen, and no gradient of its parameters is computed.
    """

    filters: int
    size: Extent
    stride: Extent = 1
    pad: Pad = 0
    groups: int = 1
    relu: bool = True
    std: float | None = None
    bias: float = 0.0
    algorithm: str | tuple[str, str] = "auto"
    lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size, self.stride, self.pad = frozen(self.size), frozen(self.stride), frozen(self.pad)
        Window.of(self.size, self.stride, self.pad)      # refuses what is none
        self.algorithm = frozen(self.algorithm)
        if not isinstance(self.algorithm, (str, tuple)) or len(self.pair) != 2 or not all(name in ALGORITHMS for name in self.pair):
            raise ValueError(f"algorithm: expected auto, {' or '.join(ALGORITHMS)}, or two of these for forward and backward, got {self.algorithm!r}")
        if "winograd" in self.pair and not Winograd.fits(self):
            raise ValueError(f"algorithm: winograd is for square filters of 3 or 5 strides (rounded up), with pads smaller than they are, and without groups if the stride is not 1, "
                             f"not for {self!r}")
        if self.filters < 1:
            raise ValueError(f"filters: expected at least 1, got {self.filters}")
        require_rate(self.lr)
        if self.groups < 1 or self.filters % self.groups:
            raise ValueError(f"groups: {self.filters} filters cannot be cut into {self.groups} groups")

    @property
    def pair(self) -> tuple[str, str]:
        """The names of the algorithms of forward and backward; where it is open, those that are for any convolution."""
        if isinstance(self.algorithm, tuple):
            return self.algorithm
        return ("im2col", "im2col") if self.algorithm == "auto" else (self.algorithm, self.algorithm)

    @property
    def window(self) -> Window:
        return known(self.size, self.stride, self.pad)

    def output(self, shape: Shape) -> Shape:
        height, width, channels = image(self, shape)
        if channels % self.groups:
            raise ValueError(f"groups: {channels} channels cannot be cut into {self.groups} groups")
        return (*self.window.output(height, width), self.filters)

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return {"weight": (*self.window.size, shape[2] // self.groups, self.filters), "bias": (self.filters,)}

    def passes(self, shape: Shape) -> "tuple[Im2col | Winograd, Im2col | Winograd]":
        """The algorithms of forward and backward, for inputs of one shape."""
        forward, backward = self.pair
        return ALGORITHMS[forward](self, shape), ALGORITHMS[backward](self, shape)

    def prepared(self, shape: Shape, backward: bool) -> dict[str, Shape]:
        return self.passes(shape)[backward].prepared(backward)

    def keepable(self, shape: Shape) -> dict[str, tuple[Shape, Any]]:
        return {"columns": ((Im2col(self, shape).image,), np.float32)} if self.pair == ("im2col", "im2col") and self.lr else {}

    def columns(self, device: Device, shape: Shape, images: int, training: bool, dx: bool) -> tuple[int, int]:
        needs = [self.passes(shape)[backward].columns(device, images, backward, dx) for backward in (False, True)[:1 + training]]
        return max(least for least, _ in needs), max(best for _, best in needs)

    def macs(self, shape: Shape) -> int:
        height, width, filters = self.output(shape)
        return height * width * filters * self.fan_in(shape)

    def fan_in(self, shape: Shape) -> int:
        return self.window.size[0] * self.window.size[1] * shape[2] // self.groups

    def partials(self, shape: Shape, images: int) -> int:
        height, width, filters = self.output(shape)
        return bias_partials(images * height * width, filters)

    def prepare(self, device: Device, at: Site, backward: bool) -> None:
        self.passes(at.x.shape[1:])[backward].prepare(device, at, backward)

    def forward(self, device: Device, at: Site) -> None:
        self.passes(at.x.shape[1:])[0].forward(device, at)

    def backward(self, device: Device, at: Site) -> None:
        self.passes(at.x.shape[1:])[1].backward(device, at)


@on_arrays
def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: Extent = 1, pad: Pad = 0, groups: int = 1, algorithm: str = "im2col",
           device: str | Device = "cpu") -> Array:
    """x (N, H, W, C), w (KH, KW, C/groups, O), b (O,) -> y (N, OH, OW, O), float32.

    stride: int or (h, w); pad: int, (h, w) or ((top, bottom), (left, right)), zeros. algorithm: "im2col", or "winograd" as Conv
    has it.
    """
    layer, parameters = conv_arguments(x, w, b, stride, pad, groups, algorithm)
    return run_alone(layer, device, x, parameters=parameters).y


@on_arrays
def conv2d_backward(dy: Array, x: Array, w: Array, *, stride: Extent = 1, pad: Pad = 0, groups: int = 1,
                    algorithm: str = "im2col", device: str | Device = "cpu") -> tuple[Array, Array, Array]:
    """dy (N, OH, OW, O) -> (dx, dw, db): the gradients of conv2d's input, weights and bias."""
    layer, parameters = conv_arguments(x, w, None, stride, pad, groups, algorithm)
    site = run_alone(layer, device, x, as_array("dy", dy, ("N", "OH", "OW", "O")), parameters)
    return site.dx, site.gradients["weight"], site.gradients["bias"]


def conv_arguments(x, w, b, stride, pad, groups, algorithm):
    as_array("x", x, ("N", "H", "W", "C"))
    as_array("w", w, ("KH", "KW", "C/groups", "O"))
    layer = Conv(w.shape[3], w.shape[:2], stride, pad, groups, relu=False, algorithm=algorithm)
    if x.shape[3] != w.shape[2] * groups:
        raise ValueError(f"w: expected {x.shape[3]} / {groups} input channels, got shape {tuple(w.shape)}")
    if b is None:
        b = np.zeros(w.shape[3], np.float32)
    elif as_array("b", b, ("O",)).shape[0] != w.shape[3]:
        raise ValueError(f"b: expected shape ({w.shape[3]},), got {tuple(b.shape)}")
    return layer, {"weight": w, "bias": b}


@on_arrays
def unfold(x: Array, size: Extent, *, stride: Extent = 1, pad: Pad = 0, groups: int = 1, device: str | Device = "cpu") -> Array:
    """im2col: x (N, H, W, C) -> columns (groups, N * OH * OW, KH * KW * C/groups)."""
    device = device_of(device)
    n, *shape = as_array("x", x, ("N", "H", "W", "C")).shape
    unfolded = Im2col(Conv(groups, size, stride, pad, groups), tuple(shape))
    columns = device.zeros((groups, n * unfolded.out[0] * unfolded.out[1], unfolded.pitch))
    if n:
        unfolded.launch(device, put(device, x), columns)
    return columns[:, :, :unfolded.fan_in]


@on_arrays
def fold(columns: Array, shape: Shape, size: Extent, *, stride: Extent = 1, pad: Pad = 0, groups: int = 1, device: str | Device = "cpu") -> Array:
    """col2im, the transpose of im2col: columns (groups, N * OH * OW, KH * KW * C/groups) -> dx of `shape` (N, H, W, C)."""
    device = device_of(device)
    if not isinstance(shape, tuple) or len(shape) != 4 or not all(isinstance(length, int) for length in shape):
        raise ValueError(f"shape: expected (N, H, W, C), got {shape!r}")
    n, shape = shape[0], tuple(shape[1:])
    unfolded = Im2col(Conv(groups, size, stride, pad, groups), shape)
    expected = groups, n * unfolded.out[0] * unfolded.out[1], unfolded.fan_in
    if as_array("columns", columns, ("groups", "pixels", "taps")).shape != expected:
        raise ValueError(f"columns: expected shape {expected}, got {tuple(columns.shape)}")
    padded, dx = device.zeros((*expected[:2], unfolded.pitch)), device.empty((n, *shape))
    if n:
        padded[:, :, :expected[2]] = put(device, columns)
        device.launch(col2im, n * shape[0] * shape[1] * groups, padded, dx, *unfolded.geometry())
    return dx
