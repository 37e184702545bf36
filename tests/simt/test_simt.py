"""The SIMT executor catches seeded faults, and the kernels' CUDA branch gives what their CPU branch gives."""

import os
import subprocess

import numpy as np
import pytest
from simt.device import ORDERS, SIMT, SIMT_FLAGS, SimtError, why_not

from minialex import functional as F
from minialex.device.cpu import CPU
from minialex.device.kernel import Kernel, sources
from minialex.ops.bias import add_bias, bias_gradient, bias_partials
from minialex.ops.softmax import cross_entropy_rows
from minialex.ops.winograd import (FORMS, pitch_of, strips, winograd_blocks, winograd_filter, winograd_filter_gradient, winograd_input,
                                   winograd_output, winograd_pixels, winograd_spread)

FAULTS = sources().parent / "tests" / "simt" / "faults.cu"
ASCENDING, DESCENDING, PERMUTED = ORDERS.values()


@pytest.fixture(scope="module")
def simt():
    if why_not():
        pytest.skip(f"no thread-by-thread execution here: {why_not()}")
    device = SIMT()
    device.libraries[FAULTS] = device.builder.build("faults", device.text(FAULTS))
    return device


@pytest.fixture(params=ORDERS.values(), ids=ORDERS)
def order(simt, request):
    simt.order = request.param
    yield request.param
    simt.order = ASCENDING


def fault(name, *arguments):
    """That kernel of faults.cu, to launch."""
    reference = eval(f"lambda rows, {', '.join(arguments)}: None")
    reference.__name__ = name
    return Kernel(FAULTS, reference)


def run(simt, name, rows, count, x=None):
    """What a fault kernel writes: rows, x, or rows, x, y where x is given."""
    y = simt.empty(count)
    if x is None:
        simt.launch(fault(name, "x"), rows, y)
    else:
        simt.launch(fault(name, "x", "y"), rows, simt.array(x), y)
    return y


def in_each_order(simt, *case, **more):
    results = []
    for simt.order in (ASCENDING, DESCENDING, PERMUTED, PERMUTED + 1):
        results.append(run(simt, *case, **more).tobytes())
    simt.order = ASCENDING
    return results


@pytest.mark.parametrize("largest_grid", [1, 2, 1000])
@pytest.mark.parametrize("block", [32, 96, 128])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 33])
def test_each_row_is_visited_once(simt, order, rows, block, largest_grid, monkeypatch):
    monkeypatch.setattr(simt, "largest_grid", largest_grid)
    monkeypatch.setattr(simt, "block", block)
    x = simt.zeros(40)
    simt.launch(fault("visits", "x"), rows, x)
    np.testing.assert_array_equal(x, np.arange(40) < rows)


@pytest.mark.parametrize("name, text", [
    ("sum_in_a_branch", "waits at __shfl_xor_sync for lane 5 of warp 0, which has returned"),
    ("sums_in_two_branches", "which waits at another __shfl_xor_sync (mask 0xffffffff)"),
    ("lane_outside_its_mask", "is not in the mask 0x0000ffff of its own __shfl_xor_sync"),
    ("asks_outside_its_mask", "which is not in the mask 0x0000ffff of its __shfl_xor_sync"),
    ("barrier_in_a_row", "waits at __syncthreads for lane 0 of warp 1, which has returned"),
])
def test_a_lane_that_is_missing_is_an_error_that_names_the_kernel(simt, order, name, text):
    with pytest.raises(SimtError) as told:
        run(simt, name, 1, 32)
    assert str(told.value).startswith(f"{name}: block 0, warp 0: lane ") and text in str(told.value)
    np.testing.assert_array_equal(run(simt, "barrier_of_all", 6, 6), 4)       # and the next launch runs


def test_collectives_in_part_of_a_warp(simt, order):
    lanes = np.arange(32)
    np.testing.assert_array_equal(run(simt, "half_warps", 3, (3, 32)), np.tile(lanes ^ 15, (3, 1)))


def test_a_race_shows_as_a_result_that_changes_with_the_order(simt):
    x = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    expected = np.roll(x, -1, axis=1).tobytes()
    assert in_each_order(simt, "neighbour_synced", 6, (6, 32), x=x) == [expected] * 4
    assert len(set(in_each_order(simt, "neighbour_race", 6, (6, 32), x=x))) > 1
    assert len(set(in_each_order(simt, "lanes_race", 6, 6))) > 1
    assert len(set(in_each_order(simt, "rows_race", 16, 8))) > 1


def test_what_was_not_written_is_nan(simt, order):
    np.testing.assert_array_equal(np.isnan(run(simt, "missing_write", 2, (2, 32))), [[False] * 31 + [True]] * 2)
    run(simt, "neighbour_synced", 4, (4, 32), x=np.ones((4, 32)))
    assert np.isnan(run(simt, "stale_scratch", 2, (2, 32))).all()


def test_denormals_are_flushed_during_a_launch_only(simt):
    x = simt.array([1.5e-38, 2.0])
    simt.launch(fault("half_of", "x"), 2, x)
    np.testing.assert_array_equal(x, [0, 1])
    assert np.float32(1.5e-38) * np.float32(0.5) != 0


@pytest.mark.skipif("SIMT_SANITIZE" in os.environ, reason="UndefinedBehaviorSanitizer ends the process there")
def test_an_access_that_is_not_aligned_is_an_error_that_says_so(simt):
    x, y = simt.array(np.arange(3 * 64 + 4, dtype=np.float32)), simt.empty((3, 64))
    simt.launch(fault("four_at_once", "x", "y"), 3, x[4:], y)
    np.testing.assert_array_equal(y.ravel(), x[4:])
    for start in (1, 2, 3):
        with pytest.raises(SimtError, match="^four_at_once: block 0, warp 0: lane 0 touches a 'const struct float4' that is not at a multiple of 16 bytes"):
            simt.launch(fault("four_at_once", "x", "y"), 3, x[start:], y)
    simt.launch(fault("four_from_scratch", "x", "start"), 1, y[:2], 4)
    np.testing.assert_array_equal(y[:2].ravel(), np.arange(4, 132))
    with pytest.raises(SimtError, match="^four_from_scratch: .* touches a .* that is not at a multiple of 16 bytes"):
        simt.launch(fault("four_from_scratch", "x", "start"), 1, y[:2], 2)


PROGRAM = """
#include <stdlib.h>
int main(int count, char** arguments) {
    float *x = (float*)malloc(32 * 4), *y = (float*)malloc(32 * 4);
    memset(x, 0, 32 * 4);
    Slot read[4], shared[3];
    read[0].l = 1, read[1].p = x, read[2].p = y, read[3].i = atoi(arguments[1]);
    shared[0].l = 1, shared[1].p = y, shared[2].i = atoi(arguments[2]);
    const simt::Shape shape = {1, 128, 2, 0, 0};
    return run_past_the_end(read, &shape) || run_past_the_scratch(shared, &shape);
}
"""


@pytest.mark.parametrize("switch", ["assembler", "ucontext"])
def test_out_of_bounds_under_address_sanitizer(simt, tmp_path, switch):
    program = tmp_path / "program"
    flags = ["-fsanitize=address", "-fsanitize-sections=simt_shared", *["-DSIMT_UCONTEXT"] * (switch == "ucontext")]
    (tmp_path / "program.cpp").write_text(simt.text(FAULTS) + PROGRAM)
    built = subprocess.run([*simt.builder.compiler, *(f for f in SIMT_FLAGS if f not in ("-shared", "-fPIC")), *flags,
                            str(tmp_path / "program.cpp"), "-o", str(program)], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"no AddressSanitizer with {simt.builder.version}: {built.stderr.strip()[-200:]}")
    for read, written, kind in ((31, 32, None), (32, 32, "heap-buffer-overflow"), (31, 33, "global-buffer-overflow")):
        done = subprocess.run([program, str(read), str(written)], capture_output=True, text=True, env={"ASAN_OPTIONS": "detect_leaks=0"})
        assert (done.returncode == 0 and "ERROR" not in done.stderr) if kind is None else (kind in done.stderr), done.stderr


# ---- The CUDA branch against the CPU branch ----

def drawn(*shape):
    """Normal numbers with ties, zeros and a NaN among them."""
    x = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    x.reshape(-1)[::3] = x.reshape(-1)[::3].round()
    return x


def with_nan(x):
    x.reshape(-1)[len(x.reshape(-1)) // 2] = np.nan
    return x


def bias(device, relu, pixels, channels):
    y, dy = device.array(drawn(pixels, channels)), device.array(drawn(channels, pixels).T)
    add_bias(device, y, device.array(drawn(channels)), relu)
    db, space = device.array(drawn(channels)), device.empty(bias_partials(pixels, channels))
    bias_gradient(device, y, dy, db, space, relu, accumulate=True)
    return y, dy, db


def rank(device):
    label, out, totals = device.array(np.arange(13, dtype=np.int32)), device.empty(13), device.zeros((3, 13), np.float64)
    device.launch(cross_entropy_rows, 13, device.array(drawn(13, 37)), label, device.array(np.ones(37)), device.empty(13), out, totals, device.empty((13, 37)), 37, 13, 1,
                  1.0, 0.0)
    return out, device.to_numpy(totals)[1:].astype(np.float32)


def winograd(device, m, r, groups=2, own=35):
    """What each kernel of the form makes of images of 7 x 6 pixels, and of `own` filters of as many channels."""
    channels, pitch, weights = groups * own, pitch_of(2 * -(-7 // m) * -(-6 // m) * own), pitch_of(own * own)
    tiles, rows, values = 2 * -(-7 // m) * -(-6 // m) * groups, groups * own * strips(own), (m + r - 1) ** 2 * groups
    x, w = device.array(drawn(2, 7, 6, channels)), device.array(drawn(r, r, own, channels))
    made = [device.zeros(values * floats) for floats in (pitch, pitch, weights, weights)]
    form, image, y, dw = (m, r), (7, 6, channels, -(-7 // m), -(-6 // m)), device.empty(x.shape), [device.array(drawn(r, r, own, channels)) for _ in range(2)]
    device.launch(winograd_input, tiles, x, made[0], *form, *image, 1, 2, groups, pitch)
    device.launch(winograd_spread, tiles, x, made[1], *form, *image, groups, pitch)
    device.launch(winograd_output, tiles, device.array(drawn(values * pitch)), y, device.array(drawn(channels)), *form, *image, groups, pitch, 1, 1)
    for turned in (0, 1):
        device.launch(winograd_filter, rows, w, made[2 + turned], *form, groups, own, own, channels, own * channels, weights, turned)
        device.launch(winograd_filter_gradient, rows, device.array(drawn(values * weights)), dw[turned], *form, groups, channels, weights, turned, 1)
    return *made, y, *dw


def blocks(device, channels):
    """3 x 3 blocks of 4 x 4 pixels, of images of 9 x 7 from (-2, -3) on; and images that such blocks are added to."""
    shape = 4, 9, 7, channels, 3, 3, 2, 3
    made, x = device.empty((2, 3, 3, 16 * channels)), device.array(drawn(2, 9, 7, channels))
    device.launch(winograd_blocks, 2 * 3 * 3, device.array(drawn(2, 9, 7, channels)), made, *shape)
    device.launch(winograd_pixels, 2 * 9 * 7, device.array(drawn(*made.shape)), x, *shape, 1)
    return made, x


X, FOURS = drawn(2, 9, 7, 33), drawn(2, 9, 7, 24)      # the channels of the second lie at multiples of four floats, and so do those of its groups
POOLS = {"3/2": {"size": 3, "stride": 2}, "hanging over": {"size": (2, 3), "stride": (1, 2), "pad": 1}, "ceil": {"size": 3, "stride": 3, "ceil": True}}
CONVS = {"11/4": {"stride": 4, "pad": (3, 5)}, "groups": {"groups": 3, "pad": ((1, 2), (0, 3))}, "33 groups": {"groups": 33, "stride": (1, 3)}}
CONVS_OF_FOURS = {"one group": {"stride": (1, 3), "pad": 2}, "groups": {"groups": 3, "pad": ((1, 2), (0, 3))}}
EQUAL = {         # the same operations in the same order, none of which a compiler may fuse
    **{f"im2col {k}": lambda d, o=o: F.im2col(X, (5, 3), **o, device=d) for k, o in CONVS.items()},
    **{f"im2col of fours, {k}": lambda d, o=o: F.im2col(FOURS, (5, 3), **o, device=d) for k, o in CONVS_OF_FOURS.items()},
    "im2col of 160 channels": lambda d: F.im2col(drawn(1, 4, 3, 160), (2, 3), pad=1, device=d),
    "im2col beside its image": lambda d: F.im2col(drawn(1, 3, 2, 4), 2, stride=3, pad=4, device=d),
    "im2col of 3 channels, hanging over": lambda d: F.im2col(drawn(1, 8, 21, 3), (5, 4), stride=(2, 1), pad=((3, 1), (2, 5)), device=d),
    "im2col of 3 channels": lambda d: F.im2col(drawn(2, 13, 12, 3), 11, stride=4, pad=2, device=d),
    **{f"col2im {k}": lambda d, o=o: F.col2im(drawn(*F.im2col(X, (5, 3), **o, device="numpy").shape), X.shape, (5, 3), **o, device=d)
       for k, o in CONVS.items()},
    **{f"col2im of fours, {k}": lambda d, o=o: F.col2im(drawn(*F.im2col(FOURS, (5, 3), **o, device="numpy").shape), FOURS.shape, (5, 3), **o, device=d)
       for k, o in CONVS_OF_FOURS.items()},
    **{f"pool of fours, {k}": lambda d, o=o: F.max_pool2d(with_nan(FOURS.copy()), **o, device=d) for k, o in POOLS.items()},
    **{f"pool_backward of fours, {k}": lambda d, o=o: F.max_pool2d_backward(drawn(*F.max_pool2d(FOURS, **o, device="numpy").shape), FOURS, **o, device=d)
       for k, o in POOLS.items()},
    **{f"pool {k}": lambda d, o=o: F.max_pool2d(with_nan(X.copy()), **o, device=d) for k, o in POOLS.items()},
    **{f"pool_backward {k}": lambda d, o=o: F.max_pool2d_backward(drawn(*F.max_pool2d(X, **o, device="numpy").shape), X, **o, device=d)
       for k, o in POOLS.items()},
    "relu": lambda d: F.relu(with_nan(X.copy()), device=d),
    "relu_backward": lambda d: F.relu_backward(drawn(*X.shape), X, device=d),
    "dropout": lambda d: F.dropout(X, p=0.3, seed=2**63 + 5, device=d),
    "rank": rank,
    **{f"blocks of {channels} channels": lambda d, c=channels: blocks(d, c) for channels in (3, 37)},
}
CLOSE = {         # fused multiply-adds, or sums whose order differs
    **{f"lrn {size} {beta}": lambda d, s=size, b=beta: F.local_response_norm(X, s, alpha=0.8, beta=b, device=d)
       for size, beta in ((5, 0.75), (1, 0.5), (63, 1.0), (7, 0.3))},
    **{f"lrn of {x.shape[-1]} channels, {size}": lambda d, x=x, s=size: F.local_response_norm(x, s, alpha=0.8, device=d)
       for x in (FOURS, drawn(1, 520)) for size in (5, 9)},
    **{f"lrn_backward of {x.shape[-1]} channels, {size}": lambda d, x=x, s=size: F.local_response_norm_backward(x[..., ::-1].copy(), x, s, alpha=0.8, device=d)
       for x in (FOURS, drawn(1, 520)) for size in (5, 9)},
    "lrn of 263 channels": lambda d: F.local_response_norm(drawn(3, 263), 9, alpha=0.8, device=d),
    **{f"lrn_backward {size} {beta}": lambda d, s=size, b=beta: F.local_response_norm_backward(drawn(*X.shape), X, s, alpha=0.8, beta=b, device=d)
       for size, beta in ((5, 0.75), (1, 0.5), (63, 1.0), (7, 0.3))},
    "lrn_backward of 263 channels": lambda d: F.local_response_norm_backward(drawn(3, 263), drawn(3, 263), 9, alpha=0.8, device=d),
    **{f"winograd of {m}x{m}, {r}x{r}": lambda d, m=m, r=r: winograd(d, m, r) for r, sizes in FORMS.items() for m in sizes},
    "bias": lambda d: bias(d, False, 67, 131),
    "bias with relu": lambda d: bias(d, True, 35, 263),
    **{f"sgd {form}": lambda d, f=form: F.sgd_update(drawn(2051), drawn(2051), drawn(2051), lr=0.1, weight_decay=0.01, form=f, device=d)
       for form in ("2012", "torch")},
    "average": lambda d: (F.average_update(drawn(2051), drawn(2051)[::-1].copy(), step=3, decay=0.9, device=d),),
    "adam": lambda d: F.adam_update(drawn(2051), drawn(2051), np.abs(drawn(2051)), drawn(2051), step=3, lr=0.1, device=d),
    "augment": lambda d: F.augment_images(np.arange(7 * 7 * 3, dtype=np.uint8).reshape(1, 7, 7, 3), drawn(1, 18), 5, fill="reflect", device=d),
    "softmax": lambda d: F.softmax(drawn(5, 77), device=d),
    "cross_entropy": lambda d: F.softmax_cross_entropy(drawn(5, 77), np.arange(5), smoothing=0.1, weight=1 + drawn(77) ** 2, device=d),
    "clip_gradients": lambda d: tuple(F.clip_gradients([drawn(9000), drawn(31), drawn(3, 700)], 2.0, device=d)[0]),
}


def results(case, device):
    result = case(device)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", [*EQUAL, *CLOSE])
def test_the_cuda_branch_gives_what_the_cpu_branch_gives(cpu, simt, name):
    case = {**EQUAL, **CLOSE}[name]
    for simt.order, simt.largest_grid, simt.block in ((ASCENDING, 1000, 128), (DESCENDING, 3, 32), (PERMUTED, 1, 64)):
        for ours, other in zip(results(case, simt), results(case, cpu), strict=True):
            if name in EQUAL:
                np.testing.assert_array_equal(ours, other)
            else:
                np.testing.assert_allclose(ours, other, rtol=2e-6, atol=2e-6 * np.abs(other).max())
    simt.order, simt.largest_grid, simt.block = ASCENDING, 1000, 128


WIDE = [name for name in (*EQUAL, *CLOSE) if name.startswith(("im2col", "col2im", "pool", "lrn"))]


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("start", [1, 2])
def test_arrays_that_start_anywhere(cpu, simt, name, start, monkeypatch):
    """A kernel that would take four floats at once from them is an error of the executor's."""
    def askew(shape, dtype=None):
        dtype = np.dtype(simt.float if dtype is None else dtype)
        size = int(np.prod(shape, dtype=np.int64))
        array = CPU.empty(simt, (size + start,), dtype)[start:].reshape(shape)
        array.reshape(-1).view(np.uint8).fill(0xFF)
        return array
    case = {**EQUAL, **CLOSE}[name]
    expected = results(case, cpu)
    monkeypatch.setattr(simt, "empty", askew)
    for ours, other in zip(results(case, simt), expected, strict=True):
        np.testing.assert_allclose(ours, other, rtol=2e-6, atol=2e-6 * np.nanmax(np.abs(other)))


def test_grids_and_orders_change_no_bit(simt):
    random = np.random.default_rng(3)
    x, w = random.standard_normal((2, 13, 11, 6)).astype(np.float32), random.standard_normal((3, 3, 3, 70)).astype(np.float32)
    dy = random.standard_normal((2, 13, 11, 70)).astype(np.float32)
    results = []
    for device in (SIMT("ascending"), SIMT("permuted", 1), SIMT("descending", 3), SIMT("permuted", 7, block=32), SIMT("descending", block=64)):
        results.append([*F.conv2d_backward(dy, x, w, pad=1, groups=2, device=device), F.local_response_norm(x, alpha=0.5, device=device),
                        F.local_response_norm_backward(x, x, alpha=0.5, device=device),
                        F.max_pool2d_backward(dy[:, :6, :5], dy, 3, stride=2, device=device)])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))
