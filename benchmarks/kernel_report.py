"""What can be known of a training step on a GPU without one: every launch, its bytes, its efficiency, and its predicted time.

python benchmarks/kernel_report.py [--net paper owt half] [--batch 128] [--write]     (--write: docs/kernels.md and its plot)

A network is laid out for a chip as device/cuda.py lays it out, and each launch of a step is noted instead of made. Bytes
follow from the launch's arguments; efficiencies from the CUDA branch of each kernel, executed thread by thread on two
images with every access counted (tests/simt); registers and instructions from NVRTC's machine code.
"""

import argparse
import collections
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import nvrtc  # noqa: E402
from simt.trace import Trace  # noqa: E402

from minialex import nets  # noqa: E402
from minialex.device.base import Device, check_product  # noqa: E402
from minialex.device.cuda import CUDA, ROWS_PER_BLOCK  # noqa: E402
from minialex.device.kernel import declarations, sources  # noqa: E402
from minialex.network import Network  # noqa: E402
from minialex.ops.bias import SPAN, STRIP  # noqa: E402

TILE = 128                    # rows and columns of a tile of a product, as cuBLAS's largest
LATENCY, LEAST = 600e-9, 3e-6      # seconds from asking memory to having it, and of the shortest launch
HOST = 10e-6, 20e-6           # seconds of Python for a launch


@dataclass(frozen=True)
class Chip:
    """Peaks from NVIDIA's data sheets, in bytes and operations per second; per multiprocessor: shared memory, 64 K registers, 64 warps."""

    name: str
    architecture: int
    processors: int
    bandwidth: float
    fp32: float
    tf32: float               # dense
    l2: int
    shared: int


# "NVIDIA A100 Tensor Core GPU" (A100 80GB SXM) and "NVIDIA H100 Tensor Core GPU" (H100 SXM) data sheets; multiprocessors, L2 and
# shared memory from the Ampere and Hopper architecture white papers.
CHIPS = [Chip("A100", 80, 108, 2039e9, 19.5e12, 156e12, 40 << 20, 164 << 10), Chip("H100", 90, 132, 3350e9, 66.9e12, 494.7e12, 50 << 20, 228 << 10)]

# Why a kernel may launch fewer than 2,000 warps at batch 128.
FEW = {
    "sum_partials": "a warp per channel, over at most 2,048 partial sums each; under 0.1 % of a step's bytes",
    "cross_entropy_rows": "a warp per image; the logits are half a megabyte", "label_rank": "a warp per image; the logits are half a megabyte",
    "tally": "one number per image", "bias_relu": "dense layers have a batch of rows only; two megabytes",
    "bias_backward": "a slice is at least 16 rows, or the sums would outgrow the data; dense layers and small images have few rows",
    "add_parts": "as many as the weights of a small layer give", "sgd": "a small layer's weights, or biases",
    "max_pool": "the last maps are 6 x 6", "max_pool_backward": "the last maps are 13 x 13 and a chunk holds a few images",
    "dropout_in_place": "a dense layer's activations: two megabytes", "im2col": "a chunk holds as few images as fill the chip twice with tiles",
    "col2im": "a chunk holds as few images as fill the chip twice with tiles",
}


def needed(name, a):
    """Bytes that a launch must read and write: each input element once, each output element once. a: its arguments by name."""
    if name in ("im2col", "col2im"):
        images = a.rows // (a.groups * a.out_height * -(-a.out_width // a.strip)) if name == "im2col" else a.rows // (a.groups * a.height * a.width)
        return 4 * images * (a.height * a.width * a.channels + a.out_height * a.out_width * a.kernel_height * a.kernel_width * a.channels)
    if name in ("max_pool", "max_pool_backward"):
        images = a.rows // (a.out_height * a.out_width if name == "max_pool" else a.height * a.width)
        return images * a.channels * (4 * a.height * a.width + 5 * a.out_height * a.out_width)
    if name in ("lrn", "lrn_backward"):
        return 4 * a.rows * a.channels * (2 if name == "lrn" else 3)
    if name == "bias_relu":
        return 8 * a.rows // -(-a.channels // SPAN) * a.channels + 4 * a.channels
    if name == "bias_backward":
        return 4 * a.pixels * a.channels * (3 if a.relu else 1) + 4 * a.channels * a.rows // -(-a.channels // STRIP)
    if name == "sum_partials":
        return 4 * a.rows * (a.count + 1 + a.accumulate)
    if name == "add_parts":
        return 4 * a.count * (a.slices + 1 + a.accumulate)
    if name == "crop":
        return a.rows * a.size * 3 * 5 + (a.rows // a.size) * 12 + 24
    if name == "dropout_in_place":
        return 8 * a.count + 8
    if name == "sgd":
        return 20 * a.count + 8
    if name == "cross_entropy_rows":
        return a.rows * (12 * a.classes + 8)      # the exponentials are written, read and written again
    if name == "label_rank":
        return a.rows * (4 * a.classes + 8)
    if name == "tally":
        return a.n * (8 + 48)
    raise KeyError(name)


@dataclass
class Launch:
    place: str
    name: str                 # of the kernel, or "gemm"
    bytes: int                # that it needs
    warps: int = 0
    flop: int = 0
    tiles: int = 0
    columns: int = 0          # bytes of an operand of a product, or of a kernel's array, that are im2col's columns
    long: int = 0             # loads that a lane makes one after another, where that depends on the batch


class Plan(Device):
    """Notes the launches and products of a pass for a chip, as device/cuda.py would make them. Its arrays are never touched."""

    name, array_type = "cuda", np.ndarray
    images_at_once, slices = CUDA.images_at_once, CUDA.slices

    def __init__(self, processors):
        self.processors, self.notes = processors, []

    def zeros(self, shape, dtype=None):
        return np.zeros(shape, self.float if dtype is None else dtype)

    def upload(self, array, host):
        pass

    def launch(self, kernel, rows, *arguments):
        a = SimpleNamespace(rows=rows, **{declared.name: value for declared, value in zip(kernel.arguments[1:], arguments)})
        columns = {"im2col": lambda: needed("im2col", a) - a.x.nbytes, "col2im": lambda: needed("col2im", a) - a.dx.nbytes}.get(kernel.name, int)()
        long = {"bias_backward": lambda: a.slice * (1 + a.relu), "sum_partials": lambda: -(-a.count // 32),
                "add_parts": lambda: a.slices}.get(kernel.name, int)()
        self.notes.append(Launch(self.place, kernel.name, needed(kernel.name, a), rows, columns=columns, long=long))

    def gemm(self, a, b, c, transpose_a=False, transpose_b=False, accumulate=False):
        m, n, k = check_product(a, b, c, transpose_a, transpose_b)
        batch = c.shape[0] if c.ndim == 3 else 1
        unfolded = [array for array in (a, c) if self.workspace is not None and np.may_share_memory(array, self.workspace) and
                    array.shape[-1] == (k if array is a and not transpose_a else m if array is a else n) and array.strides[-2] % 32 == 0]
        columns = 4 * batch * (m * k if unfolded and unfolded[0] is a else m * n) if unfolded else 0
        self.notes.append(Launch(self.place, "gemm", 4 * batch * (m * k + k * n + m * n * (1 + accumulate)), flop=2 * batch * m * n * k,
                                 tiles=batch * -(-m // TILE) * -(-n // TILE), columns=columns))

    workspace = None


def plan(name, batch, chip):
    """The launches of a training step of a net."""
    net, device = nets.build(name), Plan(chip.processors)
    network = Network(net, device, batch, side=round(net.size * 8 / 7), init=None)
    device.workspace = network.arrays["workspace columns"]
    network.record("train", batch)
    return device.notes


class Counted(Trace):
    """Keeps the counts of the first launch of each kernel at each place."""

    slices, tile, chunk = staticmethod(lambda tiles: 2), None, None

    def __init__(self):
        super().__init__()
        self.rows_at_most, self.found = 3000, {}

    def zeros(self, shape, dtype=None):
        """Starts on a sector, and costs nothing until touched."""
        dtype = np.dtype(self.float if dtype is None else dtype)
        raw = np.zeros(math.prod(shape) * dtype.itemsize + 512, np.uint8)
        start = -raw.ctypes.data % 512
        return raw[start:start + len(raw) - 512].view(dtype).reshape(shape)

    def launch(self, kernel, rows, *arguments):
        if (self.place, kernel.name) not in self.found:
            super().launch(kernel, rows, *arguments)
            self.found[self.place, kernel.name] = self.last


def trace(name):
    """{(place, kernel): counts} of a training step on two images at the net's full size, at most 3,000 rows of each launch."""
    device = Counted()
    net = nets.build(name)
    Network(net, device, 2, side=round(net.size * 8 / 7), init=None).record("train", 2)
    return device.found


def seconds(launch, chip, counts, *, peak=None, scale=1.0, without_columns=False):
    """The predicted time of one launch on a chip. scale: of its bytes; without_columns: columns move inside the chip."""
    moved = (launch.bytes - launch.columns * without_columns) * scale
    if launch.name == "gemm":
        waves = -(-launch.tiles // chip.processors)
        return max(launch.flop / ((peak or chip.fp32) * launch.tiles / (waves * chip.processors)), moved / chip.bandwidth, LEAST)
    count = counts[launch.place, launch.name]
    return max(moved / count.distinct_efficiency / chip.bandwidth, max(launch.long, count.chain if not launch.long else 0) * LATENCY, LEAST)


def predictions(launches, chip, counts):
    """{change: (seconds, launches)} of a step as it is, and with what could be done about it."""
    def total(keep=lambda launch: True, **more):
        return sum(seconds(launch, chip, counts, **more) for launch in launches if keep(launch)), sum(map(keep, launches))

    def unfold(launch):
        return launch.name not in ("im2col", "col2im")
    update = [launch for launch in launches if launch.place.endswith("update")]
    halved = sum(seconds(launch, chip, counts, scale=1.0 if launch in update else 0.5) for launch in launches)
    chunks = sum(max(1, math.ceil(launch.columns / (chip.l2 / 2))) - 1 for launch in launches)
    inside, count = total(without_columns=True)
    best = sum(seconds(launch, chip, counts, peak=chip.tf32, scale=1.0 if launch in update else 0.5, without_columns=True)
               for launch in launches if unfold(launch))
    return {
        "as it is": total(), "im2col fused into the products": total(unfold, without_columns=True),
        "TF32 products": total(peak=chip.tf32), "activations and columns in half precision": (halved, len(launches)),
        "chunks whose columns stay in L2": (inside + chunks * LEAST, count + chunks), "fused, TF32 and half precision together": (best, total(unfold)[1]),
    }


KINDS = {"products": ("gemm",), "im2col, col2im": ("im2col", "col2im"), "pooling": ("max_pool", "max_pool_backward"), "LRN": ("lrn", "lrn_backward"),
         "bias and ReLU": ("bias_relu", "bias_backward", "sum_partials"), "update": ("sgd", "add_parts")}


def kind(name):
    return next((kind for kind, names in KINDS.items() if name in names), "crop, dropout, loss")


def occupancy(about, chip):
    """Warps that a multiprocessor holds, of 64: registers go to warps by 256, and a block keeps 1 KB of shared memory for itself."""
    registers = -(-about["registers"] * 32 // 256) * 256
    return ROWS_PER_BLOCK * min(32, 64 // ROWS_PER_BLOCK, (64 << 10) // (registers * ROWS_PER_BLOCK), chip.shared // (about["shared"] + 1024))


def compiled():
    """{architecture: {kernel: (what ptxas says, its instructions or None)}}"""
    library, found = nvrtc.find_nvrtc(), {}
    if not library:
        return None
    for chip in CHIPS:
        found[chip.architecture] = own = {}
        for file in sorted(sources().glob("*.cu")):
            cubin, log = nvrtc.compile_cubin(library, file, chip.architecture)
            about, instructions = nvrtc.read_log(log), nvrtc.count_instructions(cubin)
            own.update({name: (about[name], instructions and instructions[name]) for name in declarations(file)})
    return found


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|",
            *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def machine_code(found):
    """The section on what the compiler made of each kernel."""
    if not found:
        return ["NVRTC is not installed (pip install nvidia-cuda-nvrtc): nothing is known of registers.", ""]
    rows = []
    for name in found[80]:
        (a, code), (h, _) = found[80][name], found[90][name]

        def count(*starts):
            return sum(n for instruction, n in code.items() if instruction.startswith(starts)) if code else "?"
        rows.append((name, f"{a['registers']}, {h['registers']}", f"{a['shared'] / 1024:.1f}", f"{a['spill_stores'] + h['spill_stores']}, {a['stack'] + h['stack']}",
                     f"{occupancy(a, CHIPS[0])}, {occupancy(h, CHIPS[1])}", f"{count('LDG')}, {count('STG')}", count("LDG.E.64", "LDG.E.128"),
                     count("FFMA"), count("SHFL"), count("BAR"), count("LDL", "STL")))
    return table(("kernel", "registers sm_80, sm_90", "shared KB a block", "bytes spilled, of local memory", "warps of 64, predicted: A100, H100", "LDG, STG",
                  "wide LDG", "FFMA", "SHFL", "BAR", "LDL + STL"), rows)


def report(names, batch, found):
    """The page as lines, and {(net, chip): {kind: ms}} for the plot."""
    lines, bars, savings = [], {}, collections.defaultdict(list)
    for name in names:
        counts = trace(name)
        for chip in CHIPS:
            launches = plan(name, batch, chip)
            every, whole = collections.defaultdict(list), sum(launch.bytes for launch in launches)
            for launch in launches:
                every[launch.name].append(launch)
            total = sum(seconds(launch, chip, counts) for launch in launches)
            rows, bar = [], collections.Counter()
            for kernel, own in sorted(every.items(), key=lambda item: -sum(seconds(launch, chip, counts) for launch in item[1])):
                took, moved = sum(seconds(launch, chip, counts) for launch in own), sum(launch.bytes for launch in own)
                bar[kind(kernel)] += 1e3 * took
                flop, traced = sum(launch.flop for launch in own), [counts[launch.place, launch.name] for launch in own if launch.name != "gemm"]
                rows.append((kernel, len(own), f"{moved / 1e6:,.1f}", f"{100 * moved / whole:.1f}", f"{flop / 1e9:,.0f}" if flop else "",
                             f"{flop / moved:.0f}" if flop else "", min((launch.warps for launch in own), default=0) or "",
                             *((f"{100 * min(t.distinct_efficiency for t in traced):.0f}", f"{100 * min(t.instruction_efficiency for t in traced):.0f}") if traced else ("", "")),
                             f"{occupancy(found[chip.architecture][kernel][0], chip)}" if found and traced else "",
                             f"{1e3 * took:.3f}", f"{100 * took / total:.1f}"))
            bars[name, chip.name] = bar
            host = [1e3 * len(launches) * each for each in HOST]
            binds = "the GPU" if 1e3 * total > host[1] else "the host" if 1e3 * total < host[0] else "either"
            lines += [f"### {name} on {chip.name}, predicted", "",
                      f"{1e3 * total:.1f} ms a step of {batch} images, {batch / total:,.0f} images/s. The host makes {len(launches)} launches, {host[0]:.1f} to "
                      f"{host[1]:.1f} ms of Python: {binds} binds.", ""]
            lines += table(("kernel", "launches", "MB", "% of bytes", "GFLOP", "FLOP/byte", "fewest warps", "sector efficiency %, DRAM", "per instruction %",
                            "warps of 64", "ms", "% of time"), rows)
            products = collections.Counter()
            for launch in every["gemm"]:
                products[launch.place] += 1e3 * seconds(launch, chip, counts)
            lines += ["Longest products: " + ", ".join(f"{place} {took:.2f} ms" for place, took in products.most_common(6)) + ".", ""]
            changes = predictions(launches, chip, counts)
            lines += [f"What would remove it ({name} on {chip.name}, predicted):", "", *table(("change", "ms of the GPU", "launches", "images/s if the GPU binds"), [
                (change, f"{1e3 * took:.1f}", count, f"{batch / took:,.0f}") for change, (took, count) in changes.items()])]
            for change, (took, _) in changes.items():
                savings[change].append(1 - took / total)
    order = sorted((change for change in savings if change not in ("as it is", "fused, TF32 and half precision together")), key=lambda change: -np.mean(savings[change]))
    lines += ["## The first hour on a GPU: what to try, by predicted saving", "",
              "1. `python -m minialex.selftest --device cuda`: whether the results are right, and which kernel is furthest from its roof.",
              *(f"{i}. {change[0].upper()}{change[1:]}: {100 * min(savings[change]):.0f} to {100 * max(savings[change]):.0f} % of a step." for i, change in enumerate(order, 2)), ""]
    return lines, bars


def head(batch, found):
    few = sorted(FEW)
    return ["# A training step on a GPU, predicted", "",
            f"`python benchmarks/kernel_report.py --batch {batch} --write` wrote this page. No GPU was used: every time is predicted. Launches, bytes and sector",
            "efficiencies are counted by execution on a CPU (`tests/simt`), registers and instructions are those of NVRTC's machine code.", "",
            "- A kernel takes max(sectors / bandwidth, longest chain of loads x 600 ns, 3 us). Sectors are the distinct 32-byte pieces of memory that it touches; a",
            "  chain is what one lane loads in a row, as if each load waited for the one before, which is pessimistic.",
            f"- A product takes max(FLOP / (peak x tiles / (waves x multiprocessors)), bytes / bandwidth, 3 us) with tiles of {TILE} x {TILE}. cuBLAS has smaller tiles and",
            "  cuts long sums, so the dense layers' rows are pessimistic. Weight gradients are cut into slices here as `device/cuda.py` cuts them.",
            *(f"- {c.name}: {c.bandwidth / 1e9:,.0f} GB/s, {c.fp32 / 1e12:.1f} TFLOP/s in FP32, {c.tf32 / 1e12:.1f} in TF32 (dense), {c.processors} multiprocessors, {c.l2 >> 20} MB of L2."
              for c in CHIPS),
            "  Sources: NVIDIA's data sheets of the A100 80GB SXM and the H100 SXM, and the white papers of the Ampere and Hopper architectures.",
            f"- The input, {batch} x 256 x 256 x 3 bytes = {batch * 256 * 256 * 3 / 1e6:.0f} MB a step, goes up beside the step before: {batch * 256 * 256 * 3 / 25e9 * 1e3:.1f} ms over PCIe 4.0 at 25 GB/s.", "",
            "![predicted time by kind of work](kernels.png)", "", "## What the compiler made of each kernel, and the predicted occupancy", "", *machine_code(found),
            "No kernel keeps anything in local memory. Loads and stores are 4 bytes a lane, 128 bytes a warp; the wide ones read doubles.", "",
            "## Kernels predicted to launch fewer than 2,000 warps, and why", "", *(f"- `{name}`: {FEW[name]}." for name in few), "", "## A step, kernel by kernel, predicted", ""]


def plot(bars, path, batch):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(bars) + 1.6), layout="constrained")
    labels, left = [f"{net}, {chip}" for net, chip in bars][::-1], np.zeros(len(bars))
    for color, each in zip(plt.get_cmap("tab10").colors, [*KINDS, "crop, dropout, loss"]):
        widths = np.array([bar[each] for bar in bars.values()])[::-1]
        axes.barh(labels, widths, left=left, label=each, color=color)
        left += widths
    for y, width in enumerate(left):
        axes.text(width, y, f" {width:.1f} ms", va="center")
    axes.set(xlabel=f"predicted milliseconds of a training step of {batch} images (no GPU was used)", xlim=(0, 1.12 * left.max()))
    axes.legend(loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", default=["paper", "owt", "half"], choices=list(nets.NETS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--write", action="store_true", help="write docs/kernels.md and docs/kernels.png")
    args = parser.parse_args(arguments)
    found = compiled()
    lines, bars = report(args.net, args.batch, found)
    page = "\n".join([*head(args.batch, found), *lines])
    print(page)
    if args.write:
        (ROOT / "docs/kernels.md").write_text(page.rstrip() + "\n")
        plot(bars, ROOT / "docs/kernels.png", args.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
