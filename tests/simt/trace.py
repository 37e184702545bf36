"""A device that also counts what each launch asks of memory (see trace.h), and refuses two rows that write one byte."""

from ctypes import Structure, addressof, byref, c_longlong
from dataclasses import dataclass, make_dataclass

import numpy as np

from minialex.device.base import Device
from minialex.device.compiler import Builder
from minialex.device.cpu import CPU
from minialex.device.kernel import sources

from .device import SHIM, SIMT, SIMT_FLAGS

# Accesses call functions of trace.h: the library that would define them stays out, and one that is missing is an error.
# In C++20 the kernels' constants may come from loops that trace.h watches.
TRACE_FLAGS = [*SIMT_FLAGS, "-std=c++20", "-fsanitize=thread", "-nodefaultlibs", "-Wl,-z,defs", "-lm", "-lc"]
SECTOR, WAYS = 32, ("_read", "_written")      # bytes, as in trace.h
FAULTS = None, "rows {0.other} and {0.row} both write byte {0.offset} of {1}", "row {0.row} writes byte {0.offset} of const {1}"

# What an argument's lanes ask for in all; the loads or stores of whole warps, and what these ask for if a byte or sector
# counts once in each (L1 and L2 move it); and what the launch asks for (DRAM moves it, if the caches hold the rest).
COUNTS = ("bytes", "instructions", "instruction_bytes", "instruction_sectors", "distinct_bytes", "sectors")
Traffic = make_dataclass("Traffic", [(count + way, int) for way in WAYS for count in COUNTS])


class TraceError(RuntimeError):
    """Two rows wrote one byte, a const array was written, or rows have to share a warp."""


class Range(Structure):
    _fields_ = [*((n, c_longlong) for n in ("first", "size", "read", "written", "writer")), ("traffic", c_longlong * 4 * 2)]

    def __init__(self, declared, array):
        self.bits = np.zeros((2, array.nbytes // SECTOR + 2), np.uint32)     # a word per sector, a bit per byte
        self.writers = np.zeros(array.nbytes, np.uint32)
        addresses = [own.ctypes.data for own in (*self.bits, self.writers)[:3 if declared.written else 2]]
        super().__init__(array.ctypes.data, array.nbytes, *addresses)

    def counts(self):
        read, written = ((*counts, int(np.unpackbits(bits.view(np.uint8)).sum(dtype=np.int64)), int(np.count_nonzero(bits)))
                         for counts, bits in zip(self.traffic, self.bits))
        return Traffic(*read, *written)


class Record(Structure):
    _fields_ = [(n, c_longlong) for n in ("ranges", "count", "chain", "fault", "argument", "offset", "row", "other")]


@dataclass
class Launch:
    """A launch, of which `warps` warps ran; `chain` is the most loads of one lane. Has the sums over all Traffic as well."""
    kernel: str
    rows: int
    warps: int
    chain: int
    arguments: dict      # name -> Traffic

    def __getattr__(self, name):
        if name not in Traffic.__dataclass_fields__:
            raise AttributeError(name)
        return sum(getattr(traffic, name) for traffic in self.arguments.values())

    def efficiency(self, bytes, sectors):
        return sum(getattr(self, bytes + way) for way in WAYS) / sum(SECTOR * getattr(self, sectors + way) for way in WAYS)

    # The part of its sectors, 0 to 1, that the launch asks for; and that its instructions ask for, over all of them.
    distinct_efficiency = property(lambda self: self.efficiency("distinct_bytes", "sectors"))
    instruction_efficiency = property(lambda self: self.efficiency("instruction_bytes", "instruction_sectors"))


class Trace(SIMT):
    """SIMT that keeps the counts of the latest launch in `last`, a Launch. Matrix products do nothing."""

    name, last = "trace", None

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.prelude += SHIM.with_name("trace.h").read_text()
        self.builder, self.libraries = Builder(TRACE_FLAGS), {}      # built when needed

    rows_at_most = property(lambda self: self.only.stop, lambda self, rows: setattr(self, "only", slice(rows)),
                            doc="How many rows of a launch run, from the first on, in whole blocks; None: all.")

    def empty(self, shape, dtype=None):
        """As SIMT's, but starting on a sector, as a GPU's allocations do."""
        array = CPU.empty(self, shape, dtype)
        array.reshape(-1).view(np.uint8).fill(0xFF)
        return array

    def gemm(self, *arguments, **more):
        pass

    def launch(self, kernel, rows, *arguments):
        Device.submit(self, lambda: self.trace(kernel, rows, *arguments))

    def trace(self, kernel, rows, *arguments):
        if kernel.source not in self.libraries:
            file = sources() / kernel.source
            self.libraries[kernel.source] = self.builder.build(file.name, self.text(file))
        self.launching = kernel, rows, [pair for pair in zip(kernel.arguments[1:], arguments) if pair[0].pointer]
        super().launch(kernel, rows, *arguments)

    def run_blocks(self, function, slots, grid, block, first, last):
        kernel, rows, arrays = self.launching
        if grid * (block // 32) < rows:
            raise TraceError(f"{kernel.name}: {rows} rows share {grid * (block // 32)} warps, and each must have its own")
        ranges, trace_into = [Range(*pair) for pair in arrays], self.libraries[kernel.source].trace_into
        record = Record(addressof(table := (c_longlong * len(ranges))(*map(addressof, ranges))), len(ranges))
        trace_into(byref(record))
        try:
            super().run_blocks(function, slots, grid, block, first, last)
        finally:
            trace_into(None)
        self.last = Launch(kernel.name, rows, (last - first + 1) * (block // 32), record.chain,
                           {declared.name: range.counts() for (declared, _), range in zip(arrays, ranges)})
        if record.fault:
            raise TraceError(f"{kernel.name}: " + FAULTS[record.fault].format(record, arrays[record.argument][0].name))
