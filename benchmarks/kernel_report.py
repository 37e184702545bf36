"""A training step on A100 and H100, predicted: every launch, its bytes, its efficiency and its time, found without a GPU.

python benchmarks/kernel_report.py [--net paper owt half] [--batch 128] [--write]     (--write: docs/kernels.md, .png and .json)

A step is planned as device/cuda.py would launch it. Bytes follow from each launch's arguments; efficiencies from the CUDA
branch run thread by thread on two images of full size, every access counted (tests/simt); instructions from NVRTC's PTX, run
warp by warp (ptx.py); registers from NVRTC.
"""

import argparse
import functools
import json
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import nvrtc  # noqa: E402
import ptx  # noqa: E402
from plots import save, subplots  # noqa: E402
from simt.trace import Trace  # noqa: E402

from minialex import nets  # noqa: E402
from minialex.device.base import Device, check_product  # noqa: E402
from minialex.device.cuda import CUDA, ROWS_PER_BLOCK  # noqa: E402
from minialex.device.kernel import source_text, sources  # noqa: E402
from minialex.files import write_beside  # noqa: E402
from minialex.network import Network  # noqa: E402
from minialex.ops.bias import SPAN  # noqa: E402
from minialex.ops.winograd import FORMS, matrices, strips  # noqa: E402

TILE = 128                       # rows and columns of a product that a block of cuBLAS makes
LATENCY, LEAST = 600e-9, 3e-6    # seconds: from asking DRAM to having it; the shortest launch
HOST = 10e-6, 20e-6              # seconds of Python for a launch
TRACED_IMAGES, TRACED_ROWS, MANY_WARPS = 2, 1000, 2000
SCHEDULERS, ISSUED = 4, 0.85     # of a multiprocessor, each with at most an instruction a clock; the part of that which long kernels reach
ROWS_RUN = 8                     # of a launch, from the first to the last, whose instructions are counted


@dataclass(frozen=True)
class Chip:
    """Bytes and operations per second at their peaks (tf32 without sparsity, pcie one way); l2 and shared in bytes."""

    name: str
    architecture: int
    processors: int
    bandwidth: float
    fp32: float
    tf32: float
    l2: int
    shared: int                  # of a multiprocessor
    pcie: float
    clock: float                 # boost


CHIPS = [Chip("A100", 80, 108, 2039e9, 19.5e12, 156e12, 40 << 20, 164 << 10, 32e9, 1.41e9),
         Chip("H100", 90, 132, 3350e9, 67e12, 494.7e12, 50 << 20, 228 << 10, 64e9, 1.98e9)]
SOURCES = ("Peaks: the data sheets “NVIDIA A100 Tensor Core GPU” (A100 80GB SXM) and “NVIDIA H100 Tensor Core GPU” (H100 SXM; its TF32 figure, "
           "989, is with sparsity). Multiprocessors and L2: the white papers “NVIDIA A100 Tensor Core GPU Architecture” and “NVIDIA H100 Tensor "
           "Core GPU Architecture”, and the boost clocks, of which the FP32 peaks are 2 FLOP for each of 64 and 128 units of a multiprocessor. Limits of a multiprocessor: “CUDA C++ Programming Guide”, technical specifications per compute capability.")


def covered(length, out, size, stride, pad):
    """Of `length` pixels: how many some window covers, and how many the windows cover together."""
    inside = [p for o in range(out) for p in range(o * stride - pad, o * stride - pad + size) if 0 <= p < length]
    return len(set(inside)), len(inside)


def windows(a, size_h, size_w):
    """Of an image's pixels: how many some window covers, and how many the windows cover together."""
    return tuple(h * w for h, w in zip(covered(a.height, a.out_height, size_h, a.stride_h, a.pad_top),
                                       covered(a.width, a.out_width, size_w, a.stride_w, a.pad_left)))


def columns(a):
    """Bytes of im2col's columns of one image that im2col writes, col2im reads."""
    return 4 * a.channels * (a.out_height * a.out_width * a.kernel_height * a.kernel_width if hasattr(a, "strip")
                             else windows(a, a.kernel_height, a.kernel_width)[1])


def unfolded(a):
    """Images of an im2col or col2im launch."""
    return a.rows // (a.groups * a.out_height * -(-a.out_width // a.strip)) if hasattr(a, "strip") else a.rows // (a.groups * a.height * a.width)


def tiles(a):
    """Floats of a plane of a launch's tiles, and images."""
    return a.rows // a.groups * a.channels, a.rows // (a.groups * a.down * a.across)


def taps(a, own):
    """Channels times filters of a launch on filters, of which a group has `own`."""
    return a.rows // strips(own) * own


def in_blocks(a):
    """Of an image's pixels, how many lie in its blocks."""
    return covered(a.height, a.down, a.step, a.step, a.pad_top)[0] * covered(a.width, a.across, a.step, a.step, a.pad_left)[0]


def points(a):
    return (a.m + a.r - 1) ** 2


def tile_operations(m, r):
    """{kernel: additions and products of a tile's one channel, or of one filter, by the first matrix and by the second}, of F(m x m, r x r).

    A zero of a matrix costs nothing, a factor of 1 or -1 no product, and points p and -p share sums: those of even and of odd powers.
    """
    (a, b, g), t = matrices(m, r), m + r - 1
    pairs, alone = slice(1, t - 1, 2), [0, *[t - 1] * (1 - t % 2)]

    def sums(rows):
        return sum(max(0, np.count_nonzero(row) - 1) + int(np.sum((row != 0) & (abs(row) != 1))) for row in rows)

    def forth(f):
        return sums([*f[alone], *f[pairs, ::2], *f[pairs, 1::2]]) + t - len(alone)

    def back(f):
        return sums(np.vstack([f[:1], f[pairs], f[alone[1:]]]).T) + t - len(alone)
    return {"winograd_input": (t * forth(b), t * forth(b)), "winograd_spread": (m * forth(a), t * forth(a)), "winograd_filter": (r * forth(g), t * forth(g)),
            "winograd_output": (t * back(a), m * back(a)), "winograd_filter_gradient": (t * back(g), r * back(g))}


# Bytes that a launch needs from its arguments `a`: each input element read once, each output written once; what is updated
# in place is both. The softmax keeps exp(x) in its output between its two passes, so that counts as in place.
NEEDED = {
    "add_parts": lambda a: 4 * a.count * (a.slices + 1 + a.accumulate),
    "bias_relu": lambda a: 8 * (a.rows // -(-a.channels // SPAN)) * a.channels + 4 * a.channels,
    "bias_backward": lambda a: 4 * a.pixels * a.channels * (3 if a.relu else 1) + 4 * -(-a.pixels // a.slice) * a.channels,
    "sum_partials": lambda a: 4 * a.rows * (a.count + 1 + a.accumulate),
    "augment": lambda a: a.rows * a.size * 3 * (1 + 4) + 72 * (a.rows // a.size),
    "columns": lambda a: 4 * a.rows * a.count * (2 + a.accumulate),
    "dropout_in_place": lambda a: 8 * a.count + 8,
    "im2col": lambda a: unfolded(a) * (4 * a.channels * windows(a, a.kernel_height, a.kernel_width)[0] + columns(a)),
    "col2im": lambda a: unfolded(a) * (4 * a.channels * a.height * a.width + columns(a)),
    "lrn": lambda a: 8 * a.rows * a.channels,
    "lrn_backward": lambda a: 12 * a.rows * a.channels,
    "max_pool": lambda a: 5 * a.rows * a.channels + 4 * a.channels * (a.add + windows(a, a.window_height, a.window_width)[0] * (
        a.rows // (a.out_height * a.out_width))),
    "max_pool_backward": lambda a: a.channels * (4 * a.rows + 5 * a.out_height * a.out_width * (a.rows // (a.height * a.width))),
    "relu_in_place": lambda a: 8 * a.count,
    "relu_backward_in_place": lambda a: 12 * a.count,
    "transpose_tiles": lambda a: 8 * a.height * a.width,
    "squares": lambda a: 4 * a.count + 4 * a.rows,
    "clip_factor": lambda a: 4 * a.count + 8,
    "scale_gradient": lambda a: 8 * a.count + 4,
    "sgd": lambda a: 20 * a.count + 8,
    "adam": lambda a: 28 * a.count + 8,
    "average": lambda a: 12 * a.count + 8,
    "cross_entropy_rows": lambda a: a.rows * (12 * a.classes + 12 + 48 * a.count) + 4,      # its labels are all the same: one weight
    "softmax_rows": lambda a: a.rows * 12 * a.classes,
    "winograd_input": lambda a: 4 * points(a) * tiles(a)[0] + 4 * tiles(a)[1] * a.channels * covered(a.height, a.down, a.m + a.r - 1, a.m, a.pad_top)[0]
    * covered(a.width, a.across, a.m + a.r - 1, a.m, a.pad_left)[0],
    "winograd_spread": lambda a: 4 * points(a) * tiles(a)[0] + 4 * tiles(a)[1] * a.channels * a.height * a.width,
    "winograd_output": lambda a: 4 * points(a) * tiles(a)[0] + 4 * a.channels * (tiles(a)[1] * a.height * a.width + a.add),
    "winograd_filter": lambda a: 4 * taps(a, a.own) * (a.r * a.r + points(a)),
    "winograd_blocks": lambda a: 4 * a.channels * (a.rows * a.step ** 2 + a.rows // (a.down * a.across) * in_blocks(a)),
    "winograd_pixels": lambda a: 4 * a.channels * (a.rows * (1 + a.accumulate) + a.rows // (a.height * a.width) * in_blocks(a)),
    "winograd_filter_gradient": lambda a: 4 * taps(a, a.filters // a.groups) * (a.r * a.r * (1 + a.accumulate) + points(a)),
}
# Additions, multiplications, comparisons and special functions of a launch, as in its formula; im2col, transpose_tiles and winograd_blocks, which copy, have none.
ARITHMETIC = {
    "add_parts": lambda a: a.count * a.slices, "bias_relu": lambda a: 2 * (a.rows // -(-a.channels // SPAN)) * a.channels,
    "bias_backward": lambda a: (1 + a.relu) * a.pixels * a.channels, "sum_partials": lambda a: a.rows * a.count,
    "augment": lambda a: 18 * a.rows * a.size, "dropout_in_place": lambda a: 2 * a.count, "col2im": lambda a: unfolded(a) * columns(a) // 4,
    "lrn": lambda a: a.rows * a.channels * (2 * a.size + 5), "lrn_backward": lambda a: a.rows * a.channels * (3 * a.size + 12),
    "max_pool": lambda a: a.rows * a.channels * (a.window_height * a.window_width + a.add + a.relu),
    "max_pool_backward": lambda a: 2 * a.rows // (a.height * a.width) * a.channels * windows(a, a.window_height, a.window_width)[1],
    "relu_in_place": lambda a: a.count, "relu_backward_in_place": lambda a: a.count, "sgd": lambda a: 6 * a.count, "squares": lambda a: 2 * a.count, "clip_factor": lambda a: a.count, "scale_gradient": lambda a: a.count, "adam": lambda a: 12 * a.count, "average": lambda a: 3 * a.count,
    "cross_entropy_rows": lambda a: 11 * a.rows * a.classes, "softmax_rows": lambda a: 5 * a.rows * a.classes,
    "winograd_input": lambda a: tiles(a)[0] * sum(tile_operations(a.m, a.r)["winograd_input"]),
    "winograd_spread": lambda a: tiles(a)[0] * sum(tile_operations(a.m, a.r)["winograd_spread"]),
    "winograd_output": lambda a: tiles(a)[0] * sum(tile_operations(a.m, a.r)["winograd_output"]) + tiles(a)[1] * a.height * a.width * a.channels * (a.add + a.relu),
    "winograd_pixels": lambda a: a.rows * a.channels * a.accumulate, "winograd_filter": lambda a: taps(a, a.own) * sum(tile_operations(a.m, a.r)["winograd_filter"]),
    "winograd_filter_gradient": lambda a: taps(a, a.filters // a.groups) * (sum(tile_operations(a.m, a.r)["winograd_filter_gradient"]) + a.r * a.r * a.accumulate),
}
# What a lane's chain of loads grows with, where that depends on the batch.
LONG = {"bias_backward": lambda a: a.slice, "sum_partials": lambda a: -(-a.count // 32) + a.accumulate,
        "add_parts": lambda a: a.slices + a.accumulate}
# Why a kernel may have fewer than 2,000 warps.
FEW = {
    "add_parts": "a warp for 32 weights, of layers with few", "sgd": "a warp for 256 weights or biases, of layers with few", "adam": "a warp for 256 weights or biases, of layers with few", "average": "a warp for 256 weights or biases, of layers with few",
    "bias_relu": "a warp for 256 features of an image, of dense layers with few",
    "bias_backward": "a warp for 32 channels of a slice, and no fewer than 16 rows of images or pixels in a slice: dense layers and small maps have few rows",
    "transpose_tiles": "a warp for 32 x 32 weights or gradients, of matrices with few", "sum_partials": "a warp for a channel", "cross_entropy_rows": "a warp for an image",
    "dropout_in_place": "a warp for 256 activations, of dense layers with few",
    "im2col": "a warp for a pixel of a piece's last, few images", "col2im": "a warp for a pixel of a piece's last, few images",
    **dict.fromkeys(("winograd_input", "winograd_spread", "winograd_output"), "a warp for a group's channels of a tile, of which small maps have few: 9 an image"),
    **dict.fromkeys(("winograd_filter", "winograd_filter_gradient"), "a warp for 32 filters of a channel, of layers with few"),
    "winograd_blocks": "a warp for a block of a filter's taps, of which there are few", "winograd_pixels": "a warp for a tap of a filter",
}
CONVOLUTIONS = {"im2col": "im2col", "winograd": "Winograd"}
KINDS = {"products": ("gemm",), "im2col, col2im": ("im2col", "col2im"),
         "Winograd's tiles": ("winograd_input", "winograd_spread", "winograd_output", "winograd_filter", "winograd_filter_gradient", "winograd_blocks",
                              "winograd_pixels"), "pooling": ("max_pool", "max_pool_backward"), "LRN": ("lrn", "lrn_backward"),
         "bias and ReLU": ("bias_relu", "bias_backward", "sum_partials"), "update, sums of parts": ("sgd", "adam", "average", "add_parts", "transpose_tiles"),
         "dropout, loss, input": ("dropout_in_place", "cross_entropy_rows", "augment", "copy")}
# What this page predicted before, by change: a record, which nothing computes again.
CAME_DOWN = [("four floats a thread, no divisions, all parameters in two updates, slices of pixels", "14.7 / 6.8", "13.3 / 5.4", "7.4 / 4.0"),
             ("columns kept from forward to backward", "13.1 / 5.9", "12.4 / 4.6", "6.5 / 3.4"),
             ("a convolution's bias and ReLU in the max-pool behind it; loss, rank and totals in one", "13.3 / 6.0", "12.0 / 4.2", "6.1 / 3.1")]
IN_FLOAT32 = ("sgd", "adam", "average", "add_parts", "sum_partials", "copy")      # also where activations are in half precision


@dataclass
class Launch:
    """A launch, product or copy of a step. `operands`: bytes of a product's a, b and c; `columns`: of them or of a kernel's, the bytes
    of im2col's columns; `image`: the bytes of the pixels that these were copied from."""

    place: str
    name: str
    bytes: int
    rows: int = 0
    call: tuple = None           # the kernel and its arguments after rows
    long: int = 0
    flop: int = 0
    tiles: int = 0
    weights: int = 0             # bytes of a product's weights or their gradient
    columns: int = 0
    image: int = 0
    order: int = 0               # of its kernel's launches at its place
    executed: float = None       # instructions that a warp executes, once they are counted


class Plan(Device):
    """Notes what a step would launch on a chip. Its arrays are zeros that cost nothing until they are touched."""

    name, array_type = "cuda", np.ndarray
    images_at_once, slices = CUDA.images_at_once, CUDA.slices

    def __init__(self, chip, spare=1 << 40):
        self.processors, self.unfolded, self.room = chip.processors, {}, spare

    def spare(self):
        """A chip of 80 GB has room for columns."""
        return self.room

    def empty(self, shape, dtype=None):
        """Starts on a multiple of 256 bytes, as a GPU's arrays do."""
        dtype = np.dtype(dtype or self.float)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw = np.zeros(size + 256, np.uint8)
        start = -raw.ctypes.data % 256
        return raw[start:start + size].view(dtype).reshape(shape)

    zeros = empty

    def upload(self, array, host):
        pass

    def bind(self, kernel, rows, arguments):
        kernel.bind((rows, *arguments), np.ndarray, self.name)
        a = SimpleNamespace(rows=rows, **{declared.name: value for declared, value in zip(kernel.arguments[1:], arguments)})
        launch = Launch(self.place, kernel.name, NEEDED[kernel.name](a), rows, (kernel, arguments), LONG.get(kernel.name, lambda a: 0)(a),
                        flop=ARITHMETIC.get(kernel.name, lambda a: 0)(a))
        if kernel.name in ("im2col", "col2im"):
            launch.columns = unfolded(a) * columns(a)
            launch.image = launch.bytes - launch.columns
            self.unfolded[self.place.split()[0]] = launch.image / launch.columns
        return launch

    def gemm(self, a, b, c, transpose_a=False, transpose_b=False, accumulate=False):
        m, n, k = check_product(a, b, c, transpose_a, transpose_b)
        batch = c.shape[0] if c.ndim == 3 else 1
        bytes_a, bytes_b, bytes_c = 4 * batch * m * k, 4 * batch * k * n, 4 * batch * m * n * (1 + accumulate)
        launch = Launch(self.place, "gemm", bytes_a + bytes_b + bytes_c, flop=2 * batch * m * n * k, tiles=batch * -(-m // TILE) * -(-n // TILE),
                        weights=bytes_c if transpose_a else bytes_b)
        if self.place.split()[0] in self.unfolded:      # a convolution: its columns are what is multiplied, or dx's that come out
            launch.columns = bytes_c if transpose_b else bytes_a
            launch.image = launch.columns * self.unfolded[self.place.split()[0]]
        self.submit(launch)


def plan(name, batch, chip, workspace_mb=None, conv="im2col", **more):
    """The launches of a training step of a net, from the copies of its input on. conv: of all layers that can have it; more: of Plan."""
    net, device = nets.build(name), Plan(chip, **more)
    network = Network(net, device, batch, init=None, workspace_mb=workspace_mb, conv=conv)
    network.arrays["input views"][:] = network.layout.input.centre(batch)      # for what is traced to read as training reads
    with device.record() as tape:
        network.record("train", batch)
    order = Counter()
    for launch in tape.calls:
        launch.order = order[launch.place, launch.name]
        order[launch.place, launch.name] += 1
    return [*(Launch("input upload", "copy", 2 * network.arrays[f"input {part}"].nbytes) for part in ("images", "labels", "views", "now")), *tape.calls]


def key(launch):
    """Where its traced counts are: pieces of a batch repeat a kernel, the updates of a layer's weights and biases differ."""
    return launch.place, launch.name, launch.order if launch.place.endswith("update") else 0


@functools.cache
def trace(name):
    """{key: (counts, Launch)} of a step by each convolution on two images of full size, up to 1,000 rows of each launch."""
    device, found = Trace(), {}
    device.rows_at_most = TRACED_ROWS
    for launch in (launch for conv, spare in (("im2col", 1 << 40), ("im2col", 0), ("winograd", 1 << 40))
                   for launch in plan(name, TRACED_IMAGES, CHIPS[-1], conv=conv, spare=spare)):
        if launch.call and key(launch) not in found:
            kernel, arguments = launch.call
            device.launch(kernel, launch.rows, *arguments)
            found[key(launch)] = device.last, launch
    return found


def chain(launch, traced):
    """The loads that a lane makes, at most."""
    counts, few = traced[key(launch)]
    return round(counts.chain * launch.long / few.long) if launch.long else counts.chain


@functools.cache
def programs():
    """{kernel: its PTX as ptx.py reads it}, of the last of CHIPS; empty without NVRTC."""
    library = nvrtc.find_nvrtc()
    return {name: program for file in sorted(sources().glob("*.cu")) if library for name, program in ptx.kernels(
        nvrtc.compile_text(library, source_text(file), file.name, CHIPS[-1].architecture)[1]).items()}


def executed(launch):
    """Instructions that a warp of a launch executes, in the mean of some; 0 without NVRTC."""
    if launch.executed is None:
        kernel, arguments = launch.call
        program, values = programs().get(kernel.name), kernel.bind((launch.rows, *arguments), np.ndarray, "cuda")
        rows = sorted(set(np.linspace(0, launch.rows - 1, ROWS_RUN).astype(int)))
        launch.executed = np.mean([ptx.Warp(program, values, int(row)).run() for row in rows]) if program else 0
    return launch.executed


def instructions(launch, traced):
    """Those that a warp executes, scaled to the batch."""
    few = traced[key(launch)][1]
    return executed(few) * (launch.long / few.long if launch.long else 1)


def terms(launch, chip, traced, moved=None):
    """Seconds that each of {what may bind a kernel} takes by itself."""
    counts = traced[key(launch)][0]
    return {"bytes": (launch.bytes if moved is None else moved) / counts.distinct_efficiency / chip.bandwidth,
            "instructions": instructions(launch, traced) * launch.rows / (chip.processors * SCHEDULERS * chip.clock * ISSUED),
            "loads": chain(launch, traced) * LATENCY, "launch": LEAST}


def binds(launch, chip, traced):
    found = terms(launch, chip, traced)
    return max(found, key=found.get)


def seconds(launch, chip, traced, *, fused=False, tf32=False, half=False, cached=False, waits=True):
    """The time of a launch. fused: products make and take columns themselves; half: activations and columns have 2 bytes; cached: columns
    stay in L2; waits: for chains of loads."""
    moved = launch.bytes
    if cached or fused:
        moved += (launch.image if fused and launch.name == "gemm" else 0) - launch.columns
    if half and launch.name not in IN_FLOAT32:
        moved -= (moved - launch.weights) / 2
    if launch.name == "gemm":
        waves = -(-launch.tiles // chip.processors)
        return max(launch.flop / ((chip.tf32 if tf32 else chip.fp32) * launch.tiles / (waves * chip.processors)), moved / chip.bandwidth, LEAST)
    if fused and launch.name in ("im2col", "col2im"):
        return 0.0
    if launch.name == "copy":
        return max(moved / chip.bandwidth, LEAST)
    return max(time for what, time in terms(launch, chip, traced, moved).items() if waits or what != "loads")


CHANGES = {
    "nothing": {}, "Winograd's convolution": dict(conv="winograd"), "implicit GEMM: im2col and col2im fused into the products": dict(fused=True), "TF32 products": dict(tf32=True),
    "TF32 products, in a CUDA graph": dict(tf32=True, graph=True), "columns made again for the weights' gradient, as where memory is short": dict(again=True),
    "activations and columns in half precision": dict(half=True), "pieces whose columns stay in half of L2": dict(cached=True),
    "no lane waits for one load before the next": dict(waits=False), "a CUDA graph: one launch for the host": dict(graph=True),
    "all of these (without columns, pieces need not be small)": dict(fused=True, tf32=True, half=True, waits=False, graph=True),
}


def predictions(name, batch, chip, launches, traced):
    """{change: (ms of the GPU, launches, ms of the host at 10 us, at 20 us)}. launches: {convolution: those of a step}"""
    small, again, found = plan(name, batch, chip, workspace_mb=chip.l2 / 2 / 2**20), plan(name, batch, chip, spare=0), {}
    for change, how in CHANGES.items():
        how = dict(how)
        graph, of = how.pop("graph", False), small if "cached" in how else again if how.pop("again", False) else launches[how.pop("conv", "im2col")]
        times = [seconds(launch, chip, traced, **how) for launch in of]
        count = sum(time > 0 for time in times)
        found[change] = 1e3 * sum(times), count, *(1e3 * each * (1 if graph else count) for each in HOST)
    return found


def step(prediction):
    """ms of a step, with the host at 15 us a launch."""
    return max(prediction[0], (prediction[2] + prediction[3]) / 2)


def kind(name):
    return next(kind for kind, names in KINDS.items() if name in names)


def occupancy(about, chip):
    """Warps that a multiprocessor holds, of 64: 64 Ki registers go to warps in lots of 256; a block has 1 KiB of shared memory more."""
    registers = -(-about["registers"] * 32 // 256) * 256 * ROWS_PER_BLOCK
    return ROWS_PER_BLOCK * min(32, 64 // ROWS_PER_BLOCK, (64 << 10) // registers, chip.shared // (about["shared"] + 1024))


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1), *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def both(values, form=",.0f"):
    """One figure where all chips have the same, else one for each."""
    texts = [format(value, form) for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def compiled():
    """The lines on what the compiler makes of each kernel."""
    library = nvrtc.find_nvrtc()
    if not library:
        return ["Not known here: NVRTC is not installed (pip install nvidia-cuda-nvrtc).", ""]
    about, code, problem = defaultdict(list), defaultdict(list), None
    for chip in CHIPS:
        for file in sorted(sources().glob("*.cu")):
            cubin, log = nvrtc.compile_cubin(library, file, chip.architecture)
            try:
                listings = nvrtc.disassemble(cubin)
                counted = listings and {name: Counter(instruction for _, _, instruction, _ in code) for name, code in listings.items()}
                problem = problem or (None if counted else "cuobjdump is not installed (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
            except subprocess.CalledProcessError as error:
                counted, problem = None, error.stderr.strip()
            for name, facts in nvrtc.read_log(log).items():
                about[name].append(facts)
                code[name].append((counted or {}).get(name, Counter()))

    def count(name, *starts):
        return both([sum(n for text, n in own.items() if text.startswith(starts)) for own in code[name]])

    def widths(name, start):
        """Instructions by their bytes: 4: 7 is seven of four bytes."""
        found = []
        for own in code[name]:
            sizes = Counter()
            for text, n in own.items():
                if text.startswith(start):
                    parts = text.split(".")
                    sizes[next((w for w, names in {1: ("U8", "S8"), 2: ("U16", "S16"), 8: ("64",), 16: ("128",)}.items() if set(names) & set(parts)), 4)] += n
            found.append(", ".join(f"{w}: {sizes[w]}" for w in sorted(sizes)) or "0")
        return both(found, "")
    sass = ("LDG by bytes", "STG by bytes", "FFMA", "SHFL", "BAR", "MUFU", "LDL + STL")
    rows = [(name, both([f["registers"] for f in facts]), both([f["shared"] for f in facts]), both([f["spill_stores"] + f["spill_loads"] for f in facts]),
             both([f["stack"] for f in facts]), both([occupancy(f, chip) for f, chip in zip(facts, CHIPS)]),
             *(() if problem else (widths(name, "LDG"), widths(name, "STG"), *(count(name, op) for op in ("FFMA", "SHFL", "BAR", "MUFU")), count(name, "LDL", "STL"))))
            for name, facts in sorted(about.items())]
    return [f"A block has {32 * ROWS_PER_BLOCK} threads. Where sm_80 and sm_90 differ: sm_80 / sm_90.",
            *([f"Instructions are not counted: {problem}."] if problem else ["Instructions are those in the machine code, not those that run."]), "",
            "Zeros and ones of Winograd's matrices cost nothing: what their kernels add and multiply is no more than the matrices say (tests/test_nvrtc.py counts it "
            "in the PTX), and this is for a channel of a tile, or a filter, of F(4x4, 3x3) / F(5x5, 3x3) / F(4x4, 5x5): " + ", ".join(
                f"{name} {' / '.join(f'{sum(tile_operations(m, r)[name])}' for r, sizes in FORMS.items() for m in sizes)}" for name in tile_operations(4, 3))
            + ". The machine code has all forms of F, and what comes after the last matrix once for each answer to what a kernel is asked.", "",
            *table(("kernel", "registers", "shared bytes", "spilled bytes", "local bytes", "warps on a multiprocessor, of 64", *(() if problem else sass)), rows)]


def by_kernel(launches):
    """[(kernel, launches, MB)] in order, each "A100 / H100": what does not depend on a compiler. launches: a list for each chip."""
    names = sorted({launch.name for of in launches for launch in of})
    own = {name: [[launch for launch in of if launch.name == name] for of in launches] for name in names}
    return [(name, both([len(of) for of in own[name]]), both([sum(launch.bytes for launch in of) / 1e6 for of in own[name]], ",.1f")) for name in names]


def intensity(launches, name=None):
    """GFLOP, and FLOP for each byte needed, of one kernel or of all."""
    own = [[launch for launch in of if name in (None, launch.name)] for of in launches]
    flop, moved = ([sum(getattr(launch, what) for launch in of) for of in own] for what in ("flop", "bytes"))
    return both([each / 1e9 for each in flop], ",.2f"), both([a / b for a, b in zip(flop, moved)], ".1f")


def net_report(name, batch, bars, order):
    """The lines on a net; adds to `bars` and `order` what the plot and the last list need."""
    traced, chips = trace(name), [chip.name for chip in CHIPS]
    planned = {conv: [plan(name, batch, chip, conv=conv) for chip in CHIPS] for conv in CONVOLUTIONS}
    took = [{id(launch): 1e3 * seconds(launch, chip, traced) for of in planned.values() for launch in of[at]} for at, chip in enumerate(CHIPS)]
    changes = [predictions(name, batch, chip, {conv: of[at] for conv, of in planned.items()}, traced) for at, chip in enumerate(CHIPS)]
    for change in changes:
        for text, prediction in change.items():
            order[text].append(1 - step(prediction) / step(change["nothing"]))
    rows = []
    for at, (chip, time) in enumerate(zip(chips, took)):
        for conv, called in CONVOLUTIONS.items():
            of = planned[conv][at]
            parts = {each: sum(time[id(launch)] for launch in of if kind(launch.name) == each) for each in KINDS}
            gpu, (fast, slow) = sum(parts.values()), (1e3 * each * len(of) for each in HOST)
            binds = "the GPU" if gpu > slow else "the host" if gpu < fast else "either"
            rows.append((chip, called, f"{gpu:.1f}", len(of), f"{fast:.1f} to {slow:.1f}", binds,
                         both([1e3 * batch / max(gpu, each) for each in (slow, fast)]).replace("/", "to")))
            bars[f"{name}, {called}", chip] = parts, fast, slow
    lines = [f"## {name}, predicted", "", *table(("chip", "convolution", "GPU, ms", "launches", "host, ms", "what binds", "images/s"), rows)]
    for conv, called in CONVOLUTIONS.items():
        lines += step_report(f"{name}, {called}", planned[conv], traced, took, None if conv == "im2col" else KINDS["Winograd's tiles"])
    return lines, changes


def step_report(title, planned, traced, took, only):
    """The lines on the launches of a step, a list for each chip. only: kernels that there are lines on one by one, or None for all."""
    def ms(pick, form=",.3f"):
        return [format(sum(time[id(launch)] for launch in of if pick(launch)), form) for time, of in zip(took, planned)]
    chips = [chip.name for chip in CHIPS]
    waits = {kernel: [format(sum(1e3 * (seconds(launch, chip, traced) - seconds(launch, chip, traced, waits=False)) for launch in of if launch.name == kernel), ".3f")
                      for chip, of in zip(CHIPS, planned)] for kernel, _, _ in by_kernel(planned)}
    rows = [(*row, *intensity(planned, row[0]), *ms(lambda launch: launch.name == row[0]), *waits[row[0]]) for row in by_kernel(planned)]
    every = "all", both([len(of) for of in planned]), both([sum(launch.bytes for launch in of) / 1e6 for of in planned], ",.1f")
    lines = [f"### {title} by kernel, predicted", "",
             *table(("kernel", "launches", "MB needed", "GFLOP", "FLOP / byte", *(f"{c}, ms" for c in chips), *(f"of that waiting for loads, {c}" for c in chips)),
                    [*rows, (*every, *intensity(planned), *ms(lambda launch: True), *[""] * len(chips))])]
    places = list(dict.fromkeys(launch.place for launch in planned[0] if only is None or launch.name in only))
    lines += [f"### {title} by place, predicted", "", *table(("place", "launches", *(f"{what}, {c}, ms" for what in ("products", "kernels") for c in chips)), [
        (place, both([sum(launch.place == place for launch in of) for of in planned]),
         *(text for product in (True, False) for text in ms(lambda launch: launch.place == place and (launch.name == "gemm") == product))) for place in places])]
    return lines + kernels_and_places(title, planned, traced, ms, only)


def pairs(launches):
    """{key: launches} of the kernels of a step."""
    found = defaultdict(list)
    for launch in launches:
        if launch.call:
            found[key(launch)].append(launch)
    return found


def kernels_and_places(title, planned, traced, ms, only):
    """The lines on each kernel at each place, and on those with few warps."""
    every, rows, few = [pairs(of) for of in planned], [], defaultdict(list)
    whole = sum(launch.bytes for own in every[0].values() for launch in own)
    for at, own in every[0].items():
        if only is not None and at[1] not in only:
            continue
        counts, moved, times = traced[at][0], sum(launch.bytes for launch in own), ms(lambda launch: launch.call and key(launch) == at)
        rows.append((at[0], at[1], f"{moved / 1e6:,.2f}", f"{100 * moved / whole:.1f}", f"{100 * counts.distinct_efficiency:.0f}", f"{100 * counts.instruction_efficiency:.0f}",
                     both([chain(of[at][0], traced) for of in every]), both([of[at][0].rows for of in every]),
                     both([instructions(of[at][0], traced) for of in every]),
                     " / ".join(dict.fromkeys(binds(of[at][0], chip, traced) for chip, of in zip(CHIPS, every))), *times))
        if own[0].rows < MANY_WARPS:
            few[at[1]].append((own[0].rows, moved, at[0], sum(seconds(launch, CHIPS[0], traced) for launch in own)))
    return [f"### {title} by kernel and place, predicted", "", "Efficiencies are traced; the chain, the warps, their instructions and what binds are those of the first launch at the place.", "",
            *table(("place", "kernel", "MB needed", "% of kernels' bytes", "sectors used, %", "per instruction, %", "chain of loads", "warps", "instructions a warp", "what binds",
                    *(f"{chip.name}, ms" for chip in CHIPS)), rows),
            f"### {title}: kernels of fewer than {MANY_WARPS:,} warps, predicted", "",
            *table(("kernel", "why", "places", "fewest warps", "MB", f"{CHIPS[0].name}, ms"), [
                (kernel, FEW.get(kernel, "**no reason known**"), ", ".join(dict.fromkeys(place.replace(" backward", "").replace(" forward", "").replace(" update", "") for _, _, place, _ in own)),
                 f"{min(own)[0]:,}", f"{sum(moved for _, moved, _, _ in own) / 1e6:,.2f}", f"{1e3 * sum(time for *_, time in own):.3f}") for kernel, own in sorted(few.items())])]


def report(names, batch):
    """(the page's lines, {(net, chip): ({kind: ms}, host's ms at 10 us, at 20 us)})"""
    bars, order, lines, removed = {}, defaultdict(list), [], []
    for name in names:
        own, changes = net_report(name, batch, bars, order)
        lines += own
        for chip, change in zip(CHIPS, changes):
            removed += [(name, chip.name, text, f"{gpu:.1f}", count, f"{fast:.2f} to {slow:.2f}", f"{1e3 * batch / step((gpu, count, fast, slow)):,.0f}")
                        for text, (gpu, count, fast, slow) in change.items()]
    last = list(CHANGES)[-1]
    first = sorted((text for text in CHANGES if text not in ("nothing", last)), key=lambda text: -np.mean(order[text]))
    side = {name: nets.build(name).side for name in names}
    plan_ = [f"{i}. {text[0].upper()}{text[1:]}: {100 * min(order[text]):.0f} to {100 * max(order[text]):.0f} % of a step." for i, text in enumerate(first, 1)]
    return [
        "# Predicted: a training step on A100 and H100", "",
        f"`python benchmarks/kernel_report.py --batch {batch} --write` wrote this page, without a GPU: every time below is predicted, none measured.", "",
        "![predicted milliseconds of a step by kind of work](kernels.png)", "",
        "## What is predicted, and how", "",
        f"- A kernel takes max(bytes / sectors used / bandwidth, warp instructions / (multiprocessors x {SCHEDULERS} x boost clock x {ISSUED}), "
        f"longest chain of loads x {1e9 * LATENCY:.0f} ns, {1e6 * LEAST:.0f} us): bytes, instructions, loads or the launch bind. Its bytes are those it needs: each input element "
        "once, each output element once. The part of its 32-byte sectors that it uses, and the most loads that one lane makes, were counted by running the "
        f"CUDA branch thread by thread on {TRACED_IMAGES} images of full size, up to {TRACED_ROWS:,} rows of each launch; the chain is then scaled to the batch. "
        f"Instructions are those that {ROWS_RUN} warps of each launch execute of the kernel's PTX, which benchmarks/ptx.py interprets: one of PTX counts as one of the machine's, a whole-number division as 19 to 80. "
        "That a load waits for the one before is pessimistic: compilers issue several at once. What L2 keeps from one launch to the next is left out, which is pessimistic too.",
        f"- A product (m, n, k, batch) takes max(FLOP / (peak x tiles / (waves x multiprocessors)), bytes / bandwidth, {1e6 * LEAST:.0f} us), with tiles of {TILE} x {TILE}, those of a "
        "batch (groups, slices of a weight gradient) counted, and waves = ceil(tiles / multiprocessors). cuBLAS has smaller tiles and cuts the long sums of dense "
        "layers (split-K), so their rows are pessimistic; it does not reach the peak, so the others are optimistic.",
        f"- The host takes {1e6 * HOST[0]:.0f} to {1e6 * HOST[1]:.0f} us of Python for a launch, beside the GPU: the longer of the two binds.",
        f"- The pictures go up on a copy stream beside the step before, so this is not added: "
        + ", ".join(f"{name} {batch * side[name]**2 * 3 / 1e6:.1f} MB, " + both([1e3 * batch * side[name]**2 * 3 / chip.pcie for chip in CHIPS], ".2f") + " ms" for name in names)
        + f" over PCIe at {both([chip.pcie / 1e9 for chip in CHIPS])} GB/s. The copy from there to the step's arrays is `copy` below.",
        f"- Where {' and '.join(chip.name for chip in CHIPS)} differ, a cell has both: {' / '.join(chip.name for chip in CHIPS)}.", "",
        *table(("chip", "GB/s", "FP32 TFLOP/s", "TF32 TFLOP/s", "multiprocessors", "GHz", "L2, MB"), [
            (c.name, f"{c.bandwidth / 1e9:,.0f}", f"{c.fp32 / 1e12:g}", f"{c.tf32 / 1e12:g}", c.processors, f"{c.clock / 1e9:g}", c.l2 >> 20) for c in CHIPS]),
        SOURCES, "", *lines, "## What the compiler makes of each kernel, and the occupancy predicted from it", "", *compiled(),
        "## What would remove it, predicted", "",
        "Fused products read the pixels instead of columns. In half precision weights, their gradients and sums stay float32. Smaller pieces are planned anew, so that "
        "their launches and tiles count; L2's own speed is left out. images/s has the host at 15 us a launch.", "",
        *table(("net", "chip", "change", "GPU, ms", "launches", "host, ms", "images/s"), removed),
        "## How the predicted step came down", "",
        "A step on an H100 at batch 128 by im2col, in ms, with float32 / TF32 products, as this page had it after each change. Before the first line, which begins to count "
        "instructions, a count by hand came to 20.5, 18.2 and 9.7 with float32 products. paper's last line has LRN in two groups, which costs it 0.2.", "",
        *table(("after", "paper", "owt", "half"), CAME_DOWN),
        "## The plan for the first hour on a GPU: savings, predicted", "", *plan_, "",
        f"All together: {100 * min(order[last]):.0f} to {100 * max(order[last]):.0f} % of a step."], bars


def by_launch(names, batch):
    """{net: {convolution: {chip: {"place kernel": ms}}}}, beside which benchmarks/on_gpu.py puts what a GPU takes."""
    found = {name: {conv: {chip.name: Counter() for chip in CHIPS} for conv in CONVOLUTIONS} for name in names}
    for name, conv, chip in ((name, conv, chip) for name in names for conv in CONVOLUTIONS for chip in CHIPS):
        own = found[name][conv][chip.name]
        for launch in plan(name, batch, chip, conv=conv):
            at = f"{launch.place} {launch.name}"
            own[at] = round(own[at] + 1e3 * seconds(launch, chip, trace(name)), 5)
    return found


def plot(bars, path, batch):
    """Stacked bars of milliseconds by kind, a line below each for the host."""
    figure, axes = subplots(size=(11, 1.4 + 0.62 * len(bars)))
    y, left = np.arange(len(bars))[::-1], np.zeros(len(bars))
    for i, each in enumerate(KINDS):
        widths = np.array([parts[each] for parts, _, _ in bars.values()])
        axes.barh(y, widths, 0.55, left, label=each, color=f"C{i}")
        left += widths
    for at, total, (_, fast, slow) in zip(y, left, bars.values()):
        axes.plot([fast, slow], [at - 0.4] * 2, "k|-", markersize=5, linewidth=1, label="host, 10 to 20 us a launch" if at == y[0] else None)
        axes.text(total, at, f" {total:.1f} ms", va="center")
    axes.set_yticks(y, [f"{net}, {chip}" for net, chip in bars])
    axes.set_xlim(0, 1.1 * max(left.max(), max(slow for *_, slow in bars.values())))
    axes.set_xlabel("milliseconds")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, loc="outside right center")
    figure.suptitle(f"Predicted (not measured): a training step of {batch} images")
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", default=["paper", "owt", "half"], choices=list(nets.NETS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--write", action="store_true", help="write docs/kernels.md, docs/kernels.png and docs/kernels.json")
    options = parser.parse_args()
    lines, bars = report(options.net, options.batch)
    print("\n".join(lines))
    if options.write:
        write_beside(ROOT / "docs" / "kernels.md", "\n".join(lines) + "\n")
        plot(bars, ROOT / "docs" / "kernels.png", options.batch)
        write_beside(ROOT / "docs" / "kernels.json", json.dumps(by_launch(options.net, options.batch), indent=1) + "\n")


if __name__ == "__main__":
    main()
