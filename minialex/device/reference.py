"""The numpy device: every launch calls the kernel's reference, in the arrays' own dtype."""

import numpy as np

from .base import Device, check_product


class Reference(Device):
    """Runs the numpy references. `float` is float64 unless asked otherwise, so that ties have a true side."""

    name = "numpy"
    array_type = np.ndarray

    def __init__(self, dtype=np.float64):
        self.float, self.model, self.products = np.dtype(dtype), "numpy", f"numpy {np.__version__}"

    def __str__(self):
        return f"numpy references in {self.float}"

    def empty(self, shape, dtype=None):
        return np.empty(shape, self.float if dtype is None else dtype)

    def array(self, host, dtype=None):
        """A copy of a host array; floats take the device's dtype unless told otherwise."""
        host = np.asarray(host)
        return host.astype(dtype or (self.float if host.dtype.kind == "f" else host.dtype), order="C")

    def to_numpy(self, array):
        return array.copy()

    def upload(self, array, host):
        array[...] = host

    def bind(self, kernel, rows, arguments):
        if len(arguments) + 1 != len(kernel.arguments):
            raise TypeError(f"{kernel.name} takes {len(kernel.arguments)} arguments, got {len(arguments) + 1}")
        return lambda: kernel.reference(rows, *arguments)

    def gemm(self, a, b, c, transpose_a=False, transpose_b=False, accumulate=False):
        check_product(a, b, c, transpose_a, transpose_b)
        left = a.swapaxes(-1, -2) if transpose_a else a
        right = b.swapaxes(-1, -2) if transpose_b else b

        def call():
            c[...] = left @ right + (c if accumulate else 0)
        self.submit(call)
