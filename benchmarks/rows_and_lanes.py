"""The kernels most likely to break rows and lanes: CPU time against memcpy, registers on GPUs, warps, and both branches equal.

python benchmarks/rows_and_lanes.py [--rounds 15]        (docs/rows-and-lanes.md holds its table)

CPU time is one core's at AlexNet's sizes, 8 images, beside a memcpy of the bytes that the kernel must move (each input
read once, each output written once), alternating; the table gives the median of the ratios. The CUDA branch is run
thread by thread (tests/simt) on smaller arrays and compared with the CPU branch.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import nvrtc  # noqa: E402
from sides import seconds  # noqa: E402
from simt.device import SIMT  # noqa: E402

from minialex.device.cpu import CPU  # noqa: E402
from minialex.device.kernel import sources  # noqa: E402
from minialex.ops.bias import STRIP, bias_backward, slices  # noqa: E402
from minialex.ops.conv import Conv  # noqa: E402
from minialex.ops.im2col import Im2col, col2im, im2col  # noqa: E402
from minialex.ops.lrn import lrn, lrn_backward  # noqa: E402
from minialex.ops.pool import MaxPool, max_pool, max_pool_backward  # noqa: E402
from minialex.optim import BLOCK, sgd  # noqa: E402


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def cases(n, reduced=False):
    """(name, kernel, rows, arguments after rows, bytes) for n images; `reduced` makes the images small."""
    def conv(kind, size, channels, layer):
        shape = (size, size, channels)
        out, way = layer.output(shape), Im2col(layer, shape)
        columns = floats(n * way.image)
        used = n * out[0] * out[1] * layer.fan_in(shape) * layer.groups * 4
        moved = n * size * size * channels * 4 + used
        if kind is im2col:
            return im2col, n * out[0] * -(-out[1] // way.strip) * layer.groups, (floats(n, *shape), columns, *way.geometry(), way.strip), moved
        return col2im, n * size * size * layer.groups, (columns, floats(n, *shape), *way.geometry()), moved

    first, second = (35, 9) if reduced else (227, 27)
    yield ("im2col, conv1 of paper", *conv(im2col, first, 3, Conv(96, 11, 4)))
    yield ("im2col, conv2 of paper", *conv(im2col, second, 96, Conv(256, 5, 1, 2, groups=2)))
    yield ("col2im, conv2 of paper", *conv(col2im, second, 96, Conv(256, 5, 1, 2, groups=2)))
    side, channels = 11 if reduced else 55, 96
    shape, pool = (side, side, channels), MaxPool(3, 2)
    out = pool.output(shape)
    x, y, winner = floats(n, *shape), floats(n, *out), np.random.default_rng(1).integers(0, 9, (n, *out), np.uint8)
    window = (*shape, *pool.window.arguments(side, side))
    yield "max-pool 3/2, 55x55x96", max_pool, y.size // channels, (x, y, winner, x[0, 0, 0], *window, 1, 1), x.nbytes + y.nbytes + winner.nbytes
    yield "max-pool backward", max_pool_backward, x.size // channels, (y, winner, x.copy(), *window), x.nbytes + y.nbytes + winner.nbytes
    yield "LRN, 55x55x96", lrn, x.size // channels, (x, x.copy(), channels, 5, 1e-4, 0.75, 2.0), 2 * x.nbytes
    yield "LRN backward", lrn_backward, x.size // channels, (x, floats(*x.shape), x.copy(), channels, 5, 1e-4, 0.75, 2.0), 3 * x.nbytes
    pixels = x.size // channels
    slice, count = slices(pixels)
    yield ("bias gradient with ReLU", bias_backward, count * -(-channels // STRIP),
           (x, floats(*x.shape), floats(count, channels), pixels, channels, slice, 1), 3 * x.nbytes)
    size = 5000 if reduced else 4 << 20
    yield ("SGD, 2012 form, 4 M weights", sgd, -(-size // BLOCK),
           (floats(size), floats(size), floats(size), size, np.array([0.0, 0.01]), 1.0, 0.9, 5e-4, 1), 5 * size * 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    library = nvrtc.find_nvrtc()
    if not library:
        sys.exit("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    about = {(a, name): facts for a in (80, 90) for file in sorted(sources().glob("*.cu")) for name, facts in nvrtc.compile_file(library, file, a).items()}
    cpu, simt = CPU(1), SIMT("permuted")
    print("| kernel | time / memcpy of its bytes (min to max) | registers sm_80, sm_90 | spills | warps at batch 128 | CUDA branch = CPU branch |")
    print("|---|---|---|---|---|---|")
    for (name, kernel, rows, arguments, moved), (_, _, few, small, _) in zip(cases(8), cases(2, reduced=True)):
        arguments = [cpu.array(a, a.dtype) if isinstance(a, np.ndarray) else a for a in arguments]
        with cpu.record() as tape:
            cpu.launch(kernel, rows, *arguments)
        source, target = np.ones(moved // 2, np.uint8), np.ones(moved // 2, np.uint8)      # a copy reads and writes
        tape.play()
        ratios = sorted(seconds(tape.play) / seconds(lambda: np.copyto(target, source)) for _ in range(rounds))
        warps = rows * 16 if "weights" not in name and "gradient" not in name else rows
        if "gradient" in name:
            warps = slices(128 * 55 * 55)[1] * -(-96 // STRIP)
        both = []
        for device in (cpu, simt):
            copies = [device.array(a, a.dtype) if isinstance(a, np.ndarray) else a for a in small]
            device.launch(kernel, few, *copies)
            both.append([c for c in copies if isinstance(c, np.ndarray)])
        worst = max(float(np.nanmax(np.abs(a.astype(np.float64) - b))) for a, b in zip(*both))
        facts = [about[a, kernel.name] for a in (80, 90)]
        equal = "bit for bit" if worst == 0 else f"within {worst:.0e}"
        print(f"| {name} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {facts[0]['registers']}, {facts[1]['registers']} | "
              f"{max(f['spill_stores'] for f in facts)} | {warps:,} | {equal} |", flush=True)


if __name__ == "__main__":
    main()
