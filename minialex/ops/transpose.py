"""The transpose of a matrix: y[j, i] = x[i, j]; dx[i, j] = dy[j, i]."""

from ..device import Array, Device, kernel
from .layer import as_array, device_of, on_arrays, put

TILE = 32          # as in kernels/transpose.cu


@kernel("transpose.cu")
def transpose_tiles(rows, x, y, height, width):
    """y[j, i] = x[i, j]"""
    y.reshape(width, height)[...] = x.reshape(height, width).T


def launch_transpose(device: Device, x: Array, y: Array) -> None:
    """x (M, N) -> y, of N M elements."""
    device.launch(transpose_tiles, -(-x.shape[0] // TILE) * -(-x.shape[1] // TILE), x, y, *x.shape)


@on_arrays
def transpose(x: Array, *, device: str | Device = "cpu") -> Array:
    """x (M, N) -> y (N, M)."""
    device = device_of(device)
    x = put(device, as_array("x", x, ("M", "N")))
    y = device.empty(x.shape[::-1])
    if x.size:
        launch_transpose(device, x, y)
    device.synchronize()
    return y


@on_arrays
def transpose_backward(dy: Array, x: Array, *, device: str | Device = "cpu") -> Array:
    """dy (N, M), x (M, N) -> dx (M, N)."""
    if as_array("dy", dy, ("N", "M")).shape != as_array("x", x, ("M", "N")).shape[::-1]:
        raise ValueError(f"dy: expected shape {tuple(x.shape[::-1])}, got {tuple(dy.shape)}")
    return transpose(dy, device=device)
