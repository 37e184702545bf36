"""Inverted dropout: y = 0 with probability p, else x / (1 - p); nothing in evaluation.

The mask is drawn by Philox 4x32-10 from (seed, step, layer, element), once in forward and again in backward.
"""

from dataclasses import dataclass

import numpy as np

from ..device import Array, Device, kernel
from ..philox import philox
from .layer import Layer, Site, as_array, on_arrays, run_alone

BLOCK = 256        # as in kernels/dropout.cu


@kernel("dropout.cu")
def dropout_in_place(rows, x, count, first, threshold, scale, seed, layer, now):
    """x = 0 where the element's random word < threshold, else x * scale"""
    groups = np.arange(first // 4, (first + count + 3) // 4, dtype=np.uint64)
    words = philox(int(seed), groups & np.uint64(0xFFFFFFFF), groups >> np.uint64(32), int(layer), int(now[0])).reshape(-1)
    mine = words[first % 4:first % 4 + count].reshape(x.shape)
    x[...] = np.where(mine < threshold, 0, x * scale)


@dataclass(repr=False)
class Dropout(Layer):
    """Drops each element with probability `p`, in place."""

    p: float = 0.5

    in_place = True
    trained_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.p < 1:
            raise ValueError(f"p: expected a probability from 0 to below 1, got {self.p}")

    def forward(self, device: Device, at: Site) -> None:
        self.mask(device, at, at.x)

    def backward(self, device: Device, at: Site) -> None:
        self.mask(device, at, at.dy)

    def mask(self, device: Device, at: Site, array: Array) -> None:
        each = array.size // max(len(array), 1)
        device.launch(dropout_in_place, -(-array.size // BLOCK), array, array.size, at.first * each, int(self.p * 2**32),
                      1 / (1 - self.p), at.seed, at.number, at.now)


@on_arrays
def dropout(x: Array, p: float = 0.5, *, seed: int = 0, step: int = 0, layer: int = 0, device: str | Device = "cpu") -> Array:
    """x of any shape -> y: elements are zero with probability p, the others are divided by 1 - p."""
    return run_alone(Dropout(p), device, as_array("x", x), **stream(seed, step, layer)).y


@on_arrays
def dropout_backward(dy: Array, x: Array, p: float = 0.5, *, seed: int = 0, step: int = 0, layer: int = 0, device: str | Device = "cpu") -> Array:
    """dy -> dx, with the mask that dropout of the same p, seed, step and layer draws."""
    return run_alone(Dropout(p), device, as_array("x", x), as_array("dy", dy), **stream(seed, step, layer)).dx


def stream(seed, step, layer):
    """The stream of random words as run_alone takes it; refuses what would be cut to its width."""
    for name, value, bits in (("seed", seed, 64), ("step", step, 32), ("layer", layer, 32)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name}: expected 0 to 2**{bits} - 1, got {value}")
    return {"seed": seed, "step": step, "number": layer}
