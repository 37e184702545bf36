"""Convolution: the three ties over odd shapes, a plain loop beside the reference, im2col and its transpose, mistakes."""

import numpy as np
import pytest

from minialex.functional import col2im, conv2d, conv2d_backward, im2col
from minialex.gradcheck import check_op, compare, to_host
from minialex.ops.bias import slices
from minialex.ops.add import BLOCK, add_parts
from minialex.ops.conv import Conv
from minialex.ops.im2col import Im2col
from minialex.ops.layer import device_of, run_alone

CASES = {                # x, w, options
    "one pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "window over every edge": ((2, 2, 3, 3), (5, 5, 3, 2), {"pad": 3}),
    "padding beyond the window": ((1, 2, 2, 1), (1, 2, 1, 2), {"pad": ((3, 2), (4, 3))}),
    "primes": ((3, 7, 11, 5), (3, 5, 5, 7), {"stride": (2, 3), "pad": (1, 2)}),
    "channels 31 to 33": ((2, 5, 3, 31), (3, 3, 31, 33), {"pad": 1}),
    "channels 48 to 257": ((1, 3, 4, 48), (3, 3, 48, 257), {"pad": 1}),
    "channels 257 to 1": ((2, 3, 3, 257), (2, 2, 257, 1), {}),
    "stride beyond the window": ((2, 9, 8, 3), (2, 1, 3, 4), {"stride": (4, 3)}),
    "asymmetric padding": ((2, 6, 5, 3), (4, 3, 3, 4), {"stride": 2, "pad": ((1, 2), (0, 3))}),
    "two groups": ((2, 5, 5, 6), (3, 3, 3, 4), {"pad": 1, "groups": 2}),
    "three groups of 11": ((1, 4, 5, 33), (2, 3, 11, 99), {"pad": (0, 1), "groups": 3}),
    "a group for each channel": ((2, 5, 4, 7), (3, 3, 1, 14), {"pad": 1, "groups": 7}),
    "conv1": ((1, 23, 19, 3), (11, 11, 3, 5), {"stride": 4, "pad": ((1, 2), (1, 2))}),
    "empty batch": ((0, 5, 5, 4), (3, 3, 2, 6), {"groups": 2}),
    "many bias slices": ((1, 191, 173, 1), (1, 1, 1, 3), {}),
}


@pytest.mark.parametrize("x, w, options", CASES.values(), ids=CASES)
def test_three_ties(device, x, w, options):
    few = np.prod(x) + np.prod(w) < 400
    assert check_op("conv2d", {"x": x, "w": w, "b": w[3:]}, options, device=device, directions=None if few else 3) == {}


def test_the_many_slices_are_many():
    assert slices(191 * 173)[0] == 17 and slices(2048 * 16) == (16, 2048)


def plain(x, w, b, stride, pad, groups):
    """The formula, as loops."""
    (top, bottom), (left, right), (sh, sw) = *pad, stride
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    (kh, kw, own, o), (n, height, width, _) = w.shape, x.shape
    y = np.zeros((n, (height - kh) // sh + 1, (width - kw) // sw + 1, o))
    for image, oh, ow, f in np.ndindex(y.shape):
        first = f // (o // groups) * own
        y[image, oh, ow, f] = b[f] + (x[image, oh * sh:oh * sh + kh, ow * sw:ow * sw + kw, first:first + own] * w[..., f]).sum()
    return y


@pytest.mark.parametrize("stride, pad, groups", [((1, 1), ((0, 0), (0, 0)), 1), ((2, 3), ((1, 2), (3, 0)), 1),
                                                 ((1, 2), ((2, 2), (1, 1)), 2), ((3, 1), ((0, 1), (2, 0)), 4)])
def test_a_plain_loop_gives_the_same(device, stride, pad, groups):
    random = np.random.default_rng(3)
    x, w, b = (random.standard_normal(s) for s in ((2, 6, 5, 4), (3, 2, 4 // groups, 8), (8,)))
    truth = plain(x, w, b, stride, pad, groups)
    for place, tolerance in (("numpy", 1e-13), (device, 1e-6)):
        compare("forward", "y", to_host(conv2d(x, w, b, stride=stride, pad=pad, groups=groups, device=place)), truth, tolerance=tolerance)
    without = conv2d(x, w, stride=stride, pad=pad, groups=groups, device="numpy")
    np.testing.assert_allclose(without, truth - b, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"pad": 2}, {"stride": (3, 2), "pad": ((1, 0), (2, 3))}, {"groups": 3, "pad": 1},
                                     {"groups": 3, "stride": 4}])
def test_im2col_copies_and_col2im_is_its_transpose(device, options):
    random = np.random.default_rng(4)
    x = random.standard_normal((3, 7, 6, 33)).astype(np.float32)
    columns = im2col(x, (3, 2), device="numpy", **options)
    np.testing.assert_array_equal(to_host(im2col(x, (3, 2), device=device, **options)), columns)
    other = random.standard_normal(columns.shape).astype(np.float32)
    back = col2im(other, x.shape, (3, 2), device="numpy", **options)
    assert np.vdot(columns, other) == pytest.approx(np.vdot(x, back), rel=1e-12)
    compare("col2im", "dx", to_host(col2im(other, x.shape, (3, 2), device=device, **options)), back, tolerance=1e-6)


@pytest.mark.parametrize("filters", [5, 257])
def test_relu_in_the_pass_of_the_bias(device, filters):
    """Forward is max(conv + b, 0), backward masks dy where it is 0, and NaN passes through both."""
    random = np.random.default_rng(5)
    x, w, b = (random.standard_normal(s).astype(np.float32) for s in ((2, 4, 5, 3), (3, 3, 3, filters), (filters,)))
    dy = random.standard_normal((2, 2, 3, filters)).astype(np.float32)
    x[1, 0, 0, 1] = np.nan
    layer = Conv(filters, 3)
    truth = run_alone(layer, "numpy", x, dy, {"weight": w, "bias": b})
    site = run_alone(layer, device, x, dy, {"weight": w, "bias": b})
    plain_y = conv2d(x, w, b, device="numpy")
    np.testing.assert_array_equal(truth.y, np.where(plain_y <= 0, 0, plain_y))
    masked = conv2d_backward(np.where(truth.y <= 0, 0, dy), x, w, device="numpy")
    for expected, own in zip(masked, (truth.dx, truth.gradients["weight"], truth.gradients["bias"])):
        np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-12)
    assert np.isnan(truth.y[1, 0, 0]).all() and not np.isnan(truth.y[0]).any() and np.isnan(truth.gradients["weight"]).any()
    compare("forward", "y", to_host(site.y), truth.y)
    compare("backward", "dx", to_host(site.dx), truth.dx)
    for part in truth.gradients:
        compare("backward", part, to_host(site.gradients[part]), truth.gradients[part])


def test_gradients_accumulate_over_pieces_of_the_batch(device, monkeypatch):
    """A small workspace takes the images, or the lines of each, in pieces; the pieces' gradients add up."""
    random = np.random.default_rng(6)
    x, w, b, dy = (random.standard_normal(s).astype(np.float32) for s in ((5, 6, 6, 4), (3, 3, 2, 6), (6,), (5, 4, 4, 6)))
    layer, truth = Conv(6, 3, groups=2), run_alone(Conv(6, 3, groups=2), "numpy", x, dy, {"weight": w, "bias": b})
    site = run_alone(layer, device, x, dy, {"weight": w, "bias": b})
    way = Im2col(layer, (6, 6, 4))
    image = way.image
    for images, tile, pieces in ((1, None, 5), (2, None, 3), (3, None, 2), (2, image, 5), (1, image // 2, 10), (1, 3 * image // 4, 10), (1, 1, 20)):
        monkeypatch.setattr(device, "tile", tile, raising=False)
        monkeypatch.setattr(Im2col, "tile", lambda self, device, rows=0: max(device.tile, image // 4) if device.tile else 1 << 62)
        parts = way.slices(device) * w.size if way.slices(device) > 1 else 0
        site.columns, site.dy, site.kept = device.zeros((image * images + parts,)), device.array(dy), {}
        assert len(way.pieces(device, site, image * images)) == pieces
        site.accumulate = False
        layer.forward(device, site)
        layer.backward(device, site)
        device.synchronize()
        compare("backward", "dx", device.to_numpy(site.dx), truth.dx)
        compare("backward", "weight", device.to_numpy(site.gradients["weight"]), truth.gradients["weight"])
        site.dy, site.accumulate = device.array(dy), True
        layer.backward(device, site)
        device.synchronize()
        for part in truth.gradients:
            compare("twice", part, device.to_numpy(site.gradients[part]), 2 * truth.gradients[part])


X, W, B = np.zeros((2, 5, 5, 4), np.float32), np.zeros((3, 3, 4, 6), np.float32), np.zeros(6, np.float32)


@pytest.mark.parametrize("arguments, options, kind, text", [
    ((X[0], W, B), {}, ValueError, "x: expected 4 dimensions (N, H, W, C), got shape (5, 5, 4)"),
    ((X, W[0], B), {}, ValueError, "w: expected 4 dimensions (KH, KW, C/groups, O)"),
    ((X, W, B[None]), {}, ValueError, "b: expected 1 dimensions (O)"),
    ((X, W, B[:5]), {}, ValueError, "b: expected shape (6,), got (5,)"),
    ((X[..., :3], W, B), {}, ValueError, "w: expected 3 / 1 input channels"),
    ((X, W[:, :, :2], B), {"groups": 4}, ValueError, "groups: 6 filters cannot be cut into 4 groups"),
    ((X.astype(int), W, B), {}, TypeError, "x: expected float32, got int64"),
    (([1.0], W, B), {}, TypeError, "x: expected an array, got list"),
    ((X, W, B), {"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
    ((X, W, B), {"pad": -1}, ValueError, "pad: expected at least 0, got -1"),
    ((X, W, B), {"pad": 0.5}, ValueError, "pad: expected an int, (height, width) or ((top, bottom), (left, right)), got 0.5"),
    ((X, W, B), {"stride": (1, 2, 3)}, ValueError, "stride: expected an int or (height, width), got (1, 2, 3)"),
    ((X[:, :2], W, B), {}, ValueError, "a window of height 3 does not fit into 2 pixels with padding 0+0"),
    ((X[..., :0], W[:, :, :0], B), {}, ValueError, "x: only the first size may be 0 (an empty batch)"),
    ((X, W[..., :0], B), {}, ValueError, "filters: expected at least 1, got 0"),
])
def test_mistakes_name_the_argument(arguments, options, kind, text):
    with pytest.raises(kind) as told:
        conv2d(*arguments, **options)
    assert text in str(told.value)


def test_the_gradient_must_have_the_outputs_shape():
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 3, 3, 6\), got \(2, 3, 3, 5\)"):
        conv2d_backward(np.zeros((2, 3, 3, 5), np.float32), X, W)
    with pytest.raises(ValueError, match="columns: expected shape"):
        col2im(np.zeros((1, 8, 36), np.float32), X.shape, 3)


@pytest.mark.parametrize("images, slices", [(6, 3), (7, 3), (2, 5), (5, 1)])
def test_a_weight_gradient_in_slices_of_the_pixels(device, images, slices, monkeypatch):
    monkeypatch.setattr(device, "slices", lambda tiles: slices, raising=False)
    random = np.random.default_rng(images)
    x, w = random.standard_normal((images, 7, 6, 6)), random.standard_normal((3, 2, 3, 8))
    dy = random.standard_normal((images, *conv2d(x, w, pad=1, groups=2, device="numpy").shape[1:]))
    ours = conv2d_backward(dy.astype(np.float32), x.astype(np.float32), w.astype(np.float32), pad=1, groups=2, device=device)
    for name, mine, truth in zip(("dx", "dw", "db"), ours, conv2d_backward(dy, x, w, pad=1, groups=2, device="numpy")):
        compare("conv2d_backward", name, to_host(mine), truth)


@pytest.mark.parametrize("accumulate", [0, 1])
@pytest.mark.parametrize("count", [1, 31, BLOCK, 5 * BLOCK + 7])
def test_add_parts(device, count, accumulate):
    random = np.random.default_rng(count)
    parts, to = random.standard_normal((3, count)).astype(np.float32), random.standard_normal(count).astype(np.float32)
    for place in (device, device_of("numpy")):
        total = place.array(to, np.float32)
        place.launch(add_parts, -(-count // BLOCK), place.array(parts, np.float32), total, count, 3, accumulate)
        place.synchronize()
        np.testing.assert_allclose(place.to_numpy(total), to * accumulate + parts.sum(axis=0), rtol=1e-5, atol=1e-6)
