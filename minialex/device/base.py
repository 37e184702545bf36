"""What every device promises: arrays, launches, matrix products, and recordings of them."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from ..errors import UserError
from ..limits import cpu_quota
from .kernel import Kernel

Array: TypeAlias = Any      # of a device: numpy's on cpu and numpy, CuPy's on cuda, which may not be installed


PRECISIONS = "float32", "tf32"      # of products


class PerThread:
    """An attribute of which each thread has a value of its own."""

    def __init__(self, default: Any) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, device: Any, owner: type) -> Any:
        return self.default if device is None else getattr(vars(device).get("per_thread"), self.name, self.default)

    def __set__(self, device: Any, value: Any) -> None:
        setattr(vars(device).setdefault("per_thread", threading.local()), self.name, value)


class Device:
    """One place where kernels run. Launches happen at once, or are recorded between `with device.record() as tape`.

    Several threads may launch at the same time, each in order; what one records is its own.
    """

    name: str = ""
    model: str               # the chip or the compiler
    array_type: Any          # of its arrays
    processors: int          # of a GPU
    products: str | None = None      # the library of matrix products and its version
    precision = "float32"    # of products; `take_precision` changes it
    threads = 1              # shares of a batch that can run at the same time
    float = np.dtype(np.float32)
    recording: Any = PerThread(None)
    place: Any = PerThread("")       # what is being launched, for reports: "conv1 forward"
    tile: int | None = None  # floats of columns that stay in a core's cache; None: as many as there is room for
    decoders: Any = property(lambda self: self.threads)      # threads that may decode pictures for it
    chunk: int | None = None # images that a share takes through the convolutional layers at a time; None: all of them

    def __repr__(self) -> str:
        return f"the {self.name} device"

    def images_at_once(self, outputs: int) -> int:
        """Images whose columns a convolution with that many outputs per image lays out at a time."""
        return self.chunk or 1 << 30

    def slices(self, tiles: int) -> int:
        """Slices of a long sum that together keep the device busy, if one makes `tiles` tiles of 128 x 128 of a product."""
        return 1

    def spare(self) -> int:
        """Bytes that what only saves time may take: the columns of a convolution, kept from forward to backward."""
        return 0

    def pitch(self, lanes: int) -> int:
        """Floats from row to row of a large matrix of so many columns, as products like it best."""
        return lanes

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """An array with anything in it, of the device's floats unless told otherwise."""
        raise NotImplementedError

    def array(self, host: Array, dtype: Any = None) -> Array:
        """A copy of a host array; floats take the device's dtype unless told otherwise."""
        raise NotImplementedError

    def to_numpy(self, array: Array) -> np.ndarray:
        """A copy on the host; waits for the launches before it."""
        raise NotImplementedError

    def upload(self, array: Array, host: np.ndarray) -> None:
        """Copies a host array into one of the device."""
        raise NotImplementedError

    def bind(self, kernel: Kernel, rows: int, arguments: tuple) -> Callable[[], object]:
        """A launch with its arguments checked, to be called."""
        raise NotImplementedError

    def gemm(self, a: Array, b: Array, c: Array, transpose_a: bool = False, transpose_b: bool = False, accumulate: bool = False) -> None:
        """c = op(a) op(b) (+ c if accumulate), each of (rows, columns) or (batch, rows, columns)."""
        raise NotImplementedError

    def launch(self, kernel: Kernel, rows: int, *arguments: Any) -> None:
        """Runs `kernel` over `rows` rows. Refuses, with the argument's name, what its declaration does not allow."""
        self.submit(self.bind(kernel, rows, arguments))

    def submit(self, call: Any) -> None:
        if self.recording is None:
            call()
        else:
            self.recording.calls.append(call)
            self.recording.places.append(self.place)

    @contextlib.contextmanager
    def record(self) -> Iterator[Any]:
        """Collects the launches of the block in a Tape instead of running them."""
        if self.recording is not None:
            raise RuntimeError("a recording is already under way in this thread")
        self.recording = self.tape()
        try:
            yield self.recording
        finally:
            self.recording = None

    def section(self) -> Any:
        """Ends the recording under way, and begins another. -> the Tape that ended"""
        ended, self.recording = self.recording, self.tape()
        return ended

    def take_precision(self, precision: str) -> None:
        """Makes products of one of PRECISIONS from now on; a UserError where the device has none such."""
        if precision != "float32":
            raise UserError(f"--precision {precision}: products of device {self.name} are of float32; {precision} needs an NVIDIA GPU of compute capability 8.0 or later")

    def tape(self) -> Any:
        """An empty recording."""
        return Tape(self)

    def use(self) -> None:
        """Makes this the device of the calling thread, where threads have one."""

    def parallel(self, count: int) -> Iterable[int]:
        """for share in device.parallel(n): launches of different shares may run at the same time (n <= threads)."""
        return range(count)

    def zeros(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def pictures(self, shape: tuple[int, ...]) -> np.ndarray:
        """A uint8 array on the host, with anything in it, in memory from which `feed` is quickest."""
        return np.empty(shape, np.uint8)

    def feed(self, pairs: Iterable[tuple[Array, np.ndarray]]) -> None:
        """Uploads the input of a pass, [(array, host array), ...], in order with the launches."""
        for array, host in pairs:
            self.upload(array, host)

    def synchronize(self) -> None:
        """Waits until everything launched is done."""


class Tape:
    """Launches in order, to be played again and again."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.calls: list[Callable[[], object]] = []
        self.places: list[str] = []

    def play(self) -> None:
        self.device.use()
        for call in self.calls:
            call()

    def play_timed(self) -> dict[str, float]:
        """Plays, waiting for each launch. -> {place: seconds}"""
        self.device.use()
        self.device.synchronize()
        took: dict[str, float] = {}
        for place, call in zip(self.places, self.calls):
            began = time.perf_counter()
            call()
            self.device.synchronize()
            took[place] = took.get(place, 0.0) + time.perf_counter() - began
        return took


def cores() -> int:
    """Cores that this process may use: those that it may run on, a container's share of their time, and no more than OMP_NUM_THREADS."""
    counts: list[float] = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    counts += [quota] if (quota := cpu_quota()) else []
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()      # "4,2": of nested loops
    counts += [int(asked)] if asked.isdecimal() and int(asked) else []
    return math.ceil(min(counts))


def check_product(a: Array, b: Array, c: Array, transpose_a: bool, transpose_b: bool) -> tuple[int, int, int]:
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
