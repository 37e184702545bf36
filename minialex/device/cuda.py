"""The CUDA device: CuPy compiles the same .cu files with NVRTC and launches them, cuBLAS multiplies matrices."""

import importlib.util
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .base import Array, Device, check_product, cores
from .kernel import Kernel, source_text, sources

ROWS_PER_BLOCK = 4               # as in grid.cuh: a block of 128 threads has 4 warps, a row each
LARGEST_GRID = 2**31 - 1
OPTIONS = ("-std=c++17",)


def why_not() -> str | None:
    """Why no GPU can be used, in a clause; None if one can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'minialex[cuda13]', or 'minialex[cuda12]' for drivers before 580)"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy does not import ({error})"
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return "the driver finds no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no working NVIDIA driver ({str(error).split(':')[0]})"
    try:
        from cupy_backends.cuda.libs import cublas, nvrtc
        cublas.CUBLAS_OP_N, nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        return f"CuPy lacks cuBLAS or NVRTC ({str(error).splitlines()[0]}): install minialex[cuda13] or minialex[cuda12]"
    return None


class CUDA(Device):
    """One GPU. Launches are queued on CuPy's current stream; reading a result waits for them. `threads` are those that decode."""

    name, decoders = "cuda", None

    def __init__(self, threads: int | None = None) -> None:
        self.decoders = threads or cores()
        import cupy
        from cupy_backends.cuda.libs import cublas
        self.cupy, self.cublas, self.array_type = cupy, cublas, cupy.ndarray
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        self.model, self.processors, self.products = properties["name"].decode(), properties["multiProcessorCount"], "cuBLAS"
        self.modules: dict[str, Any] = {}
        self.one, self.zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        self.feeding = threading.Lock()
        self.copies, self.slots = cupy.cuda.Stream(non_blocking=True), [Slot(cupy), Slot(cupy)]

    def __str__(self) -> str:
        return f"{self.model}, {self.processors} multiprocessors, CuPy {self.cupy.__version__}"

    def images_at_once(self, outputs: int) -> int:
        """The fewest images whose product fills the chip twice with tiles of 128 x 128."""
        return max(1, -(-2 * self.processors * 128 * 128 // outputs))

    def slices(self, tiles: int) -> int:
        return max(1, 2 * self.processors // tiles)

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        return self.cupy.empty(shape, self.float if dtype is None else dtype)

    def array(self, host: Array, dtype: Any = None) -> Array:
        """A copy of a numpy or CuPy array on the GPU; floats become float32 unless told otherwise."""
        dtype = dtype or (self.float if host.dtype.kind == "f" else host.dtype)
        return host.astype(dtype, order="C") if isinstance(host, self.array_type) else self.cupy.asarray(np.ascontiguousarray(host, dtype))

    def to_numpy(self, array: Array) -> np.ndarray:
        return self.cupy.asnumpy(array)

    def upload(self, array: Array, host: np.ndarray) -> None:
        host = np.ascontiguousarray(host, array.dtype)
        array.set(host)
        self.synchronize()       # until then the copy may still be reading `host`

    def feed(self, pairs: Iterable[tuple[Array, np.ndarray]]) -> None:
        """Copies the input of a pass up while the GPU still works on the one before.

        The host fills one of two pinned buffers, the copy stream moves it to a buffer on the GPU, and the stream of the
        launches takes it from there. Three waits keep the order: the host's for the pinned buffer's last copy, the copy
        stream's until the buffer's last content was taken, and the launches' for the copy.
        """
        with self.feeding:
            self._feed(self.slots[0], pairs)

    def _feed(self, slot, pairs):
        launches = self.cupy.cuda.get_current_stream()
        self.slots.reverse()
        parts, end = [], 0
        for array, host in pairs:
            parts.append((end, array, np.ascontiguousarray(host, array.dtype)))
            end += -(-array.nbytes // 256) * 256
        slot.copied.synchronize()
        if slot.size < end:
            slot.grow(end, launches)
        for start, array, host in parts:
            slot.pinned[start:start + array.nbytes] = host.reshape(-1).view(np.uint8)
        self.copies.wait_event(slot.taken)
        slot.buffer.copy_from_host_async(slot.pinned.ctypes.data, end, self.copies)
        slot.copied.record(self.copies)
        launches.wait_event(slot.copied)
        for start, array, _ in parts:
            array.data.copy_from_device_async(slot.buffer + start, array.nbytes, launches)
        slot.taken.record(launches)

    def synchronize(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def bind(self, kernel: Kernel, rows: int, arguments: tuple) -> Callable[[], object]:
        values = tuple(kernel.bind((rows, *arguments), self.array_type, self.name))
        if kernel.source not in self.modules:
            self.modules[kernel.source] = self.cupy.RawModule(code=source_text(sources() / kernel.source), options=OPTIONS)
        function = self.modules[kernel.source].get_function(kernel.name)
        grid = max(1, min(-(-rows // ROWS_PER_BLOCK), LARGEST_GRID))
        return lambda: function((grid,), (32 * ROWS_PER_BLOCK,), values)

    def gemm(self, a: Array, b: Array, c: Array, transpose_a: bool = False, transpose_b: bool = False, accumulate: bool = False) -> None:
        """c = op(a) op(b) (+ c if accumulate), float32, each of (rows, columns) or (batch, rows, columns).

        cuBLAS counts along columns: a row-major c is its transpose there, c' = op(b)' op(a)'.
        """
        m, n, k = check_product(a, b, c, transpose_a, transpose_b)
        if c.dtype != np.float32:
            raise TypeError(f"gemm: expected float32, got {c.dtype}")
        batch = c.shape[0] if c.ndim == 3 else 1
        pitch = [max(array.strides[-2] // 4, array.shape[-1], 1) for array in (a, b, c)]
        jump = [array.strides[0] // 4 if c.ndim == 3 else 0 for array in (a, b, c)]
        operation = self.cublas.CUBLAS_OP_N, self.cublas.CUBLAS_OP_T
        arguments = (operation[transpose_b], operation[transpose_a], n, m, k, self.one.ctypes.data,
                     b.data.ptr, pitch[1], jump[1], a.data.ptr, pitch[0], jump[0],
                     (self.one if accumulate else self.zero).ctypes.data, c.data.ptr, pitch[2], jump[2], batch)

        def call(keep=(a, b, c)):      # a recording may outlive its caller's arrays
            self.cublas.sgemmStridedBatched(self.cupy.cuda.get_cublas_handle(), *arguments)
        self.submit(call)


class Slot:
    """A pinned buffer of the host, a buffer of the GPU that it is copied to, and the events that say when each is free."""

    def __init__(self, cupy):
        self.cupy, self.size = cupy, 0
        self.copied, self.taken = (cupy.cuda.Event(disable_timing=True) for _ in range(2))

    def grow(self, size, launches):
        self.pinned = np.frombuffer(self.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
        self.buffer, self.size = self.cupy.cuda.alloc(size), size
        self.taken.record(launches)      # what the launches so far do with this memory, which the pool may have given before
