"""Local response normalisation across channels (Krizhevsky 2012, section 3.3).

s[c] = k + alpha * sum of x[j]^2 over the `size` channels around c, y[c] = x[c] * s[c]^-beta. In the paper alpha multiplies
the sum (alpha_mode="sum"); its own program, Caffe, torch and ONNX divide alpha by `size` (alpha_mode="mean"). With groups the channels around c are
those of its own group, as on each of the two GPUs of 2012: to the kernel a pixel is then `groups` rows.
"""

from dataclasses import dataclass

import numpy as np

from ..device import Array, Device, kernel
from .layer import Layer, Shape, Site, as_array, on_arrays, run_alone

LARGEST = 63       # as in kernels/lrn.cu


def window_sum(values, size):
    """The sum over the `size` channels around each, of those that exist."""
    half, channels = size // 2, values.shape[-1]
    padded = np.zeros((*values.shape[:-1], channels + 2 * half), values.dtype)
    padded[..., half:half + channels] = values
    return sum(padded[..., d:d + channels] for d in range(size))


@kernel("lrn.cu")
def lrn(rows, x, y, channels, size, alpha, beta, k):
    """y = x (k + alpha * window sum of x^2)^-beta"""
    x, y = x.reshape(rows, channels), y.reshape(rows, channels)
    y[...] = x * (k + alpha * window_sum(x * x, size)) ** -beta


@kernel("lrn.cu")
def lrn_backward(rows, x, dy, dx, channels, size, alpha, beta, k):
    """dx = dy s^-beta - 2 alpha beta x * window sum of (dy x s^(-beta - 1))"""
    x, dy, dx = (array.reshape(rows, channels) for array in (x, dy, dx))
    s = k + alpha * window_sum(x * x, size)
    dx[...] = dy * s ** -beta - 2 * alpha * beta * x * window_sum(dy * x * s ** (-beta - 1), size)


@dataclass(repr=False)
class LRN(Layer):
    """Defaults are the paper's: size 5, alpha 1e-4, beta 0.75, k 2, alpha multiplying the sum. groups: parts of the channels, each normalised by itself."""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    alpha_mode: str = "sum"
    groups: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 2 == 0 or not 1 <= self.size <= LARGEST:
            raise ValueError(f"size: expected an odd number up to {LARGEST}, got {self.size}"
                             + " (torch and ONNX place an even window differently, so there is no one meaning)" * (self.size % 2 == 0))
        if self.alpha_mode not in ("sum", "mean"):
            raise ValueError(f"alpha_mode: expected 'sum' (the paper) or 'mean' (its code, Caffe, torch), got {self.alpha_mode!r}")
        if self.alpha < 0 or self.k < 0 or self.k == self.alpha == 0:
            raise ValueError(f"alpha, k: expected alpha >= 0 and k >= 0, not both 0, got {self.alpha} and {self.k}")
        if self.groups < 1:
            raise ValueError(f"groups: expected at least 1, got {self.groups}")

    def output(self, shape: Shape) -> Shape:
        if shape and shape[-1] % self.groups:
            raise ValueError(f"groups: {shape[-1]} channels cannot be cut into {self.groups} groups")
        return shape

    def constants(self, shape: Shape) -> tuple[int, int, float, float, float]:
        """What the kernels take, of rows of a group each."""
        alpha = self.alpha / self.size if self.alpha_mode == "mean" else self.alpha
        return self.output(shape)[-1] // self.groups, self.size, alpha, self.beta, self.k

    def forward(self, device: Device, at: Site) -> None:
        device.launch(lrn, at.x.size // at.x.shape[-1] * self.groups, at.x, at.y, *self.constants(at.x.shape))

    def backward(self, device: Device, at: Site) -> None:
        device.launch(lrn_backward, at.x.size // at.x.shape[-1] * self.groups, at.x, at.dy, at.dx, *self.constants(at.x.shape))


@on_arrays
def local_response_norm(x: Array, size: int = 5, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, alpha_mode: str = "sum",
                        groups: int = 1, device: str | Device = "cpu") -> Array:
    """x (..., C) -> y of the same shape."""
    return run_alone(LRN(size, alpha, beta, k, alpha_mode, groups), device, as_array("x", x)).y


@on_arrays
def local_response_norm_backward(dy: Array, x: Array, size: int = 5, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, alpha_mode: str = "sum",
                                 groups: int = 1, device: str | Device = "cpu") -> Array:
    """dy, x (..., C) -> dx."""
    return run_alone(LRN(size, alpha, beta, k, alpha_mode, groups), device, as_array("x", x), as_array("dy", dy)).dx
