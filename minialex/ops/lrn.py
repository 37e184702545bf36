"""Local response normalisation across channels (Krizhevsky 2012, section 3.3).

s[c] = k + alpha * sum of x[j]^2 over the `size` channels around c, y[c] = x[c] * s[c]^-beta. In the paper alpha multiplies
the sum (alpha_mode="sum"); its own program, Caffe, torch and ONNX divide alpha by `size` (alpha_mode="mean").
"""

import numpy as np

from ..device import kernel
from .layer import Layer, as_array, run_alone

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
    y[...] = x * (k + alpha * window_sum(x * x, size)) ** -beta


@kernel("lrn.cu")
def lrn_backward(rows, x, dy, dx, channels, size, alpha, beta, k):
    """dx = dy s^-beta - 2 alpha beta x * window sum of (dy x s^(-beta - 1))"""
    s = k + alpha * window_sum(x * x, size)
    dx[...] = dy * s ** -beta - 2 * alpha * beta * x * window_sum(dy * x * s ** (-beta - 1), size)


class LRN(Layer):
    """Defaults are the paper's: size 5, alpha 1e-4, beta 0.75, k 2, alpha multiplying the sum."""

    def __init__(self, size=5, alpha=1e-4, beta=0.75, k=2.0, alpha_mode="sum"):
        if size % 2 == 0 or not 1 <= size <= LARGEST:
            raise ValueError(f"size: expected an odd number up to {LARGEST}, got {size}"
                             + " (torch and ONNX place an even window differently, so there is no one meaning)" * (size % 2 == 0))
        if alpha_mode not in ("sum", "mean"):
            raise ValueError(f"alpha_mode: expected 'sum' (the paper) or 'mean' (its code, Caffe, torch), got {alpha_mode!r}")
        if alpha < 0 or k < 0 or k == alpha == 0:
            raise ValueError(f"alpha, k: expected alpha >= 0 and k >= 0, not both 0, got {alpha} and {k}")
        self.size, self.alpha, self.beta, self.k, self.alpha_mode = size, alpha, beta, k, alpha_mode

    def constants(self, shape):
        alpha = self.alpha / self.size if self.alpha_mode == "mean" else self.alpha
        return shape[-1], self.size, alpha, self.beta, self.k

    def forward(self, device, at):
        device.launch(lrn, at.x.size // at.x.shape[-1], at.x, at.y, *self.constants(at.x.shape))

    def backward(self, device, at):
        device.launch(lrn_backward, at.x.size // at.x.shape[-1], at.x, at.dy, at.dx, *self.constants(at.x.shape))


def local_response_norm(x, size=5, *, alpha=1e-4, beta=0.75, k=2.0, alpha_mode="sum", device="cpu"):
    """x (..., C) -> y of the same shape."""
    return run_alone(LRN(size, alpha, beta, k, alpha_mode), device, as_array("x", x)).y


def local_response_norm_backward(dy, x, size=5, *, alpha=1e-4, beta=0.75, k=2.0, alpha_mode="sum", device="cpu"):
    """dy, x (..., C) -> dx."""
    return run_alone(LRN(size, alpha, beta, k, alpha_mode), device, as_array("x", x), as_array("dy", dy)).dx
