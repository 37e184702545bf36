"""Winograd's convolution: where its matrices come from, the three ties over odd shapes, im2col beside it, its errors, mistakes."""

import sys
from pathlib import Path

import numpy as np
import pytest

import minialex
from minialex.functional import conv2d, conv2d_backward
from minialex.gradcheck import check_op, compare, to_host
from minialex.nets import build
from minialex.ops.conv import Conv
from minialex.ops.layer import run_alone
from minialex.ops.winograd import FORMS, Winograd, form, matrices, pitch_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import convolution_errors  # noqa: E402

CASES = {                # x, w, options
    "one pixel": ((1, 1, 1, 1), (3, 3, 1, 1), {"pad": 1}),
    "one tile": ((1, 6, 6, 2), (3, 3, 2, 3), {}),
    "no tile is whole": ((2, 3, 2, 3), (5, 5, 3, 2), {"pad": 2}),
    "primes": ((3, 7, 11, 5), (3, 3, 5, 7), {"pad": 1}),
    "primes, 5x5": ((2, 11, 7, 3), (5, 5, 3, 5), {"pad": 2}),
    "padding on one side": ((2, 9, 6, 3), (5, 5, 3, 4), {"pad": ((4, 0), (1, 3))}),
    "channels 31 to 33": ((2, 5, 4, 31), (3, 3, 31, 33), {"pad": 1}),
    "channels 33 to 257": ((1, 3, 4, 33), (3, 3, 33, 257), {"pad": 2}),
    "a tile of 5": ((2, 5, 5, 3), (3, 3, 3, 4), {"pad": 1}),
    "tiles of 5, of which none is whole": ((1, 13, 9, 6), (3, 3, 3, 10), {"pad": 1, "groups": 2}),
    "tiles of 5 blocks": ((1, 47, 24, 3), (11, 11, 3, 5), {"stride": 4, "pad": 3}),
    "two groups": ((2, 5, 9, 6), (3, 3, 3, 4), {"pad": 1, "groups": 2}),
    "three groups of 11": ((1, 6, 9, 33), (5, 5, 11, 99), {"pad": (0, 2), "groups": 3}),
    "a group for each channel": ((2, 5, 4, 7), (3, 3, 1, 14), {"pad": 1, "groups": 7}),
    "blocks of 4 pixels": ((2, 23, 19, 3), (11, 11, 3, 5), {"stride": 4, "pad": ((1, 2), (1, 2))}),
    "blocks that padding starts": ((1, 31, 26, 2), (9, 9, 2, 33), {"stride": 2, "pad": ((5, 3), (0, 11))}),
    "blocks, and pixels that no window reaches": ((2, 14, 13, 4), (5, 5, 4, 6), {"stride": 2}),
    "empty batch": ((0, 5, 5, 4), (3, 3, 2, 6), {"groups": 2}),
}


@pytest.mark.parametrize("x, w, options", CASES.values(), ids=CASES)
def test_three_ties(device, x, w, options):
    few = np.prod(x) + np.prod(w) < 200
    assert check_op("conv2d", {"x": x, "w": w, "b": w[3:]}, {**options, "algorithm": "winograd"}, device=device, directions=None if few else 3) == {}


@pytest.mark.parametrize("x, w, options", CASES.values(), ids=CASES)
def test_in_exact_arithmetic_it_is_im2col(x, w, options):
    random = np.random.default_rng(1)
    x, w, b = (random.standard_normal(shape) for shape in (x, w, w[3:]))
    y = conv2d(x, w, b, device="numpy", **options)
    np.testing.assert_allclose(conv2d(x, w, b, device="numpy", algorithm="winograd", **options), y, rtol=0, atol=1e-12 * np.sqrt(w[..., 0].size + 1))
    dy = random.standard_normal(y.shape)
    for mine, truth in zip(conv2d_backward(dy, x, w, device="numpy", algorithm="winograd", **options), conv2d_backward(dy, x, w, device="numpy", **options)):
        np.testing.assert_allclose(mine, truth, rtol=0, atol=1e-11 * np.abs(truth).max(initial=1))


def test_the_matrices_of_six_values_are_the_published_ones():
    """Lavin and Gray 2016, section 4.1 (F(4x4, 3x3)), whose G and B^T have rows times and over 4, 6, 6, 24, 24 and 1 of ours."""
    a, b, g = matrices(4, 3)
    np.testing.assert_array_equal(a.T, [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
    np.testing.assert_array_equal(b, [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
                                      [0, 4, 0, -5, 0, 1]])
    np.testing.assert_allclose(g, np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24)


def test_a_net_has_the_form_with_the_fewest_multiplications():
    assert [form(3, n, n) for n in (4, 5, 8, 12, 13, 24, 27, 54, 55)] == [4, 5, 4, 4, 5, 5, 4, 5, 5] and form(5, 27, 27) == 4
    paper = build("paper")
    assert {name: Winograd(layer, paper.inputs[name]).m for name, layer in paper.layers.items() if isinstance(layer, Conv)} == {
        "conv1": 5, "conv2": 4, "conv3": 5, "conv4": 5, "conv5": 5}


@pytest.mark.parametrize("r, m", [(r, m) for r, sizes in FORMS.items() for m in sizes])
def test_the_kernels_have_these_matrices(device, r, m):
    """Columns of zeros but a one come out as the columns of the matrices: of B^T and A as they are, of G through its transforms."""
    from minialex.ops import winograd as ops
    t = m + r - 1
    a, b, g = matrices(m, r)

    def planes(kernel, place, size, *arguments):
        x = np.zeros((size, size, 1), np.float32)
        x[place] = 1
        room = device.zeros((t * t * pitch_of(1),))
        device.launch(kernel, 1, device.array(x), room, m, r, *arguments, pitch_of(1))
        device.synchronize()
        return device.to_numpy(room).reshape(t, t, -1)[..., 0]

    for i, j in ((0, 0), (1, 2), (2, 1), (r - 1, r - 2)):
        np.testing.assert_allclose(planes(ops.winograd_input, (i, j), t, t, t, 1, 1, 1, 0, 0, 1), np.outer(b[:, i], b[:, j]), rtol=1e-6)
    for i, j in ((0, 0), (1, 2), (2, 1), (m - 1, m - 2)):
        np.testing.assert_allclose(planes(ops.winograd_spread, (i, j), m, m, m, 1, 1, 1, 1), np.outer(a[:, i], a[:, j]), rtol=1e-6)
    x = np.zeros((r, r, 1, 1), np.float32)
    x[1, 2] = 1
    for turned in (0, 1):
        room = device.zeros((t * t * pitch_of(1),))
        device.launch(ops.winograd_filter, 1, device.array(x), room, m, r, 1, 1, 0, 0, 1, pitch_of(1), turned)
        device.synchronize()
        i, j = (r - 2, r - 3) if turned else (1, 2)
        np.testing.assert_allclose(device.to_numpy(room).reshape(t, t, -1)[..., 0], np.outer(g[:, i], g[:, j]), rtol=1e-6)


def test_pieces_accumulation_and_relu(device):
    """A small workspace takes the images in pieces; gradients add up; ReLU and its mask are those of im2col."""
    random = np.random.default_rng(6)
    x, w, b, dy = (random.standard_normal(s).astype(np.float32) for s in ((5, 6, 7, 4), (3, 3, 2, 6), (6,), (5, 6, 7, 6)))
    truth = run_alone(Conv(6, 3, pad=1, groups=2), "numpy", x, dy, {"weight": w, "bias": b})
    layer = Conv(6, 3, pad=1, groups=2, algorithm="winograd")
    site, way = run_alone(layer, device, x, dy, {"weight": w, "bias": b}), Winograd(layer, (6, 7, 4))
    for name, value in (("y", site.y), ("dx", site.dx), *site.gradients.items()):
        compare("relu", name, device.to_numpy(value), truth.gradients[name] if name in truth.gradients else getattr(truth, name))
    for images in (1, 2, 4):
        site.columns = device.zeros((way.columns(device, images, True, True)[1],))
        assert way.columns(device, images, True, True)[1] >= way.columns(device, 1, True, True)[0]
        for times in (1, 2):
            site.dy, site.accumulate = device.array(dy), times == 2
            layer.prepare(device, site, True)
            layer.backward(device, site)
            device.synchronize()
            compare("pieces", "dx", device.to_numpy(site.dx), truth.dx)
            for part in truth.gradients:
                compare(f"{times} times", part, device.to_numpy(site.gradients[part]), times * truth.gradients[part])


@pytest.mark.parametrize("x, w, options", [CASES[name] for name in ("primes, 5x5", "padding on one side", "two groups", "blocks that padding starts")])
def test_weights_alone_have_the_same_gradient(device, x, w, options):
    """Of a layer whose input's gradient nobody needs it is found another way."""
    random = np.random.default_rng(2)
    options = {"pad": 0, "stride": 1, "groups": 1} | options
    layer = Conv(w[3], w[:2], options["stride"], options["pad"], options["groups"], relu=False, algorithm="winograd")
    x, weight, b = (random.standard_normal(shape).astype(np.float32) for shape in (x, w, w[3:]))
    dy = random.standard_normal((len(x), *layer.output(x.shape[1:]))).astype(np.float32)
    site = run_alone(layer, device, x, dy, {"weight": weight, "bias": b})
    truth = device.to_numpy(site.gradients["weight"])
    site.dy, site.dx, site.columns = device.array(dy), None, device.zeros((layer.columns(device, x.shape[1:], 1, True, False)[1],))
    for times in (1, 2):
        site.accumulate = times == 2
        layer.backward(device, site)
        device.synchronize()
        compare("alone", "weight", device.to_numpy(site.gradients["weight"]), times * truth)


def test_nan_spreads_over_its_tiles_and_no_further(device):
    x = np.ones((1, 13, 13, 3), np.float32)
    x[0, 1, 1, 0] = np.nan
    y = to_host(conv2d(x, np.ones((3, 3, 3, 2), np.float32), pad=1, algorithm="winograd", device=device))
    assert np.isnan(y[0, :5, :5]).all() and not np.isnan(y[0, 5:, 5:]).any()


@pytest.mark.parametrize("options, text", [
    ({"algorithm": "winograd", "stride": 2}, "winograd is for square filters of 3 or 5 strides"),
    ({"algorithm": "winograd", "pad": 3}, "winograd is for square filters of 3 or 5 strides"),
    ({"algorithm": "fft"}, "algorithm: expected auto, im2col or winograd, or two of these for forward and backward, got 'fft'"),
    ({"algorithm": ("im2col", "auto")}, "algorithm: expected auto, im2col or winograd, or two of these"),
    ({"algorithm": 3}, "algorithm: expected auto, im2col or winograd"),
])
def test_mistakes_are_told(options, text):
    with pytest.raises(ValueError, match=text):
        conv2d(np.zeros((1, 9, 9, 2), np.float32), np.zeros((3, 3, 2, 2), np.float32), **options)


def bounded(cases, random):
    """Holds Winograd's errors to what the amplification of its transforms makes of im2col's, and prints the table of the docs (pytest -s)."""
    found = list(convolution_errors.rows(cases, random))
    print(convolution_errors.table("layer", found))
    assert found
    for name, each, amplified in found:
        for key in convolution_errors.RESULTS:
            assert 0 < each["im2col"][key] < 1e-6 and each["im2col"][key] < each["winograd"][key] < 1.25 * amplified[key], (name, key)


def test_random_errors_are_those_of_im2col_amplified():
    bounded(convolution_errors.drawn(build("half", 10, 67, 2), 2), True)


def test_errors_of_a_trained_net_are_no_larger(finished):
    bounded(convolution_errors.of_run(minialex.load(finished, device="cpu"), 4), False)
