"""Max-pool: y[n, oh, ow, c] = max of x over the pixels of the window that lie inside the image.

The first NaN wins over everything, else the first maximum. The winner's place in its window is kept in one byte.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import Array, Device, kernel
from .bias import bias_gradient, bias_partials
from .im2col import taps
from .layer import Layer, Shape, Site, as_array, on_arrays, run_alone
from .window import Extent, Pad, Window, frozen, image, known


@kernel("pool.cu")
def max_pool(rows, x, y, winner, bias, height, width, channels, out_height, out_width, window_height, window_width, stride_h,
             stride_w, pad_top, pad_left, add, relu):
    """y = the largest of each window, + bias if add, then max(y, 0) if relu; winner = its place kh * window_width + kw"""
    n = rows // (out_height * out_width)
    seen = np.zeros((n, out_height, out_width), bool)
    for kh, kw, (oh, ow), (h, w) in taps(height, width, out_height, out_width, window_height, window_width, stride_h, stride_w, pad_top, pad_left):
        new, best, place, old = x[:, h, w], y[:, oh, ow], winner[:, oh, ow], seen[:, oh, ow, None]
        wins = ~old | (new > best) | (np.isnan(new) & ~np.isnan(best))
        best[...] = np.where(wins, new, best)
        place[...] = np.where(wins, kh * window_width + kw, place)
        old[...] = True
    if add:
        y += bias
    if relu:
        y[y <= 0] = 0


@kernel("pool.cu")
def max_pool_backward(rows, dy, winner, dx, height, width, channels, out_height, out_width, window_height, window_width,
                      stride_h, stride_w, pad_top, pad_left):
    """dx = the sum of dy over the windows that this pixel won"""
    dx[...] = 0
    for kh, kw, (oh, ow), (h, w) in taps(height, width, out_height, out_width, window_height, window_width, stride_h, stride_w, pad_top, pad_left):
        dx[:, h, w] += np.where(winner[:, oh, ow] == kh * window_width + kw, dy[:, oh, ow], 0)


@dataclass(repr=False)
class MaxPool(Layer):
    """The largest value under each window of `size`; AlexNet's windows of 3 with stride 2 overlap.

    size, stride (default: size): int or (height, width); pad as in Conv, never chosen; ceil rounds the output's size up. Right after a convolution in a
    net it does what is left of that one once only the largest values count: bias and ReLU, and the bias' gradient.
    """

    size: Extent
    stride: Extent | None = None
    pad: Pad = 0
    ceil: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size, self.stride, self.pad = frozen(self.size), frozen(self.stride), frozen(self.pad)
        window = Window.of(self.size, self.size if self.stride is None else self.stride, self.pad, self.ceil)
        if window.size[0] * window.size[1] > 255:
            raise ValueError(f"size: the winner of a window is kept in one byte, so it may have 255 elements, not {window.size}")
        for size, sides in zip(window.size, window.pad):
            if max(sides) >= size:
                raise ValueError(f"pad: {sides} must be less than the window's {size} on each side, or a window could be all padding")

    @property
    def window(self) -> Window:
        return known(self.size, self.size if self.stride is None else self.stride, self.pad, self.ceil)

    def output(self, shape: Shape) -> Shape:
        height, width, channels = image(self, shape)
        return (*self.window.output(height, width), channels)

    def kept(self, shape: Shape) -> dict[str, tuple[Shape, Any]]:
        return {"winner": (self.output(shape), np.uint8)}

    def partials(self, shape: Shape, images: int) -> int:
        return bias_partials(images * math.prod(self.output(shape)[:2]), shape[2])

    def forward(self, device: Device, at: Site) -> None:
        shape, bias = at.x.shape[1:], at.parameters.get("bias")
        device.launch(max_pool, at.y.size // shape[2], at.x, at.y, at.kept["winner"], at.x if bias is None else bias, *shape,
                      *self.window.arguments(*shape[:2]), int(bias is not None), int(at.relu))

    def backward(self, device: Device, at: Site) -> None:
        shape = at.x.shape[1:]
        if "bias" in at.parameters:      # each dy goes to one pixel, so that their sum is that of the pixels' too
            bias_gradient(device, at.y, at.dy, at.gradients.get("bias"), at.columns, at.relu, at.accumulate)
        device.launch(max_pool_backward, at.x.size // shape[2], at.dy, at.kept["winner"], at.dx, *shape, *self.window.arguments(*shape[:2]))


@on_arrays
def max_pool2d(x: Array, size: Extent, *, stride: Extent | None = None, pad: Pad = 0, ceil: bool = False, device: str | Device = "cpu") -> Array:
    """x (N, H, W, C) -> y (N, OH, OW, C). size, stride (default: size): int or (h, w); pad as in conv2d, never chosen."""
    return run_alone(MaxPool(size, stride, pad, ceil), device, as_array("x", x, ("N", "H", "W", "C"))).y


@on_arrays
def max_pool2d_backward(dy: Array, x: Array, size: Extent, *, stride: Extent | None = None, pad: Pad = 0, ceil: bool = False,
                        device: str | Device = "cpu") -> Array:
    """dy (N, OH, OW, C) -> dx (N, H, W, C)."""
    as_array("x", x, ("N", "H", "W", "C"))
    as_array("dy", dy, ("N", "OH", "OW", "C"))
    return run_alone(MaxPool(size, stride, pad, ceil), device, x, dy).dx
