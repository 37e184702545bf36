"""Tracing shows seeded faults in how kernels use memory, and its counts are those that follow from the kernels by hand."""

import numpy as np
import pytest
from simt.device import SIMT, why_not
from simt.trace import COUNTS, WAYS, Trace, TraceError

from minialex import functional as F
from minialex.device.kernel import Kernel, declarations, sources
from minialex.ops.bias import add_bias
from minialex.ops.winograd import pitch_of, winograd_input, winograd_output

FAULTS = sources().parent / "tests" / "simt" / "trace_faults.cu"
READ, WRITTEN = ([count + way for count in COUNTS] for way in WAYS)


@pytest.fixture
def trace():
    if why_not():
        pytest.skip(f"no thread-by-thread execution here: {why_not()}")
    return Trace()


def fault(name):
    """That kernel of trace_faults.cu, to launch."""
    reference = eval(f"lambda {', '.join(a.name for a in declarations(FAULTS)[name])}: None")
    reference.__name__ = name
    return Kernel(FAULTS, reference)


def counts(trace, name, fields):
    return [getattr(trace.last.arguments[name], field) for field in fields]


def drawn(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_a_clean_copy_uses_all_that_it_moves(trace):
    x, y = trace.array(drawn(9, 96)), trace.empty((9, 96))
    trace.launch(fault("copied"), 9, x, y)
    np.testing.assert_array_equal(x, y)
    assert (trace.last.kernel, trace.last.rows, trace.last.warps, trace.last.chain) == ("copied", 9, 12, 3)
    assert trace.last.distinct_efficiency == trace.last.instruction_efficiency == 1
    assert counts(trace, "x", READ) == counts(trace, "y", WRITTEN) == [9 * 384, 27, 9 * 384, 27 * 4, 9 * 384, 27 * 4]
    assert not any(counts(trace, "x", WRITTEN) + counts(trace, "y", READ))


@pytest.mark.parametrize("stride, offset, asked, sectors", [
    (1, 0, 128, 4), (2, 0, 128, 8), (8, 0, 128, 32), (1, 1, 128, 5), (0, 0, 4, 1)])
def test_strides_and_misalignment_cost_sectors(trace, stride, offset, asked, sectors):
    x, y = trace.array(drawn(6 * 32 * stride + 1)), trace.empty(6 * 32)
    trace.launch(fault("strided"), 6, x, y, stride, offset)
    assert counts(trace, "x", READ)[:4] == [6 * 128, 6, 6 * asked, 6 * sectors]      # stride 2: 50 %, stride 8: 12.5 %
    assert trace.last.instruction_efficiency == (asked + 128) / (32 * (sectors + 4))


@pytest.mark.parametrize("kernel, arguments, text", [
    ("shared_element", [np.float32], "rows 0 and 8 both write byte 0 of y"),
    ("shared_byte", [np.uint8], "rows 0 and 1 both write byte 31 of y"),
    ("const_written", [np.float32] * 2, "row 3 writes byte 20 of const x"),
])
def test_a_wrong_write_is_an_error_that_says_where(trace, kernel, arguments, text):
    with pytest.raises(TraceError, match=f"^{kernel}: {text}$"):
        trace.launch(fault(kernel), 9, *(trace.zeros((9, 32), dtype) for dtype in arguments))


def test_lanes_that_leave_a_loop_early_do_not_shift(trace):
    x, y = trace.array(drawn(36)), trace.empty((4, 2, 36))
    trace.launch(fault("copied_twice"), 4, x, y)
    assert counts(trace, "x", READ) == [4 * 288, 4 * 4, 4 * 288, 4 * 10, 144, 5]
    assert counts(trace, "y", WRITTEN) == [4 * 288, 4 * 4, 4 * 288, 4 * 11, 4 * 288, 4 * 9]
    assert trace.last.chain == 4


def test_only_the_first_rows_run(trace):
    trace.rows_at_most = 5
    x, y = trace.array(drawn(20, 96)), trace.empty((20, 96))
    with trace.record() as tape:
        trace.launch(fault("copied"), 20, x, y)
    assert trace.last is None
    tape.play()
    assert (trace.last.rows, trace.last.warps, trace.last.bytes_written) == (20, 8, 8 * 384)       # whole blocks of four
    np.testing.assert_array_equal(np.isnan(y[:, 0]), np.arange(20) >= 8)


def test_rows_that_share_a_warp_are_refused(trace):
    trace.largest_grid = 1
    with pytest.raises(TraceError, match="copied: 5 rows share 4 warps"):
        trace.launch(fault("copied"), 5, trace.array(drawn(5, 96)), trace.empty((5, 96)))


def test_bias_relu(trace):
    add_bias(trace, trace.array(drawn(50, 96)), trace.array(drawn(96)), True)
    assert counts(trace, "y", READ) == counts(trace, "y", WRITTEN) == [50 * 384, 150, 50 * 384, 600, 50 * 384, 600]
    assert counts(trace, "b", READ) == [50 * 384, 150, 50 * 384, 600, 384, 12]
    assert trace.last.chain == 6


def test_max_pool(trace):
    F.max_pool2d(drawn(1, 55, 55, 96), 3, stride=2, device=trace)
    rows, loads = 27 * 27, 27 * 27 * 10                  # the first pixel and all nine, 96 channels by 24 lanes that have four each
    assert counts(trace, "x", READ) == [loads * 384, loads, loads * 384, loads * 12, 55 * 55 * 384, 55 * 55 * 12]
    assert counts(trace, "y", WRITTEN) == [rows * 384, rows, rows * 384, rows * 12, rows * 384, rows * 12]
    assert counts(trace, "winner", WRITTEN) == [rows * 96, rows, rows * 96, rows * 3, rows * 96, rows * 3]
    assert trace.last.chain == 10


def test_max_pool_of_channels_that_four_do_not_divide(trace):
    F.max_pool2d(drawn(1, 5, 7, 33), 3, stride=2, device=trace)
    rows, loads = 2 * 3, 2 * 3 * 10                      # twice each: 32 channels and one
    assert counts(trace, "x", READ)[:3] == [loads * 132, loads * 2, loads * 132]
    assert counts(trace, "y", WRITTEN)[:3] == [rows * 132, rows * 2, rows * 132]
    assert trace.last.chain == 20


def test_lrn_reads_its_channels_twice(trace):
    F.local_response_norm(drawn(1, 4, 5, 96), 5, device=trace)
    assert counts(trace, "x", READ) == [20 * 768, 20 * 2, 20 * 768, 20 * 24, 20 * 384, 20 * 12]
    assert counts(trace, "y", WRITTEN) == [20 * 384, 20, 20 * 384, 20 * 12, 20 * 384, 20 * 12]
    assert trace.last.chain == 2


def test_im2col_of_5x5_windows(trace):
    """A line of a window is 160 floats: 32 lanes have four each, and eight of them four more."""
    F.im2col(drawn(1, 9, 9, 32), 5, device=trace)
    assert counts(trace, "x", READ) == [25 * 3200, 25 * 10, 25 * 3200, 25 * 100, 81 * 128, 81 * 4]
    assert counts(trace, "columns", WRITTEN) == [25 * 3200, 25 * 10, 25 * 3200, 25 * 100, 25 * 3200, 25 * 100]
    assert trace.last.chain == 10


def test_winograd_input_of_tiles_that_hang_over(trace):
    """F(4x4, 3x3) of 7 x 9 pixels and 96 channels from (-1, -1) on: 2 x 3 tiles have 5 + 4 of the rows and 5 + 6 + 2 of the columns."""
    pitch, pixels = pitch_of(6 * 96), (5 + 4) * (5 + 6 + 2)
    trace.launch(winograd_input, 6, trace.array(drawn(1, 7, 9, 96)), trace.empty(36 * pitch), 4, 3, 7, 9, 96, 2, 3, 1, 1, 1, pitch)
    assert counts(trace, "x", READ) == [pixels * 384, pixels * 3, pixels * 384, pixels * 12, 63 * 384, 63 * 12]
    written = 6 * 36
    assert counts(trace, "planes", WRITTEN) == [written * 384, written * 3, written * 384, written * 12, written * 384, written * 12]
    assert trace.last.chain == 5 * 6 * 3      # of the tile in the middle


def test_winograd_output_of_tiles_that_hang_over(trace):
    """The same tiles have 4 + 3 of the rows and 4 + 4 + 1 of the columns; a lane's bias is read once for a tile."""
    pitch = pitch_of(6 * 96)
    trace.launch(winograd_output, 6, trace.array(drawn(36 * pitch)), trace.empty((7, 9, 96)), trace.array(drawn(96)), 4, 3, 7, 9, 96, 2, 3, 1, pitch, 1, 1)
    read, pixels = 6 * 36, 63
    assert counts(trace, "planes", READ) == [read * 384, read * 3, read * 384, read * 12, read * 384, read * 12]
    assert counts(trace, "y", WRITTEN) == [pixels * 384, pixels * 3, pixels * 384, pixels * 12, pixels * 384, pixels * 12]
    assert counts(trace, "bias", READ) == [6 * 384, 6 * 3, 6 * 384, 6 * 12, 384, 12]
    assert trace.last.chain == 37 * 3


@pytest.mark.parametrize("op", [
    lambda d: F.local_response_norm_backward(drawn(2, 263), drawn(2, 263)[::-1].copy(), 9, alpha=0.8, device=d),
    lambda d: F.softmax(drawn(5, 77), device=d),
    lambda d: F.im2col(drawn(1, 13, 12, 3), 11, stride=4, pad=2, device=d),
], ids=["lrn_backward", "softmax", "im2col"])
def test_tracing_changes_no_bit(trace, op):
    assert op(trace).tobytes() == op(SIMT("permuted")).tobytes()
