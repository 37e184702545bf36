"""The executor itself: small kernels with seeded faults are caught, and every kernel's CUDA branch agrees with its CPU branch."""

import ctypes
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from minialex import gradcheck
from minialex.device.cpu import SLOT, Builder
from minialex.device.kernel import source_text, sources
from simt.device import ORDERS, SIMT, TRAMPOLINE

SOUND = """
KERNEL neighbours(long long rows, const float* x, float* y, int n) {
    ROW_SCRATCH(float, line, 64);
    ROWS(r, rows) {
        LANES(i, n) line[i] = x[r * n + i];
        row_sync();
        float zero = row_sum(0.0f);
        row_sync();
        LANES(i, n) y[r * n + i] = zero + line[n - 1 - i];
        row_sync();
    }
}
"""
SYNCS = """        row_sync();
        float zero = row_sum(0.0f);
        row_sync();
"""
FAULTS = {
    "sound": ("", "", None),
    "no row_sync between writing and reading": (SYNCS, "        float zero = 0;\n", "differs"),
    "a lane missing at a shuffle": ("= row_sum(0.0f)", "= MY_LANE == 3 ? 0.0f : row_sum(0.0f)", "never reach"),
    "a shuffle with part of the warp": ("row_sum(0.0f)", "__shfl_xor_sync(0xffffu, 0.0f, 1)", "not the whole warp"),
    "two lanes write one element": ("y[r * n + i] =", "y[r * n + i / 2] =", "differs"),
    "a write that is missing": ("LANES(i, n) y[r * n + i]", "LANES(i, n) if (i) y[r * n + i]", "poison"),
}


def run_kernel(text, order, flags=()):
    """The 3 x 32 output of a version of SOUND; "poison" where nothing was written."""
    device = SIMT.__new__(SIMT)
    SIMT.__init__(device, order)
    library = Builder([*device.flags, *flags]).build("seeded", device.prelude + source_text_of(text) + SLOT + TRAMPOLINE.format(
        name="neighbours", arguments="s[0].l, (const float*)s[1].p, (float*)s[2].p, s[3].i"))
    x, y = heap(np.arange(96, dtype=np.float32).reshape(3, 32)), np.full((3, 32), np.nan, np.float32)
    slots = np.array([3, x.ctypes.data, y.ctypes.data, 32], np.uint64)
    library.run_neighbours.restype = ctypes.c_char_p
    problem = library.run_neighbours(ctypes.c_void_p(slots.ctypes.data), ctypes.c_longlong(1), ctypes.c_longlong(128 << 8 | ORDERS[order]))
    return problem.decode() if problem else y


def source_text_of(text):
    return re.sub("#pragma once", "", (sources() / "grid.cuh").read_text()) + text


def heap(array):
    """A copy in a block of its own from malloc, whose ends a sanitizer guards (numpy keeps small blocks for itself)."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    copy = np.frombuffer((ctypes.c_char * array.nbytes).from_address(libc.malloc(ctypes.c_size_t(array.nbytes))), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("fault", FAULTS)
def test_seeded_faults_are_caught(fault):
    before, after, sign = FAULTS[fault]
    assert before in SOUND
    results = [run_kernel(SOUND.replace(before, after), order) for order in ORDERS]
    expected = np.arange(96, dtype=np.float32).reshape(3, 32)[:, ::-1]
    if sign is None:
        assert all(np.array_equal(result, expected) for result in results)
    elif sign == "poison":
        assert all(np.isnan(result).any() for result in results)
    elif sign == "differs":
        assert any(not np.array_equal(results[0], result) for result in results[1:])
    else:
        assert all(sign in result for result in results)


@pytest.mark.slow
def test_a_read_out_of_bounds_is_caught_by_the_address_sanitizer():
    program = """
import sys; sys.path.insert(0, sys.argv[1])
from simt.test_simt import SOUND, run_kernel
print("sum", run_kernel(SOUND.replace("= x[r * n + i]", sys.argv[2]), "permuted", ["-fsanitize=address", "-g"]).sum())
"""
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0"}
    sound, beyond = (subprocess.run([sys.executable, "-c", program, os.path.dirname(os.path.dirname(__file__)), load], capture_output=True,
                                    text=True, env=environment) for load in ("= x[r * n + i]", "= x[r * n + i + 1]"))
    assert sound.stdout == "sum 4560.0\n" and sound.returncode == 0, sound.stderr
    assert "heap-buffer-overflow" in beyond.stderr and "in neighbours" in beyond.stderr and beyond.returncode, beyond.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_every_op_keeps_its_ties_in_every_order(order):
    device = SIMT(order)
    for op, shapes, options in gradcheck.CASES:
        skipped = gradcheck.check_op(op, shapes, options, device=device)
        assert not any(skipped.values())


def test_grids_blocks_and_orders_change_no_bit():
    random = np.random.default_rng(3)
    x, w = random.standard_normal((2, 13, 11, 6)).astype(np.float32), random.standard_normal((3, 3, 3, 70)).astype(np.float32)
    dy = random.standard_normal((2, 13, 11, 70)).astype(np.float32)
    from minialex import functional as F
    results = []
    for order, threads, blocks in (("ascending", 128, None), ("permuted", 128, 1), ("descending", 32, None), ("permuted", 64, 3)):
        device = SIMT(order, threads, blocks)
        results.append([*F.conv2d_backward(dy, x, w, pad=1, groups=2, device=device), F.local_response_norm(x, alpha=0.5, device=device),
                        F.local_response_norm_backward(x, x, alpha=0.5, device=device), F.max_pool2d_backward(
                            dy[:, :6, :5], dy, 3, stride=2, device=device)])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))
