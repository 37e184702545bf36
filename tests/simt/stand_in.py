"""A stand-in for the few parts of CuPy that minialex/device/cuda.py uses, so that every line of it runs without a GPU.

Kernels run thread by thread (simt.h), everything else follows CuPy 14.2; the file of CuPy's sources that a rule comes from
is named beside it. What a GPU would let go wrong silently goes wrong here:

  - memory of the device is protected from the host except while the device works, so a host read is a segmentation fault;
  - streams run as late as synchronisation allows, or as early as events allow (`Schedule`), so a missing wait shows;
  - new memory and freed blocks are full of NaN, so a missing write and a use after free show;
  - scalars are passed in their own width beside bytes of NaN, so a wrong width shows.

`install()` gives the modules to put into sys.modules.
"""

import contextlib
import ctypes
import importlib.machinery
import mmap
import threading
import time
import types
import weakref
from collections import deque

import numpy as np

from minialex.device.kernel import declared_in

from .device import SIMT

ARENA = 1 << 30
libc = ctypes.CDLL(None, use_errno=True)
POISON = 0xFF


class CUDARuntimeError(RuntimeError):
    """cupy_backends/cuda/api/runtime.pyx: the name of the error and its words."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class CUDADriverError(CUDARuntimeError):
    """cupy_backends/cuda/api/driver.pyx."""


class CUBLASError(RuntimeError):
    """cupy_backends/cuda/libs/cublas.pyx."""


class OutOfMemoryError(MemoryError):
    """cupy/cuda/memory.pyx."""


class GPU:
    """The device behind the modules: its memory, its streams, and a pending fault."""

    def __init__(self):
        self.map = mmap.mmap(-1, ARENA, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)      # MAP_NORESERVE
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.simt = SIMT("permuted")
        self.limit, self.processors, self.devices, self.driver, self.capability = ARENA, 2, 1, True, (9, 0)
        self.current, self.pooled, self.taken = threading.local(), True, {}      # taken: where each other device's memory is
        self.eager = {"launches": False, "copies": False}
        self.end, self.used, self.free, self.fault, self.working = self.start, 0, {}, None, 0
        self.streams, self.launches, self.tensor_products, self.protected = weakref.WeakSet(), [], 0, False
        self.protect(True)

    def protect(self, on):
        if libc.mprotect(ctypes.c_void_p(self.start), ctypes.c_size_t(ARENA), 0 if on else 3):
            raise OSError(ctypes.get_errno(), "mprotect")

    @contextlib.contextmanager
    def work(self):
        """The device works: its memory may be touched."""
        if not self.working:
            self.protect(False)
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1
            if not self.working:
                self.protect(True)

    def check(self):
        """A fault stays, and every later call that is checked raises it."""
        if self.fault:
            raise CUDARuntimeError(700, f"cudaErrorIllegalAddress: an illegal memory access was encountered ({self.fault})")

    def device(self):
        """The number of the calling thread's device."""
        return getattr(self.current, "number", 0)

    def check_place(self, address):
        """Memory of one device is none of another's."""
        owner = next((number for (start, end), number in self.taken.items() if start <= address < end), 0)
        if owner != self.device():
            self.fault = f"0x{address:x} is memory of device {owner}, and the current one is {self.device()}"

    def bytes(self, address, size):
        """Memory of the device as bytes, for the device; a host pointer is a fault."""
        if not self.start <= address <= address + size <= self.end:
            self.fault = f"{size} bytes at 0x{address:x} are not memory of the device"
            raise CUDARuntimeError(700, "")
        return np.ndarray((size,), np.uint8, (ctypes.c_ubyte * size).from_address(address))

    def malloc(self, size):
        """cupy/cuda/memory.pyx: 512-byte steps, an arena per stream, the smallest free chunk that fits."""
        stream, size = get_current_stream(), max(512, -(-size // 512) * 512)
        chunks = self.free.setdefault((self.device(), stream.ptr), []) if self.pooled else []
        fitting = [chunk for chunk in chunks if chunk[1] >= size]
        if fitting:
            chunk = min(fitting, key=lambda chunk: chunk[1])
            chunks.remove(chunk)
        elif self.used + size > self.limit:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (allocated so far: {self.used:,} bytes).")
        else:
            chunk = self.end, size
            self.end, self.used = self.end + size, self.used + size
            if self.device():
                self.taken[chunk[0], chunk[0] + size] = self.device()
            stream._push(lambda: self.bytes(*chunk).fill(POISON))
        return chunk, stream, self.device()

    def release(self, chunk, stream, device):
        """Back to the pool at once, without waiting; what the next owner finds is poison, in the order of the stream."""
        self.free.setdefault((device, stream.ptr), []).append(chunk)
        stream._push(lambda: self.bytes(*chunk).fill(POISON))


gpu = None


class Stream:
    """cupy/cuda/stream.pyx. `with` changes the current stream and waits for nothing."""

    current = []

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        if not null and not non_blocking:
            raise ValueError("a blocking stream and the null stream wait for each other, which nothing here does: give non_blocking=True")
        self._kind, self.ptr, self._queue = "launches" if null else "copies", 0 if null else id(self), deque()
        gpu.streams.add(self)

    def __enter__(self):
        self.current.append(self)
        return self

    def __exit__(self, *error):
        self.current.pop()

    _captured = None

    def begin_capture(self, mode=None):
        if self is Stream.null:
            raise CUDARuntimeError(900, "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
        self._captured = []

    def end_capture(self):
        work, self._captured = self._captured, None
        return Graph(work)

    def _push(self, work):
        """Queues work: a function to call, or a Mark to wait for. While a graph is captured it goes there."""
        if self._captured is not None:
            self._captured.append(work)
            return
        self._queue.append(work)
        advance()

    def _blocked(self):
        return isinstance(self._queue[0], Mark) and not self._queue[0].reached

    def _step(self):
        work = self._queue.popleft()
        if not isinstance(work, Mark):
            if gpu.fault:
                return
            try:
                with gpu.work():
                    work()
            except CUDARuntimeError:
                assert gpu.fault
        elif not work.reached:
            work.stream._run_to(work)

    def _run_to(self, mark=None):
        """Runs what is queued, up to a mark of this stream."""
        while self._queue and not (mark and mark.reached):
            self._step()

    def synchronize(self):
        if self._captured is not None:
            raise CUDARuntimeError(900, "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
        gpu.check()
        self._run_to()
        advance()
        gpu.check()

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        gpu.check()
        if event._mark:      # one that was never recorded holds nothing up (CUDA runtime API, cudaStreamWaitEvent)
            self._push(event._mark)


def refused():
    raise CUDARuntimeError(901, "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture")


class Graph:
    """cupy/cuda/graph.pyx: what a stream was given while it was capturing, to be launched again and again."""

    def __init__(self, work):
        self._work = work

    def launch(self, stream=None):
        for work in self._work:
            (stream or get_current_stream())._push(work)


class Mark:
    """A place in a stream, that an event was recorded at."""

    def __init__(self, stream):
        self.stream, self.reached = stream, None

    def reach(self):
        self.reached = time.perf_counter()


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._mark, self._untimed = None, disable_timing

    def record(self, stream=None):
        stream = stream or get_current_stream()
        gpu.check()
        self._mark = Mark(stream)
        stream._push(self._mark.reach)

    def synchronize(self):
        gpu.check()
        if self._mark:
            self._mark.stream._run_to(self._mark)
            advance()
        gpu.check()


def get_elapsed_time(start_event, end_event):
    """Milliseconds; as CUDA refuses events that timing is disabled for, or that have not been reached."""
    for event in (start_event, end_event):
        if event._untimed or not event._mark or not event._mark.reached:
            raise CUDARuntimeError(400, "cudaErrorInvalidResourceHandle: invalid resource handle")
    return 1e3 * (end_event._mark.reached - start_event._mark.reached)


def advance():
    """Lets the streams that run early go on as far as events allow."""
    moved = True
    while moved:
        moved = False
        for stream in list(gpu.streams):
            while gpu.eager[stream._kind] and stream._queue and not stream._blocked():
                stream._step()
                moved = True


def get_current_stream(device_id=-1):
    return Stream.current[-1] if Stream.current else Stream.null


class Memory:
    """A block of the pool; it goes back when nothing refers to it any more."""

    def __init__(self, size):
        chunk, stream, device = gpu.malloc(size)
        self.ptr = chunk[0]
        self.back = weakref.finalize(self, gpu.release, chunk, stream, device)
        self.back.atexit = False


class MemoryPointer:
    """cupy/cuda/memory.pyx. The copies read and write when the stream comes to them."""

    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.ptr + offset

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def copy_from_host_async(self, mem, size, stream=None):
        gpu.check()
        here = self.ptr
        (stream or get_current_stream())._push(lambda: ctypes.memmove(gpu.bytes(here, size).ctypes.data, mem, size))

    def copy_from_device_async(self, src, size, stream=None):
        gpu.check()
        here, there = self.ptr, src.ptr
        (stream or get_current_stream())._push(lambda: np.copyto(gpu.bytes(here, size), gpu.bytes(there, size)))


def alloc(size):
    return MemoryPointer(Memory(size), 0)


def alloc_pinned_memory(size):
    """cupy/cuda/pinned_memory.pyx: rounded up to a power of two from 512 on; freed at once, whatever copies are queued."""
    whole = (ctypes.c_ubyte * max(512, 1 << (size - 1).bit_length()))()
    mine = (ctypes.c_ubyte * len(whole)).from_buffer(whole)
    weakref.finalize(mine, ctypes.memset, ctypes.addressof(whole), POISON, len(whole)).atexit = False
    return mine


class Flags:
    """cupy/_core/flags.pyx: there is no `writeable`."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata


class ndarray:
    """cupy/_core/core.pyx. `_lies` is the array over protected memory: only the device may look into it."""

    def __init__(self, memory, lies):
        self._memory, self._lies = memory, lies

    shape, dtype, strides = (property(lambda self, name=name: getattr(self._lies, name)) for name in ("shape", "dtype", "strides"))
    ndim, size, nbytes, itemsize = (property(lambda self, name=name: getattr(self._lies, name)) for name in ("ndim", "size", "nbytes", "itemsize"))
    flags = property(lambda self: Flags(self._lies.flags))
    data = property(lambda self: MemoryPointer(self._memory, self._lies.ctypes.data - self._memory.ptr))

    def __len__(self):
        return len(self._lies)

    def __array__(self, dtype=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")

    def __getitem__(self, index):
        return ndarray(self._memory, self._lies[index])

    def __setitem__(self, index, value):
        if not isinstance(value, ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        to = self._lies[index]
        get_current_stream()._push(lambda value=value: np.copyto(to, value._lies, casting="unsafe"))

    def reshape(self, *shape, order="C", copy=None):
        view = self._lies.view()
        view.shape = np.empty(self.shape, np.void).reshape(*shape).shape      # refuses where numpy would have to copy
        return ndarray(self._memory, view)

    def transpose(self, *axes):
        return ndarray(self._memory, self._lies.transpose(*axes))

    T = property(transpose)

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        new = empty(self.shape, dtype)
        get_current_stream()._push(lambda: np.copyto(new._lies, self._lies, casting="unsafe"))
        return new

    def copy(self, order="C"):
        return self.astype(self.dtype)

    def fill(self, value):
        get_current_stream()._push(lambda: self._lies.fill(value))

    def set(self, arr, stream=None):
        """One asynchronous copy; nobody keeps `arr` alive meanwhile."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        if self.size:
            self.data.copy_from_host_async(np.ascontiguousarray(arr).ctypes.data, self.nbytes, stream)

    def get(self, stream=None, order="C", out=None, blocking=True):
        out, stream = np.empty(self.shape, self.dtype) if out is None else out, stream or get_current_stream()
        stream._push(lambda: np.copyto(out, self._lies))
        if blocking:
            stream.synchronize()
        return out


def empty(shape, dtype=float, order="C"):
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = Memory(size)
    return ndarray(memory, np.ndarray(shape, dtype, (ctypes.c_ubyte * max(size, 1)).from_address(memory.ptr)))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    """cupy/_creation/from_data.py: from numpy through a pinned buffer of CuPy's own, so `a` may change at once."""
    staged = np.array(a, dtype, order="C")
    new = empty(staged.shape, staged.dtype)
    get_current_stream()._push(lambda: np.copyto(new._lies, staged))
    return new


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(stream, order, out, blocking)


class RawModule:
    """cupy/_core/raw.pyx: compiled by the first get_function."""

    def __init__(self, *, code=None, path=None, options=(), backend="nvrtc", translate_cucomplex=False, enable_cooperative_groups=False,
                 name_expressions=None, jitify=None):
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        self.code, self.library = code, None

    def get_function(self, name):
        if self.library is None:
            self.library = gpu.simt.builder.build("module", gpu.simt.wrapped(self.code, declared_in(self.code)))
        if not hasattr(self.library, f"run_{name}"):
            raise CUDADriverError(500, f"CUDA_ERROR_NOT_FOUND: named symbol not found ({name})")
        return RawKernel(name, getattr(self.library, f"run_{name}"), declared_in(self.code)[name])


class RawKernel:
    def __init__(self, name, function, arguments):
        self.arguments = arguments
        self.name, self.function = name, ctypes.cast(function, ctypes.c_void_p).value

    kernel = property(lambda self: Function(self))

    def __call__(self, grid, block, args, *, shared_mem=0):
        """cupy/cuda/function.pyx: sizes of a grid below 1 become 1, and neither number nor width of arguments is checked."""
        gpu.check()
        grid, block = (max(1, int((size + (1, 1))[0])) for size in (grid, block))
        if grid > 2**31 - 1 or block > 1024 or block > 128:      # 128: __launch_bounds__ of grid.cuh
            raise CUDADriverError(1, "CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._launch(grid, block, [pack(value) for value in args], [value.data.ptr for value in args if isinstance(value, ndarray) and value.size])

    def _launch(self, grid, block, packed, pointers):
        slots = np.full(len(packed) + 16, 2**64 - 1, np.uint64)
        for i, value in enumerate(packed):
            slots[i:i + 1].view(np.uint8)[:len(value)] = np.frombuffer(value, np.uint8)
        gpu.launches.append((self.name, grid, block))
        for pointer in pointers:
            gpu.check_place(pointer)

        def run():
            for pointer in pointers:
                gpu.bytes(pointer, 1)
            gpu.simt.run_blocks(self.function, slots, grid, block, 0, grid - 1)
        get_current_stream()._push(run)


class Function:
    """cupy/cuda/function.pyx: a kernel of the driver's, whose `ptr` launchKernel takes."""

    known = {}

    def __init__(self, kernel):
        self.ptr = kernel.function
        self.known[self.ptr] = kernel


def launchKernel(f, grid_dim_x, grid_dim_y, grid_dim_z, block_dim_x, block_dim_y, block_dim_z, shared_mem_bytes, stream, kernel_params, extra):
    """cupy_backends/cuda/api/driver.pyx: cuLaunchKernel reads each argument where kernel_params points, in the width that the kernel declares."""
    gpu.check()
    kernel = Function.known[f]
    if grid_dim_x > 2**31 - 1 or not 0 < block_dim_x <= 128 or min(grid_dim_x, grid_dim_y, grid_dim_z) < 1 or shared_mem_bytes or extra:      # 128: __launch_bounds__
        raise CUDADriverError(1, "CUDA_ERROR_INVALID_VALUE: invalid argument")
    if stream != get_current_stream().ptr:
        raise ValueError("this stand-in launches on the current stream only")
    places = (ctypes.c_void_p * len(kernel.arguments)).from_address(kernel_params)
    packed = [ctypes.string_at(place, 8 if declared.pointer else declared.dtype.itemsize) for place, declared in zip(places, kernel.arguments)]
    pointers = [int.from_bytes(value, "little") for value, declared in zip(packed, kernel.arguments) if declared.pointer]
    kernel._launch(grid_dim_x, block_dim_x, packed, [pointer for pointer in pointers if pointer])


def pack(value):
    """cupy/cuda/function.pyx `_pointer` and cupy/_core/_scalar.pyx: what goes to the driver for an argument."""
    if isinstance(value, ndarray):
        return np.uint64(value.data.ptr if value.size else 0).tobytes()
    if isinstance(value, np.ndarray):
        if value.size == 1:
            return value.tobytes()
        raise TypeError(f"You are trying to pass a numpy.ndarray of shape {value.shape} as a kernel parameter. Only numpy.ndarrays of size one "
                        "can be passed by value. If you meant to pass a pointer to __global__ memory, you need to pass a cupy.ndarray instead.")
    if isinstance(value, bool):
        return np.bool_(value).tobytes()
    if isinstance(value, int):
        return np.uint64(value % 2**64).tobytes()
    if isinstance(value, float):
        return np.float64(value).tobytes()
    if isinstance(value, np.generic):
        return value.tobytes()
    raise TypeError(f"Unsupported type {type(value)}")


def refuse_capture():
    if get_current_stream()._captured is not None:      # cupy#6290
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


def sgemmStridedBatched(handle, transa, transb, m, n, k, alpha, A, lda, strideA, B, ldb, strideB, beta, C, ldc, strideC, batchCount):
    """cupy_backends/cuda/libs/cublas.pyx, on the current stream; column-major, alpha and beta in host memory (cuBLAS's default)."""
    refuse_capture()
    multiply(transa, transb, m, n, k, alpha, A, lda, strideA, B, ldb, strideB, beta, C, ldc, strideC, batchCount, lambda x: x)


def gemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc, strideC,
                         batchCount, computeType, algo):
    """As above, of operands that keep 10 bits of their fractions, rounded to nearest (PTX ISA, cvt.rna.tf32.f32)."""
    refuse_capture()
    multiply_tf32(transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc, strideC, batchCount, computeType, algo)


def multiply_tf32(transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc, strideC, batchCount, computeType, algo):
    if (Atype, Btype, Ctype, computeType, algo) != (0, 0, 0, 77, -1):
        raise CUBLASError("CUBLAS_STATUS_NOT_SUPPORTED")
    gpu.tensor_products += 1
    multiply(transa, transb, m, n, k, alpha, A, lda, strideA, B, ldb, strideB, beta, C, ldc, strideC, batchCount, as_tf32)


def as_tf32(x):
    return ((x.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)


def multiply(transa, transb, m, n, k, alpha, A, lda, strideA, B, ldb, strideB, beta, C, ldc, strideC, batchCount, rounded):
    if min(m, n, k) < 0 or lda < max(1, k if transa else m) or ldb < max(1, n if transb else k) or ldc < max(1, m):
        raise CUBLASError("CUBLAS_STATUS_INVALID_VALUE")
    alpha, beta = (np.float32(ctypes.c_float.from_address(pointer).value) for pointer in (alpha, beta))

    def matrices(pointer, rows, columns, pitch, stride):
        floats = max(0, (batchCount - 1) * stride + (columns - 1) * pitch + rows) if rows and columns else 0
        flat = gpu.bytes(pointer, floats * 4).view(np.float32)
        return np.lib.stride_tricks.as_strided(flat, (batchCount, rows, columns), (stride * 4, 4, pitch * 4))

    def run():
        a = matrices(A, *((k, m) if transa else (m, k)), lda, strideA)
        b = matrices(B, *((n, k) if transb else (k, n)), ldb, strideB)
        c = matrices(C, m, n, ldc, strideC)
        a, b = (rounded(np.ascontiguousarray(operand)) for operand in (a, b))
        product = alpha * np.matmul(a.swapaxes(1, 2) if transa else a, b.swapaxes(1, 2) if transb else b)
        c[...] = product + beta * c if beta else product
    gpu.check()
    for pointer in (A, B, C):
        gpu.check_place(pointer)
    get_current_stream()._push(run)


class Library:
    """libcublas.so by ctypes: C's types are what argtypes says, statuses come back, and a handle works on its stream alone."""

    def __init__(self, name):
        if name != "libcublas.so.13":
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        self.stream = self.workspace = None

    def cublasCreate_v2(self, handle):
        handle._obj.value = 77
        return 0

    def cublasSetStream_v2(self, handle, stream):
        self.stream, self.workspace = stream.value or 0, None
        return 0 if handle.value == 77 else 1

    def cublasSetWorkspace_v2(self, handle, workspace, size):
        gpu.bytes(workspace.value, size.value)
        self.workspace = size.value
        return 0 if handle.value == 77 else 1

    def __getitem__(self, name):
        function = {"cublasSgemmStridedBatched": lambda *a: multiply(*a, lambda x: x), "cublasGemmStridedBatchedEx": multiply_tf32}[name]

        def called(handle, *arguments):
            if len(called.argtypes) != len(arguments) + 1 or handle.value != 77 or not self.workspace or self.stream != get_current_stream().ptr:
                return 7      # CUBLAS_STATUS_INVALID_VALUE
            function(*(kind(value).value or 0 for kind, value in zip(called.argtypes[1:], arguments)))
            return 0
        return called


class NcclCommunicator:
    """cupy_backends/cuda/libs/nccl.pyx. Ranks are processes with a stand-in each, whose memory has no way to another's but MPI."""

    def __init__(self, ndev, commId, rank):
        from mpi4py import MPI
        self._MPI, self._world = MPI, MPI.COMM_WORLD.Dup()
        if commId != get_unique_id() or (ndev, rank) != (self._world.size, self._world.rank):
            raise RuntimeError("NCCL_ERROR_INVALID_ARGUMENT: invalid argument")

    def send(self, sendbuf, count, datatype, peer, stream):
        self._add("Isend", sendbuf, count, datatype, peer, stream)

    def recv(self, recvbuf, count, datatype, peer, stream):
        self._add("Irecv", recvbuf, count, datatype, peer, stream)

    def _add(self, call, pointer, count, datatype, peer, stream):
        if NcclCommunicator.group is None:
            raise RuntimeError("outside of a group a send waits for its receiver, which is yet to come")
        if datatype != 7 or stream != get_current_stream().ptr or peer == self._world.rank:
            raise RuntimeError("NCCL_ERROR_INVALID_ARGUMENT: invalid argument")
        gpu.check_place(pointer)
        NcclCommunicator.group.append((self._world, call, pointer, count, peer))

    group = None


def groupStart():
    NcclCommunicator.group = []


def groupEnd():
    """In the order of the stream, which here does all before it at once: others may be waiting in a call of their host."""
    group, NcclCommunicator.group = NcclCommunicator.group, None

    def run():
        from mpi4py import MPI
        MPI.Request.Waitall([getattr(world, call)(gpu.bytes(pointer, 4 * count), peer) for world, call, pointer, count, peer in group])
    get_current_stream()._push(run)
    get_current_stream()._run_to()


def get_unique_id():
    return b"\x11" * 128


def deviceGetPCIBusId(device):
    return f"0000:{device:02X}:00.0"


def getDeviceCount():
    if not gpu.driver:
        raise CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")
    if not gpu.devices:
        raise CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
    return gpu.devices


def getDeviceProperties(device):
    return {"name": b"stand-in", "multiProcessorCount": gpu.processors, "major": gpu.capability[0], "minor": gpu.capability[1], "totalGlobalMem": ARENA}


def memGetInfo():
    return gpu.limit - gpu.used, gpu.limit


class MemoryPool:
    """cupy/cuda/memory.pyx."""

    def free_bytes(self):
        return sum(size for chunks in gpu.free.values() for _, size in chunks)


def get_default_memory_pool():
    return MemoryPool()


def runtimeGetVersion():
    return 13000


def driverGetVersion():
    return 13010


class Device:
    def __init__(self, device=None):
        self.id = gpu.device() if device is None else device

    def use(self):
        gpu.current.number = self.id


def set_allocator(allocator=None):
    gpu.pooled = allocator is not None


def set_pinned_memory_allocator(allocator=None):
    pass


def install():
    """A fresh device, and the modules of CuPy that stand for it. -> {name: module}"""
    global gpu
    gpu = GPU()
    Stream.current = []
    Stream.null = Stream(null=True)
    runtime = dict(getDeviceCount=getDeviceCount, getDeviceProperties=getDeviceProperties, CUDARuntimeError=CUDARuntimeError,
                   memGetInfo=memGetInfo, runtimeGetVersion=runtimeGetVersion, driverGetVersion=driverGetVersion, deviceGetPCIBusId=deviceGetPCIBusId)
    modules = {
        "cupy": dict(__version__="stand-in", ndarray=ndarray, empty=empty, asarray=asarray, asnumpy=asnumpy, RawModule=RawModule,
                     get_default_memory_pool=get_default_memory_pool),
        "cupy.cuda": dict(Stream=Stream, Event=Event, Device=Device, MemoryPointer=MemoryPointer, alloc=alloc,
                          alloc_pinned_memory=alloc_pinned_memory, set_allocator=set_allocator,
                          set_pinned_memory_allocator=set_pinned_memory_allocator, get_current_stream=get_current_stream, get_elapsed_time=get_elapsed_time,
                          get_cublas_handle=lambda: 1),
        "cupy.cuda.nccl": dict(available=True, NCCL_FLOAT32=7, NcclCommunicator=NcclCommunicator, groupStart=groupStart, groupEnd=groupEnd, get_unique_id=get_unique_id),
        "cupy.cuda.runtime": runtime, "cupy.cuda.memory": dict(OutOfMemoryError=OutOfMemoryError),
        "cupy_backends": {}, "cupy_backends.cuda": {}, "cupy_backends.cuda.libs": {}, "cupy_backends.cuda.api": {},
        "cupy_backends.cuda.api.driver": dict(launchKernel=launchKernel),
        "cupy_backends.cuda.libs.cublas": dict(CUBLAS_OP_N=0, CUBLAS_OP_T=1, sgemmStridedBatched=sgemmStridedBatched,
                                                gemmStridedBatchedEx=gemmStridedBatchedEx),
        "cupy_backends.cuda.libs.nvrtc": dict(getSupportedArchs=lambda: (75, 80, 86, 89, 90, 100, 120)),
    }
    made = {}
    for name, values in modules.items():
        made[name] = types.ModuleType(name)
        made[name].__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        made[name].__path__ = []
        vars(made[name]).update(values)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, made[name])
    return made

