"""What every device promises: arrays, launches, matrix products, and recordings of them."""

import contextlib
import os
import time

import numpy as np


class Device:
    """One place where kernels run. Launches happen at once, or are recorded between `with device.record() as tape`."""

    name = None
    products = None          # the library of matrix products and its version
    threads = 1              # shares of a batch that can run at the same time
    float = np.dtype(np.float32)
    recording = None
    place = ""               # what is being launched, for reports: "conv1 forward"
    tile = None              # floats of columns that stay in a core's cache; None: as many as there is room for
    decoders = property(lambda self: self.threads)      # threads that may decode pictures for it
    chunk = None             # images that a share takes through the convolutional layers at a time; None: all of them

    def images_at_once(self, outputs):
        """Images whose columns a convolution with that many outputs per image lays out at a time."""
        return self.chunk or 1 << 30

    def slices(self, tiles):
        """Slices of a long sum that together keep the device busy, if one makes `tiles` tiles of 128 x 128 of a product."""
        return 1

    def launch(self, kernel, rows, *arguments):
        """Runs `kernel` over `rows` rows. Refuses, with the argument's name, what its declaration does not allow."""
        self.submit(self.bind(kernel, rows, arguments))

    def submit(self, call):
        if self.recording is None:
            call()
        else:
            self.recording.calls.append(call)
            self.recording.places.append(self.place)

    @contextlib.contextmanager
    def record(self):
        """Collects the launches of the block in a Tape instead of running them."""
        if self.recording is not None:
            raise RuntimeError("a recording is already under way on this device")
        self.recording = tape = Tape(self)
        try:
            yield tape
        finally:
            self.recording = None

    def parallel(self, count):
        """for share in device.parallel(n): launches of different shares may run at the same time (n <= threads)."""
        return range(count)

    def zeros(self, shape, dtype=None):
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def feed(self, pairs):
        """Uploads the input of a pass, [(array, host array), ...], in order with the launches."""
        for array, host in pairs:
            self.upload(array, host)

    def synchronize(self):
        """Waits until everything launched is done."""


class Tape:
    """Launches in order, to be played again and again."""

    def __init__(self, device):
        self.device, self.calls, self.places = device, [], []

    def play(self):
        for call in self.calls:
            call()

    def play_timed(self):
        """Plays, waiting for each launch. -> {place: seconds}"""
        self.device.synchronize()
        took = {}
        for place, call in zip(self.places, self.calls):
            began = time.perf_counter()
            call()
            self.device.synchronize()
            took[place] = took.get(place, 0.0) + time.perf_counter() - began
        return took


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def check_product(a, b, c, transpose_a, transpose_b):
    """Shapes of c = op(a) op(b), each (rows, columns) or (batch, rows, columns) with lanes side by side. -> m, n, k"""
    for name, array in (("a", a), ("b", b), ("c", c)):
        if array.ndim != c.ndim or array.ndim not in (2, 3):
            raise ValueError(f"gemm: {name} has {array.ndim} dimensions, c has {c.ndim}; both must be 2 or both 3")
        if array.dtype != c.dtype:
            raise TypeError(f"gemm: {name} has dtype {array.dtype}, c has {c.dtype}")
        if array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
            raise ValueError(f"gemm: the columns of {name} must lie side by side, got strides {array.strides}")
    (k, m) = a.shape[-2:] if transpose_a else a.shape[-2:][::-1]
    (n, other) = b.shape[-2:] if transpose_b else b.shape[-2:][::-1]
    if other != k or c.shape[-2:] != (m, n) or not a.shape[:-2] == b.shape[:-2] == c.shape[:-2]:
        raise ValueError(f"gemm: shapes {a.shape}{' transposed' * transpose_a} and {b.shape}{' transposed' * transpose_b} do not give {c.shape}")
    return m, n, k
