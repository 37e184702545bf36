"""A device that runs the CUDA branch of the kernels on the CPU, thread by thread (see simt.h)."""

import ctypes
import platform
from functools import partial
from pathlib import Path

import numpy as np

from minialex.device.base import Device
from minialex.device.cpu import CPU, FLAGS, Builder
from minialex.device.cuda import LARGEST_GRID

SHIM = Path(__file__).parent / "simt.h"
# Little is optimised, so that a call in the source stays one call, by which lanes that wait can be told apart.
SIMT_FLAGS = ["-std=c++17", "-O1", "-fno-thread-jumps", *(flag for flag in FLAGS if flag in (
    "-march=native", "-fno-math-errno", "-fno-exceptions", "-fPIC", "-shared", "-pthread"))]
TRAMPOLINE = """
extern "C" const char* run_{name}(const Slot* slots, long long order, long long largest_grid) {{
    return simt::launch("{name}", [](const void* values) {{
        const Slot* s = (const Slot*)values;
        {name}({arguments});
    }}, slots, slots[0].l, order, largest_grid);
}}
"""
ORDERS = {"ascending": 0, "descending": 1, "permuted": 2}      # of the lanes; any larger number is another permutation


def why_not():
    """Why the executor cannot be built here, in a clause; None if it can."""
    builder = Builder(FLAGS)
    if "clang" in builder.version or platform.system() != "Linux":
        return f"it is built with g++ on Linux, and the compiler is {builder.version}"
    return None


class SimtError(RuntimeError):
    """A lane did not come where others waited for it."""


class SIMT(CPU):
    """Launches a grid as minialex/device/cuda.py does, its lanes in the given order. New arrays are full of NaN."""

    name = "simt"
    flags, trampoline = SIMT_FLAGS, TRAMPOLINE
    record, parallel = Device.record, Device.parallel

    def __init__(self, order="ascending", largest_grid=LARGEST_GRID):
        self.prelude = SHIM.read_text()
        super().__init__(threads=1)
        self.order, self.largest_grid = ORDERS[order], largest_grid

    def empty(self, shape, dtype=None):
        array = super().empty(shape, dtype)
        array.reshape(-1).view(np.uint8).fill(0xFF)      # a NaN, so that a missing write shows
        return array

    def submit(self, command):
        Device.submit(self, partial(self.run, *command))

    def run(self, function, slots, keep, name):
        kind = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_longlong)
        if name == "gemm":
            ctypes.CFUNCTYPE(None, *kind._argtypes_)(function)(slots.ctypes.data, 0, 1)
        elif problem := kind(function)(slots.ctypes.data, self.order, self.largest_grid):
            raise SimtError(problem.decode())
