"""One more device for the suite: the CUDA branch of every kernel, executed thread by thread on the CPU."""

import ctypes
from pathlib import Path

import numpy as np

from minialex.device.base import Device
from minialex.device.cpu import CPU, FLAGS, Tape

# Warps of a block share no barrier, so they run one after another.
TRAMPOLINE = """
extern "C" const char* run_{name}(const Slot* s, long long blocks, long long setting) {{
    return simt::launch((int)blocks, (int)(setting >> 8), (int)(setting & 255), [&] {{ {name}({arguments}); }});
}}
"""
ORDERS = {"ascending": 0, "descending": 1, "permuted": 2}


class SIMT(CPU):
    """Launches as minialex/device/cuda.py does: blocks of `threads`, a warp per row. gemm is OpenBLAS's."""

    name = "simt"
    trampoline = TRAMPOLINE
    flags = [flag for flag in FLAGS if flag not in ("-march=native", "-fassociative-math")] + [
        "-ffp-contract=off"]

    def __init__(self, order="permuted", threads=128, blocks=None, flags=()):
        self.flags = [*self.flags, *flags]
        self.prelude = (Path(__file__).parent / "simt.h").read_text() + "\n"
        self.order, self.block, self.most = ORDERS[order], threads, blocks
        super().__init__(threads=1)

    record, parallel = Device.record, Device.parallel

    def submit(self, command):
        run, slots, _, name = command
        if name == "gemm":
            product = Tape(self)
            product.add(command)
            return Device.submit(self, product.play)
        blocks = max(1, -(-int(slots[0]) // (self.block // 32)))
        blocks = min(blocks, self.most or blocks)
        function = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_longlong)(run)

        def call():
            assert command      # its arrays must outlive the recording
            problem = function(slots.ctypes.data, blocks, self.block << 8 | self.order)
            if problem:
                raise RuntimeError(f"{name}: {problem.decode()}")
        Device.submit(self, call)

    def empty(self, shape, dtype=None):
        """Poisoned: a write that is missing shows as NaN, or as 0xff."""
        array = super().empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 0xff
        return array
