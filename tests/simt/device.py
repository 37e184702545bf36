"""A device that runs the CUDA branch of the kernels on the CPU, thread by thread (see simt.h)."""

import ctypes
import os
import platform
from functools import partial
from pathlib import Path

import numpy as np

from minialex.device.base import Device
from minialex.device.compiler import FLAGS, Builder
from minialex.device.cpu import CPU
from minialex.device.cuda import LARGEST_GRID, ROWS_PER_BLOCK

SHIM = Path(__file__).parent / "simt.h"
# Little is optimised, so that a call in the source stays one call, by which lanes that wait can be told apart.
# What lanes read and write at once stays one access, too, and one that a GPU could not make is seen (simt.h).
SIMT_FLAGS = ["-std=c++17", "-O1", "-fno-thread-jumps", "-fno-tree-sra", "-fsanitize=alignment", *(flag for flag in FLAGS if flag in (
    "-march=native", "-fno-math-errno", "-fno-exceptions", "-fPIC", "-shared", "-pthread"))]
# The suite runs under sanitizers where this says which (test_sanitizers.py sets it, and preloads their libraries).
if os.environ.get("SIMT_SANITIZE"):
    SIMT_FLAGS += [f"-fsanitize={os.environ['SIMT_SANITIZE']}", "-fno-sanitize-recover=all", "-fsanitize-sections=simt_shared"]
TRAMPOLINE = """
extern "C" const char* run_{name}(const Slot* slots, const simt::Shape* shape) {{
    return simt::launch("{name}", [](const void* values) {{
        const Slot* s = (const Slot*)values;
        {name}({arguments});
    }}, slots, *shape);
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
    """Launches a grid of blocks with a warp for each row, as minialex/device/cuda.py does. New arrays are full of NaN.

    `order` is that of the lanes, `block` the threads of a block, `only` the rows of a launch that run (whole blocks of them).
    """

    name = "simt"
    flags, trampoline = SIMT_FLAGS, TRAMPOLINE
    tape, parallel = Device.tape, Device.parallel

    def __init__(self, order="ascending", largest_grid=LARGEST_GRID, block=32 * ROWS_PER_BLOCK):
        self.prelude = SHIM.read_text()
        super().__init__(threads=1)
        self.order, self.largest_grid, self.block, self.only = ORDERS[order], largest_grid, block, slice(None)

    def empty(self, shape, dtype=None):
        """An array with nothing behind it that belongs to it, full of NaN: accesses outside and missing writes show."""
        array = np.empty(shape, self.float if dtype is None else dtype)
        array.reshape(-1).view(np.uint8).fill(0xFF)
        return array

    def submit(self, command):
        Device.submit(self, partial(self.run, *command))

    def run(self, function, slots, keep, name, place):
        if name == "gemm":
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_longlong)(function)(slots.ctypes.data, 0, 1)
            return
        rows, per_block = int(slots[:1].view(np.int64)[0]), self.block // 32
        grid = max(1, min(-(-rows // per_block), self.largest_grid))
        first, last, _ = self.only.indices(rows)
        self.run_blocks(function, slots, grid, self.block, first // per_block, min(grid, max(1, -(-last // per_block))) - 1)

    def run_blocks(self, function, slots, grid, block, first, last):
        shape = np.array([grid, block, self.order, first, last], np.int64)
        problem = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)(function)(slots.ctypes.data, shape.ctypes.data)
        if problem:
            raise SimtError(problem.decode())
