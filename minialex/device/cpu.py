"""The CPU device: the .cu files compiled by the machine's C++ compiler, oneDNN or OpenBLAS for matrix products."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .base import Array, Device, check_product, cores
from .compiler import FLAGS, Builder
from .kernel import Kernel, declarations, source_text, sources

# Each kernel gets a function that unpacks 8-byte slots, so that one kind of call serves all.
TRAMPOLINE = """
extern "C" void run_{name}(const Slot* s, long long part, long long parts) {{
    grid_part = part; grid_parts = parts;
    {name}({arguments});
}}
"""
SLOT = "\nunion Slot { void* p; long long l; unsigned long long ull; int i; unsigned u; float f; double d; };\n"
FIELDS = {"int": "i", "unsigned": "u", "long long": "l", "unsigned long long": "ull", "float": "f", "double": "d"}


class Command(ctypes.Structure):
    _fields_ = [("run", ctypes.c_void_p), ("arguments", ctypes.c_void_p), ("part", ctypes.c_longlong), ("parts", ctypes.c_longlong)]


class CPU(Device):
    """Runs kernels on `threads` cores (default: all that this process may use).

    products: "onednn" or "openblas", the library of matrix products; default: oneDNN where it is installed.
    """

    name = "cpu"
    array_type = np.ndarray
    flags, trampoline, prelude = FLAGS, TRAMPOLINE, ""
    chunk = 4
    tile = 1 << 19           # 2 MB: measured best from 1 to 2.4 MB; beyond, matrix products wait for memory

    def __init__(self, threads: int | None = None, announce: Callable[[str], object] | None = None, products: str | None = None) -> None:
        available = cores()
        if threads is not None and threads < 1:
            raise UserError(f"--threads {threads}: expected at least 1")
        self.threads = threads or available
        self.builder = Builder(self.flags)
        queue = (Path(__file__).parent / "queue.cpp").read_text(encoding="utf-8")
        texts = {"queue": queue, **{file.name: self.text(file) for file in sorted(sources().glob("*.cu"))}}
        missing = [name for name, text in texts.items() if not self.builder.find(name, text)] if announce else []
        if announce and missing:
            announce(f"compiling {len(missing)} kernel files with {self.builder.version} (once)")
        with ThreadPoolExecutor(available) as pool:
            self.libraries = dict(zip(texts, pool.map(self.builder.build, texts, texts.values())))
        self.model = self.builder.version
        self.library = self.libraries["queue"]
        self.products, run, self.product_calls = load_products(products)
        self.run_product = address_of(getattr(self.library, run))
        self.library.queue_open.restype = ctypes.c_void_p
        self.queue = ctypes.c_void_p(self.library.queue_open(self.threads))
        if not self.queue:
            raise self.no_threads()

    def no_threads(self) -> UserError:
        return UserError(f"the system refuses {self.threads} threads: use a smaller --threads")

    def __del__(self):
        if getattr(self, "queue", None):
            self.library.queue_close(self.queue)

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads > 1)}, kernels by {self.builder.version}, products by {self.products}"

    def text(self, file: Path) -> str:
        return self.wrapped(source_text(file), declarations(file))

    def wrapped(self, code: str, declared: dict) -> str:
        """The text of a .cu file with a trampoline for each of its kernels."""
        calls = [self.trampoline.format(name=name, arguments=", ".join(
            f"({a.type})s[{i}].{'p' if a.pointer else FIELDS[a.type]}" for i, a in enumerate(arguments)))
            for name, arguments in declared.items()]
        return self.prelude + code + SLOT + "".join(calls)

    def pitch(self, lanes: int) -> int:
        """Columns of rows that lie a multiple of 2 KB apart share a few places of the cache: a product with few rows then takes up to twice as long."""
        return lanes + 16 if lanes % 512 == 0 else lanes

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """An array that starts on a cache line."""
        dtype = np.dtype(self.float if dtype is None else dtype)
        count = int(np.prod(shape, dtype=np.int64))
        raw = np.empty(count * dtype.itemsize + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start:start + count * dtype.itemsize].view(dtype).reshape(shape)

    def array(self, host: Array, dtype: Any = None) -> Array:
        """A copy of a host array; floats become float32 unless told otherwise."""
        host = np.asarray(host)
        copy = self.empty(host.shape, dtype or (self.float if host.dtype.kind == "f" else host.dtype))
        copy[...] = host
        return copy

    def to_numpy(self, array: Array) -> np.ndarray:
        return array.copy()

    def upload(self, array: Array, host: np.ndarray) -> None:
        array[...] = host

    def launch(self, kernel: Kernel, rows: int, *arguments: Any) -> None:
        values = kernel.bind((rows, *arguments), self.array_type, self.name)
        run = address_of(getattr(self.libraries[kernel.source], f"run_{kernel.name}"))
        self.submit((run, kernel.packed(values), arguments, kernel.name, self.place))

    def gemm(self, a: Array, b: Array, c: Array, transpose_a: bool = False, transpose_b: bool = False, accumulate: bool = False) -> None:
        """c = op(a) op(b) (+ c if accumulate), float32, each of (rows, columns) or (batch, rows, columns)."""
        m, n, k = check_product(a, b, c, transpose_a, transpose_b)
        if c.dtype != np.float32:
            raise TypeError(f"gemm: expected float32, got {c.dtype}")
        pitch = [max(array.strides[-2] // 4, array.shape[-1], 1) for array in (a, b, c)]
        batch, *apart = (c.shape[0], *(array.strides[0] // 4 for array in (a, b, c))) if c.ndim == 3 else (1, 0, 0, 0)
        slots = np.array([transpose_a, transpose_b, m, n, k, a.ctypes.data, pitch[0], b.ctypes.data, pitch[1], 0, c.ctypes.data, pitch[2],
                          batch, *apart, *self.product_calls], np.uint64)
        slots[9:10].view(np.float32)[0] = 1.0 if accumulate else 0.0
        self.submit((self.run_product, slots, (a, b, c), "gemm", self.place))

    def submit(self, command: tuple) -> None:
        if self.recording is None:
            tape = Tape(self)
            tape.add(command)
            tape.play()
        else:
            self.recording.add(command)

    def tape(self) -> Any:
        return Tape(self)

    def parallel(self, count: int) -> Iterator[int]:
        """for share in device.parallel(n): each share's launches run one after another on a core of their own.

        With a single share, all cores work on each launch of it together.
        """
        if count > self.threads:
            raise ValueError(f"{count} shares do not fit on {self.threads} threads")
        tape = self.recording
        if count == 1 or tape is None:
            yield from range(count)
            return
        tape.phases.append([[] for _ in range(self.threads)])
        for share in range(count):
            tape.thread = share
            yield share
        tape.thread = None


class Tape:
    """Phases of commands, one list per thread, as queue.cpp plays them."""

    def __init__(self, device):
        self.device, self.phases, self.thread, self.ready = device, [], None, None

    def add(self, command):
        self.ready = None
        if self.thread is None:
            threads = self.device.threads
            self.phases.append([[(*command, part, threads)] for part in range(threads)])
        else:
            self.phases[-1][self.thread].append((*command, 0, 1))

    def play_timed(self):
        """Runs the recording. -> {place: seconds}, the time of all threads together divided by their number"""
        self.play(seconds := np.zeros(sum(len(own) for phase in self.phases for own in phase)))
        took = {}
        for (*_, place, _, _), each in zip(self.commands, seconds):
            took[place] = took.get(place, 0.0) + float(each) / self.device.threads
        return took

    def play(self, seconds=None):
        """Runs the recording; `seconds` (one float64 per command, as in `commands`) gets each one's time added."""
        if self.ready is None:
            self.commands = [command for phase in self.phases for own in phase for command in own]
            lengths = [len(own) for phase in self.phases for own in phase]
            starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            table = (Command * len(self.commands))(*[(run, slots.ctypes.data, part, parts)
                                                     for run, slots, *_, part, parts in self.commands])
            self.ready = table, starts
        table, starts = self.ready
        if not self.device.library.queue_play(self.device.queue, table, starts.ctypes.data_as(ctypes.c_void_p), ctypes.c_longlong(len(self.phases)),
                                              None if seconds is None else seconds.ctypes.data_as(ctypes.c_void_p)):
            raise self.device.no_threads()


def load_products(name=None):
    """A library of matrix products, each of which stays on the calling thread. -> its name and version, its function in queue.cpp, what that calls"""
    wheel = onednn_wheel() if name != "openblas" else None
    if wheel is None and name == "onednn":
        raise UserError("oneDNN is not installed: pip install 'minialex[onednn]' (Linux, x86-64)")
    if wheel is None:
        import scipy_openblas32
        suffix = ".dylib" if sys.platform == "darwin" else ".so"
        library = ctypes.CDLL(str(Path(scipy_openblas32.get_lib_dir()) / f"lib{scipy_openblas32.get_library()}{suffix}"))
        library.scipy_openblas_set_num_threads(1)
        return f"OpenBLAS {version('scipy-openblas32')}", "run_openblas", [address_of(library.scipy_cblas_sgemm)]
    try:
        library = ctypes.CDLL(str(next(file for file in wheel.files or () if file.name == "libdnnl.so.3").locate()))
    except (OSError, StopIteration) as error:
        raise UserError(f"{wheel.name} is installed and does not load ({str(error) or 'libdnnl.so.3 is not in it'}): install what is missing "
                        f"(libgomp1 on Debian), or `pip uninstall {wheel.name}` to have products by OpenBLAS") from None
    return f"oneDNN {wheel.version}", "run_onednn", [address_of(library[call]) for call in ("dnnl_sgemm", "omp_get_max_threads", "omp_set_num_threads")]


def onednn_wheel():
    """The installed distribution that has oneDNN for CPUs, or None."""
    try:
        return distribution("onednn-cpu-gomp")
    except PackageNotFoundError:
        return None


def address_of(function):
    return ctypes.cast(function, ctypes.c_void_p).value
