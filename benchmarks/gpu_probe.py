"""What the predictions for a GPU rest on, measured: copies, products, the wait for a load, the costs of a launch. A stage of on_gpu.py.

python benchmarks/gpu_probe.py [--json FILE] [--quick]     (--quick: tiny sizes, which say nothing)
"""

import argparse
import ctypes
import json
import math
import platform
import time
from pathlib import Path

import numpy as np

from minialex.command import run_command, say
from minialex.device import cuda, open_device
from minialex.device.kernel import source_text
from minialex.files import write_beside

FAST_TF32, FLOAT32 = 77, 0      # cublasComputeType_t CUBLAS_COMPUTE_32F_FAST_TF32, cudaDataType_t CUDA_R_32F


class Probe:
    """A GPU and how much of everything is asked of it. The host gets ahead of the GPU while that copies."""

    def __init__(self, cupy, quick=False):
        self.cupy, self.quick = cupy, quick
        self.there, self.back = (cupy.empty((1 << 16 if quick else 1 << 29,), np.uint8) for _ in range(2))
        self.copy()
        self.each = self.on_gpu(self.copy, 10)

    def copy(self):
        self.there.data.copy_from_device_async(self.back.data, self.back.nbytes, self.cupy.cuda.get_current_stream())

    def ahead(self, seconds):
        """Gives the GPU so much to do that what is queued in the next `seconds` of the host's time waits for it."""
        for _ in range(0 if self.quick else min(500, math.ceil(seconds / self.each))):
            self.copy()

    def on_gpu(self, call, count, ahead=0.0):
        """Seconds of the GPU for a call, after one that does not count."""
        call()
        begin, end = (self.cupy.cuda.Event() for _ in range(2))
        self.ahead(ahead)
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return 1e-3 * self.cupy.cuda.get_elapsed_time(begin, end) / count

    def of_host(self, call, count=500):
        """Seconds of the host for a call that queues something: the best of a few times so many, all of which have room in the queue."""
        best = math.inf
        for _ in range(5):
            self.cupy.cuda.get_current_stream().synchronize()
            began = time.perf_counter()
            for _ in range(count):
                call()
            best = min(best, (time.perf_counter() - began) / count)
        self.cupy.cuda.get_current_stream().synchronize()
        return best

    def kernels(self):
        module = self.cupy.RawModule(code=source_text(Path(__file__).with_name("gpu_probe.cu")), options=cuda.OPTIONS)
        return module.get_function("chain"), module.get_function("nothing")

    def matrices(self, n, count=3):
        random = np.random.default_rng(0)
        return [self.cupy.asarray(random.standard_normal((n, n), np.float32)) for _ in range(count)]


def copies(probe):
    cupy, stream = probe.cupy, probe.cupy.cuda.get_current_stream()
    yield "copy on the device", 2 * probe.back.nbytes / probe.each / 1e9, "GB/s"
    size = 1 << 16 if probe.quick else 1 << 28
    plain, pinned = np.zeros(size, np.uint8), np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
    pinned[:] = plain
    began = time.perf_counter()
    pinned[:] = plain
    yield "memcpy into pinned memory", size / (time.perf_counter() - began) / 1e9, "GB/s"
    yield "pinned memory to the device", size / probe.on_gpu(lambda: probe.there.data.copy_from_host_async(pinned.ctypes.data, size, stream), 10) / 1e9, "GB/s"


def products(probe):
    from cupy_backends.cuda.libs import cublas
    n, handle = 64 if probe.quick else 4096, probe.cupy.cuda.get_cublas_handle()
    a, b, c = probe.matrices(n)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    ways = {"NN": (cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_N), "NT": (cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T), "TN": (cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N)}
    for way, (first, second) in ways.items():
        yield f"product, float32, {way}", 2e-12 * n**3 / probe.on_gpu(lambda: cublas.sgemmStridedBatched(
            handle, first, second, n, n, n, one.ctypes.data, a.data.ptr, n, 0, b.data.ptr, n, 0, zero.ctypes.data, c.data.ptr, n, 0, 1), 20), "TFLOP/s"
    for way, (first, second) in ways.items():
        yield f"product, TF32, {way}", 2e-12 * n**3 / probe.on_gpu(lambda: cublas.gemmStridedBatchedEx(
            handle, first, second, n, n, n, one.ctypes.data, a.data.ptr, FLOAT32, n, 0, b.data.ptr, FLOAT32, n, 0, zero.ctypes.data, c.data.ptr, FLOAT32, n, 0,
            1, FAST_TF32, -1), 20), "TFLOP/s"


def waits(probe):
    chain, _ = probe.kernels()
    n, loads = (1 << 10, 50) if probe.quick else (1 << 26, 20_000)
    steps = np.arange(n, dtype=np.int32)
    steps = probe.cupy.asarray((steps + (40_503 * 1_024 + 1)) % n)      # an odd step comes by all places, far apart
    end = probe.cupy.empty((1,), np.int32)
    arguments = np.int64(1), steps, end, np.int32(loads)
    took = probe.on_gpu(lambda: chain((1,), (128,), arguments), 3)
    if int(probe.cupy.asnumpy(end)[0]) != loads * (40_503 * 1_024 + 1) % n:
        raise RuntimeError("the chain of loads ended elsewhere than it should")
    yield "from a load to the next that needs it", 1e9 * took / loads, "ns"


def launches(probe):
    from cupy_backends.cuda.api import driver
    from cupy_backends.cuda.libs import cublas
    _, nothing = probe.kernels()
    x, event = probe.cupy.empty((64, 64), np.float32), probe.cupy.cuda.Event()
    arguments, one, handle = (np.int64(1), x), np.ones(1, np.float32), probe.cupy.cuda.get_cublas_handle()
    nothing((1,), (128,), arguments)
    host = probe.of_host(lambda: nothing((1,), (128,), arguments))
    yield "host, for a launch by CuPy", 1e6 * host, "us"
    yield "host, for a product by CuPy", 1e6 * probe.of_host(lambda: cublas.sgemmStridedBatched(
        handle, 0, 0, 64, 64, 64, one.ctypes.data, x.data.ptr, 64, 0, x.data.ptr, 64, 0, one.ctypes.data, x.data.ptr, 64, 0, 1)), "us"
    yield "host, for an event", 1e6 * probe.of_host(event.record), "us"
    yield "GPU, for a launch that does nothing", 1e6 * probe.on_gpu(lambda: nothing((1,), (128,), arguments), 400, ahead=500 * host), "us"
    slots = ctypes.c_longlong(1), ctypes.c_void_p(x.data.ptr)
    table = (ctypes.c_void_p * len(slots))(*map(ctypes.addressof, slots))
    function = nothing.kernel.ptr
    yield "host, for a launch with its arguments laid out", 1e6 * probe.of_host(
        lambda: driver.launchKernel(function, 1, 1, 1, 128, 1, 1, 0, 0, ctypes.addressof(table), 0)), "us"


def graph(probe):
    """Launches of CuPy and products of cuBLAS itself, captured together: CuPy refuses its own under capture."""
    cupy, blas, stream = probe.cupy, cuda.Blas(probe.cupy), probe.cupy.cuda.Stream(non_blocking=True)
    n = 64 if probe.quick else 512
    a, b, c = probe.matrices(n)
    _, nothing = probe.kernels()
    one, zero, multiply = np.ones(1, np.float32), np.zeros(1, np.float32), blas.function("sgemmStridedBatched")

    def step():
        multiply(blas.handle_for(), 0, 0, n, n, n, one.ctypes.data, b.data.ptr, n, 0, a.data.ptr, n, 0, zero.ctypes.data, c.data.ptr, n, 0, 1)
        nothing((1,), (128,), (np.int64(1), c))
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        step()
        truth = c.get()
        stream.begin_capture()
        for _ in range(50):
            step()
        captured = stream.end_capture()
        c.fill(7)
        took = probe.on_gpu(captured.launch, 20)
        if not np.array_equal(c.get(), truth):
            raise RuntimeError("a graph gave another result than its launches one by one")
    yield f"graph of launches and products of {n}^3, for a pair", 1e6 * took / 50, "us"


PARTS = copies, products, waits, launches, graph


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(arguments)
    device, _ = open_device("cuda")
    cupy, runtime = device.cupy, device.cupy.cuda.runtime
    about = {"card": device.model, "multiprocessors": device.processors,
             "memory, MiB": runtime.getDeviceProperties(cupy.cuda.Device().id)["totalGlobalMem"] >> 20, "driver up to CUDA": runtime.driverGetVersion(),
             "CUDA runtime": runtime.runtimeGetVersion(), "CuPy": cupy.__version__, "numpy": np.__version__, "Python": platform.python_version(),
             "system": platform.platform()}
    say(", ".join(f"{name} {value}" for name, value in about.items()))
    probe, measured, failed = Probe(cupy, args.quick), [], {}
    for part in PARTS:
        try:
            for found in part(probe):
                measured.append(found)
                say("{}: {:.4g} {}".format(*found))
        except Exception as error:      # the other parts are worth knowing
            failed[part.__name__] = f"{type(error).__name__}: {error}".splitlines()[0]
            say(f"not measured, the rest of {part.__name__}: {failed[part.__name__]}")
        if args.json:
            write_beside(args.json, json.dumps({"about": about, "measured": measured, "failed": failed}, indent=1) + "\n")
    say(f"{len(measured)} measured" + f"; not measured, the rest of {', '.join(failed)}" * bool(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
