"""Max-pool: the three ties over odd windows, whose maximum it is when two are equal, and NaN."""

import numpy as np
import pytest

from minialex.functional import max_pool2d, max_pool2d_backward
from minialex.gradcheck import check_op, to_host
from minialex.ops.layer import device_of
from minialex.ops.pool import MaxPool, max_pool

CASES = {                # x, options
    "one pixel": ((1, 1, 1, 1), {"size": 1}),
    "one pixel under a large window": ((2, 1, 1, 3), {"size": 3, "pad": 1}),
    "overlapping": ((2, 7, 5, 31), {"size": 3, "stride": 2}),
    "primes": ((3, 11, 13, 3), {"size": (5, 3), "stride": (3, 2)}),
    "33 channels": ((1, 5, 6, 33), {"size": 2}),
    "48 channels": ((2, 6, 6, 48), {"size": 3, "stride": 2, "ceil": True}),
    "257 channels": ((1, 4, 3, 257), {"size": 2, "stride": 1}),
    "over every edge": ((2, 3, 4, 2), {"size": 3, "stride": 1, "pad": 2}),
    "asymmetric padding": ((2, 6, 5, 3), {"size": (4, 3), "stride": 2, "pad": ((1, 3), (0, 2))}),
    "ceil over the edge": ((2, 6, 8, 3), {"size": 3, "stride": 2, "ceil": True}),
    "ceil whose last window is dropped": ((1, 5, 5, 2), {"size": 2, "stride": 3, "pad": 1, "ceil": True}),
    "stride beyond the window": ((2, 11, 9, 3), {"size": 2, "stride": (5, 4)}),
    "stride beyond the window, ceil": ((2, 11, 9, 3), {"size": 2, "stride": (4, 4), "ceil": True}),
    "255 elements": ((1, 17, 19, 2), {"size": (15, 17), "stride": 1}),
    "255 elements in a row": ((1, 2, 256, 1), {"size": (1, 255), "stride": 1}),
    "batch of 1": ((1, 6, 6, 5), {"size": 3, "stride": 2}),
    "empty batch": ((0, 6, 6, 5), {"size": 3, "stride": 2}),
}


@pytest.mark.parametrize("x, options", CASES.values(), ids=CASES)
def test_three_ties(device, x, options):
    assert check_op("max_pool2d", {"x": x}, options, device=device, directions=3 if np.prod(x) > 200 else None) == {"tie in a maximum": 0}


def test_equal_maxima_are_skipped_by_name_and_counted(device):
    for x, options in CASES.values():
        if 1 < np.prod(x) < 200 and options["size"] not in (1, (1, 255)):
            assert check_op("max_pool2d", {"x": x}, options, device=device, ties=True).keys() == {"tie in a maximum"}
    assert 20 < check_op("max_pool2d", {"x": (2, 6, 5, 3)}, {"size": 2}, device=device, ties=True)["tie in a maximum"] < 180


@pytest.mark.parametrize("x, options", CASES.values(), ids=CASES)
def test_the_kernel_chooses_the_references_winner_among_equals(device, x, options):
    x = np.random.default_rng(8).integers(-2, 3, x).astype(np.float32)
    y = max_pool2d(x, device="numpy", **options)
    dy = np.arange(1, y.size + 1, dtype=np.float32).reshape(y.shape)
    np.testing.assert_array_equal(to_host(max_pool2d(x, device=device, **options)), y)
    np.testing.assert_array_equal(to_host(max_pool2d_backward(dy, x, device=device, **options)), max_pool2d_backward(dy, x, device="numpy", **options))


def plain(x, size, stride, pad, ceil):
    """The rule, as loops over windows. -> y, and the winner's (h, w)"""
    n, height, width, channels = x.shape
    counts = []
    for length, k, s, (before, after) in zip((height, width), size, stride, pad):
        count = (-(-(length + before + after - k) // s) if ceil else (length + before + after - k) // s) + 1
        counts.append(count - (ceil and (count - 1) * s >= length + before))
    y, winner = np.zeros((n, *counts, channels)), np.zeros((n, *counts, channels, 2), int)
    for i, oh, ow, c in np.ndindex(y.shape):
        best = None
        for h in range(oh * stride[0] - pad[0][0], oh * stride[0] - pad[0][0] + size[0]):
            for w in range(ow * stride[1] - pad[1][0], ow * stride[1] - pad[1][0] + size[1]):
                if 0 <= h < height and 0 <= w < width:
                    v = x[i, h, w, c]
                    if best is None or v > best or np.isnan(v) and not np.isnan(best):
                        best, winner[i, oh, ow, c] = v, (h, w)
        y[i, oh, ow, c] = best
    return y, winner


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size, stride, pad", [((2, 2), (2, 2), ((0, 0), (0, 0))), ((3, 3), (2, 2), ((1, 2), (0, 1))), ((2, 3), (3, 4), ((1, 1), (2, 0)))])
def test_a_plain_loop_gives_the_same_with_ties_and_nan(device, size, stride, pad, ceil):
    random = np.random.default_rng(1)
    x = random.integers(-1, 2, (2, 7, 8, 19)).astype(np.float32)
    x[random.random(x.shape) < 0.1] = np.nan
    x[random.random(x.shape) < 0.1] = -np.inf
    y, winner = plain(x, size, stride, pad, ceil)
    dy, dx = random.integers(1, 9, y.shape).astype(np.float32), np.zeros(x.shape)
    for i, oh, ow, c in np.ndindex(y.shape):
        h, w = winner[i, oh, ow, c]
        dx[i, h, w, c] += dy[i, oh, ow, c]
    for place in ("numpy", device):
        options = dict(size=size, stride=stride, pad=pad, ceil=ceil, device=place)
        np.testing.assert_array_equal(to_host(max_pool2d(x, **options)), y)
        np.testing.assert_array_equal(to_host(max_pool2d_backward(dy, x, **options)), dx)


@pytest.mark.parametrize("add, relu", [(1, 1), (1, 0), (0, 1)])
@pytest.mark.parametrize("x, options", CASES.values(), ids=CASES)
def test_with_the_bias_and_relu_of_a_convolution(device, x, options, add, relu):
    """Half of the outputs are below 0, and so are whole windows."""
    layer, random = MaxPool(**options), np.random.default_rng(4)
    x = random.standard_normal(x).astype(np.float32)
    x[random.random(x.shape) < 0.02] = np.nan
    shape, found = x.shape[1:], []
    bias = (random.standard_normal(shape[2]) - 1).astype(np.float32)
    for place in (device, device_of("numpy")):
        y, winner = place.zeros((len(x), *layer.output(shape))), place.zeros((len(x), *layer.output(shape)), np.uint8)
        place.launch(max_pool, y.size // shape[2], place.array(x, np.float32), y, winner, place.array(bias), *shape, *layer.window.arguments(*shape[:2]), add, relu)
        found.append((to_host(y), to_host(winner)))
    for ours, truth in zip(*found):
        np.testing.assert_array_equal(ours, truth.astype(ours.dtype))
    plain = to_host(max_pool2d(x, device=device, **options)) + add * bias
    np.testing.assert_array_equal(found[0][0], np.where(plain <= 0, 0, plain) if relu else plain)


def test_the_first_nan_wins_and_takes_the_gradient(device):
    x = np.zeros((1, 2, 2, 1), np.float32)
    x[0, 0, 1], x[0, 1, 0], x[0, 1, 1] = np.nan, np.nan, np.inf
    assert np.isnan(to_host(max_pool2d(x, 2, device=device))).all()
    dx = to_host(max_pool2d_backward(np.full((1, 1, 1, 1), 5, np.float32), x, 2, device=device))
    np.testing.assert_array_equal(dx.ravel(), [0, 5, 0, 0])


def test_padding_is_never_chosen(device):
    x = np.full((1, 3, 3, 2), -7, np.float32)
    np.testing.assert_array_equal(to_host(max_pool2d(x, 3, stride=1, pad=2, device=device)), np.full((1, 5, 5, 2), -7))
    x[...] = -np.inf
    dx = to_host(max_pool2d_backward(np.ones((1, 2, 2, 2), np.float32), x, 3, stride=2, pad=1, device=device))
    assert dx.sum() == 8 and (dx == 4).sum() == 0      # four windows, four different first pixels


@pytest.mark.parametrize("options, text", [
    ({"size": 2, "pad": 2}, "pad: (2, 2) must be less than the window's 2 on each side"),
    ({"size": (3, 2), "pad": ((0, 0), (0, 2))}, "pad: (0, 2) must be less than the window's 2"),
    ({"size": 16}, "size: the winner of a window is kept in one byte, so it may have 255 elements, not (16, 16)"),
    ({"size": 0}, "size: expected at least 1, got 0"),
    ({"size": 2.5}, "size: expected an int or (height, width), got 2.5"),
    ({"size": 2, "stride": (0, 1)}, "stride: expected at least 1, got (0, 1)"),
    ({"size": 7}, "a window of height 7 does not fit into 6 pixels with padding 0+0"),
])
def test_mistakes_name_the_argument(options, text):
    with pytest.raises(ValueError) as told:
        max_pool2d(np.zeros((1, 6, 6, 2), np.float32), **options)
    assert text in str(told.value)


@pytest.mark.parametrize("shape", [(1, 0, 4, 1), (1, 4, 4, 0)])
def test_no_window_is_all_padding_because_there_is_no_image(shape):
    with pytest.raises(ValueError, match="x: only the first size may be 0"):
        max_pool2d(np.zeros(shape, np.float32), 2, pad=1)


def test_shapes_are_checked():
    x = np.zeros((1, 6, 6, 2), np.float32)
    with pytest.raises(ValueError, match="x: expected 4 dimensions"):
        max_pool2d(x[0], 2)
    with pytest.raises(TypeError, match="x: expected float32, got uint8"):
        max_pool2d(x.astype(np.uint8), 2)
    with pytest.raises(ValueError, match=r"dy: expected shape \(1, 3, 3, 2\), got \(1, 2, 3, 2\)"):
        max_pool2d_backward(np.zeros((1, 2, 3, 2), np.float32), x, 2)
