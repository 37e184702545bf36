"""A dense layer: y = x W + b, with W (I, O); x is taken flat, in the order (H, W, C).

The input's gradient is the transpose of W dy^T: a product that reads the large matrix as it lies.
"""

from dataclasses import dataclass

import numpy as np

from ..device import Array, Device
from .bias import add_bias, bias_gradient, bias_partials
from .layer import Layer, Shape, Site, as_array, on_arrays, require_rate, run_alone
from .transpose import launch_transpose


@dataclass(repr=False)
class Dense(Layer):
    """`features` outputs; relu=True applies ReLU in the bias's pass. Cores share its columns, not its images.

    std and bias are what the net's publication initialises with (see nets.py); lr is what the learning rate is times, 0 of a frozen layer.
    """

    features: int
    relu: bool = True
    std: float | None = None
    bias: float = 0.0
    lr: float = 1.0

    dense = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rate(self.lr)
        if self.features < 1:
            raise ValueError(f"features: expected at least 1, got {self.features}")

    def output(self, shape: Shape) -> Shape:
        return (self.features,)

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return {"weight": (self.fan_in(shape), self.features), "bias": (self.features,)}

    def fan_in(self, shape: Shape) -> int:
        return int(np.prod(shape))

    def macs(self, shape: Shape) -> int:
        return self.fan_in(shape) * self.features

    def partials(self, shape: Shape, images: int) -> int:
        return max(bias_partials(images, self.features), images * (self.fan_in(shape) + self.features))

    def forward(self, device: Device, at: Site) -> None:
        x, weight = at.x.reshape(len(at.x), -1), at.parameters["weight"]
        for own in cuts(device, self.features):
            device.gemm(x, weight[:, own], at.y[:, own])
        add_bias(device, at.y, at.parameters["bias"], self.relu)

    def backward(self, device: Device, at: Site) -> None:
        x, weight, dweight, n = at.x.reshape(len(at.x), -1), at.parameters["weight"], at.gradients.get("weight"), len(at.x)
        bias_gradient(device, at.y, at.dy, at.gradients.get("bias"), at.columns, self.relu, at.accumulate)
        dy_turned, dx_turned = (at.columns[first:first + n * length].reshape(length, n)
                                for first, length in ((0, self.features), (n * self.features, len(weight))))
        if at.dx is not None:
            launch_transpose(device, at.dy, dy_turned)
        for own in cuts(device, len(weight)):
            if dweight is not None:
                device.gemm(x[:, own], at.dy, dweight[own], transpose_a=True, accumulate=at.accumulate)
            if at.dx is not None:
                device.gemm(weight[own], dy_turned, dx_turned[own])
        if at.dx is not None:
            launch_transpose(device, dx_turned, at.dx)


def cuts(device, length):
    """0 .. length-1 as one slice for each core, each starting on a vector register's boundary."""
    parts = max(1, min(device.threads, length // 16))
    edges = [length * i // parts // 16 * 16 for i in range(parts)] + [length]
    for part in device.parallel(parts):
        yield slice(edges[part], edges[part + 1])


@on_arrays
def dense(x: Array, w: Array, b: Array | None = None, *, device: str | Device = "cpu") -> Array:
    """x (N, I), w (I, O), b (O,) -> y (N, O) = x w + b, float32."""
    layer, parameters = dense_arguments(x, w, b)
    return run_alone(layer, device, x, parameters=parameters).y


@on_arrays
def dense_backward(dy: Array, x: Array, w: Array, *, device: str | Device = "cpu") -> tuple[Array, Array, Array]:
    """dy (N, O) -> (dx, dw, db): the gradients of dense's input, weights and bias."""
    layer, parameters = dense_arguments(x, w, None)
    site = run_alone(layer, device, x, as_array("dy", dy, ("N", "O")), parameters)
    return site.dx, site.gradients["weight"], site.gradients["bias"]


def dense_arguments(x, w, b):
    as_array("x", x, ("N", "I"))
    as_array("w", w, ("I", "O"))
    if x.shape[1] != w.shape[0]:
        raise ValueError(f"w: expected {x.shape[1]} rows, got shape {tuple(w.shape)}")
    if b is None:
        b = np.zeros(w.shape[1], np.float32)
    elif as_array("b", b, ("O",)).shape[0] != w.shape[1]:
        raise ValueError(f"b: expected shape ({w.shape[1]},), got {tuple(b.shape)}")
    return Dense(w.shape[1], relu=False), {"weight": w, "bias": b}
