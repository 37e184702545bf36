"""The bias and ReLU that follow a matrix product, in one pass: y[p, c] = max(y[p, c] + b[c], 0)."""

import numpy as np

from ..device import kernel
from .relu import BLOCK, relu_backward_in_place

SPAN, STRIP = 256, 32       # as in kernels/bias.cu


@kernel("bias.cu")
def bias_relu(rows, y, b, channels, relu):
    """y += b over the last axis, then max(y, 0) if relu"""
    y += b
    if relu:
        y[y <= 0] = 0


@kernel("bias.cu")
def bias_backward(rows, y, dy, partial, pixels, channels, slice, relu):
    """dy masked by y > 0 if relu, and partial[s, c] = the sum of dy over the pixels of slice s"""
    grad = dy.reshape(pixels, channels)
    if relu:
        grad[y.reshape(pixels, channels) <= 0] = 0
    sums = np.add.reduceat(grad, np.arange(0, pixels, slice), axis=0)
    partial.reshape(-1)[:sums.size] = sums.reshape(-1)


@kernel("bias.cu")
def sum_partials(rows, partial, db, count, accumulate):
    """db[c] = the sum of partial[s, c] over s, added to db if accumulate"""
    sums = partial.reshape(-1)[:count * rows].reshape(count, rows).sum(axis=0)
    db[...] = db + sums if accumulate else sums


def slices(pixels):
    """(slice, number of slices) of a sum over pixels: by the shape alone, and about 2,000 on a large one, so that a GPU
    has a warp for each and the order of the sum never changes."""
    slice = max(16, -(-pixels // 2048))
    return slice, -(-pixels // slice)


def bias_partials(pixels, channels):
    """Floats of workspace that bias_gradient needs."""
    return min(2048, -(-pixels // 16)) * channels      # of any number of pixels up to this one


def add_bias(device, y, b, relu):
    """y (..., C) += b (C,), then ReLU if asked."""
    channels = y.shape[-1]
    device.launch(bias_relu, y.size // channels * -(-channels // SPAN), y, b, channels, int(relu))


def bias_gradient(device, y, dy, db, workspace, relu, accumulate=False):
    """Masks dy by y > 0 if relu, and sums it over all but the last axis into db, unless that is None."""
    if db is None:
        if relu:
            device.launch(relu_backward_in_place, -(-y.size // BLOCK), y, dy, y.size)
        return
    channels = y.shape[-1]
    pixels = y.size // channels
    slice, count = slices(pixels)
    device.launch(bias_backward, count * -(-channels // STRIP), y, dy, workspace, pixels, channels, slice, int(relu))
    device.launch(sum_partials, channels, workspace, db, count, int(accumulate))
