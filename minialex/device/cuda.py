"""The CUDA device: CuPy compiles the same .cu files with NVRTC, cuBLAS multiplies matrices.

For whoever looks for a fault, or for speed, there are three variables of the environment, each on with 1: MINIALEX_DEBUG waits after each launch,
so that an error names it; MINIALEX_NO_POOL takes each array's memory from the driver, so that a sanitizer knows where it ends; MINIALEX_GRAPH
plays recordings as CUDA graphs.
"""

import ctypes
import importlib.util
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import UserError
from .base import Array, Device, Tape, check_product, cores
from .kernel import Kernel, source_text, sources

ROWS_PER_BLOCK = 4               # as in grid.cuh: a block of 128 threads has 4 warps, a row each
LARGEST_GRID = 2**31 - 1
OPTIONS = ("-std=c++17",)
# CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32 and CUBLAS_GEMM_DEFAULT of cublas_api.h and library_types.h: CuPy has no names for the last two.
FLOAT, FAST_TF32, ANY_ALGORITHM = 0, 77, -1
WORKSPACE = 32 << 20             # bytes: what NVIDIA recommends for cuBLAS on Hopper, and more than older chips need


def switched_on(variable: str) -> bool:
    return os.environ.get(variable) == "1"


def why_not(number: int = 0) -> str | None:
    """Why GPU `number` cannot be used, in a clause; None if it can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'minialex[cuda13]', or 'minialex[cuda12]' for drivers before 580)"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy does not import ({error})"
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if "cudaErrorNoDevice" not in str(error):
            return f"no working NVIDIA driver ({str(error).split(':')[0]})"
        count = 0
    if count == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return "the driver finds no GPU" if visible is None else f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU to be seen"
    if number >= count:
        return f"there is no GPU {number}: {count} can be seen, and cuda:0 is the first"
    try:
        from cupy_backends.cuda.libs import cublas, nvrtc
        cublas.CUBLAS_OP_N
        least = min(nvrtc.getSupportedArchs())
    except (ImportError, RuntimeError) as error:
        return f"CuPy lacks cuBLAS or NVRTC ({str(error).splitlines()[0]}): install minialex[cuda13] or minialex[cuda12]"
    about = runtime.getDeviceProperties(number)
    if 10 * about["major"] + about["minor"] < least:
        return (f"{about['name'].decode()} has compute capability {about['major']}.{about['minor']}, and this CuPy's CUDA begins at {least // 10}.{least % 10} "
                "(minialex[cuda12] goes further back than minialex[cuda13])")
    return None


def count() -> int:
    """GPUs that can be seen."""
    import cupy
    return cupy.cuda.runtime.getDeviceCount()


class CUDA(Device):
    """One GPU. Launches are queued on CuPy's current stream; reading a result waits for them. `threads` are those that decode.

    precision: of products, "float32" or "tf32", whose operands keep 10 bits of their fractions.
    """

    name, decoders = "cuda", None

    def __init__(self, threads: int | None = None, number: int = 0) -> None:
        self.decoders = threads or cores()
        import cupy
        from cupy_backends.cuda.api import driver
        from cupy_backends.cuda.libs import cublas
        self.cupy, self.cublas, self.launcher, self.array_type = cupy, cublas, driver.launchKernel, cupy.ndarray
        self.gpu = cupy.cuda.Device(number)
        self.use()
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        self.model, self.processors, self.products = properties["name"].decode(), properties["multiProcessorCount"], "cuBLAS"
        self.has_tf32 = properties["major"] >= 8
        if switched_on("MINIALEX_NO_POOL"):
            cupy.cuda.set_allocator(None)
            cupy.cuda.set_pinned_memory_allocator(None)
        self.debug = switched_on("MINIALEX_DEBUG")
        self.modules: dict[str, Any] = {}
        self.one, self.zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        self.feeding = threading.Lock()
        self.lent: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()      # address -> what `pictures` gave
        self.copies, self.slots = cupy.cuda.Stream(non_blocking=True), [Slot(cupy), Slot(cupy)]
        try:      # now: when a network has taken the memory there may be none for them
            cupy.cuda.get_cublas_handle()
            self.graphs = Blas(cupy) if switched_on("MINIALEX_GRAPH") and not self.debug else None
        except (MemoryError, RuntimeError) as error:
            raise UserError(f"device cuda: cuBLAS does not start ({str(error).splitlines()[0]}): is the GPU's memory taken by another process?") from None

    def __str__(self) -> str:
        return f"{self.model}, {self.processors} multiprocessors, CuPy {self.cupy.__version__}" + ", TF32 products" * (self.precision == "tf32")

    def use(self) -> None:
        self.gpu.use()

    def images_at_once(self, outputs: int) -> int:
        """The fewest images whose product fills the chip twice with tiles of 128 x 128."""
        return max(1, -(-2 * self.processors * 128 * 128 // outputs))

    def spare(self) -> int:
        """Half of what is free, besides what CuPy's pool holds and could give."""
        self.use()
        return (self.cupy.cuda.runtime.memGetInfo()[0] + self.cupy.get_default_memory_pool().free_bytes()) // 2

    def slices(self, tiles: int) -> int:
        return max(1, 2 * self.processors // tiles)

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        self.use()
        return self.cupy.empty(shape, self.float if dtype is None else dtype)

    def array(self, host: Array, dtype: Any = None) -> Array:
        """A copy of a numpy or CuPy array on the GPU; floats become float32 unless told otherwise."""
        self.use()
        dtype = dtype or (self.float if host.dtype.kind == "f" else host.dtype)
        return host.astype(dtype, order="C") if isinstance(host, self.array_type) else self.cupy.asarray(np.ascontiguousarray(host, dtype))

    def to_numpy(self, array: Array) -> np.ndarray:
        self.use()
        return self.cupy.asnumpy(array)

    def upload(self, array: Array, host: np.ndarray) -> None:
        self.use()
        host = np.ascontiguousarray(host, array.dtype)
        array.set(host)
        self.synchronize()       # until then the copy may still be reading `host`

    def pictures(self, shape: tuple[int, ...]) -> np.ndarray:
        """Pinned memory, which CuPy's pool has again when nothing refers to it."""
        self.use()
        size = int(np.prod(shape))
        flat = np.frombuffer(self.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
        self.lent[flat.ctypes.data] = flat
        return flat.reshape(shape)

    def feed(self, pairs: Iterable[tuple[Array, np.ndarray]]) -> None:
        """Copies the input of a pass up while the GPU still works on the one before.

        The host fills one of two pinned buffers with what is not pinned itself, the copy stream moves it to a buffer on the GPU, and the stream of the
        launches takes it from there. Three waits keep the order: the host's for the pinned buffer's last copy, the copy
        stream's until the buffer's last content was taken, and the launches' for the copy. What `pictures` gave is held until its copy was waited for,
        and must not be written to before.
        """
        self.use()
        with self.feeding:
            self._feed(self.slots[0], pairs)

    def _feed(self, slot, pairs):
        launches = self.cupy.cuda.get_current_stream()
        self.slots.reverse()
        contiguous = [(array, np.ascontiguousarray(host, array.dtype)) for array, host in pairs]
        parts, end, first = [], 0, 0
        for array, host, lent in sorted(((*pair, self.lent.get(pair[1].ctypes.data)) for pair in contiguous), key=lambda part: part[2] is None):
            parts.append((end, array, host, lent))
            end += -(-array.nbytes // 256) * 256
            first = end if lent is not None else first      # of what is not pinned
        slot.copied.synchronize()
        if slot.size < end:
            slot.grow(end, launches)
        self.copies.wait_event(slot.taken)
        for start, array, host, lent in parts:
            if lent is None:
                slot.pinned[start:start + array.nbytes] = host.reshape(-1).view(np.uint8)
            else:
                (slot.buffer + start).copy_from_host_async(host.ctypes.data, array.nbytes, self.copies)
        if first < end:
            (slot.buffer + first).copy_from_host_async(slot.pinned.ctypes.data + first, end - first, self.copies)
        slot.copied.record(self.copies)
        slot.held = [lent for _, _, _, lent in parts]
        launches.wait_event(slot.copied)
        for start, array, _, _ in parts:
            array.data.copy_from_device_async(slot.buffer + start, array.nbytes, launches)
        slot.taken.record(launches)

    def synchronize(self) -> None:
        self.use()
        self.cupy.cuda.get_current_stream().synchronize()

    def submit(self, call: Any) -> None:
        self.use()
        super().submit(call)

    def take_precision(self, precision: str) -> None:
        if precision == "float32" or not self.has_tf32:
            super().take_precision(precision)
        self.precision = precision

    def tape(self) -> Any:
        return GraphTape(self) if self.graphs else Tape(self)

    def bind(self, kernel: Kernel, rows: int, arguments: tuple) -> Callable[[], object]:
        self.use()
        values = kernel.bind((rows, *arguments), self.array_type, self.name)
        if kernel.source not in self.modules:
            self.modules[kernel.source] = self.cupy.RawModule(code=source_text(sources() / kernel.source), options=OPTIONS)
        function = self.modules[kernel.source].get_function(kernel.name).kernel
        grid = max(1, min(-(-rows // ROWS_PER_BLOCK), LARGEST_GRID))
        # All that the driver wants is made ready here, once for all times that a recording is played.
        slots = kernel.packed(values)
        places = slots.ctypes.data + 8 * np.arange(len(slots), dtype=np.uint64)
        current, launch, of = self.cupy.cuda.get_current_stream, self.launcher, places.ctypes.data

        def call(keep=(values, slots, places, function)):
            launch(function.ptr, grid, 1, 1, 32 * ROWS_PER_BLOCK, 1, 1, 0, current().ptr, of, 0)
        return self.watched(call, kernel.name, zip((argument.name for argument in kernel.arguments), values))

    def gemm(self, a: Array, b: Array, c: Array, transpose_a: bool = False, transpose_b: bool = False, accumulate: bool = False) -> None:
        """c = op(a) op(b) (+ c if accumulate), float32, each of (rows, columns) or (batch, rows, columns).

        cuBLAS counts along columns: a row-major c is its transpose there, c' = op(b)' op(a)'. Products whose rows do not all begin on 16 bytes
        are of float32 precision in any case, as tensor cores take none else.
        """
        m, n, k = check_product(a, b, c, transpose_a, transpose_b)
        if c.dtype != np.float32:
            raise TypeError(f"gemm: expected float32, got {c.dtype}")
        batch, arrays = c.shape[0] if c.ndim == 3 else 1, (b, a, c)
        pitch = [max(array.strides[-2] // 4, array.shape[-1], 1) for array in arrays]
        jump = [array.strides[0] // 4 if c.ndim == 3 else 0 for array in arrays]
        tf32 = self.precision == "tf32" and not any(array.data.ptr % 16 or p % 4 or j % 4 for array, p, j in zip(arrays, pitch, jump))
        kind = (FLOAT,) if tf32 else ()
        left, right, out = ((array.data.ptr, *kind, p, j) for array, p, j in zip(arrays, pitch, jump))
        operation = self.cublas.CUBLAS_OP_N, self.cublas.CUBLAS_OP_T
        arguments = (operation[transpose_b], operation[transpose_a], n, m, k, self.one.ctypes.data, *left, *right,
                     (self.one if accumulate else self.zero).ctypes.data, *out, batch, *((FAST_TF32, ANY_ALGORITHM) if tf32 else ()))
        name = "gemmStridedBatchedEx" if tf32 else "sgemmStridedBatched"
        multiply = self.graphs.function(name) if self.graphs else getattr(self.cublas, name)
        handle = self.graphs.handle_for if self.graphs else self.cupy.cuda.get_cublas_handle

        def call(keep=arrays):      # a recording may outlive its caller's arrays
            multiply(handle(), *arguments)
        self.submit(self.watched(call, "gemm", [("a", a), ("b", b), ("c", c)]))

    def watched(self, call: Callable[[], object], name: str, values: Iterable[tuple[str, Any]]) -> Callable[[], object]:
        """The call, which with MINIALEX_DEBUG waits for its end and says what it was if that brings an error."""
        if not self.debug:
            return call
        text = ", ".join(f"{key} {tuple(value.shape)}" if isinstance(value, self.array_type) else f"{key} {value}" for key, value in values)
        told = f"{self.place or 'a launch'}: {name}({text})"

        def watch():
            try:
                call()
                self.synchronize()
            except RuntimeError as error:
                raise RuntimeError(f"{told}: {error}") from error
        return watch


class Slot:
    """A pinned buffer of the host, a buffer of the GPU that it is copied to, and the events that say when each is free."""

    def __init__(self, cupy):
        self.cupy, self.size, self.held = cupy, 0, []
        self.copied, self.taken = (cupy.cuda.Event(disable_timing=True) for _ in range(2))

    def grow(self, size, launches):
        self.pinned = np.frombuffer(self.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
        self.buffer, self.size = self.cupy.cuda.alloc(size), size
        self.taken.record(launches)      # what the launches so far do with this memory, which the pool may have given before


class Blas:
    """cuBLAS itself, with a handle and a workspace of its own: CuPy's functions refuse to be captured (cupy#6290)."""

    OPERAND = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    TYPED = ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_longlong

    def __init__(self, cupy):
        self.cupy, self.handle = cupy, ctypes.c_void_p()
        self.library = ctypes.CDLL(f"libcublas.so.{cupy.cuda.runtime.runtimeGetVersion() // 1000}")      # it is loaded already
        self.check(self.library.cublasCreate_v2(ctypes.byref(self.handle)))
        self.space = cupy.empty(WORKSPACE, np.uint8)

    def check(self, status):
        if status:
            raise RuntimeError(f"cuBLAS gives status {status}")

    def function(self, name):
        """One of cuBLAS that takes what CuPy's of that name does."""
        operand, last = (self.TYPED, 3) if name.endswith("Ex") else (self.OPERAND, 1)
        called = self.library[f"cublas{name[0].upper()}{name[1:]}"]
        called.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 5, ctypes.c_void_p, *operand, *operand, ctypes.c_void_p, *operand, *[ctypes.c_int] * last]
        return lambda *arguments: self.check(called(*arguments))

    def handle_for(self):
        """The handle, set to the current stream; that takes the workspace away, so it comes after."""
        stream = ctypes.c_void_p(self.cupy.cuda.get_current_stream().ptr)
        self.check(self.library.cublasSetStream_v2(self.handle, stream))
        self.check(self.library.cublasSetWorkspace_v2(self.handle, ctypes.c_void_p(self.space.data.ptr), ctypes.c_size_t(self.space.nbytes)))
        return self.handle


class GraphTape(Tape):
    """A recording that from its second time on is one CUDA graph, so that the host has one launch to make."""

    def __init__(self, device):
        super().__init__(device)
        self.played, self.graph = False, None

    def play(self):
        self.device.use()
        if self.played and self.graph is None:
            self.graph = self.captured()
        if self.graph:
            self.graph.launch()
        else:
            super().play()      # which compiles and loads all there is
            self.played = True

    def captured(self):
        """The graph, or False if there is none to be had."""
        stream = self.device.cupy.cuda.Stream(non_blocking=True)
        try:
            with stream:
                stream.begin_capture()
                try:
                    for call in self.calls:
                        call()
                finally:
                    graph = stream.end_capture()
            return graph
        except RuntimeError as error:
            warnings.warn(f"MINIALEX_GRAPH: this recording cannot be a graph ({str(error).splitlines()[0]}), and is played launch by launch", stacklevel=2)
            return False
