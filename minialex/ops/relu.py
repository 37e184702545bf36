"""ReLU: y = max(x, 0); NaN stays NaN. dx = dy where y > 0."""

from dataclasses import dataclass

from ..device import Array, Device, kernel
from .layer import Layer, Site, as_array, on_arrays, run_alone

BLOCK = 1024       # as in kernels/relu.cu


@kernel("relu.cu")
def relu_in_place(rows, x, count):
    """x = max(x, 0), in place"""
    x[x <= 0] = 0


@kernel("relu.cu")
def relu_backward_in_place(rows, y, dy, count):
    """dy = 0 where y <= 0, in place"""
    dy[y <= 0] = 0


@dataclass(repr=False)
class ReLU(Layer):
    """Works in place. Conv and Dense have it built in (relu=True)."""

    in_place = True

    def forward(self, device: Device, at: Site) -> None:
        device.launch(relu_in_place, -(-at.x.size // BLOCK), at.x, at.x.size)

    def backward(self, device: Device, at: Site) -> None:
        device.launch(relu_backward_in_place, -(-at.y.size // BLOCK), at.y, at.dy, at.y.size)


@on_arrays
def relu(x: Array, *, device: str | Device = "cpu") -> Array:
    """x of any shape -> max(x, 0)."""
    return run_alone(ReLU(), device, as_array("x", x)).y


@on_arrays
def relu_backward(dy: Array, x: Array, *, device: str | Device = "cpu") -> Array:
    """dy, x of one shape -> dx."""
    return run_alone(ReLU(), device, as_array("x", x), as_array("dy", dy)).dx
