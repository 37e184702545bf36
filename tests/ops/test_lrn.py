"""Local response normalisation: the three ties with alpha near 1, where a wrong second term shows."""

import numpy as np
import pytest

from minialex.functional import local_response_norm, local_response_norm_backward
from minialex.gradcheck import check_op, compare, to_host

STRONG = {"alpha": 0.9, "k": 1.3}
CASES = {
    "one pixel": ((1, 1, 1, 1), {}),
    "fewer channels than the window": ((2, 3, 2, 3), {"size": 7}),
    "one channel": ((5, 1), {"size": 5}),
    "31 channels": ((3, 31), {}), "33 channels": ((3, 33), {}), "48 channels": ((2, 3, 48), {}),
    "257 channels": ((2, 257), {}), "263 channels and the largest window": ((2, 263), {"size": 63}), "520 channels": ((1, 520), {"size": 9}),
    "groups": ((3, 2, 12), {"groups": 3}), "groups of one channel": ((2, 7), {"groups": 7}), "two groups of 48": ((2, 96), {"groups": 2}),
    "a vector": ((11,), {}),
    "empty batch": ((0, 2, 2, 5), {}),
}


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("shape, options", CASES.values(), ids=CASES)
def test_three_ties(device, shape, options, mode):
    assert check_op("local_response_norm", {"x": shape}, {**STRONG, **options, "alpha_mode": mode}, device=device,
                    directions=3 if np.prod(shape) > 200 else None) == {}


@pytest.mark.parametrize("size", [1, 3, 5, 63])
@pytest.mark.parametrize("beta", [0.5, 0.75, 1.0, 0.6])
def test_three_ties_of_each_exponent_and_window(device, beta, size):
    assert check_op("local_response_norm", {"x": (3, 37)}, {**STRONG, "size": size, "beta": beta}, device=device) == {}


def test_the_papers_constants(device):
    assert check_op("local_response_norm", {"x": (2, 3, 3, 7)}, device=device) == {}


def plain(x, size, alpha, beta, k):
    y = np.zeros(x.shape)
    for i, c in np.ndindex(x.shape):
        around = x[i, max(0, c - size // 2):c + size // 2 + 1].astype(float)
        y[i, c] = x[i, c] / (k + alpha * (around ** 2).sum()) ** beta
    return y


@pytest.mark.parametrize("size, beta", [(1, 0.5), (3, 1.0), (5, 0.75), (7, 0.3)])
def test_alpha_multiplies_the_sum_or_is_divided_by_the_window(device, size, beta):
    x = np.random.default_rng(2).standard_normal((4, 19)).astype(np.float32)
    for place, tolerance in (("numpy", 1e-13), (device, 1e-5)):
        for mode, alpha in (("sum", 0.8), ("mean", 0.8 / size)):
            y = to_host(local_response_norm(x, size, alpha=0.8, beta=beta, k=1.5, alpha_mode=mode, device=place))
            compare("forward", mode, y, plain(x, size, alpha, beta, 1.5), tolerance=tolerance)


def test_nan_reaches_its_window_only(device):
    x = np.ones((1, 20), np.float32)
    x[0, 10] = np.nan
    y = to_host(local_response_norm(x, 5, device=device))
    dx = to_host(local_response_norm_backward(np.ones_like(x), x, 5, device=device))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(y)), np.arange(8, 13))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(dx)), np.arange(6, 15))


def test_a_group_sees_no_other(device):
    x = np.random.default_rng(3).standard_normal((2, 3, 20)).astype(np.float32)
    for place in ("numpy", device):
        y, dx = (to_host(a) for a in (local_response_norm(x, groups=2, device=place, **STRONG), local_response_norm_backward(x[::-1].copy(), x, groups=2, device=place, **STRONG)))
        for half in (slice(10), slice(10, 20)):
            part = np.ascontiguousarray(x[..., half])
            np.testing.assert_array_equal(y[..., half], to_host(local_response_norm(part, device=place, **STRONG)))
            np.testing.assert_array_equal(dx[..., half], to_host(local_response_norm_backward(part[::-1].copy(), part, device=place, **STRONG)))


@pytest.mark.parametrize("options, text", [
    ({"size": 4}, "size: expected an odd number up to 63, got 4 (torch and ONNX place an even window differently, so there is no one meaning)"),
    ({"size": 65}, "size: expected an odd number up to 63, got 65"),
    ({"size": -1}, "size: expected an odd number up to 63, got -1"),
    ({"alpha_mode": "max"}, "alpha_mode: expected 'sum' (the paper) or 'mean' (its code, Caffe, torch), got 'max'"),
    ({"alpha": 0, "k": 0}, "alpha, k: expected alpha >= 0 and k >= 0, not both 0"),
    ({"alpha": -1}, "alpha, k: expected alpha >= 0"), ({"groups": 0}, "groups: expected at least 1, got 0"),
    ({"groups": 2}, "groups: 5 channels cannot be cut into 2 groups"),
])
def test_mistakes_name_the_argument(options, text):
    with pytest.raises(ValueError) as told:
        local_response_norm(np.zeros((2, 5), np.float32), **options)
    assert str(told.value).startswith(text) and ("torch" in str(told.value)) == ("torch" in text)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="x: only the first size may be 0"):
        local_response_norm(np.zeros((2, 0), np.float32))
    with pytest.raises(ValueError, match="dy: expected shape"):
        local_response_norm_backward(np.zeros((2, 4), np.float32), np.zeros((2, 5), np.float32))
    with pytest.raises(TypeError, match="x: expected an array, got float"):
        local_response_norm(0.5)


def test_what_overflows_is_no_nan(device):
    """The sum of squares is infinite in float32, and its power 0."""
    x = np.full((2, 24), 1e25, np.float32)
    assert not np.isnan(to_host(local_response_norm(x, device=device))).any()
