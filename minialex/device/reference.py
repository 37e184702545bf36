"""The numpy device: every launch calls the kernel's reference, in the arrays' own dtype."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .base import Array, Device, check_product
from .kernel import Kernel


class Reference(Device):
    """Runs the numpy references. `float` is float64 unless asked otherwise, so that ties have a true side."""

    name = "numpy"
    array_type = np.ndarray

    def __init__(self, dtype: Any = np.float64) -> None:
        self.float, self.model, self.products = np.dtype(dtype), "numpy", f"numpy {np.__version__}"

    def __str__(self) -> str:
        return f"numpy references in {self.float}"

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        return np.empty(shape, self.float if dtype is None else dtype)

    def array(self, host: Array, dtype: Any = None) -> Array:
        """A copy of a host array; floats take the device's dtype unless told otherwise."""
        host = np.asarray(host)
        return host.astype(dtype or (self.float if host.dtype.kind == "f" else host.dtype), order="C")

    def to_numpy(self, array: Array) -> np.ndarray:
        return array.copy()

    def upload(self, array: Array, host: np.ndarray) -> None:
        array[...] = host

    def bind(self, kernel: Kernel, rows: int, arguments: tuple) -> Callable[[], object]:
        if len(arguments) + 1 != len(kernel.arguments):
            raise TypeError(f"{kernel.name} takes {len(kernel.arguments)} arguments, got {len(arguments) + 1}")
        return lambda: kernel.reference(rows, *arguments)

    def gemm(self, a: Array, b: Array, c: Array, transpose_a: bool = False, transpose_b: bool = False, accumulate: bool = False) -> None:
        check_product(a, b, c, transpose_a, transpose_b)
        left = a.swapaxes(-1, -2) if transpose_a else a
        right = b.swapaxes(-1, -2) if transpose_b else b

        def call():
            c[...] = left @ right + (c if accumulate else 0)
        self.submit(call)
